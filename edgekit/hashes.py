"""Checksums of large input files, remembered as long as the files do not change."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import msgspec

from edgekit.errors import OutputError
from edgekit.files import cache_dir, sha256, whole_file

FOLDER = "hashes"
_SMALL = 1 << 20
_SETTLED_NS = 2_000_000_000
"""A file that changed less than this ago may change again within one tick of its file system's clock."""


class _Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    state: tuple[int, int, int, int, int]
    """Device, inode, size, modification and change time in ns."""
    sha256: str


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file as :func:`edgekit.files.sha256`; of a large one from the cache while its state is the same.

    The state is device, inode, size, time of modification and time of change. For inputs of a build only: what came
    from a stranger is hashed whenever it is opened.
    """
    before = _state(path)
    if before[2] < _SMALL:
        return sha256(path)
    where = path.resolve()
    note = cache_dir() / FOLDER / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}.json"
    known = _read(note)
    if known is not None and (known.path, known.state) == (str(where), before):
        return known.sha256
    found = sha256(path)
    if before == _state(path) and time.time_ns() - max(before[3:]) > _SETTLED_NS:
        _write(note, _Known(path=str(where), state=before, sha256=found))
    return found


def _state(path: Path) -> tuple[int, int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(note: Path) -> _Known | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(note: Path, known: _Known) -> None:
    try:
        with whole_file(note, force=True) as fresh:
            fresh.write_bytes(msgspec.json.encode(known))
    except (OSError, OutputError, UnicodeEncodeError):
        return  # hashed again next time
