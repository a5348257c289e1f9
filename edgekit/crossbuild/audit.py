"""Would everything native that ships start on the target? ELF files in a folder and in its wheels, held against it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.bundle.paths import plain, read_bounded, scan
from edgekit.crossbuild import elf as elf_files
from edgekit.crossbuild import isa
from edgekit.crossbuild.audit_one import Board, FileAudit, board_of, examine, unread
from edgekit.crossbuild.audit_rules import Place
from edgekit.crossbuild.audit_wheel import audit_wheel
from edgekit.crossbuild.elf import Elf
from edgekit.crossbuild.start import STARTED
from edgekit.crossbuild.start import start as start_program
from edgekit.errors import FileFormatError, InputNotFoundError
from edgekit.progress import Progress, Quiet
from edgekit.target_schema import Target

__all__ = ["Audit", "FileAudit", "audit", "audit_bundle", "audit_file"]


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of all files, for one target."""

    target: str
    files: tuple[FileAudit, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, with its file."""
        return tuple(f"{file.path} {fault}" for file in self.files for fault in file.faults)

    @property
    def started(self) -> str:
        """Of the programs: "started" when all did, else the words of the first that did not, or "not tried"."""
        words = [file.started for file in self.files if file.started]
        return next((word for word in words if word != STARTED), STARTED if words else "not tried")


def audit_file(path: Path, target: Target, *, dispatches: str = "", start: bool = False) -> FileAudit:
    """Audit one program or library by itself.

    Args:
        path: the file.
        target: the board.
        dispatches: why it may hold instructions that the target lacks; empty: it may not.
        start: whether to start it when it is a program.

    Raises:
        InputNotFoundError: nothing is there.
        FileFormatError: it is no ELF file or a damaged one.
        OptionError: the target is no board that something is compiled for.
        MissingDependencyError: pyelftools or capstone is not installed.
    """
    data = _bytes(path)
    elf = elf_files.read(data, path.name)
    place = Place(path.name, frozenset({path.name}))
    found = examine(
        elf, place, board_of(target), own=False, features=isa.ALL if dispatches else None, dispatches=dispatches
    )
    return _started(found, path, elf, target) if start else found


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise FileFormatError(f"'{plain(str(path))}' is no plain file", expected="a program, a library or a wheel")
        with path.open("rb") as stream:
            return stream.read(elf_files.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputNotFoundError(f"'{plain(str(path))}' cannot be read", remedy="check the path") from error


def _started(found: FileAudit, path: Path, elf: Elf, target: Target) -> FileAudit:
    """With what became of it when it was started; whatever was started and did not come up has a fault more."""
    if elf.kind != "program" or not elf.is_aarch64:
        return found
    words = start_program(path, elf, target)
    bad = words.startswith(("died", "failed"))
    faults = (*found.faults, f"does not start on {target.name}: {words}") if bad else found.faults
    return msgspec.structs.replace(found, started=words, faults=faults)


def audit_bundle(root: Path, target: Target, *, start: bool = True, progress: Progress | None = None) -> Audit:
    """Audit every program, library and wheel below a bundle's folder.

    Args:
        root: the folder; a manifest is not needed.
        target: the board.
        start: whether to start the programs under qemu-user.
        progress: where it shows.

    Returns:
        What was found. Faults are in the result, not raised.

    Raises:
        InputNotFoundError: nothing native is there.
        BundleError: a link or a special file is there.
        OptionError: the target is no board that something is compiled for.
        MissingDependencyError: pyelftools or capstone is not installed.
    """
    board = board_of(target)
    sizes, _ = scan(root)
    chosen = [path for path in sorted(sizes) if path.endswith(".whl") or _is_elf(root / path)]
    if not chosen:
        raise InputNotFoundError(
            f"{root} holds no native code", expected="programs or wheels in runtime/",
            remedy="build the bundle with a runtime, without --no-runtime",
        )  # fmt: skip
    found: list[FileAudit] = []
    with (progress or Quiet()).step("Auditing the runtime") as advance:
        for number, path in enumerate(chosen):
            advance(number, len(chosen))
            if path.endswith(".whl"):
                found += audit_wheel(root / path, path, board)
            else:
                found.append(_tool(root, path, frozenset(sizes), board, starting=start))
    return Audit(target=target.name, files=tuple(found))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == elf_files.MAGIC


def _tool(root: Path, path: str, beside: frozenset[str], board: Board, *, starting: bool) -> FileAudit:
    if (root / path).stat().st_size > elf_files.MAX_BYTES:
        return unread(path, (root / path).stat().st_size, f"is larger than {elf_files.MAX_BYTES >> 20} MiB")
    data = read_bounded(root, path, elf_files.MAX_BYTES)
    try:
        elf = elf_files.read(data, path)
    except FileFormatError as error:
        return unread(path, len(data), error.found.removeprefix(f"{path} "))
    found = examine(elf, Place(path, beside), board, own=True)
    return _started(found, root / path, elf, board.target) if starting else found


def audit(path: Path, target: Target, *, start: bool = True, progress: Progress | None = None) -> Audit:
    """Audit a folder, a wheel, or one program or library.

    Raises: as :func:`audit_bundle` and :func:`audit_file`.
    """
    if path.is_dir():
        return audit_bundle(path, target, start=start, progress=progress)
    if path.suffix == ".whl" and path.is_file():
        return Audit(target=target.name, files=tuple(audit_wheel(path, path.name, board_of(target))))
    return Audit(target=target.name, files=(audit_file(path, target, start=start),))
