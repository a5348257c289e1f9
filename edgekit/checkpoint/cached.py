"""Model folders that can be made again: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgekit import cache, locks
from edgekit.errors import OutputError
from edgekit.files import cache_dir, whole_folder


def cached_folder(kind: str, name: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `kind`/`name`-`key` of the cache; filled by `write` when it is not there.

    A second process that wants the same folder waits for the first.

    Args:
        kind: for example "gguf".
        name: for people; characters that do not suit a file name are replaced.
        key: hash of everything that the folder is made from, and the version of the code that makes it.
        write: fills the new folder that it is given.

    Raises:
        OutputError: the cache cannot be written.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80].lstrip(".") or "model"
    folder = cache_dir() / kind / f"{plain}-{key}"
    if _whole(folder):
        with suppress(OSError):
            os.utime(folder)  # `edgekit cache` removes what was used longest ago
        return folder
    lock = _lock(folder)
    try:
        if not _whole(folder):
            with whole_folder(folder, force=True) as fresh:
                write(fresh)
    finally:
        locks.release(lock)
    return folder


def _whole(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _lock(folder: Path) -> int | None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return locks.take(cache.lock_of(folder), create=True)  # who removes the folder takes it too
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache {folder.parent} ({error.strerror})",
            remedy="set EDGEKIT_CACHE to a folder that can be written",
        ) from error
