"""What lies in the cache folder: results of stages and converted models; listing, checking, making room."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from edgekit import locks
from edgekit.files import cache_dir, copy_tree, sha256, sweep, whole_folder
from edgekit.hashes import FOLDER as HASHES
from edgekit.sizes import parse_size

STAGES = "stages"
CONVERSIONS = ("demo", "gguf", "lora")
"""Folders of models that were converted into checkpoints, one folder a model."""
TOOLS = ("envs", "sources", "zig", "compiles", "runtimes", "wheels")
"""Other people's exporters and emulated boards, sources, zig's own cache, runtimes on the way and done, wheels."""
ENVIRONMENTS, SOURCES, COMPILERS, COMPILES, RUNTIMES, WHEELS = TOOLS
TRAININGS = "training"
"""What builds have trained so far, one folder a training."""
MEASUREMENTS = "bench"
"""Folder of what measurements leave: journals of those that did not end, results that stand nowhere else."""
JOURNALS, RESULTS = "journals", "results"
DEFAULT_BOUND = 20_000_000_000
RECENT = 24 * 3600.0
"""Seconds that a conversion is spared for when a build makes room: another command may be reading it, unlocked."""
_LABEL, _FILES = "entry.json", "files"
_MAX_LABEL = 4 << 20
_KEY = re.compile(r"[0-9a-f]{64}")
_LEFT = {JOURNALS: re.compile(r"bench-[0-9a-f]{16}\.jsonl"), RESULTS: re.compile(r"result-[0-9a-f]{16}")}
"""Names in MEASUREMENTS, by kind."""
_STAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class FileSum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of an entry."""

    size: int
    sha256: str


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """entry.json: what an entry is and what its files must be."""

    schema_version: Literal[1] = 1
    stage: str
    what: str
    created: float
    """Seconds since 1970."""
    files: dict[str, FileSum]
    """Path below the entry's files, with "/" → size and checksum."""

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Entry:
    """One thing in the cache that can be removed by itself."""

    kind: str
    """The stage's name, the folder of a conversion or a tool, JOURNALS or RESULTS."""
    what: str
    path: Path
    nbytes: int
    created: float
    """Seconds since 1970."""
    used: float
    """Last time, seconds since 1970."""
    whole: bool = True
    """False: its label is missing or wrong, so it will never be used."""
    is_stage: bool = False
    """Whether it is a stage's result; otherwise what its kind says."""

    @property
    def bounded(self) -> bool:
        """Whether the cache's bound counts it."""
        return self.is_stage or self.kind in (*CONVERSIONS, HASHES)


# -- files and checksums


def sums(folder: Path) -> dict[str, FileSum]:
    """Size and checksum of every file below `folder`, in the order of their names."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return {name: FileSum(size=paths[name].stat().st_size, sha256=sha256(paths[name])) for name in sorted(paths)}


def digest(files: Mapping[str, FileSum]) -> str:
    """One hash over names and contents."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{files[name].sha256} {name}\n".encode("utf8", "surrogateescape"))
    return found.hexdigest()


def files_of(place: Path) -> Path:
    """Where an entry's files lie."""
    return place / _FILES


def place_of(root: Path, stage: str, key: str) -> Path:
    """Folder of a stage's result, whether it is there or not."""
    return root / STAGES / stage / key


def lock_of(place: Path) -> Path:
    """The file that is locked while an entry is made (exclusively) or a stage's result is used (shared)."""
    return place.with_name(f".{place.name}.lock")


# -- entries


def put(made: Path, place: Path, label: Label) -> bool:
    """Move the folder `made` (with the result in `files_of(made)`) to `place`; on another disk, copy it.

    Returns:
        Whether it was moved: `made` is gone then.

    Raises:
        OSError, OutputError: it cannot be written.
    """
    (made / _LABEL).write_bytes(msgspec.json.encode(label))
    try:
        made.rename(place)
        return True
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with whole_folder(place, force=True) as fresh:
        copy_tree(made, fresh)
    return False


