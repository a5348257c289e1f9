"""The audit: what would not start on the board is named, what would is left alone; strangers' files are harmless."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_elf import LDADD, LOADER, NOP, OUTLINED, RET, SDOT, WORDS, TinyElf

from edgekit import targets
from edgekit.crossbuild import audit_rules, elf
from edgekit.crossbuild.audit import audit_file
from edgekit.crossbuild.audit_wheel import dispatching
from edgekit.crossbuild.library_code import Piece, kept_functions, pieces
from edgekit.errors import EdgekitError, FileFormatError, InputNotFoundError, OptionError

RPI4, RPI5, GENERIC = (targets.load(name) for name in ("rpi4", "rpi5", "arm64-generic"))
AESE, PMULL = WORDS["aese v0.16b, v1.16b"][0], WORDS["pmull v0.1q, v1.1d, v2.1d"][0]
PTRUE, CNTD, ADD_Z = WORDS["ptrue p0.b"][0], 0x04E0E3E0, WORDS["add z0.s, z1.s, z2.s"][0]


def with_toolchain(target: targets.Target, **changes: Any) -> targets.Target:
    """A target with other keys in [toolchain]."""
    assert target.toolchain is not None
    return msgspec.structs.replace(target, toolchain=msgspec.structs.replace(target.toolchain, **changes))


def faults(made: TinyElf, folder: Path, target: targets.Target = RPI4) -> tuple[str, ...]:
    (folder / "tool").write_bytes(made.build())
    return audit_file(folder / "tool", target).faults


# --- files that are none, or damaged ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"\x7fEL", b"MZ", b"\x7fELF", b"\x7fELF" + bytes(60), b"\x7fELF" + b"\xff" * 200]
)
def test_no_elf_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FileFormatError, match="x is"):
        audit_file(tmp_path / "x", RPI5)


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("no", "nul\0byte", "x" * 5000):
        with pytest.raises(InputNotFoundError):
            audit_file(tmp_path / name, RPI5)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="no plain file"):
        audit_file(tmp_path / "pipe", RPI5)


def test_a_target_that_nothing_is_compiled_for(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TinyElf().build())
    with pytest.raises(OptionError, match="host"):
        audit_file(tmp_path / "x", targets.load("host"))


WHOLE = TinyElf(
    code=(NOP, SDOT, RET), program=True, interpreter=LOADER, needed=["libc.so.6", "libm.so.6"], soname="x",
    runpath="$ORIGIN/../lib", versions={"libc.so.6": ["GLIBC_2.17", "GLIBC_2.34"], "libm.so.6": ["GLIBC_2.29"]},
    exports=["PyInit_x", "dot"], imports=["getauxval"],
).build()  # fmt: skip


def read_or_refused(data: bytes) -> elf.Elf | str:
    try:
        return elf.read(data, "x")
    except EdgekitError as error:
        return error.sentence()


def test_every_truncation() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(FileFormatError):
            elf.read(WHOLE[:size], "x")


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 8), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=4
    )
)
def test_damage(edits: list[tuple[int, int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, size, value in edits:
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    found = read_or_refused(bytes(data))
    if isinstance(found, str):
        assert found.isprintable()
        assert len(found) < 1000
    else:
        assert sum(len(code.words) for code in found.code) <= len(data)


@pytest.mark.parametrize("field", ["sh_info", "next"])
def test_a_table_that_leads_in_circles(field: str) -> None:
    """Four thousand million versions, or each followed by itself."""
    data = bytearray(WHOLE)
    header = struct.unpack_from("<Q", data, 40)[0]
    for index in range(struct.unpack_from("<H", data, 60)[0]):
        at = header + 64 * index
        if struct.unpack_from("<I", data, at + 4)[0] == 0x6FFFFFFE:
            struct.pack_into("<I", data, at + 44, 0xFFFFFFFF)
            if field == "next":
                struct.pack_into("<I", data, struct.unpack_from("<Q", data, at + 24)[0] + 12, 0)
    with pytest.raises(FileFormatError, match="damaged"):
        elf.read(bytes(data), "x")


def test_as_many_reads_as_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "_FEW_READS", 10)
    with pytest.raises(FileFormatError, match="lead in circles"):
        elf.read(WHOLE, "x")


def test_facts() -> None:
    found = elf.read(WHOLE, "x")
    assert (found.machine, found.kind, found.interpreter) == ("AArch64", "program", LOADER)
    assert found.needed == ("libc.so.6", "libm.so.6")
    assert found.search == ("$ORIGIN/../lib",)
    assert found.versions[1:] == (("libc.so.6", "GLIBC_2.34"), ("libm.so.6", "GLIBC_2.29"))
    assert found.python_module
    assert found.names_function("getauxval")
    assert not found.names_function("getauxva")
    (code,) = found.code
    assert code.words.tolist() == [NOP, SDOT, RET]
    assert found.symbols.place(code.address + 4) == f"dot ({code.address + 4:#x})"
    assert found.symbols.place(code.address + 8) == f"{code.address + 8:#x}"


def test_a_program_without_section_headers_is_read_by_its_segments() -> None:
    found = elf.read(TinyElf(code=(NOP, SDOT, RET), program=True, headers=False).build(), "x")
    assert SDOT in found.code[0].words


def test_needs_that_cannot_be_told() -> None:
    made = TinyElf(versions={"libc.so.6": ["GLIBC_2.17"]}, headers=False).build()
    with pytest.raises(FileFormatError, match="no section headers"):
        elf.read(made, "x")


# --- one rule after the other: it bites ------------------------------------------------------------------------------

C, CXX, GCC = "libc.so.6", "libstdc++.so.6", "libgcc_s.so.1"
BAD: Mapping[str, tuple[TinyElf, str]] = {
    "machine": (TinyElf(machine=62), "is for x86-64, and the target is AArch64"),
    "unknown machine": (TinyElf(machine=4242), "is for 4242"),
    "loader": (TinyElf(program=True, interpreter="/lib/ld-musl-aarch64.so.1"), "asks for the loader /lib/ld-musl"),
    "glibc": (TinyElf(versions={C: ["GLIBC_2.17", "GLIBC_2.38"]}), "needs GLIBC_2.38, and the target has GLIBC_2.36"),
    "glibc, by number": (TinyElf(versions={C: ["GLIBC_2.100", "GLIBC_2.9"]}), "needs GLIBC_2.100"),
    "glibc, of libm": (TinyElf(versions={"libm.so.6": ["GLIBC_2.38"]}), "needs GLIBC_2.38"),
    "glibc, private": (TinyElf(versions={C: ["GLIBC_PRIVATE"]}), "needs GLIBC_PRIVATE of libc.so.6"),
    "libstdc++": (TinyElf(versions={CXX: ["GLIBCXX_3.4.31"]}), "needs GLIBCXX_3.4.31, and the target has GLIBCXX_3."),
    "C++ ABI": (TinyElf(versions={CXX: ["CXXABI_1.3.14"]}), "needs CXXABI_1.3.14, and the target has CXXABI_1.3.13"),
    "libgcc": (TinyElf(versions={GCC: ["GCC_13.0.0"]}), "needs GCC_13.0.0"),
    "library": (TinyElf(needed=["libgomp.so.1"]), "needs libgomp.so.1, which neither comes along nor is part of"),
    "rpath": (TinyElf(rpath="/opt/lib"), "looks for libraries in '/opt/lib'"),
    "runpath": (TinyElf(runpath="$ORIGIN:/usr/local/lib"), "looks for libraries in '/usr/local/lib'"),
    "runpath, empty": (TinyElf(runpath="$ORIGIN:"), "looks for libraries in ''"),
    "runpath, relative": (TinyElf(runpath="lib"), "looks for libraries in 'lib'"),
    "runpath, out of it": (TinyElf(runpath="$ORIGIN/../../lib"), "'$ORIGIN/../../lib', which is not below"),
    "runpath, not quite": (TinyElf(runpath="$ORIGINAL/lib"), "looks for libraries in '$ORIGINAL/lib'"),
    "stack": (TinyElf(stack=7), "asks for an executable stack"),
    "text relocations": (TinyElf(text_relocations=True), "DT_TEXTREL"),
    "dot product": (TinyElf(code=(NOP, SDOT, SDOT, RET)), "needs asimddp, which Cortex-A72 lacks: sdot v0.4s"),
    "AES": (TinyElf(code=(AESE, RET)), "needs aes, which Cortex-A72 lacks: aese v0.16b, v1.16b at 0x"),
    "polynomials": (TinyElf(code=(PMULL, RET)), "needs pmull"),
    "atomics": (TinyElf(code=(NOP, LDADD, RET)), "needs atomics, which Cortex-A72 lacks: ldadd"),
    "vectors": (TinyElf(code=(PTRUE, RET)), "needs sve, which Cortex-A72 lacks: ptrue"),
    "length of vectors, beside others": (TinyElf(code=(CNTD, *[NOP] * 20, ADD_Z, RET)), "needs sve"),
    "a function by another name": (TinyElf(code=(PTRUE, RET), exports=["__memcpy_sve2"]), "needs sve"),
    "a function that is over": (TinyElf(code=(RET, PTRUE), exports=["__memcpy_sve"]), "needs sve"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BAD)
def test_the_rule_bites(rule: str, tmp_path: Path) -> None:
    made, words = BAD[rule]
    found = faults(made, tmp_path)
    assert len(found) == 1, found
    assert words in found[0]


GOOD: Mapping[str, TinyElf] = {
    "nothing": TinyElf(),
    "static program": TinyElf(program=True),
    "dynamic program": TinyElf(program=True, interpreter=LOADER, needed=[C, "libm.so.6", "ld-linux-aarch64.so.1"]),
    "the target's own versions": TinyElf(
        versions={C: ["GLIBC_2.36"], CXX: ["GLIBCXX_3.4.30", "CXXABI_1.3.13", "CXXABI_TM_1"], GCC: ["GCC_7.0.0"]}
    ),
    "relative relocations, of glibc 2.36": TinyElf(versions={C: ["GLIBC_ABI_DT_RELR"]}),
    "other libraries' versions": TinyElf(versions={"libz.so.1": ["ZLIB_1.2.9"]}),
    "plain Debian": TinyElf(needed=[CXX, GCC, "libpthread.so.0", "libdl.so.2", "librt.so.1", "libz.so.1"]),
    "own folder": TinyElf(rpath="$ORIGIN", runpath="${ORIGIN}/lib:$ORIGIN/./x"),
    "debug sections of others": TinyElf(debug=9),
    "outlined atomics": TinyElf(code=OUTLINED),
    "length of vectors, in an unwinder": TinyElf(code=(NOP, CNTD, RET)),
    "chosen by libc": TinyElf(code=(PTRUE, RET), exports=["__memcpy_sve"]),
    "CRC, which a Pi 4 has": TinyElf(code=(WORDS["crc32b w0, w1, w2"][0], RET)),
    "all of Armv8.0": TinyElf(code=[word for word, feature in WORDS.values() if not feature]),
}


@pytest.mark.parametrize("case", GOOD)
def test_it_leaves_alone_what_starts(case: str, tmp_path: Path) -> None:
    assert faults(GOOD[case], tmp_path) == ()


def test_older_glibc_without_relative_relocations(tmp_path: Path) -> None:
    assert "GLIBC_2.36" in faults(GOOD["relative relocations, of glibc 2.36"], tmp_path, GENERIC)[0]


def test_the_same_file_on_another_board(tmp_path: Path) -> None:
    made = TinyElf(code=(SDOT, AESE, LDADD, RET))
    assert faults(made, tmp_path, RPI5) == ()
    assert len(faults(made, tmp_path, RPI4)) == 3
    assert len(faults(made, tmp_path, GENERIC)) == 3


def test_a_mnemonic_that_the_target_forbids(tmp_path: Path) -> None:
    target = with_toolchain(RPI5, forbidden_insns=("udot",))
    udot = WORDS["udot v0.4s, v1.16b, v2.16b"][0]
    (fault,) = faults(TinyElf(code=(SDOT, udot, RET)), tmp_path, target)
    assert fault.startswith("holds udot, which the target forbids: udot v0.4s, v1.16b, v2.16b at")


def test_the_place_is_named_and_the_rest_counted(tmp_path: Path) -> None:
    code = (NOP, SDOT, NOP, SDOT, SDOT, RET)
    (fault,) = faults(TinyElf(code=code, exports=["first", "dot"]), tmp_path)
    assert ": sdot v0.4s, v1.16b, v2.16b at dot (0x" in fault
    assert fault.endswith(", and 2 more")


def test_a_file_that_dispatches(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(TinyElf(code=(SDOT, RET)).build())
    found = audit_file(tmp_path / "x.so", RPI4, dispatches="it asks getauxval")
    assert (found.faults, found.features, found.dispatches) == ((), {"asimddp": 1}, "it asks getauxval")


def test_what_is_excused_is_counted(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TinyElf(code=(*OUTLINED, *OUTLINED, NOP, LDADD, RET)).build())
    found = audit_file(tmp_path / "x", RPI4)
    assert found.library_code == {"outlined atomics": 2}
    assert found.features == {"atomics": 1}
    assert len(found.faults) == 1


@pytest.mark.parametrize("piece", [p for p in pieces() if p.words], ids=lambda piece: piece.name + piece.words[0])
def test_every_piece_of_library_code_is_found_whole_and_only_whole(piece: Piece, tmp_path: Path) -> None:
    words = [LDADD if text == "?" else int(text.partition("/")[0], 16) for text in piece.words]
    assert faults(TinyElf(code=(NOP, *words, NOP, RET)), tmp_path) == ()
    for index, word in enumerate(words):
        changed = [*words[:index], NOP, *words[index + 1 :]]
        other = faults(TinyElf(code=(NOP, *changed, NOP, RET)), tmp_path)
        special = [w for w in changed if faults(TinyElf(code=(NOP, w, NOP)), tmp_path)]
        assert bool(other) == bool(special), f"without {word:08X}"


def test_lists_give_reasons() -> None:
    for reason, source in [(e.reason, e.source) for e in pieces()] + [(e.reason, e.source) for e in dispatching()]:
        assert reason
        assert source.startswith("https://")
    assert "__memcpy_sve" in kept_functions()


def test_versions_of_libstdcxx_that_are_newer_than_the_table() -> None:
    limits = with_toolchain(RPI5, glibcxx_max="3.4.99").toolchain
    assert limits is not None
    made = elf.read(TinyElf(versions={CXX: ["CXXABI_1.3.16", "GLIBCXX_3.4.40"]}).build(), "x")
    assert list(audit_rules.floor_faults(made, audit_rules.Place("x"), limits)) == []
