"""ONNX Runtime's C header, which the operators are compiled against: downloaded, checked, never part of edgekit."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from edgekit import cache
from edgekit.errors import DownloadError, FileFormatError, OutputError
from edgekit.files import cache_dir, sha256, whole_folder
from edgekit.making import making
from edgekit.progress import Progress, Quiet

VERSION = "1.21.0"
"""Its C interface only grows: a library made with this header runs in every later ONNX Runtime."""
HEADER = "onnxruntime_c_api.h"
SHA256 = "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882"
"""Of the header, the same in all sources."""
_SECONDS = 60.0
_MOST_BYTES = 64 << 20
"""Of an archive and of what is unpacked of it before the header."""
_MOST_HEADER = 4 << 20
"""Of the header."""
_MOST_EXTENSION = 1 << 20
"""Of a tar archive's extended header, which has to be held in memory."""
_EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_UNUSABLE = (
    OSError, HTTPException, FileFormatError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError,
    RecursionError,
)  # fmt: skip
"""What a server that does not answer well, or a damaged archive, leads to."""
_TRIES = 3


@dataclass(frozen=True)
class Source:
    """An archive that holds the header."""

    url: str
    find: Callable[[bytes], bytes]
    """The header's bytes, of the archive's."""
    sha256: str = ""
    """Of the archive, compared before anything reads it; empty where it is not known."""


@contextmanager
def header_in_use(*, offline: bool = False, progress: Progress | None = None) -> Iterator[Path]:
    """As :func:`header_folder`; nobody removes the folder from the cache while this is held."""
    for _ in range(_TRIES):
        folder = header_folder(offline=offline, progress=progress)
        with cache.using(folder):
            if _is_whole(folder):  # else another process removed it in between
                yield folder
                return
    raise OutputError(
        f"the header of ONNX Runtime is removed from the cache again and again at {folder.parent}",
        remedy="wait until other edgekit commands have ended, then run again",
    )


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
    try:
        return path.is_file() and sha256(path) == SHA256
    except FileNotFoundError:  # another process removed it in between
        return False


def download(sources: tuple[Source, ...] = ()) -> bytes:
    """The header's bytes from the first of `sources` (none: :data:`SOURCES`) that has it just as it must be.

    Raises:
        DownloadError: none has; quotes what was wrong with each.
    """
    wrong: list[str] = []
    for source in sources or SOURCES:
        try:
            header = source.find(_archive(source))
        except _UNUSABLE as error:
            wrong.append(f"{source.url}: {str(error) or type(error).__name__}")
            continue
        if (found := hashlib.sha256(header).hexdigest()) == SHA256:
            return header
        wrong.append(f"{source.url}: {HEADER} has SHA-256 {found}")
    raise DownloadError(
        f"the header of ONNX Runtime {VERSION} is not to be had ({'; '.join(wrong)})",
        expected=f"{HEADER} with SHA-256 {SHA256}",
        remedy="check the network",
    )


def _archive(source: Source) -> bytes:
    """A source's archive; raises FileFormatError when it is not the one that it should be."""
    with closing(urllib.request.urlopen(source.url, timeout=_SECONDS)) as answer:  # noqa: S310  # ours, never a stranger's
        data: bytes = answer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise FileFormatError(f"it is larger than {_MOST_BYTES} bytes")
    if source.sha256 and (found := hashlib.sha256(data).hexdigest()) != source.sha256:
        raise FileFormatError(f"it has SHA-256 {found}, expected {source.sha256}")
    return data


class _Bounded:
    """A stream that ends in an error after so many bytes."""

    def __init__(self, stream: gzip.GzipFile | lzma.LZMAFile, most: int) -> None:
        self._stream, self._left = stream, most

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise FileFormatError("it has an unreasonable amount of data")
        return data


class _Member(tarfile.TarInfo):
    """Refuses extended headers that are larger than any honest one before they are read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENSIONS and member.size > _MOST_EXTENSION:
            raise FileFormatError(f"it has an extended header of {member.size} bytes")
        return member


def in_tar(data: bytes, mode: str = "gz") -> bytes:
    """The header in a tar archive, compressed with gzip ("gz") or xz ("xz"); nothing is unpacked to the disk.

    Raises:
        FileFormatError: it is not there, or stands behind an unreasonable amount of data.
        tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, RecursionError: it is no such
            archive, or damaged.
    """
    packed = io.BytesIO(data)
    with gzip.GzipFile(fileobj=packed) if mode == "gz" else lzma.LZMAFile(packed) as unpacked:
        return _found_in(_Bounded(unpacked, _MOST_BYTES))


def _found_in(stream: _Bounded) -> bytes:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:  # type: ignore[call-overload]
        for member in tar:
            if not member.isfile() or Path(member.name).name != HEADER:
                continue
            if member.size > _MOST_HEADER:
                raise FileFormatError(f"{HEADER} has {member.size} bytes in it")
            if (file := tar.extractfile(member)) is not None:
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


_PACKAGE = "debian/pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb"
_PACKAGE_SHA256 = "14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08"
_SNAPSHOT = "archive/debian/20250901T000000Z"
"""Of a day when Debian had the package; its archive drops it some time after the release's end."""
SOURCES = (
    Source(
        f"https://github.com/microsoft/onnxruntime/releases/download/v{VERSION}/onnxruntime-linux-x64-{VERSION}.tgz",
        in_tar,
    ),
    Source(f"https://deb.debian.org/{_PACKAGE}", in_deb, _PACKAGE_SHA256),
    Source(f"https://snapshot.debian.org/{_PACKAGE.replace('debian', _SNAPSHOT, 1)}", in_deb, _PACKAGE_SHA256),
    Source(f"http://deb.debian.org/{_PACKAGE}", in_deb, _PACKAGE_SHA256),
)
"""Tried in this order; without encryption only where the archive's own hash is known."""
