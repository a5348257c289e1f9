"""The audit on what was really compiled, and its table of instructions against an emulated processor's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from emulated import unavailable
from native_runtime import native
from tiny_elf import EXIT, SDOT, WORDS, TinyElf

from edgekit import targets
from edgekit.crossbuild import start
from edgekit.crossbuild.audit import audit, audit_bundle, audit_file
from edgekit.crossbuild.library_code import kept_functions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]  # native() may have to compile
SIGILL = -4
ILLEGAL = "died: SIGILL (illegal instruction)"


@pytest.fixture(scope="session")
def qemu() -> str:
    """qemu-user for 64-bit ARM."""
    found = next(filter(None, map(shutil.which, start.QEMU)), None)
    if found is None:
        unavailable("qemu-user for aarch64 is not installed (apt install qemu-user-static)")
    return found


# --- a runtime for a Pi 5 --------------------------------------------------------------------------------------------


def test_the_runtime_for_a_pi_5_starts_there(qemu: str) -> None:
    found = audit_bundle(native("rpi5").folder, targets.load("rpi5"))
    assert found.faults == ()
    assert found.started == "started"
    tools = {file.path: file for file in found.files if file.kind == "program"}
    assert set(tools) == {"bin/llama-bench", "bin/llama-perplexity"}
    assert all(file.features["asimddp"] > 100 for file in tools.values()), "it was compiled for this CPU"
    assert all(file.among_data == 0 for file in found.files), "nothing was left out as data"


@pytest.mark.parametrize("name", ["rpi4", "arm64-generic", "rpi-zero2w"])
def test_the_runtime_for_a_pi_5_is_refused_for_older_cores(name: str, qemu: str) -> None:
    """And really dies there: the gate is known to bite."""
    found = audit_bundle(native("rpi5").folder, targets.load(name))
    for tool in ("bin/llama-bench", "bin/llama-perplexity"):
        faults = [fault for fault in found.faults if fault.startswith(tool)]
        assert any("needs asimddp" in fault and "dot v" in fault for fault in faults), faults
        assert any("needs atomics" in fault for fault in faults)
        assert faults[-1] == f"{tool} does not start on {name}: {ILLEGAL}"
    assert found.started == ILLEGAL


@pytest.mark.parametrize("name", ["jetson-orin-nano", "rk3588"])
def test_cores_that_have_the_same_instructions(name: str, qemu: str) -> None:
    found = audit_bundle(native("rpi5").folder, targets.load(name))
    assert (found.faults, found.started) == ((), "started")


def test_floors_of_the_shared_libraries() -> None:
    """glibc 2.31: Debian 11, and so JetPack 6 and Debian 12 as well."""
    found = audit(native("rpi5").folder, targets.load("rpi5"), start=False)
    assert all(tuple(map(int, file.glibc.split("."))) <= (2, 31) for file in found.files)


# --- programs with libc inside ---------------------------------------------------------------------------------------

THROWS = """
#include <atomic>
#include <iostream>
#include <stdexcept>
#include <thread>
std::atomic<int> count;
int main() {
  try { throw std::runtime_error("x"); } catch (const std::exception& e) { std::cout << e.what() << std::endl; }
  std::thread([] { std::cout << ++count << std::endl; }).join();
}
"""


def compiled(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        unavailable("g++ for aarch64 is not installed (apt install g++-aarch64-linux-gnu)")
    (folder / "throws.cpp").write_text(THROWS)
    command = [compiler, "-O2", "-static", str(folder / "throws.cpp"), "-o", str(folder / "throws"), *flags]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "throws"


def test_libc_chooses_for_itself_and_keeps_the_names_for_it(tmp_path: Path, qemu: str) -> None:
    (tmp_path / "kept").write_text("\n".join(kept_functions()) + "\n")
    made = compiled(tmp_path, "-march=armv8-a", f"-Wl,--retain-symbols-file={tmp_path}/kept")
    found = audit_file(made, targets.load("arm64-generic"), start=True)
    assert (found.faults, found.features, found.started) == ((), {}, "started")
    assert set(found.library_code) == {
        "copying with scalable vectors, in libc", "length of a vector, in an unwinder", "outlined atomics",
        "tags of memory, in malloc",
    }  # fmt: skip


def test_without_names_libcs_vectors_are_a_fault(tmp_path: Path) -> None:
    found = audit_file(compiled(tmp_path, "-march=armv8-a", "-s"), targets.load("arm64-generic"))
    assert any("needs sve" in fault for fault in found.faults)


def test_code_for_newer_cores_is_not_excused_by_libc(tmp_path: Path) -> None:
    found = audit_file(compiled(tmp_path, "-march=armv8.2-a"), targets.load("arm64-generic"))
    assert [fault for fault in found.faults if "needs atomics" in fault]


# --- the table of instructions ---------------------------------------------------------------------------------------


def ends(code: Sequence[int], folder: Path, qemu: str, cpu: str) -> int | None:
    (folder / "tool").write_bytes(TinyElf(code=code, program=True).build())
    (folder / "tool").chmod(0o755)
    return start.run([qemu, "-cpu", cpu, str(folder / "tool")], folder, seconds=30).code


A53 = {"", "aes", "pmull", "sha1", "sha2", "crc32"}
"""QEMU's Cortex-A53, cryptography included."""
NOT_BY_ITSELF = ("fmopa za0.s, p0/m, p0/m, z0.s, z2.s", "dc cvap, x0")
"""Legal only after smstart; not emulated in qemu-user 7.2."""
SINGLE = [text for text in WORDS if text != "bl"]


