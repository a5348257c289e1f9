"""llama.cpp's sources: the source archive of the llama-cpp-python release that the host runs, checked and unpacked."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import zlib
from copy import copy
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgekit import cache
from edgekit.errors import MissingDependencyError, WheelError
from edgekit.files import cache_dir, sha256, whole_folder
from edgekit.making import making
from edgekit.progress import Progress

PACKAGE = "llama-cpp-python"
KNOWN = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""Release → SHA-256 of its archive; the last one is taken where no llama-cpp-python is installed."""
_MEGABYTES = 77
_MOST_BYTES = 1 << 30
_MOST_FILES = 50_000
_LAST_WORDS = 300


@dataclass(frozen=True)
class Source:
    """An unpacked source archive."""

    folder: Path
    """Holds llama_cpp/ (the Python package) and vendor/llama.cpp."""
    release: str
    """Of llama-cpp-python."""
    sha256: str
    """Of the archive."""

    @property
    def llama_cpp(self) -> Path:
        """llama.cpp's tree."""
        return self.folder / "vendor" / "llama.cpp"


def release() -> str:
    """The release whose llama.cpp the host runs; without one, the newest that edgekit knows.

    Raises:
        WheelError: the installed one is unknown, so its archive could not be checked.
    """
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return list(KNOWN)[-1]
    if installed not in KNOWN:
        raise WheelError(
            f"the checksum of the source archive of {PACKAGE} {installed}, which is installed here, is unknown",
            expected=f"{PACKAGE} {' or '.join(KNOWN)}",
            remedy=f"install it: pip install {PACKAGE}=={list(KNOWN)[-1]}",
        )
    return installed


def sdist(progress: Progress, offline: bool) -> Source:
    """The sources of :func:`release`; downloaded with pip (77 MB) and unpacked into the cache once.

    Raises:
        WheelError: `offline` and they are not in the cache, pip cannot get them, or their checksum is wrong.
        MissingDependencyError: there is no pip.
        OutputError: the cache cannot be written.
    """
    wanted = release()
    expected = KNOWN[wanted]
    folder = cache_dir() / cache.SOURCES / f"llama_cpp_python-{wanted}-{expected[:12]}"
    if not folder.is_dir():
        if offline:
            raise WheelError(
                f"the sources of {PACKAGE} {wanted} are not in the cache at {folder.parent}",
                remedy=f"run once without --offline: {_MEGABYTES} MB are downloaded",
            )
        _get(wanted, expected, folder, progress)
    cache.mark_used(folder)
    return Source(folder, wanted, expected)


def _get(wanted: str, expected: str, folder: Path, progress: Progress) -> None:
    if find_spec("pip") is None:
        raise MissingDependencyError(
            "pip, which downloads llama.cpp's sources, is not installed here", remedy="python -m ensurepip"
        )
    with making(folder), progress.step(f"Sources of {PACKAGE} {wanted}, {_MEGABYTES} MB"):
        if folder.is_dir():  # another process was faster
            return
        with whole_folder(folder) as fresh:
            archive = _download(wanted, expected, fresh)
            unpack(archive, fresh)
            archive.unlink()


def _download(wanted: str, expected: str, folder: Path) -> Path:
    pins = folder / "pin.txt"
    # pip checks the hash before it runs anything of the archive.
    pins.write_text(f"{PACKAGE}=={wanted} --hash=sha256:{expected}\n", encoding="ascii")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-input",
        "--no-binary", PACKAGE, "--require-hashes", "--requirement", str(pins), "--dest", str(folder),
    ]  # fmt: skip
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    pins.unlink()
    archive = next(folder.glob("*.tar.gz"), None)
    if child.returncode or archive is None:
        raise _failure(wanted, expected, child.stderr)
    check(archive, expected)
    return archive


def _failure(wanted: str, expected: str, said: str) -> WheelError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in said:
        got = next((line.split()[-1] for line in lines if line.startswith("Got")), "another")
        return _wrong_hash(f"{PACKAGE} {wanted}'s source archive", got, expected)
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"]
    return WheelError(
        f"pip could not get the sources of {PACKAGE} {wanted} ({errors[-1].removeprefix('ERROR: ')[:_LAST_WORDS]})",
        remedy="check the network and pip's configuration; once in the cache, --offline does",
    )


def check(archive: Path, expected: str) -> None:
    """Raise WheelError unless the file has that SHA-256."""
    if (found := sha256(archive)) != expected:
        raise _wrong_hash(archive.name, found, expected)


def _wrong_hash(what: str, found: str, expected: str) -> WheelError:
    return WheelError(
        f"{what} has SHA-256 {found}",
        expected=expected,
        remedy="nothing of it was used; check the package index that pip takes it from",
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack regular files, folders and links inside of a .tar.gz below `folder`, without its single top folder.

    Raises:
        WheelError: it is no archive, a member would land outside, or it is unreasonably large.
    """
    files = nbytes = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                files, nbytes = files + 1, nbytes + member.size
                if files > _MOST_FILES or nbytes > _MOST_BYTES:
                    raise WheelError(f"{archive.name} unpacks to more than {_MOST_BYTES} bytes or {_MOST_FILES} files")
                name = member.name.partition("/")[2]
                if name:
                    _extract(tar, member, name, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise WheelError(f"{archive.name} is damaged or unsafe ({error})", remedy="download it again") from error


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: Path) -> None:
    """Put a member below `folder` as `name`; raise tarfile.TarError when it or its link would leave the folder."""
    placed = copy(member)
    placed.name = name
    if hasattr(tarfile, "data_filter"):
        tar.extract(placed, folder, filter="data")
        return
    # Python 3.11.2, which Debian 12 has, knows no filters.
    reached = [name]
    if member.issym():
        reached.append(os.path.join(os.path.dirname(name), member.linkname))  # noqa: PTH118, PTH120 (not of this system)
    if not (member.isfile() or member.isdir() or member.issym()):
        raise tarfile.TarError(f"{member.name!r} is no file, folder or symbolic link")
    root = folder.resolve()
    for path in reached:
        if not (root / path).resolve().is_relative_to(root):
            raise tarfile.TarError(f"{member.name!r} would land or point outside")
    placed.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    placed.uid, placed.gid, placed.uname, placed.gname = os.getuid(), os.getgid(), "", ""
    tar.extract(placed, folder)
