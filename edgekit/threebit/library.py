"""The library with edgekit's operators for ONNX Runtime, compiled for this machine on first use."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache as remember
from importlib import import_module
from pathlib import Path

from edgekit import cache
from edgekit.errors import MissingDependencyError, ToolchainError
from edgekit.files import cache_dir, whole_folder
from edgekit.machine import cores
from edgekit.progress import Progress, Quiet
from edgekit.threebit import headers

DOMAIN, OPERATOR, VERSION = "edgekit", "MatMul3Bits", 1
"""What a graph calls the operator."""
SOURCES = Path(__file__).parents[1] / "native"
"""CMakeLists.txt and the C++ sources."""
LIBRARY = "libedgekit_ops.so"
KERNEL_VARIABLE = "EDGEKIT_OPS_KERNEL"
"""Environment variable that makes the operator take the kernel of that name; for tests."""
_LAST_WORDS = 600


def host_library(*, offline: bool = False, progress: Progress | None = None) -> Path:
    """The library for this machine, out of the cache or compiled now (about 20 seconds).

    Register it with `onnxruntime.SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: there is no cmake or no C++ compiler.
        ToolchainError: the compiler does not take the sources.
        DownloadError: ONNX Runtime's header is not to be had.
        OutputError: the cache cannot be written.
    """
    compiler = _program(os.environ.get("CXX", "c++"), "a C++ compiler", "on Debian or Ubuntu: sudo apt install g++")
    place = cache_dir() / cache.RUNTIMES / f"ops-host-{_digest(_version_of(compiler), source_digest())}"
    if not (place / LIBRARY).is_file():
        header = headers.header_folder(offline=offline, progress=progress)
        with headers.making(place):
            if not (place / LIBRARY).is_file():
                with (progress or Quiet()).step("Operators for ONNX Runtime"), whole_folder(place, force=True) as fresh:
                    # A newer compiler's new warning is no reason to go without.
                    definitions = [f"-DCMAKE_CXX_COMPILER={compiler}", "-DEDGEKIT_WERROR=OFF"]
                    compile_into(fresh, [*definitions, f"-DEDGEKIT_ORT_HEADERS={header}"], "edgekit_ops")
    cache.mark_used(place)
    return place / LIBRARY


def compile_into(
    folder: Path, definitions: Sequence[str], target: str, *, environment: Mapping[str, str] | None = None
) -> None:
    """Compile one target of :data:`SOURCES` with cmake; only what it makes is left in `folder`.

    Args:
        folder: where; it exists.
        definitions: `-D…` for cmake, the compiler among them.
        target: "edgekit_ops" or "kernels_test".
        environment: set on top of this process's own.

    Raises:
        MissingDependencyError: there is no cmake.
        ToolchainError: it failed; quotes its last words.
    """
    cmake, tree = _cmake(), folder / "tree"
    added = environment or {}
    run([cmake, "-S", str(SOURCES), "-B", str(tree), "-DCMAKE_BUILD_TYPE=Release", *definitions], added)
    run([cmake, "--build", str(tree), "--target", target, "--parallel", str(cores())], added)
    for path in (tree / LIBRARY, tree / "kernels_test"):
        if path.is_file():
            path.replace(folder / path.name)
    shutil.rmtree(tree)


def kernels(library: Path) -> tuple[str, ...]:
    """Names of the library's kernels that run on this processor, the fastest first."""
    loaded = ctypes.CDLL(str(library))
    loaded.edgekit_ops_kernels.restype = ctypes.c_char_p
    names: bytes = loaded.edgekit_ops_kernels()
    return tuple(names.decode("ascii").split(","))


def source_digest() -> str:
    """One hash over everything that is compiled, and over the header it is compiled against."""
    found = hashlib.sha256(headers.SHA256.encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        found.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a tool that compiles, with `environment` on top of this process's own.

    Raises:
        ToolchainError: it failed; quotes its last words.
    """
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines[-3:]
        raise ToolchainError(
            f"edgekit's operators for ONNX Runtime do not compile ({' / '.join(errors)[:_LAST_WORDS]})",
            expected="a compiler for C++17, such as gcc 12 or clang 16",
            remedy="choose another with the environment variable CXX",
        )


def _cmake() -> str:
    """PyPI's cmake where it is installed, else the system's."""
    with suppress(ImportError, AttributeError):
        path = Path(str(import_module("cmake").CMAKE_BIN_DIR), "cmake")
        if path.is_file():
            return str(path)
    return _program("cmake", "cmake", "pip install 'edgekit[cross]'")


def _program(name: str, what: str, remedy: str) -> str:
    if (found := shutil.which(name)) is None:
        raise MissingDependencyError(
            f"{what} ({name}), which edgekit's operators are compiled with, is not installed", remedy=remedy
        )
    return found


@remember
def _version_of(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    return done.stdout


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
