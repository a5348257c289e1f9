"""PyPI's ziglang as a cross-compiler: clang, every glibc and libc++ in one package that pip installs anywhere."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remember
from importlib.util import find_spec
from pathlib import Path

from edgekit import cache
from edgekit.crossbuild import cpu_features
from edgekit.crossbuild.model import Cpu, Setup, numbers
from edgekit.crossbuild.places import write
from edgekit.errors import MissingDependencyError, ToolchainError
from edgekit.files import cache_dir

VERSION = "0.17.1"
"""The one this was tested with; others differ in the clang inside and in what they support."""
OLDEST_GLIBC = "2.17"
"""Of aarch64; zig has no stubs for anything older, as there was none."""
_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "aes": ("aes", "pmull"), "sha2": ("sha1", "sha2"), "sha3": ("sha3", "sha512"), "sm4": ("sm3", "sm4"),
    "crc": ("crc32",), "lse": ("atomics",), "rdm": ("asimdrdm",), "rcpc": ("lrcpc",), "rcpc_immo": ("ilrcpc",),
    "dotprod": ("asimddp",), "fullfp16": ("fphp", "asimdhp"), "fp16fml": ("asimdfhm",), "jsconv": ("jscvt",),
    "complxnum": ("fcma",), "flagm": ("flagm",), "altnzcv": ("flagm2",), "fptoint": ("frint",), "i8mm": ("i8mm",),
    "bf16": ("bf16",), "sve": ("sve",), "sve2": ("sve2",), "sve_bitperm": ("svebitperm",), "sve_aes": ("sveaes",),
    "sve_sha3": ("svesha3",), "sve_sm4": ("svesm4",), "f32mm": ("svef32mm",), "f64mm": ("svef64mm",), "sme": ("sme",),
    "sme2": ("sme2",), "rand": ("rng",), "mte": ("mte",), "ls64": ("ls64",), "ssbs": ("ssbs",), "sb": ("sb",),
    "mops": ("mops",),
}  # fmt: skip
"""LLVM's extension → the features it stands for, which must all be there. The rest of a core's model is tuning."""
LICENCES: Mapping[str, str] = {
    "libc++": "lib/libcxx/LICENSE.TXT", "libc++abi": "lib/libcxxabi/LICENSE.TXT",
    "libunwind": "lib/libunwind/LICENSE.TXT", "zig": "LICENSE",
}  # fmt: skip
"""What zig links into the result → its licence, below zig's own folder."""
FIRST_USE = "On first use zig compiles its C++ library for the CPU: one or two minutes without a sign of life."
_WRAPPERS = {"cc": "cc", "c++": "c++", "ar": "ar", "ranlib": "ranlib"}
_TOOLCHAIN_FILE = """\
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER "{folder}/cc")
set(CMAKE_CXX_COMPILER "{folder}/c++")
set(CMAKE_AR "{folder}/ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "{folder}/ranlib" CACHE FILEPATH "")
# Nothing of this machine belongs into a board's program.
set(CMAKE_FIND_ROOT_PATH "{folder}/nothing")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
"""


@dataclass(frozen=True)
class Zig:
    """See :class:`edgekit.crossbuild.model.Toolchain`."""

    name: str = "zig"

    def version(self) -> str:
        """See Toolchain.version."""
        found = _version_of(program())
        if found != VERSION:
            raise ToolchainError(
                f"ziglang {found} is installed here", expected=VERSION, remedy=f"pip install ziglang=={VERSION}"
            )
        return found

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        """See Toolchain.setup."""
        zig, place = program(), cache_place()
        place.mkdir(parents=True, exist_ok=True)
        environment = variables(place)
        check(cpu, lambda arguments: _run([str(zig), *arguments], environment))
        return Setup(
            definitions=(f"-DCMAKE_TOOLCHAIN_FILE={write_wrappers(cpu, folder, str(zig))}",),
            environment=environment,
            flags=flags(cpu),
            caches=(place,),
            licences={name: zig.parent / path for name, path in LICENCES.items()},
            first_use=FIRST_USE,
        )


def flags(cpu: Cpu) -> tuple[str, ...]:
    """Of every compile; raises ToolchainError when the glibc is older than any that zig links against."""
    if numbers(cpu.glibc) < numbers(OLDEST_GLIBC):
        raise ToolchainError(
            f"zig cannot link against glibc {cpu.glibc}",
            expected=f"{OLDEST_GLIBC} or newer on 64-bit ARM",
            remedy="raise toolchain.glibc_max in the target file",
        )
    return ("-target", f"{cpu.triple}.{cpu.glibc}", f"-mcpu={mcpu(cpu)}")


def variables(place: Path) -> dict[str, str]:
    """Environment with which zig keeps its cache at `place`."""
    return {name: str(place.absolute()) for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}


def write_wrappers(cpu: Cpu, folder: Path, zig: str) -> Path:
    """Write compilers that cmake can call, each one program without arguments, and their toolchain file, returned.

    Args:
        cpu: the target's.
        folder: where; absolute, as it stands in the toolchain file.
        zig: the program, as it is called where the compiler runs.
    """
    for name, verb in _WRAPPERS.items():
        arguments = [zig, verb, *(flags(cpu) if verb in ("cc", "c++") else ())]
        write(folder / name, f'#!/bin/sh\nexec {shlex.join(arguments)} "$@"\n', executable=True)
    return write(folder / "toolchain.cmake", _TOOLCHAIN_FILE.format(folder=folder))


def check(cpu: Cpu, run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]) -> None:
    """Raise ToolchainError unless zig knows the CPU and uses just what it has; `run` calls zig with arguments."""
    said = run(["cc", *flags(cpu), "-E", "-dM", "-x", "c", os.devnull])
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if "error" in line] or ["it said nothing"]
        raise ToolchainError(
            f"zig does not compile for {cpu.mtune or cpu.march} and glibc {cpu.glibc} ({lines[0].strip()})",
            expected="a core and a glibc that it knows (`python -m ziglang targets` lists them)",
            remedy="correct toolchain.mtune or glibc_max in the target file",
        )
    cpu_features.check(said.stdout, cpu, compiler="zig", needed=cpu_features.asked(cpu.march))


def program() -> Path:
    """The executable in this Python's environment; raises MissingDependencyError."""
    spec = find_spec("ziglang")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not os.access(folder / "zig", os.X_OK):
        raise MissingDependencyError(
            "the cross-compiler zig is not installed here", remedy=f"pip install ziglang=={VERSION} (411 MB)"
        )
    return folder / "zig"


def cache_place() -> Path:
    """Its own cache, below edgekit's: its libc++ is compiled once for each CPU."""
    return cache_dir() / cache.COMPILERS / VERSION


def mcpu(cpu: Cpu) -> str:
    """Value of zig's -mcpu: the core's model, with each extension switched on or off by the features of the cores.

    The model alone is not to be trusted: that of the Cortex-A72 has AES, which is an option that the Raspberry Pi 4's
    does not have, and an emulator has.
    """
    model = cpu.mtune.partition(".")[0].replace("-", "_") if cpu.mtune else "generic"
    has = cpu_features.allowed(cpu)
    switches = ("+" if set(needs) <= has else "-" for needs in _EXTENSIONS.values())
    return model + "".join(f"{switch}{name}" for switch, name in zip(switches, _EXTENSIONS, strict=True))


@remember
def _version_of(zig: Path) -> str:
    try:
        said = subprocess.run([str(zig), "version"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingDependencyError(
            f"{zig} does not run ({error})", remedy=f"pip install --force-reinstall ziglang=={VERSION}"
        ) from error
    return said.stdout.strip()


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
