"""What a run has measured so far, safe from a reboot: one line of JSON per finished measurement, written through.

The first line says what is measured where; a run with another bundle, protocol or machine has another file. A line that
a crash cut short is dropped. Anything else that is wrong with the file is refused, because figures that were not
measured by this run must not get into its result.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from edgekit import locks
from edgekit.errors import DeviceError, FileFormatError, OutputError

MAX_BYTES = 64 << 20
T = TypeVar("T")


class Identity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes two runs the same run. Nothing in it changes when the machine boots again."""

    schema_version: Literal[1] = 1
    bundle: str
    """SHA-256 of the manifest."""
    protocol: str
    """SHA-256 of the protocol."""
    machine: str
    """SHA-256 of what identifies machine, device kind and engine versions."""
    options: str
    """What else was asked for, in words."""


class _Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    identity: Identity
    started: str


class _Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    crc32: int
    """Of the bytes of `value`."""
    value: msgspec.Raw


class Journal:
    """An open journal; only one process has it at a time."""

    def __init__(self, path: Path, handle: int, lock: int | None, head: _Head, lines: dict[str, bytes]) -> None:
        self.path, self.started, self._handle, self._lock = path, datetime.fromisoformat(head.started), handle, lock
        self._lines = lines

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        locks.release(self._lock)

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> tuple[str, ...]:
        """What was measured, in order."""
        return tuple(self._lines)

    def raw(self, key: str) -> bytes:
        """The JSON of what was measured under `key`."""
        return self._lines[key]

    def remove(self) -> None:
        """Take the file away: the run is finished."""
        self.path.unlink(missing_ok=True)

    def get(self, key: str, type_: type[T]) -> T | None:
        """What was measured under `key`; None when nothing was.

        Raises:
            FileFormatError: it is something else.
        """
        if key not in self._lines:
            return None
        try:
            return msgspec.json.decode(self._lines[key], type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(self.path, f"'{key}' is not what it should be") from error

    def put(self, key: str, value: Any) -> None:
        """Append a measurement; it is on the disk when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        raw = msgspec.json.encode(value)
        _append(self.path, self._handle, _Line(key=key, crc32=zlib.crc32(raw), value=msgspec.Raw(raw)))
        self._lines[key] = raw


def journal_path(folder: Path, identity: Identity) -> Path:
    """The file of that run in `folder`."""
    return folder / f"bench-{hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:16]}.jsonl"


def open_journal(folder: Path, identity: Identity, *, fresh: bool = False) -> Journal:
    """Open the journal of a run in `folder`, which is made when missing.

    Args:
        folder: where journals are.
        identity: of the run.
        fresh: forget what an earlier run measured.

    Raises:
        DeviceError: another process measures the same.
        FileFormatError: the journal is damaged.
        OutputError: it cannot be written.
    """
    path = journal_path(folder, identity)
    handle = lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := locks.take(path, wait=False, create=True)) is None:
            raise DeviceError("the same measurement is running already", remedy=f"wait for it; its journal is {path}")
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        if fresh:
            os.ftruncate(handle, 0)
        head, lines = _read(path, handle, identity)
        return Journal(path, handle, lock, head, lines)
    except BaseException as error:
        if handle is not None:
            os.close(handle)
        locks.release(lock)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _read(path: Path, handle: int, identity: Identity) -> tuple[_Head, dict[str, bytes]]:
    """Everything that is whole; what a crash cut short is taken off the file."""
    if (size := os.fstat(handle).st_size) > MAX_BYTES:
        raise _damaged(path, f"it is larger than {MAX_BYTES >> 20} MiB")
    data = b"".join(iter(lambda: os.read(handle, 1 << 20), b""))
    whole = data.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(handle, whole)
    rows = data[:whole].splitlines()
    if not rows:
        head = _Head(identity=identity, started=datetime.now(UTC).isoformat(timespec="seconds"))
        _append(path, handle, head)
        _enter(path.parent)
        return head, {}
    head = _decoded(path, 1, rows[0], _Head)
    if head.identity != identity or not _is_time(head.started):
        raise _damaged(path, "it is of another run")
    return head, _lines(path, rows[1:])


def _lines(path: Path, rows: list[bytes]) -> dict[str, bytes]:
    lines: dict[str, bytes] = {}
    for number, row in enumerate(rows, 2):
        line = _decoded(path, number, row, _Line)
        raw = bytes(line.value)
        if zlib.crc32(raw) != line.crc32 or line.key in lines:
            raise _damaged(path, f"line {number} was changed")
        lines[line.key] = raw
    return lines


def _decoded(path: Path, number: int, row: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(row, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"line {number} is no line of a journal") from error


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _append(path: Path, handle: int, line: Any) -> None:
    """One write, so that a crash can only cut the last line short."""
    data = msgspec.json.encode(line) + b"\n"
    try:
        if os.write(handle, data) < len(data):
            raise OutputError(f"no space left on the disk while writing {path}", remedy="free some space and run again")
        os.fsync(handle)
    except OSError as error:
        raise _unwritable(path, error) from error


def _enter(folder: Path) -> None:
    """Write through which files a folder has; some file systems need, and others do not know that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the journal {path} cannot be written ({error.strerror})", remedy="give another --journal folder"
    )


def _damaged(path: Path, how: str) -> FileFormatError:
    return FileFormatError(
        f"the journal {path} is damaged ({how})", remedy="remove it, or give --force to measure everything again"
    )
