"""The audit of wheels and bundles: tags, what comes along, what asks at run time; starting; the verb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from tiny_elf import EXIT, LOADER, RET, SDOT, WORDS, TinyElf, wheel

from edgekit import targets
from edgekit.bundle.bundle import write_manifest
from edgekit.bundle.manifest import Artefact, Manifest, Model, PlanEntry, TargetRef
from edgekit.crossbuild import start
from edgekit.crossbuild.audit import Audit, audit, audit_bundle, audit_file
from edgekit.errors import BundleError, InputNotFoundError

RPI4, RPI5 = (targets.load(name) for name in ("rpi4", "rpi5"))
C = "libc.so.6"

# --- wheels ----------------------------------------------------------------------------------------------------------

TAG = "cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64"
NAME = f"thing-1.0-{TAG}.whl"


def module(*versions: str, **more: Any) -> bytes:
    """A Python module that needs these versions of glibc."""
    made = TinyElf(exports=["PyInit_thing"], versions={C: versions} if versions else {})
    changed: TinyElf = replace(made, **more)
    return changed.build()


OWN = "thing/_thing.cpython-311-aarch64-linux-gnu.so"


def wheel_faults(path: Path, target: targets.Target = RPI5) -> tuple[str, ...]:
    return audit(path, target).faults


def test_a_good_wheel(tmp_path: Path) -> None:
    found = audit(wheel(tmp_path, NAME, {OWN: module("GLIBC_2.17"), "thing/__init__.py": b""}), RPI5)
    assert found.faults == ()
    assert [(file.path, file.kind) for file in found.files] == [(NAME, "wheel"), (f"{NAME}!{OWN}", "Python module")]


def test_a_wheel_without_native_code(tmp_path: Path) -> None:
    assert wheel_faults(wheel(tmp_path, "thing-1.0-py3-none-any.whl", {"thing.py": b""})) == ()


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"no zip"])
def test_no_wheel(data: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(data)
    (fault,) = wheel_faults(tmp_path / NAME)
    assert "cannot be read" in fault


def test_a_damaged_member(tmp_path: Path) -> None:
    path = wheel(tmp_path, NAME, {OWN: module() + bytes(range(256)) * 40})
    data = bytearray(path.read_bytes())
    data[200:210] = b"0123456789"
    path.write_bytes(data)
    assert any("cannot be read" in fault for fault in wheel_faults(path))


def test_a_damaged_elf_file_does_not_hide_the_others(tmp_path: Path) -> None:
    found = wheel_faults(wheel(tmp_path, NAME, {"a.so": b"\x7fELF" + bytes(99), OWN: module(machine=62)}))
    assert len(found) == 2
    assert f"{NAME}!a.so is a damaged ELF file" in found[0]
    assert f"{NAME}!{OWN} is for x86-64" in found[1]


@pytest.mark.parametrize("name", ["../x.so", "/x.so", "a/../../x.so"])
def test_a_member_that_leads_elsewhere(name: str, tmp_path: Path) -> None:
    (fault,) = wheel_faults(wheel(tmp_path, NAME, {name: module()}))
    assert "cannot be read" in fault


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "thing-1.0-cp312-cp312-manylinux_2_17_aarch64.whl",
            "is for cp312-cp312-manylinux_2_17_aarch64, and the",
        ),
        ("thing-1.0-cp311-cp311-manylinux_2_17_x86_64.whl", "is for cp311-cp311-manylinux_2_17_x86_64"),
        ("thing-1.0-cp311-cp311-manylinux_2_39_aarch64.whl", "glibc 2.36"),
        ("thing-1.0-cp312-abi3-manylinux_2_17_aarch64.whl", "is for cp312-abi3"),
        ("thing-1.0-py3-none-any.whl", "do not say for which glibc"),
    ],
)
def test_tags_that_do_not_fit(name: str, words: str, tmp_path: Path) -> None:
    assert any(words in fault for fault in wheel_faults(wheel(tmp_path, name, {OWN: module()})))


@pytest.mark.parametrize(
    "name", ["thing-1.0-cp39-abi3-manylinux_2_17_aarch64.whl", "thing-1.0-py3-none-manylinux_2_28_aarch64.whl"]
)
def test_tags_that_fit(name: str, tmp_path: Path) -> None:
    assert wheel_faults(wheel(tmp_path, name, {"thing/_thing.abi3.so": module("GLIBC_2.17")})) == ()


def test_a_tag_that_promises_too_much(tmp_path: Path) -> None:
    (fault,) = wheel_faults(wheel(tmp_path, NAME, {OWN: module("GLIBC_2.28")}))
    assert "glibc 2.17 is enough, and needs GLIBC_2.28" in fault


def test_other_tags_inside(tmp_path: Path) -> None:
    (fault,) = wheel_faults(wheel(tmp_path, NAME, {OWN: module()}, said="cp312-cp312-manylinux_2_17_aarch64"))
    assert "has other tags inside (cp312-cp312" in fault


@pytest.mark.parametrize(
    "tag", ["cpython-312-aarch64-linux-gnu", "cpython-311-x86_64-linux-gnu", "cpython-311d-aarch64-linux-gnu"]
)
def test_a_module_for_another_python(tag: str, tmp_path: Path) -> None:
    (fault,) = wheel_faults(wheel(tmp_path, NAME, {f"thing/_thing.{tag}.so": module()}))
    assert f"is a module for {tag}, and the target's Python imports cpython-311-aarch64-linux-gnu and abi3" in fault


def test_libraries_that_come_along(tmp_path: Path) -> None:
    inside = {
        OWN: module(needed=["libgomp-1.so"], rpath="$ORIGIN/../thing.libs", versions={"libgomp-1.so": ["GLIBC_2.99"]}),
        "thing.libs/libgomp-1.so": TinyElf(soname="libgomp-1.so").build(),
    }
    assert wheel_faults(wheel(tmp_path, NAME, inside)) == ()


def test_libraries_that_come_along_and_are_not_found(tmp_path: Path) -> None:
    inside = {OWN: module(needed=["libgomp-1.so"], rpath="$ORIGIN"), "thing.libs/libgomp-1.so": TinyElf().build()}
    (fault,) = wheel_faults(wheel(tmp_path, NAME, inside))
    assert "needs libgomp-1.so, and no RPATH or RUNPATH of it leads to 'thing.libs/libgomp-1.so'" in fault


def dispatching_wheel(folder: Path, files: Mapping[str, bytes], package: str = "onnxruntime") -> Path:
    return wheel(folder, f"{package}-1.0-{TAG}.whl", files)


MLAS = "onnxruntime/capi/libonnxruntime.so.1.31.1"


def test_a_file_of_the_list(tmp_path: Path) -> None:
    made = TinyElf(code=(SDOT, RET), imports=["getauxval"]).build()
    found = audit(dispatching_wheel(tmp_path, {MLAS: made}), RPI4)
    assert found.faults == ()
    assert "MLAS" in found.files[1].dispatches


@pytest.mark.parametrize(
    ("path", "package", "imports", "word"),
    [
        (MLAS, "other", "getauxval", SDOT),
        ("onnxruntime/other/x.so", "onnxruntime", "getauxval", SDOT),
        (MLAS, "onnxruntime", "getpid", SDOT),
        (MLAS, "onnxruntime", "getauxval", WORDS["sm4e v0.4s, v1.4s"][0]),
    ],
    ids=["another package", "another file", "it does not ask", "another feature"],
)
def test_the_list_excuses_nothing_else(path: str, package: str, imports: str, word: int, tmp_path: Path) -> None:
    made = TinyElf(code=(word, RET), imports=[imports]).build()
    assert len(audit(dispatching_wheel(tmp_path, {path: made}, package), RPI4).faults) == 1


def test_what_edgekit_compiled_must_be_stripped(tmp_path: Path) -> None:
    made = {"llama_cpp/lib/libllama.so": TinyElf(debug=1 << 20).build()}
    assert wheel_faults(dispatching_wheel(tmp_path, made, "other")) == ()
    (fault,) = wheel_faults(dispatching_wheel(tmp_path, made, "llama_cpp_python"))
    assert "is not stripped: 1.0 MiB of debug sections" in fault


# --- bundles ---------------------------------------------------------------------------------------------------------


def runtime(root: Path, **tools: TinyElf) -> Path:
    (root / "runtime/bin").mkdir(parents=True)
    (root / "runtime/requirements.txt").write_text("thing==1.0\n")
    for name, made in tools.items():
        (root / "runtime/bin" / name).write_bytes(made.build())
    return root


def test_a_bundle_without_native_code(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no native code"):
        audit_bundle(runtime(tmp_path), RPI5)


def test_a_link_in_a_bundle(tmp_path: Path) -> None:
    runtime(tmp_path, tool=TinyElf(program=True))
    (tmp_path / "runtime/bin/other").symlink_to("/bin/true")
    with pytest.raises(BundleError, match="symbolic link"):
        audit_bundle(tmp_path, RPI5, start=False)


def test_a_whole_bundle(tmp_path: Path) -> None:
    runtime(tmp_path, good=TinyElf(program=True), bad=TinyElf(program=True, code=(SDOT, RET), debug=1 << 20))
    (tmp_path / "runtime/wheels").mkdir()
    wheel(tmp_path / "runtime/wheels", NAME, {OWN: module("GLIBC_2.17")})
    (tmp_path / "runtime/bin/torn").write_bytes(b"\x7fELF" + bytes(99))
    found = audit_bundle(tmp_path, RPI4, start=False)
    assert [file.path for file in found.files] == [
        "runtime/bin/bad", "runtime/bin/good", "runtime/bin/torn", f"runtime/wheels/{NAME}",
        f"runtime/wheels/{NAME}!{OWN}",
    ]  # fmt: skip
    assert [fault.partition(" ")[0] for fault in found.faults] == ["runtime/bin/bad"] * 2 + ["runtime/bin/torn"]
    assert "is not stripped" in found.faults[0]
    assert found.started == "not tried"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Audit) == found


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("_no_qemu")
def test_without_qemu_nothing_is_ever_called_started(tmp_path: Path) -> None:
    runtime(tmp_path, tool=TinyElf(program=True), other=TinyElf(program=True, interpreter=LOADER))
    found = audit_bundle(tmp_path, RPI5)
    assert {file.path.rpartition("/")[2]: file.started for file in found.files} == {
        "tool": "not started: install qemu-user-static",
        "other": "not started: install qemu-user-static and libc6-arm64-cross",
    }
    assert found.started == "not started: install qemu-user-static and libc6-arm64-cross"
    assert found.faults == ()


def test_a_target_that_names_no_cpu(tmp_path: Path) -> None:
    assert RPI5.toolchain is not None
    target = msgspec.structs.replace(RPI5, toolchain=msgspec.structs.replace(RPI5.toolchain, qemu_cpu=""))
    runtime(tmp_path, tool=TinyElf(program=True))
    assert audit_bundle(tmp_path, target).started == "not started: target rpi5 names no toolchain.qemu_cpu"


def test_a_library_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(TinyElf().build())
    assert audit_file(tmp_path / "x.so", RPI5, start=True).started == ""


@pytest.mark.parametrize(
    ("code", "output", "strict", "words"),
    [
        (0, "anything", True, "started"),
        (None, "", True, "started"),
        (-4, "", False, "died: SIGILL (illegal instruction)"),
        (-11, "", False, "died: SIGSEGV"),
        (-99, "", False, "died: signal 99"),
        (1, "usage: …", False, "started"),
        (1, "no backend", True, "failed: no backend"),
        (3, "", True, "failed: it ended with status 3"),
        (127, "x: error while loading libfoo.so", False, "failed: x: error while loading libfoo.so"),
        (1, "qemu-aarch64: unable to find CPU model", False, "not started: qemu-aarch64: unable to find CPU model"),
        (1, "\x1b[31mred", True, "failed: \\x1b[31mred"),
    ],
)  # fmt: skip
def test_how_it_ended_in_words(code: int | None, output: str, strict: bool, words: str) -> None:
    assert start.told(start.Run(code, output), strict=strict) == words


def test_a_program_that_never_ends_is_stopped(tmp_path: Path) -> None:
    ran = start.run(["/bin/sleep", "100"], tmp_path, seconds=0.2)
    assert ran.code is None


def test_a_program_that_never_stops_talking_is_stopped(tmp_path: Path) -> None:
    ran = start.run(["/usr/bin/yes"], tmp_path, seconds=60)
    assert ran.code is None
    assert len(ran.output) <= 1 << 16


def test_a_program_sees_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert start.run(["/usr/bin/env"], tmp_path, seconds=20) == start.Run(0, "")


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle for a Pi 4 with one tool that a Pi 5 is needed for."""
    root = runtime(tmp_path / "tiny.rpi4", tool=TinyElf(program=True, code=(SDOT, *EXIT)))
    (root / "gguf").mkdir()
    (root / "gguf/model.gguf").write_bytes(b"GGUF")
    (root / "tokenizer").mkdir()
    (root / "tokenizer/tokenizer.json").write_text("{}")
    plan = PlanEntry(tensor="x", role="x", shape=(1,), requested_bits=4, grid="Q8_0", bits=8.5, bytes=34)
    artefact = Artefact(
        format="gguf", path="gguf/model.gguf", engine="llama.cpp", requested_bits=4, effective_bits=8.5, plan=(plan,)
    )
    model = Model(name="tiny", architecture="llama", source="a test", sha256="ab" * 32, parameters=4)
    target = TargetRef(id="rpi4", sha256="ab" * 32)
    write_manifest(root, Manifest(edgekit="0", name="tiny", artefacts=(artefact,), model=model, target=target))
    return root


