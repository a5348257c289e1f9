"""What a bundle may hold on disk: plain files and folders with harmless names, read without following links."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import BundleError

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 16
MAX_FILES = 20_000
_CHUNK = 1 << 22


def plain(text: str, limit: int = 200) -> str:
    """`text` fit for one line of a terminal: unprintable characters escaped, cut after `limit` characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:limit])
    return shown + ("…" if len(text) > limit else "")


def names(paths: Iterable[str], most: int = 3) -> str:
    """The first paths of a sorted list, quoted for a message, and how many more there are."""
    ordered = sorted(paths)
    shown = ", ".join(f"'{plain(path)}'" for path in ordered[:most])
    return shown + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _path_fault(path: str) -> str | None:
    if not path or path.startswith("/") or "\\" in path or ":" in path:
        return "is not a relative path with forward slashes"
    if not path.isprintable():
        return "holds unprintable characters"
    if unicodedata.normalize("NFC", path) != path:
        return "is not in Unicode normal form C"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "is not normalised or leads out of the bundle"
    if len(parts) > MAX_DEPTH or len(path.encode()) > MAX_PATH_BYTES:
        return "is too long"
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return "has a name that is too long"
    return None


def check_path(path: str) -> None:
    """Accept only a relative, normalised, printable path with forward slashes.

    Raises:
        BundleError: the path is absolute, empty or too long, has `..`, `.`, an empty part, a backslash, a colon or an
            unprintable character (surrogates of undecodable names are unprintable), or is not in NFC.
    """
    if fault := _path_fault(path):
        raise BundleError(
            f"the path '{plain(path)}' {fault}",
            expected="a path inside the bundle such as tokenizer/tokenizer.json",
            remedy="do not use this bundle, get it again from who built it",
        )


def check_names(paths: Iterable[str]) -> None:
    """Check every path and that no two would meet on a file system that ignores case or Unicode form.

    Raises:
        BundleError: a path is refused by :func:`check_path`, or two paths or folders differ in case or form only.
    """
    seen: dict[str, str] = {}
    for path in paths:
        check_path(path)
        parts = path.split("/")
        for length in range(1, len(parts) + 1):
            prefix = "/".join(parts[:length])
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prefix).casefold())
            other = seen.setdefault(folded, prefix)
            if other != prefix:
                raise BundleError(
                    f"'{plain(other)}' and '{plain(prefix)}' are the same name on some file systems",
                    expected="names that differ in more than case",
                    remedy="rename one and build the bundle again",
                )


def _special(path: str, mode: int) -> BundleError:
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
    return BundleError(
        f"'{plain(path)}' in the bundle is {kind}",
        expected="plain files and folders only",
        remedy="do not use this bundle, get it again from who built it",
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise BundleError(
            f"cannot read the folder {folder} ({error.strerror})", remedy="check its permissions"
        ) from error


def scan(root: Path) -> tuple[dict[str, int], set[str]]:
    """All that is below `root`, links not followed: the size in bytes of each file by path, and the folders.

    Raises:
        BundleError: a symbolic link, a special file, an unsafe name, or more than MAX_FILES entries.
    """
    files: dict[str, int] = {}
    folders: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(root / prefix):
            path = prefix + entry.name
            check_path(path)
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                folders.add(path)
                waiting.append(path + "/")
            elif stat.S_ISREG(status.st_mode):
                files[path] = status.st_size
            else:
                raise _special(path, status.st_mode)
            if len(files) + len(folders) > MAX_FILES:
                raise BundleError(f"{root} holds more than {MAX_FILES} files", remedy="give the folder of a bundle")
    check_names(files)
    return files, folders


@contextmanager
def _opened(root: Path, path: str) -> Iterator[int]:
    """A file descriptor of a plain file; a link or a fifo put in its place since the scan is refused."""
    try:
        handle = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(
            f"cannot open '{plain(path)}' in {root} ({error.strerror})",
            expected="a readable plain file",
            remedy="check its permissions or get the bundle again",
        ) from error
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise _special(path, mode)
        yield handle
    finally:
        os.close(handle)


def _pieces(handle: int, path: str, limit: int) -> Iterator[bytes]:
    """The content in pieces; at most one byte more than `limit` is ever read."""
    left = limit + 1
    while left > 0:
        try:
            piece = os.read(handle, min(_CHUNK, left))
        except OSError as error:
            raise BundleError(
                f"cannot read '{plain(path)}' ({error.strerror})", remedy="check the disk, get the bundle again"
            ) from error
        if not piece:
            return
        left -= len(piece)
        yield piece


def read_bounded(root: Path, path: str, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes.

    Raises:
        BundleError: not a plain file, not readable, or larger.
    """
    with _opened(root, path) as handle:
        data = b"".join(_pieces(handle, path, limit))
    if len(data) > limit:
        raise BundleError(
            f"'{plain(path)}' is larger than {limit} bytes", expected="a small JSON file", remedy="get the bundle again"
        )
    return data


def digest(root: Path, path: str, size: int, progress: Callable[[int], None]) -> str | None:
    """SHA-256 of a plain file as lower-case hex, or None when it does not hold exactly `size` bytes.

    `progress` is called with the number of bytes read, piece by piece.

    Raises:
        BundleError: not a plain file or not readable.
    """
    value, total = hashlib.sha256(), 0
    with _opened(root, path) as handle:
        for piece in _pieces(handle, path, size):
            value.update(piece)
            total += len(piece)
            progress(len(piece))
    return value.hexdigest() if total == size else None
