"""Writing without half-written results: everything appears under its name only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def _output_errors(path: Path) -> Iterator[None]:
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
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    try:
        path.rename(old / path.name)
        fresh.rename(path)
    except BaseException:
        if not _there(path):
            (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _there(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError:  # a name too long to exist; writing to it will say so
        return False


@contextmanager
def whole_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to `path` when the block ends well, and removed otherwise.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
        OutputError: the disk is full or not writable.
    """
    refuse_existing(path, force)
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            fresh.chmod(0o755)
            yield fresh
            _replace(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """As :func:`whole_folder`, for one file: yields a temporary path beside `path`."""
    refuse_existing(path, force)
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        os.close(handle)
        fresh = Path(name)
        try:
            fresh.chmod(0o644)
            yield fresh
            _replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def cache_dir() -> Path:
    """Where things go that can be made again: $EDGEKIT_CACHE, $XDG_CACHE_HOME/edgekit or ~/.cache/edgekit."""
    if own := os.environ.get("EDGEKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"
