"""The kernels against each other and against the definition, in a program of their own: here, with sanitizers, and on
emulated ARM processors with and without dot product instructions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from emulated import unavailable
from native_runtime import CACHE

from edgekit import targets
from edgekit.crossbuild import start
from edgekit.crossbuild.gcc import Gcc
from edgekit.crossbuild.model import Toolchain, cpu_of
from edgekit.crossbuild.zig import Zig
from edgekit.errors import DownloadError, EdgekitError, MissingDependencyError
from edgekit.threebit import headers, library

PROGRAM = "kernels_test"
EMULATED = {
    "cortex-a76": ["dotprod", "neon", "portable"],
    "cortex-a72": ["neon", "portable"],
    "cortex-a53": ["neon", "portable"],
}


def compiled(folder: Path, *definitions: str, environment: Mapping[str, str] | None = None) -> Path:
    """The program; made by this machine's compiler or the one in `definitions`."""
    try:
        library.compile_into(folder, ["-DEDGEKIT_TESTS=ON", *definitions], PROGRAM, environment=environment)
    except MissingDependencyError as error:
        unavailable(str(error))
    return folder / PROGRAM


def library_in(folder: Path, *definitions: str) -> Path:
    """The library, warnings as errors; made by this machine's compiler or the one in `definitions`."""
    try:
        header = headers.header_folder()
        library.compile_into(folder, [*definitions, f"-DEDGEKIT_ORT_HEADERS={header}"], "edgekit_ops")
    except (MissingDependencyError, DownloadError) as error:
        unavailable(str(error))
    return folder / library.LIBRARY


def output(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_on_this_processor(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    assert output(program, "names").split()[-1] == "portable"
    assert output(program) == "0 failures\n"


def test_the_library_compiles_without_a_warning(tmp_path: Path) -> None:
    made = library_in(tmp_path)
    exported = output("nm", "--dynamic", "--defined-only", "--format=just-symbols", made)
    assert sorted(exported.split()) == ["RegisterCustomOps", "edgekit_ops_kernels"]


def test_with_sanitizers(tmp_path: Path) -> None:
    program = compiled(tmp_path, "-DEDGEKIT_SANITIZE=ON")
    assert b"__asan_init" in program.read_bytes()
    assert b"__ubsan_handle" in program.read_bytes()
    assert output(program) == "0 failures\n"


def test_the_operator_with_sanitizers(tmp_path: Path) -> None:
    """Malformed nodes, odd shapes and unaligned tensors in onnxruntime, with every access checked."""
    pytest.importorskip("onnxruntime")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    found = [Path(output("g++", f"-print-file-name=lib{name}.so").strip()) for name in ("asan", "ubsan")]
    if not all(path.is_absolute() for path in found):
        pytest.skip("g++ has no sanitizers here")
    definitions = ["-DCMAKE_CXX_COMPILER=g++", "-DEDGEKIT_SANITIZE=ON"]
    made = library_in(tmp_path, *definitions)
    environment = {
        **os.environ, "LD_PRELOAD": " ".join(map(str, found)), "ASAN_OPTIONS": "detect_leaks=0",
        "EDGEKIT_TEST_OPERATORS": str(made),
    }  # fmt: skip
    chosen = "refused or dimensions or neighbours or thread_counts or left_out or numbers_that_are_none or unaligned"
    chosen += " or grids_own"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    files = (Path(__file__).with_name(f"test_threebit_{name}.py") for name in ("operator", "gather"))
    said = output(*command, *files, environment=environment)
    assert " passed" in said
    assert "failed" not in said


# -- emulated ARM processors


def cross_compiled(folder: Path, toolchain: Toolchain, *definitions: str) -> Path:
    """The program for any 64-bit ARM processor: it chooses the kernel when it runs."""
    (folder / "toolchain").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if kept := os.environ.get(CACHE):  # zig keeps its C++ library there
            patch.setenv("EDGEKIT_CACHE", kept)
        try:
            toolchain.version()
            setup = toolchain.setup(cpu_of(targets.load("arm64-generic")), folder / "toolchain")
        except EdgekitError as error:
            unavailable(str(error))
        return compiled(folder, *setup.definitions, *definitions, environment=setup.environment)


def emulated(cpu: str, *command: str | Path) -> str:
    """What a program for ARM says on an emulated processor."""
    qemu = next(filter(None, map(shutil.which, start.QEMU)), "")
    if not qemu:
        unavailable("qemu-aarch64 is not installed (sudo apt install qemu-user)")
    if not start.LIBRARIES.is_dir():
        unavailable("there is no C library for arm64 (sudo apt install libc6-arm64-cross)")
    return output(qemu, "-cpu", cpu, "-L", start.LIBRARIES.parent, *command, environment={})


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_compiled(tmp_path_factory.mktemp("arm"), Gcc())


@pytest.mark.parametrize("cpu", EMULATED)
def test_on_emulated_arm(cpu: str, arm_program: Path) -> None:
    assert emulated(cpu, arm_program, "names").split() == EMULATED[cpu]
    assert emulated(cpu, arm_program) == "0 failures\n"


def test_without_the_kernel_for_dot_products(tmp_path: Path) -> None:
    program = cross_compiled(tmp_path, Gcc(), "-DEDGEKIT_DOTPROD=OFF")
    assert emulated("cortex-a76", program, "names").split() == ["neon", "portable"]


@pytest.mark.parametrize(
    "march",
    [
        "armv8-a", "armv8-a+crc", "armv8-a+crc+crypto", "armv8.2-a+fp16", "armv8.2-a+dotprod+fp16",
        "armv9-a+sve2+i8mm+bf16",
    ],
)  # fmt: skip
def test_compiled_for_any_processor(march: str, tmp_path: Path) -> None:
    try:
        Gcc().version()
    except EdgekitError as error:
        unavailable(str(error))
    compiler = f"{Gcc().triple}-g++"
    empty = [compiler, f"-march={march}", "-x", "c++", "-E", "/dev/null"]
    if subprocess.run(empty, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} does not know {march}")
    source = library.SOURCES / "src" / "kernel_dotprod.cpp"
    output(
        compiler, "-std=c++17", "-O3", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-march={march}",
        "-c", source, "-o", tmp_path / "kernel.o",
    )  # fmt: skip


@pytest.mark.nightly
def test_compiled_by_zig(tmp_path: Path) -> None:
    program = cross_compiled(tmp_path, Zig())
    for cpu, names in EMULATED.items():
        assert emulated(cpu, program, "names").split() == names
        assert emulated(cpu, program) == "0 failures\n"
