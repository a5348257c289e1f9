"""What native code is compiled for, what compiles it, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edgekit.cache import FileSum
from edgekit.errors import OptionError, ToolchainError
from edgekit.targets import Target

TRIPLE = "aarch64-linux-gnu"
FLOOR = "2.31"
"""glibc that is linked against wherever the target allows it, so that one build serves Debian 11 and newer."""


@dataclass(frozen=True)
class Cpu:
    """What native code is compiled for; equal for all targets with the same processor."""

    triple: str
    march: str
    """As gcc takes it: "armv8.2-a+dotprod+fp16"."""
    mtune: str
    """As gcc takes it: "cortex-a76"; empty: no core in particular."""
    features: tuple[str, ...]
    """What every core has, as /proc/cpuinfo spells it, sorted."""
    glibc: str
    """Version to link against, the oldest that the result starts on."""


def cpu_of(target: Target) -> Cpu:
    """The processor of a target; on big.LITTLE with the features that all clusters have.

    Raises:
        OptionError: the target has no [toolchain], so nothing is compiled for it.
        ToolchainError: it is not 64-bit ARM Linux.
    """
    toolchain = target.toolchain
    if toolchain is None:
        raise OptionError(
            f"target {target.name} has no [toolchain], so no runtime is compiled for it",
            expected="a board as the target",
            remedy="choose one of `edgekit targets`, or leave the runtime out with --no-runtime",
        )
    if toolchain.triple != TRIPLE:
        raise ToolchainError(
            f"target {target.name} asks for {toolchain.triple}", expected=TRIPLE, remedy="set toolchain.triple to that"
        )
    clusters = [frozenset(cluster.isa) for cluster in target.soc.clusters]
    # Linux on 64-bit ARM needs Advanced SIMD; a target without clusters promises nothing else.
    common = reduce(frozenset.intersection, clusters) if clusters else frozenset({"asimd"})
    glibc = min(toolchain.glibc_max, FLOOR, key=numbers)
    return Cpu(toolchain.triple, toolchain.march, toolchain.mtune, tuple(sorted(common)), glibc)


def numbers(version: str) -> tuple[int, ...]:
    """A version of digits and dots as something that sorts."""
    return tuple(int(part) for part in version.split("."))


def _same(command: Sequence[str]) -> list[str]:
    return list(command)


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Setup:
    """How cmake is told to use a toolchain."""

    definitions: tuple[str, ...]
    """`-D…` for cmake, a toolchain file among them."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set on top of edgekit's own."""
    command: Callable[[Sequence[str]], list[str]] = _same
    """Wraps a command that starts with `cmake` or `ninja`; the identity where the compiler runs right here."""
    local: bool = True
    """Whether cmake, ninja and the compiler run right here: they must be installed, and their CPU time can be read."""
    end: Callable[[], None] = _nothing
    """Ends what a wrapped command runs elsewhere; called when the command was stopped before its end. Never raises."""
    flags: tuple[str, ...] = ()
    """What decides the code that comes out, for the record and the cache's key; without paths of this machine."""
    glibc: str = ""
    """glibc that shared libraries will need, where the toolchain cannot choose it; empty: the CPU's."""
    static_tools: bool = False
    """Whether the native tools are linked with libc inside."""
    first_use: str = ""
    """Said before cmake first runs: what takes long without a sign of life."""
    caches: tuple[Path, ...] = ()
    """Folders in edgekit's cache that must stay while it compiles."""
    licences: Mapping[str, Path] = field(default_factory=dict)
    """Name → licence of what the toolchain links into the result."""


def same_glibc(setup: Setup, target: Target, toolchain: str) -> None:
    """Raise ToolchainError when shared libraries would need a newer glibc than the target has."""
    assert target.toolchain is not None  # noqa: S101  # cpu_of saw to it
    most = target.toolchain.glibc_max
    if setup.glibc and numbers(setup.glibc) > numbers(most):
        raise ToolchainError(
            f"{toolchain} links shared libraries against glibc {setup.glibc}, and {target.name} has {most}",
            expected=f"glibc {most} or older",
            remedy="make its image from the system of the board"
            if toolchain == "cuda"
            else "take --toolchain zig, which links against any glibc",
        )


class Toolchain(Protocol):
    """A cross-compiler."""

    @property
    def name(self) -> str:
        """What `--toolchain` takes."""

    def version(self) -> str:
        """Version of the compiler.

        Raises:
            MissingDependencyError: it is not installed.
            ToolchainError: it is too old, or not the one that edgekit was tested with.
        """

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        """Write what cmake needs (wrapper scripts, toolchain file) below `folder`, which exists.

        Files whose contents stay the same are left alone, or everything would be compiled again.

        Raises:
            ToolchainError: it does not know the CPU, would use instructions that it lacks, or cannot link against its
                glibc.
        """


class NativeRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """native.json: what was compiled from what, how and for what."""

    schema_version: Literal[1] = 1
    llama_cpp_python: str
    """Release whose source archive carries llama.cpp."""
    source_sha256: str
    """Of that archive."""
    ggml: str
    """Version."""
    toolchain: str
    toolchain_version: str
    march: str
    mtune: str
    features: tuple[str, ...]
    glibc: str
    """Oldest glibc that the shared libraries start on."""
    flags: tuple[str, ...]
    """Of the compiler and of cmake."""
    seconds: float | None
    """CPU time, user and system, of the run that finished the compile; None: it ran in a container, where it cannot be
    read."""
    files: dict[str, FileSum]
    """Path below the folder, with "/" → size and checksum; all but native.json."""


@dataclass(frozen=True)
class Native:
    """A finished native runtime, in the cache: lib/, bin/, LICENSES/ and native.json."""

    folder: Path
    record: NativeRecord
