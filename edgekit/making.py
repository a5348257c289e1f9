"""Making a place in the cache that several processes may want at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit import cache, locks
from edgekit.errors import OutputError


@contextmanager
def making(place: Path) -> Iterator[int]:
    """While this is held no other process makes or removes `place`; waits for one that does.

    Yields:
        The descriptor that holds the lock. A child that inherits it keeps the lock as long as it lives.

    Raises:
        OutputError: the cache cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.take(cache.lock_of(place), create=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the cache at {place.parent} ({error.strerror})", remedy="set EDGEKIT_CACHE to another folder"
        ) from error
    assert lock is not None  # noqa: S101  # it waited
    try:
        yield lock
    finally:
        cache.abandon(place, lock)