def label_at(place: Path) -> Label | None:
    """The label of an entry; None when there is none or it is damaged."""
    try:
        path = place / _LABEL
        if path.stat().st_size > _MAX_LABEL:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Label)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def is_whole(place: Path, label: Label) -> bool:
    """Whether the files are exactly those of the label, byte for byte."""
    folder = files_of(place)
    try:
        paths = list(folder.rglob("*"))  # a walk that is left half way leaves an open folder behind
        return not any(path.is_symlink() for path in paths) and sums(folder) == label.files
    except OSError:
        return False


def mark_used(path: Path) -> None:
    """Note that an entry or a conversion is used now; a cache that cannot be written is no reason to stop."""
    label = path / _LABEL
    with suppress(OSError):
        os.utime(label if label.is_file() else path)


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """While this is held nobody removes `folder`, if it is a conversion or an environment in the cache."""
    if folder.parent.parent != cache_dir() or folder.parent.name not in (*CONVERSIONS, *TOOLS):
        yield
        return
    lock = None
    with suppress(OSError):
        lock = locks.take(folder, shared=True)
        mark_used(folder)
    try:
        yield
    finally:
        locks.release(lock)


def entries(root: Path) -> list[Entry]:
    """Everything that edgekit put there, least recently used first; what it does not know is left out."""
    return _by_use([*bounded_entries(root), *_folder_entries(root, (*TOOLS, TRAININGS)), *_measurements(root)])


def bounded_entries(root: Path) -> list[Entry]:
    """As :func:`entries`: what the cache's bound counts."""
    found = [*_stage_entries(root), *_folder_entries(root, CONVERSIONS)]
    if (root / HASHES).is_dir():
        found.append(_folder_entry(HASHES, "checksums of input files", root / HASHES))
    return _by_use(found)


def _by_use(found: Sequence[Entry]) -> list[Entry]:
    return sorted(found, key=lambda entry: (entry.whole, entry.used))


def _stage_entries(root: Path) -> Iterator[Entry]:
    for stage in _folders(root / STAGES):
        if not _STAGE.fullmatch(stage.name):
            continue
        for place in _folders(stage):
            if _KEY.fullmatch(place.name):
                with suppress(FileNotFoundError):  # another process removed it
                    yield _stage_entry(stage.name, place)


def _stage_entry(stage: str, place: Path) -> Entry:
    label = label_at(place)
    if label is None:
        return replace(_folder_entry(stage, "damaged", place), whole=False, is_stage=True)
    used = (place / _LABEL).stat().st_mtime
    return Entry(stage, label.what, place, label.nbytes, label.created, used, is_stage=True)