def test_a_file_without_a_target(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TinyElf().build())
    cli("runtime", "audit", tmp_path / "x").refused(29, "--target is missing")


def test_an_unknown_target(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TinyElf().build())
    cli("runtime", "audit", tmp_path / "x", "--target", "rpi6").refused(16, "rpi6")


def test_nothing_to_audit(cli: Cli, tmp_path: Path) -> None:
    cli("runtime", "audit", tmp_path / "no", "--target", "rpi5").refused(10, "no")
    cli("runtime", "audit", tmp_path, "--target", "rpi5").refused(20, "is not a bundle")


def test_a_tampered_bundle(cli: Cli, bundle: Path) -> None:
    (bundle / "runtime/bin/tool").write_bytes(TinyElf(program=True).build())
    cli("runtime", "audit", bundle).refused(20, "runtime/bin/tool")


def test_faults_of_a_bundle(cli: Cli, bundle: Path) -> None:
    done = cli("runtime", "audit", bundle, "--no-start")
    assert done.code == 35
    assert "edgekit: runtime/bin/tool needs asimddp, which Cortex-A72 lacks: sdot" in done.err
    assert "Traceback" not in done.err
    assert "not tried" in done.out
    assert "runtime/bin/tool" in done.out.replace("\n", "")


def test_the_bundle_on_another_board(cli: Cli, bundle: Path) -> None:
    done = cli("runtime", "audit", bundle, "--target", "rpi5", "--no-start", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert (data["target"], data["faults"], data["started"]) == ("rpi5", [], "not tried")
    assert data["files"][0]["features"] == {"asimddp": 1}


def test_a_wheel_and_a_library(cli: Cli, tmp_path: Path) -> None:
    made = wheel(tmp_path, NAME, {OWN: module("GLIBC_2.17")})
    assert cli("runtime", "audit", made, "--target", "rpi5").code == 0
    (tmp_path / "x.so").write_bytes(TinyElf(needed=["libgomp.so.1"]).build())
    cli("runtime", "audit", tmp_path / "x.so", "--target", "rpi5").refused(35, "libgomp.so.1")


@pytest.mark.usefixtures("_no_qemu")
def test_what_was_not_started_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(TinyElf(program=True).build())
    done = cli("runtime", "audit", tmp_path / "tool", "--target", "rpi5")
    assert done.code == 0
    assert "not started: install qemu-user-static" in done.out.replace("\n", " ")
