"""Wheels held against a target: their tags, and every ELF file in them, which is read without being unpacked."""

from __future__ import annotations

import re
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from math import prod
from pathlib import Path

import msgspec
from packaging.tags import Tag, parse_tag

from edgekit.bundle.paths import plain
from edgekit.crossbuild import elf as elf_files
from edgekit.crossbuild import wheel_files
from edgekit.crossbuild.audit_one import Board, FileAudit, examine, unread
from edgekit.crossbuild.audit_rules import Place
from edgekit.crossbuild.elf import Elf
from edgekit.crossbuild.model import numbers
from edgekit.crossbuild.wheel_platform import Platform, glibc_of
from edgekit.errors import FileFormatError, WheelError

_MAX_WHEEL_FILE = 1 << 16
_MAX_TAGS = 1000
_OWN = frozenset({"llama-cpp-python", "edgekit"})
"""Compiled by edgekit."""


class Dispatching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of dispatching.toml, which explains the keys."""

    package: str
    file: str
    features: tuple[str, ...]
    asks: str
    reason: str
    source: str


@cache
def dispatching() -> tuple[Dispatching, ...]:
    """Files that are known to ask the processor before they use what it may lack."""
    text = resources.files("edgekit.crossbuild").joinpath("dispatching.toml").read_text(encoding="utf8")
    return msgspec.convert(tomllib.loads(text), dict[str, tuple[Dispatching, ...]])["dispatching"]


def audit_wheel(path: Path, shown: str, board: Board) -> Iterator[FileAudit]:
    """The wheel's own result and that of every ELF file in it; a wheel that cannot be read is a fault of it.

    Args:
        path: of the wheel.
        shown: the path to show.
        board: what it is held against.

    Raises:
        MissingDependencyError: pyelftools or capstone is not installed.
    """
    try:
        facts = wheel_files.facts(path)
        with zipfile.ZipFile(path) as archive:
            said = _said_tags(archive)
            files = list(_members(archive, facts.name, board))
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        yield FileAudit(path=shown, kind="wheel", size=0, faults=(f"cannot be read ({plain(str(error))})",))
        return
    except WheelError as error:
        yield FileAudit(path=shown, kind="wheel", size=0, faults=(f"cannot be read ({error.found})",))
        return
    needed = max((file.glibc for file in files), key=_sortable, default="")
    yield FileAudit(
        path=shown, kind="wheel", size=path.stat().st_size, glibc=needed,
        faults=tuple(_tag_faults(facts.tags, said, needed if files else None, board.platform)),
    )  # fmt: skip
    for file in files:
        yield msgspec.structs.replace(file, path=f"{shown}!{file.path}")


def _said_tags(archive: zipfile.ZipFile) -> frozenset[Tag]:
    """The tags in the file WHEEL."""
    info = next((i for i in archive.infolist() if i.filename.endswith(".dist-info/WHEEL")), None)
    if info is None or info.file_size > _MAX_WHEEL_FILE:
        raise ValueError("it has no WHEEL file, or a huge one")
    lines = archive.read(info).decode("utf8", "replace").splitlines()
    said = [line[5:].strip() for line in lines if line.startswith("Tag: ")]
    # A line stands for all combinations of its three lists.
    if sum(prod(part.count(".") + 1 for part in line.split("-")) for line in said) > _MAX_TAGS:
        raise ValueError("its WHEEL file claims too many tags")
    return frozenset(tag for line in said for tag in parse_tag(line))


def _sortable(version: str) -> tuple[int, ...]:
    return numbers(version) if version else (0,)


def _tag_faults(tags: frozenset[Tag], said: frozenset[Tag], needed: str | None, platform: Platform) -> Iterator[str]:
    """Tags that do not fit the target, contradict each other or promise too much.

    Args:
        tags: in the file's name.
        said: in its WHEEL file.
        needed: newest glibc that a file inside needs; empty: none does; None: nothing inside is native.
        platform: the target's.
    """
    if not platform.accepts(tags):
        yield f"is for {_shown(tags)}, and the target is {platform}"
    if said != tags:
        yield f"has other tags inside ({_shown(said)}) than its name"
    floor = glibc_of(tags)
    if needed is not None and len(floor) == 1:
        yield f"holds native code, and its tags ({_shown(tags)}) do not say for which glibc"
    elif needed and numbers(needed) > floor:
        yield f"says by its tags that glibc {'.'.join(map(str, floor))} is enough, and needs GLIBC_{needed}"


def _shown(tags: frozenset[Tag]) -> str:
    return plain(", ".join(sorted(map(str, tags))) or "nothing")


def _members(archive: zipfile.ZipFile, package: str, board: Board) -> Iterator[FileAudit]:
    """Every ELF file of a wheel, told by its first bytes and not by its name."""
    paths = frozenset(info.filename for info in archive.infolist())
    for info in archive.infolist():
        with archive.open(info) as stream:
            if stream.read(4) != elf_files.MAGIC:
                continue
        if info.file_size > elf_files.MAX_BYTES:
            yield unread(info.filename, info.file_size, f"is larger than {elf_files.MAX_BYTES >> 20} MiB")
            continue
        place = Place(info.filename, paths)
        yield _member(archive.read(info), place, package, board)


def _member(data: bytes, place: Place, package: str, board: Board) -> FileAudit:
    try:
        elf = elf_files.read(data, place.path)
    except FileFormatError as error:
        return unread(place.path, len(data), error.found.removeprefix(f"{place.path} "))
    entry = _entry(elf, place.path, package)
    if entry is None:
        found = examine(elf, place, board, own=package in _OWN)
    else:
        features = board.features | frozenset(entry.features)
        found = examine(elf, place, board, own=False, features=features, dispatches=entry.reason)
    faults = tuple(_module_faults(elf, place.path, board.platform))
    return msgspec.structs.replace(found, faults=(*found.faults, *faults))


def _entry(elf: Elf, path: str, package: str) -> Dispatching | None:
    """The entry of the list that a file of a wheel falls under, when it does ask as the entry says."""
    for entry in dispatching():
        if entry.package == package and fnmatchcase(path, entry.file) and elf.names_function(entry.asks):
            return entry
    return None


def _module_faults(elf: Elf, path: str, platform: Platform) -> Iterator[str]:
    """A module that the target's Python would not import under this name."""
    match = re.search(r"\.(cpython-[^./]*|abi3)\.so$", path)
    wanted = f"cpython-{platform.interpreter.removeprefix('cp')}-{platform.machine}-linux-gnu"
    if elf.python_module and match and match[1] not in ("abi3", wanted):
        yield f"is a module for {match[1]}, and the target's Python imports {wanted} and abi3"
