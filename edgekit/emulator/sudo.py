"""Root for another user: what sudo makes goes into the cache of who called it, and belongs to that user where it can.

The arm64 systems stay root's: their files have the owners that a board's have.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit import cache
from edgekit.emulator.userland import SYSTEM
from edgekit.files import cache_dir


@dataclass(frozen=True)
class Caller:
    """The user who called sudo."""

    uid: int
    gid: int
    home: Path


def caller(environment: Mapping[str, str] = os.environ) -> Caller | None:
    """Who called sudo; None without it, or when that was root too."""
    numbers = [environment.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if os.geteuid() != 0 or not all(re.fullmatch(r"[1-9][0-9]{0,9}", number) for number in numbers):
        return None
    try:
        home = pwd.getpwuid(int(numbers[0])).pw_dir
    except KeyError:
        return None
    return Caller(int(numbers[0]), int(numbers[1]), Path(home))


@contextmanager
def callers_cache() -> Iterator[None]:
    """While this is held the cache is that of who called sudo; afterwards what root made there is that user's."""
    who = caller()
    if who is None:
        yield
        return
    if not os.environ.get("EDGEKIT_CACHE") and not os.environ.get("XDG_CACHE_HOME"):
        os.environ["EDGEKIT_CACHE"] = str(who.home / ".cache" / "edgekit")
    root = cache_dir().absolute()
    above = [path for path in (root, *root.parents) if not path.exists() or who.home in path.parents]
    try:
        yield
    finally:
        if root in above or _owner(root) == who.uid:
            _give(who, [*above, *_of_cache(root)])


def _of_cache(root: Path) -> Iterator[Path]:
    """What the emulator makes there, without what is in the systems."""
    place = root / cache.ENVIRONMENTS
    yield from (path for path in root.glob("*") if path == place or path.is_file())
    yield from root.glob(".*")
    for path in place.glob("*") if place.is_dir() else ():
        yield path
        if not path.name.startswith(SYSTEM) and path.is_dir() and not path.is_symlink():
            yield from path.rglob("*")
    yield from place.glob(".*")


def _give(who: Caller, paths: Iterable[Path]) -> None:
    for path in paths:
        if _owner(path) == 0:
            with suppress(FileNotFoundError):
                os.chown(path, who.uid, who.gid, follow_symlinks=False)


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None