@pytest.mark.parametrize("text", SINGLE)
def test_the_table_agrees_with_an_emulated_core(text: str, tmp_path: Path, qemu: str) -> None:
    """Whatever else becomes of it: an illegal instruction on a core without the feature, and only there."""
    word, feature = WORDS[text]
    assert (ends((word, *EXIT), tmp_path, qemu, "cortex-a53") == SIGILL) == (feature not in A53)
    if text not in NOT_BY_ITSELF:
        assert ends((word, *EXIT), tmp_path, qemu, "max") != SIGILL


def test_starting(tmp_path: Path, qemu: str) -> None:
    (tmp_path / "tool").write_bytes(TinyElf(code=(SDOT, *EXIT), program=True).build())
    assert audit_file(tmp_path / "tool", targets.load("rpi5"), start=True).started == "started"
    died = audit_file(tmp_path / "tool", targets.load("rpi4"), start=True)
    assert died.started == ILLEGAL
    assert f"does not start on rpi4: {ILLEGAL}" in died.faults


def test_a_program_reads_the_boards_processors(tmp_path: Path, qemu: str) -> None:
    """openat, read and write of /proc/cpuinfo, by system calls: what it sees is the target's and not this machine's."""
    code = [
        0xD2800708, 0x92800C60, 0x10000121, 0xD2800002, 0xD4000001,  # openat(AT_FDCWD, path, O_RDONLY)
        0xD28007E8, 0xD10803FF, 0x910003E1, 0xD2802002, 0xD4000001,  # read(it, stack, 256)
        0xD503201F,
    ]  # fmt: skip
    path = b"/proc/cpuinfo\0\0\0"
    words = [int.from_bytes(path[i : i + 4], "little") for i in range(0, 16, 4)]
    after = [0xAA0003E2, 0xD2800808, 0xD2800020, 0x910003E1, 0xD4000001, *EXIT]  # write(1, stack, what was read)
    code = [*code[:2], 0x10000001 | (len(code) + len(after) - 2) << 5, *code[3:], *after, *words]
    (tmp_path / "tool").write_bytes(TinyElf(code=code, program=True).build())
    (tmp_path / "tool").chmod(0o755)
    root = start.make_sysroot(tmp_path / "root", targets.load("rpi4"))
    ran = start.run([qemu, "-cpu", "cortex-a72", "-L", str(root), str(tmp_path / "tool")], tmp_path, seconds=30)
    assert "Features\t: fp asimd crc32\n" in ran.output
    assert "CPU part\t: 0xd08\n" in ran.output
