"""Locks between processes. They belong to the living process: whatever kills it, its locks are gone with it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def take(path: Path, *, shared: bool = False, wait: bool = True, create: bool = False) -> int | None:
    """Lock the file or folder `path` (flock); the descriptor that holds the lock, to be closed with :func:`release`.

    Args:
        path: what is locked; never a link.
        shared: several processes may hold a shared lock at once, while none holds an exclusive one.
        wait: until the lock is free; otherwise None is returned when another process holds it.
        create: make an empty file when there is nothing.

    Raises:
        FileNotFoundError: nothing is there (any more) and `create` is false.
        OSError: it cannot be opened, or the file system has no locks.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY)
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        handle = os.open(path, flags, 0o644)
        try:
            fcntl.flock(handle, how)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who had the lock removed the file: a lock on it would keep nobody out


def share(handle: int) -> None:
    """Turn an exclusive lock into a shared one. Another process may get in between the two."""
    fcntl.flock(handle, fcntl.LOCK_SH)


def release(handle: int | None) -> None:
    """Give a lock back; None is no lock."""
    if handle is not None:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))  # noqa: PTH116
    except FileNotFoundError:
        return False
