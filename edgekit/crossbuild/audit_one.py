"""One ELF file held against a target: what was found of it, and its faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np

from edgekit.crossbuild import audit_rules as rules
from edgekit.crossbuild import isa
from edgekit.crossbuild.audit_rules import Place
from edgekit.crossbuild.elf import Elf
from edgekit.crossbuild.isa import Found
from edgekit.crossbuild.library_code import excused
from edgekit.crossbuild.wheel_platform import Platform, platform_of
from edgekit.errors import OptionError
from edgekit.target_schema import Target, Toolchain


class FileAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one ELF file or wheel."""

    path: str
    """Below runtime/; for a file in a wheel the wheel's name, "!" and the path in it."""
    kind: str
    """"program", "library", "Python module" or "wheel"."""
    size: int
    """Bytes, unpacked."""
    machine: str = ""
    interpreter: str = ""
    glibc: str = ""
    """Newest version of symbols that it needs; empty: none. The next two likewise."""
    glibcxx: str = ""
    cxxabi: str = ""
    needs: tuple[str, ...] = ()
    """Libraries."""
    features: dict[str, int] = {}
    """Instructions beyond Armv8.0-A, by the CPU feature that they need."""
    library_code: dict[str, int] = {}
    """Such instructions in code of compilers' and C libraries' own, by what it is; not among `features`."""
    among_data: int = 0
    """Words that would be such instructions but stand beside words that are none; not among `features`."""
    dispatches: str = ""
    """Why instructions that the target lacks are right here: how the file asks before it uses them."""
    stripped: bool = True
    """No debug sections."""
    started: str = ""
    """For a program; see :func:`edgekit.crossbuild.start.start`. Empty: nobody tried."""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """What files are held against."""

    target: Target
    limits: Toolchain
    platform: Platform
    features: frozenset[str]
    core: str


def board_of(target: Target) -> Board:
    """What files for `target` are held against.

    Raises:
        OptionError: nothing is compiled for it, or it is no 64-bit ARM board.
        TargetFileError: its march is unknown.
    """
    platform = platform_of(target)
    if target.toolchain is None or platform.machine != "aarch64":
        raise OptionError(
            f"target {target.name} is for {platform.machine}", expected="a 64-bit ARM board", remedy="choose another"
        )
    cores = dict.fromkeys(cluster.core for cluster in target.soc.clusters)
    core = " or ".join(cores) or target.soc.model
    return Board(target, target.toolchain, platform, isa.target_features(target), core)


def examine(
    elf: Elf, place: Place, board: Board, *, own: bool, features: frozenset[str] | None = None, dispatches: str = ""
) -> FileAudit:
    """All that can be told without starting it.

    Args:
        elf: the file's facts.
        place: where it stands.
        board: what it is held against.
        own: compiled by edgekit, so it must be stripped.
        features: that it may use; None: the board's.
        dispatches: why.
    """
    found, library_code = _instructions(elf)
    faults = list(rules.machine_faults(elf))
    if not faults:
        allowed = board.features if features is None else features
        forbidden = frozenset() if dispatches else frozenset(board.limits.forbidden_insns)
        faults += [
            *rules.floor_faults(elf, place, board.limits),
            *rules.needed_faults(elf, place, cuda=board.target.accelerator.kind == "cuda"),
            *rules.search_faults(elf, place),
            *rules.layout_faults(elf, own=own),
            *rules.instruction_faults(elf, found, allowed, forbidden, board.core),
        ]
    needed = rules.system_versions(elf, place)
    versions = {name: rules.highest(needed, name) for name in ("GLIBC", "GLIBCXX", "CXXABI")}
    return FileAudit(
        path=place.path,
        kind="Python module" if elf.python_module else elf.kind,
        size=elf.size,
        machine=elf.machine,
        interpreter=elf.interpreter,
        glibc=versions["GLIBC"],
        glibcxx=versions["GLIBCXX"],
        cxxabi=versions["CXXABI"],
        needs=elf.needed,
        features=dict(sorted(sum((part.counts() for part in found), Counter()).items())),
        library_code=dict(sorted(library_code.items())),
        among_data=sum(part.skipped for part in found),
        dispatches=dispatches,
        stripped=not elf.debug_bytes,
        faults=tuple(faults),
    )


def _instructions(elf: Elf) -> tuple[tuple[Found, ...], Counter[str]]:
    """What each stretch of code has beyond Armv8.0-A, without library code, which is counted by name."""
    found, names = [], Counter[str]()
    for code in elf.code:
        part = isa.find(code.words)
        covered = excused(code, part, elf.symbols)
        names.update({name: int(mask.sum()) for name, mask in covered.items()})
        mask = np.logical_or.reduce(list(covered.values())) if covered else np.zeros(len(part.at), bool)
        found.append(part.without(mask))
    return tuple(found), names


def unread(path: str, size: int, fault: str) -> FileAudit:
    """The result for an ELF file that cannot be read."""
    return FileAudit(path=path, kind="library", size=size, faults=(fault,))
