"""Writing without half-written results: everything appears under its name only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit import locks
from edgekit.errors import OutputError, OutputExistsError

_UNWRITABLE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EDQUOT, errno.EFBIG,
)  # fmt: skip


def sha256(path: Path) -> str:
    """SHA-256 of a file, as lower-case hex, read in 4 MiB pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputExistsError when `path` is there and `force` is not given."""
    if not force and _there(path):
        raise OutputExistsError(
            f"{path} is there already", expected="a new name", remedy="give --force to replace it or -o another path"
        )


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a disk that is full or not writable into an OutputError about `path`."""
    try:
        yield
    except OSError as error:
        # numpy's tofile keeps no error number: "6528 requested and 2784 written".
        if error.errno == errno.ENOSPC or (error.errno is None and "requested and" in str(error)):
            raise OutputError(
                f"no space left on the disk while writing {path}",
                remedy="free some space and run again; nothing was left half-written",
            ) from error
        if error.errno in _UNWRITABLE:
            raise OutputError(
                f"cannot write {path} ({error.strerror})", remedy="choose another folder with -o"
            ) from error
        raise


def _replace(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path` (a link itself, never what it points to); the old one goes last."""
    if not _there(path) or (fresh.is_file() and (path.is_symlink() or path.is_file())):
        fresh.replace(path)
        return
    old, lock = _held(lambda: Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent)))
    try:
        path.rename(old / path.name)
        fresh.rename(path)
    except BaseException:
        if not _there(path):
            (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
        locks.release(lock)


def _there(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError:  # a name too long to exist; writing to it will say so
        return False


def _held(make: Callable[[], Path]) -> tuple[Path, int | None]:
    """A new temporary file or folder and the lock that tells :func:`sweep` that its owner lives."""
    while True:
        fresh = make()
        try:
            return fresh, locks.take(fresh)
        except FileNotFoundError:
            continue  # swept away between making and locking it
        except OSError:
            return fresh, None  # a file system without locks: nobody can take it for abandoned either


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder` on the way to `name` (None: to any name).

    Only what carries exactly a temporary name of ours, belongs to this user and is locked by nobody. A folder that was
    just being replaced gets its name back.
    """
    stem = r".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.({stem})\.(tmp|old)-[a-z0-9_]{{8}}", re.DOTALL)
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return
    for match in filter(None, map(pattern.fullmatch, names)):
        left = folder / match[0]
        _remove_abandoned(left, folder / match[1] if match[2] == "old" else None)


def _remove_abandoned(left: Path, home: Path | None) -> None:
    try:
        lock = locks.take(left, wait=False)
    except OSError:
        return
    if lock is None:
        return
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return
        if home is not None and _there(left / home.name) and not _there(home):
            (left / home.name).rename(home)
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    except OSError:  # next time, then
        return
    finally:
        locks.release(lock)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is needed on the way to it; removed at the end, or by the next one's sweep."""
    fresh, lock = _held(lambda: Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent)))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        locks.release(lock)


@contextmanager
def whole_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to `path` when the block ends well, and removed otherwise.

    What an earlier, killed process left on the way to `path` is removed first.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
        OutputError: the disk is full or not writable.
    """
    with output_errors(path):
        sweep(path.parent, path.name)
        refuse_existing(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as fresh:
            fresh.chmod(0o755)
            yield fresh
            refuse_existing(path, force)  # another process may have been faster
            _replace(fresh, path)


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """As :func:`whole_folder`, for one file: yields a temporary path beside `path`."""
    with output_errors(path):
        sweep(path.parent, path.name)
        refuse_existing(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh, lock = _held(lambda: _new_file(path))
        try:
            fresh.chmod(0o644)
            yield fresh
            refuse_existing(path, force)
            _replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
            locks.release(lock)


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    os.close(handle)
    return Path(name)


def copy_tree(source: Path, place: Path) -> Path:
    """Copy the files below `source` to the folder `place`; stops at the first that cannot be written.

    shutil.copytree would collect all failures in an error that no longer says that the disk is full.
    """
    place.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            copy_tree(path, place / path.name)
        else:
            shutil.copyfile(path, place / path.name)
    return place


def cache_dir() -> Path:
    """Where things go that can be made again: $EDGEKIT_CACHE, $XDG_CACHE_HOME/edgekit or ~/.cache/edgekit."""
    if own := os.environ.get("EDGEKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"
