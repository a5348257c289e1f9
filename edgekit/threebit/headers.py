"""ONNX Runtime's C header, which the operators are compiled against: downloaded, checked, never part of edgekit."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekit import cache, locks
from edgekit.errors import DownloadError, FileFormatError, OutputError
from edgekit.files import cache_dir, sha256, whole_folder
from edgekit.progress import Progress, Quiet

VERSION = "1.21.0"
"""Its C interface only grows: a library made with this header runs in every later ONNX Runtime."""
HEADER = "onnxruntime_c_api.h"
SHA256 = "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882"
"""Of the header, the same in all sources."""
_SECONDS = 60.0
_MOST_BYTES = 64 << 20
"""Of an archive and of what is unpacked of it before the header."""


@dataclass(frozen=True)
class Source:
    """An archive that holds the header."""

    url: str
    find: Callable[[bytes], bytes]
    """The header's bytes, of the archive's."""


def header_folder(*, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder of the cache with the checked header; downloaded from the first source that has it.

    Raises:
        DownloadError: it is not in the cache and `offline`, or no source has it.
        OutputError: the cache cannot be written.
    """
    folder = cache_dir() / cache.SOURCES / f"onnxruntime-headers-{VERSION}-{SHA256[:12]}"
    if _is_whole(folder):
        cache.mark_used(folder)
        return folder
    if offline:
        raise DownloadError(
            f"the header of ONNX Runtime {VERSION} is not in the cache at {folder.parent}",
            remedy="run once without --offline",
        )
    with making(folder):
        if not _is_whole(folder):
            with (
                (progress or Quiet()).step(f"Header of ONNX Runtime {VERSION}"),
                whole_folder(folder, force=True) as fresh,
            ):
                (fresh / HEADER).write_bytes(download())
    return folder


def _is_whole(folder: Path) -> bool:
    path = folder / HEADER
    return path.is_file() and sha256(path) == SHA256


@contextmanager
def making(place: Path) -> Iterator[None]:
    """While this is held no other process makes or removes `place` in the cache; waits for one that does.

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
    try:
        yield
    finally:
        cache.abandon(place, lock)


def download(sources: tuple[Source, ...] = ()) -> bytes:
    """The header's bytes from the first of `sources` (none: :data:`SOURCES`) that has it just as it must be.

    Raises:
        DownloadError: none has; quotes what was wrong with each.
    """
    wrong: list[str] = []
    for source in sources or SOURCES:
        try:
            header = source.find(_read(source.url))
        except (OSError, FileFormatError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
            wrong.append(f"{source.url}: {error}")
            continue
        if (found := hashlib.sha256(header).hexdigest()) == SHA256:
            return header
        wrong.append(f"{source.url}: {HEADER} has SHA-256 {found}")
    raise DownloadError(
        f"the header of ONNX Runtime {VERSION} is not to be had ({'; '.join(wrong)})",
        expected=f"{HEADER} with SHA-256 {SHA256}",
        remedy="check the network",
    )


def _read(url: str) -> bytes:
    with closing(urllib.request.urlopen(url, timeout=_SECONDS)) as answer:  # noqa: S310  # ours, never a stranger's
        data: bytes = answer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise FileFormatError(f"it is larger than {_MOST_BYTES} bytes")
    return data


def in_tar(data: bytes, mode: str = "gz") -> bytes:
    """The header in a compressed tar archive; nothing is unpacked to the disk.

    Raises:
        FileFormatError: it is not there, or stands behind an unreasonable amount of data.
        tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError: it is no such archive, or damaged.
    """
    passed = 0
    stream: IO[bytes] = io.BytesIO(data)
    with tarfile.open(fileobj=stream, mode=f"r|{mode}") as tar:  # type: ignore[call-overload]
        for member in tar:
            passed += member.size
            if passed > _MOST_BYTES:
                break
            if member.isfile() and Path(member.name).name == HEADER and (file := tar.extractfile(member)) is not None:
                return bytes(file.read())
    raise FileFormatError(f"it holds no {HEADER}")


def in_deb(data: bytes) -> bytes:
    """The header in a Debian package: an `ar` archive (deb(5)) whose member data.tar.xz is a tar archive.

    Raises: as :func:`in_tar`.
    """
    for name, content in _members(data):
        if name == "data.tar.xz":
            return in_tar(content, "xz")
    raise FileFormatError("it holds no data.tar.xz")


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and contents of the members of an `ar` archive."""
    if not data.startswith(b"!<arch>\n"):
        raise FileFormatError("it is no ar archive")
    at = 8
    while at + 60 <= len(data):
        head = data[at : at + 60]
        digits = head[48:58].strip()
        if head[58:60] != b"`\n" or not digits.isdigit():
            raise FileFormatError("it is a damaged ar archive")
        size = int(digits)
        yield head[:16].decode("ascii", "replace").strip().rstrip("/"), data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


SOURCES = (
    Source(
        f"https://github.com/microsoft/onnxruntime/releases/download/v{VERSION}/onnxruntime-linux-x64-{VERSION}.tgz",
        in_tar,
    ),
    Source("http://deb.debian.org/debian/pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb", in_deb),
)
"""Tried in this order."""