def _folder_entries(root: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    for kind in kinds:
        for place in _folders(root / kind):
            if not place.name.startswith("."):
                with suppress(FileNotFoundError):
                    yield _folder_entry(kind, place.name, place)


def _measurements(root: Path) -> Iterator[Entry]:
    """Journals are files, kept results folders."""
    for place in _listed(root / MEASUREMENTS):
        for kind, pattern in _LEFT.items():
            if pattern.fullmatch(place.name) and place.is_dir() == (kind == RESULTS):
                with suppress(FileNotFoundError):
                    yield _folder_entry(kind, place.stem, place)


def _folder_entry(kind: str, what: str, place: Path) -> Entry:
    """A folder without a label, or a file: its files tell how old it is, its own time when it was used."""
    status = place.stat()
    created, size = status.st_mtime, status.st_size if place.is_file() else 0
    for path in place.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found = path.stat(follow_symlinks=False)
                size, created = size + found.st_size, min(created, found.st_mtime)
    return Entry(kind, what, place, size, created, status.st_mtime)


def _folders(parent: Path) -> list[Path]:
    return [path for path in _listed(parent) if path.is_dir()]


def _listed(parent: Path) -> list[Path]:
    """What lies in a folder, without links."""
    try:
        return sorted(path for path in parent.iterdir() if not path.is_symlink())
    except OSError:
        return []


# -- removing


def remove(root: Path, entry: Entry) -> bool:
    """Remove an entry; False when another process uses it.

    Raises:
        OSError: the cache cannot be written.
    """
    with _removing(root):
        making = using = None
        try:
            making = locks.take(lock_of(entry.path), wait=False, create=True)
            using = None if making is None else locks.take(entry.path, wait=False)
            if using is None:
                return False
            discard(entry.path)
        except FileNotFoundError:  # another process removed it
            return True
        finally:
            locks.release(using)
            abandon(entry.path, making)
    return not entry.path.exists()


def discard(place: Path) -> None:
    """Remove a folder or file whose lock the caller holds, if it is there.

    It gets a temporary name first: what a killed process leaves of it is no entry, and :func:`tidy` finds it. Raises
    OSError when it cannot be renamed.
    """
    left = place.with_name(f".{place.name}.tmp-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        place.rename(left)
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def storing(root: Path) -> Iterator[None]:
    """While this is held nothing is removed: a new entry's lock can be turned from exclusive to shared."""
    with _gate(root, shared=True):
        yield


@contextmanager
def _removing(root: Path) -> Iterator[None]:
    with _gate(root, shared=False):
        yield


@contextmanager
def _gate(root: Path, *, shared: bool) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    lock = locks.take(root / ".lock", shared=shared, create=True)
    try:
        yield
    finally:
        locks.release(lock)


def make_room(root: Path, bound: int) -> None:
    """Remove what was used least recently until everything has at most `bound` bytes.

    Entries in use stay, and so do conversions of the last day and TOOLS. Folders that killed processes left go too.

    Raises:
        OSError: the cache cannot be written.
    """
    tidy(root)
    found = bounded_entries(root)
    total, now = sum(entry.nbytes for entry in found), time.time()
    for entry in found:
        if total <= bound:
            return
        if (entry.is_stage or now - entry.used > RECENT) and entry.kind != HASHES and remove(root, entry):
            total -= entry.nbytes


def tidy(root: Path) -> None:
    """Remove temporary folders and locks that killed processes left in the cache."""
    folders = [*(root / kind for kind in (*CONVERSIONS, *TOOLS, TRAININGS, MEASUREMENTS)), *_folders(root / STAGES)]
    for folder in (*folders, root / HASHES):
        sweep(folder)
    sweep(root, HASHES)
    for folder in folders:
        for path in folder.glob(".*.lock"):
            place = path.with_name(path.name[1:-5])
            with suppress(OSError):
                if not place.exists() and path.stat().st_size == 0:
                    abandon(place, locks.take(path, wait=False))


def abandon(place: Path, lock: int | None) -> None:
    """Give back the exclusive lock of an entry that was not made."""
    if lock is not None:
        with suppress(OSError):
            lock_of(place).unlink(missing_ok=True)
        locks.release(lock)


def chosen(found: Sequence[Entry], *, older_than: float | None, max_bytes: int | None, now: float) -> list[Entry]:
    """Which of `found` a cleaning removes: unused for longer than `older_than` seconds, then down to `max_bytes`.

    What is damaged always goes.
    """
    going = [e for e in found if not e.whole or (older_than is not None and now - e.used > older_than)]
    left = [entry for entry in found if entry not in going]
    if max_bytes is not None:
        total = sum(entry.nbytes for entry in left)
        for entry in left:
            if total <= max_bytes:
                break
            going.append(entry)
            total -= entry.nbytes
    return going


def bound() -> int:
    """Bytes the cache may have: $EDGEKIT_CACHE_SIZE, or 20 GB.

    Raises:
        OptionError: it is not a size.
    """
    text = os.environ.get("EDGEKIT_CACHE_SIZE", "").strip()
    return parse_size(text, "EDGEKIT_CACHE_SIZE") if text else DEFAULT_BOUND
