"""The library with edgekit's operators for ONNX Runtime, compiled for this machine on first use."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
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
from edgekit.making import making
from edgekit.progress import Progress, Quiet
from edgekit.threebit import headers

DOMAIN, OPERATOR, SPARSE, LOOKUP, VERSION = "edgekit", "MatMul3Bits", "SparseMatMul3Bits", "Gather3Bits", 1
"""What a graph calls the operators."""
SOURCES = Path(__file__).parents[1] / "native"
"""CMakeLists.txt and the C++ sources."""
LIBRARY = "libedgekit_ops.so"
KERNEL_VARIABLE = "EDGEKIT_OPS_KERNEL"
"""Environment variable that makes the operator take the kernel of that name; for tests."""
_SETTINGS = ("CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE")
"""Environment variables that cmake and compilers read: another value is another library."""
_PLAIN = {"LC_ALL": "C"}
"""Tools speak English, so that what went wrong is found in what they say."""
_TELLING = re.compile(r"\berror[: ]|\bfatal\b", re.IGNORECASE)
_LAST_WORDS = 600


def host_library(*, offline: bool = False, progress: Progress | None = None) -> Path:
    """The library for this machine: installed with edgekit, out of the cache, or compiled now (about 20 seconds).

    Register it with `onnxruntime.SessionOptions.register_custom_ops_library`.

    Raises:
        MissingDependencyError: there is no cmake, neither ninja nor make, or no C++ compiler that runs.
        ToolchainError: the compiler does not take the sources.
        DownloadError: ONNX Runtime's header is not to be had.
        OutputError: the cache cannot be written.
    """
    if (installed := packaged()).is_file():
        return installed
    compiler = _compiler()
    settings = [f"{name}={os.environ.get(name, '')}" for name in _SETTINGS]
    key = _digest(platform.machine(), *compiler, _version_of(compiler), *settings, source_digest())
    place = cache_dir() / cache.RUNTIMES / f"ops-host-{key}"
    if not (place / LIBRARY).is_file():
        with headers.header_in_use(offline=offline, progress=progress) as header, making(place):
            if not (place / LIBRARY).is_file():
                with (progress or Quiet()).step("Operators for ONNX Runtime"), whole_folder(place, force=True) as fresh:
                    _compile_for_host(fresh, compiler, header)
    cache.mark_used(place)
    return place / LIBRARY


def packaged() -> Path:
    """Where the wheel that a bundle carries has the library, compiled for its board; elsewhere there is none."""
    return Path(__file__).with_name(LIBRARY)


def _compile_for_host(folder: Path, compiler: Sequence[str], header: Path) -> None:
    # A newer compiler's new warning is no reason to go without.
    definitions = ["-DEDGEKIT_WERROR=OFF", f"-DEDGEKIT_ORT_HEADERS={header}"]
    if len(compiler) == 1:
        compile_into(folder, [f"-DCMAKE_CXX_COMPILER={compiler[0]}", *definitions], "edgekit_ops")
    else:  # cmake takes a launcher or options before or after the compiler from the environment only
        compile_into(folder, definitions, "edgekit_ops", environment={"CXX": shlex.join(compiler)})


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
        MissingDependencyError: there is no cmake, or neither ninja nor make.
        ToolchainError: it failed; quotes its last words.
    """
    cmake, tree = _cmake(), folder / "tree"
    added = environment or {}
    settings = ["-DCMAKE_BUILD_TYPE=Release", *_generator(), *definitions]
    run([cmake, "-S", str(SOURCES), "-B", str(tree), *settings], added)
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
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", check=False, env={**os.environ, **_PLAIN, **environment},
        )  # fmt: skip
    except OSError as error:
        raise _broken(command[0], error) from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if _TELLING.search(line)] or lines[-3:]
        raise ToolchainError(
            f"edgekit's operators for ONNX Runtime do not compile ({' / '.join(errors)[:_LAST_WORDS]})",
            expected="a compiler for C++17, such as gcc 12 or clang 16",
            remedy="choose another with the environment variable CXX",
        )


def _cmake() -> str:
    """PyPI's cmake where it is installed, else the system's."""
    return _of_package("cmake", "CMAKE_BIN_DIR") or _program("cmake", "cmake", "pip install 'edgekit[cross]'")


def _generator() -> list[str]:
    """For cmake: PyPI's ninja where it is installed, else the system's, else make."""
    if ninja := _of_package("ninja", "BIN_DIR") or shutil.which("ninja"):
        return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if make := shutil.which("make"):
        return ["-G", "Unix Makefiles", f"-DCMAKE_MAKE_PROGRAM={make}"]
    raise MissingDependencyError(
        "neither ninja nor make, one of which compiles edgekit's operators, is installed",
        remedy="pip install 'edgekit[cross]'",
    )


def _of_package(package: str, attribute: str) -> str | None:
    """The program that a package from PyPI brings; None where it is not installed."""
    with suppress(ImportError, AttributeError):
        path = Path(str(getattr(import_module(package), attribute)), package)
        if path.is_file():
            return str(path)
    return None


def _compiler() -> tuple[str, ...]:
    """The words of CXX, which may hold a launcher and options, or c++; the first is a path."""
    given = os.environ.get("CXX", "")
    try:
        words = shlex.split(given) or ["c++"]
    except ValueError as error:
        raise MissingDependencyError(
            f"the environment variable CXX is no command ({error}: {given!r})",
            expected="a C++ compiler, such as g++ or 'ccache g++'",
        ) from error
    found = _program(words[0], "a C++ compiler", "on Debian or Ubuntu: sudo apt install g++")
    return (found, *words[1:])


def _program(name: str, what: str, remedy: str) -> str:
    if (found := shutil.which(name)) is None:
        raise MissingDependencyError(
            f"{what} ({name}), which edgekit's operators are compiled with, is not installed", remedy=remedy
        )
    return found


def _broken(program: str, error: OSError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{program}, which edgekit's operators are compiled with, does not run ({error.strerror})",
        remedy="choose another C++ compiler with the environment variable CXX",
    )


@remember
def _version_of(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            [*compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, env={**os.environ, **_PLAIN},
        )  # fmt: skip
    except OSError as error:
        raise _broken(compiler[0], error) from error
    return done.stdout


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
