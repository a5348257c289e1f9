"""Reading a stranger's wheel without unpacking it, and writing wheels whose bytes follow from their content."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import RawMetadata, parse_email
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from edgekit.errors import MissingDependencyError, WheelError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of everything in a wheel made here: the first that a zip file can hold."""
_EPOCH_SECONDS = "315532800"
_MAX_MEMBERS, _MAX_BYTES, _MAX_METADATA = 50_000, 2 << 30, 4 << 20
_SPDX = {"MIT License": "MIT", "The MIT License": "MIT", "Apache 2.0": "Apache-2.0", "Apache License 2.0": "Apache-2.0"}
"""What old metadata calls licences that have one SPDX name beyond doubt."""


@dataclass(frozen=True)
class Facts:
    """What a wheel says about itself."""

    name: str
    """As package indexes spell it."""
    version: str
    licence: str
    requires: tuple[str, ...]
    tags: frozenset[Tag]
    python: str = ""
    """Versions of Python that it runs on, as a specifier such as ">=3.11"; empty: any."""


def facts(path: Path) -> Facts:
    """Read a wheel's name, tags and metadata; nothing is unpacked.

    Raises:
        WheelError: it is no wheel, a member's name leads out of the folder it is unpacked to, it is larger than any
            wheel of ours, or its metadata are another package's.
    """
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            metadata = _metadata(path, archive)
    except (
        InvalidWheelFilename,
        InvalidVersion,
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
        ValueError,
    ) as error:
        raise _bad(path, f"is not a wheel ({error})") from error
    if (canonicalize_name(metadata.get("name", "")), _version(metadata.get("version", ""))) != (name, version):
        raise _bad(path, f"holds {metadata.get('name')} {metadata.get('version')}, which is not what its name says")
    requires = tuple(metadata.get("requires_dist", ()))
    return Facts(name, str(version), licence_of(metadata), requires, tags, metadata.get("requires_python", ""))


def _bad(path: Path, fault: str) -> WheelError:
    return WheelError(f"{path.name} {fault}", remedy="remove it, and get it from a package index that you trust")


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what an unpacker could be led astray by; pip has its own guard, which a board should never need."""
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if not name.isprintable() or "\\" in name or ":" in name or name.startswith("/"):
            raise _bad(path, f"holds a member with an unsafe name, {name!a}")
        if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
            raise _bad(path, f"holds a member that leads out of its folder, {name!a}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _bad(path, f"holds a symbolic link, {name!a}")
        if name in seen:
            raise _bad(path, f"holds {name!a} twice")
        seen.add(name)
    if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_BYTES:
        raise _bad(path, f"unpacks to more than {_MAX_MEMBERS} files or {_MAX_BYTES >> 30} GiB")


def _metadata(path: Path, archive: zipfile.ZipFile) -> RawMetadata:
    found = [info for info in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", info.filename)]
    if len(found) != 1 or found[0].file_size > _MAX_METADATA:
        raise _bad(path, "has no metadata, or several")
    return parse_email(archive.read(found[0]))[0]


def licence_of(metadata: RawMetadata) -> str:
    """The licence in one line: the SPDX expression, the short text, or the classifiers."""
    if expression := metadata.get("license_expression"):
        return expression
    said = metadata.get("license", "").strip()
    kinds = [line.rpartition(" :: ")[2] for line in metadata.get("classifiers", []) if line.startswith("License ::")]
    if said and "\n" not in said and len(said) <= 100:
        return _SPDX.get(said, said)
    return " AND ".join(_SPDX.get(kind, kind) for kind in kinds) or "not stated"


@dataclass(frozen=True)
class Member:
    """One file of a wheel to be written."""

    data: bytes
    executable: bool = False


def write(path: Path, members: Mapping[str, Member]) -> Path:
    """Write a wheel with its RECORD; the same members give the same bytes.

    Args:
        path: named as a wheel is; its folder is there.
        members: path in the wheel → content; all but RECORD.

    Raises:
        MissingDependencyError: the `wheel` package is not installed.
    """
    try:
        from wheel.wheelfile import WheelFile
    except ImportError as error:
        raise MissingDependencyError(
            "the wheel package is not installed", remedy="pip install 'edgekit[cross]'"
        ) from error
    with _at_epoch(), WheelFile(str(path), "w") as archive:
        # The metadata go last, as PEP 427 recommends.
        for name in sorted(members, key=lambda name: (".dist-info/" in name, name)):
            info = zipfile.ZipInfo(name, date_time=EPOCH)
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | (0o755 if members[name].executable else 0o644)) << 16
            archive.writestr(info, members[name].data)
    path.chmod(0o644)
    return path


@contextmanager
def _at_epoch() -> Iterator[None]:
    """The time that `wheel` gives RECORD, which it writes by itself."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = _EPOCH_SECONDS
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before


def wheel_text(tag: str, *, pure: bool) -> bytes:
    """The WHEEL file; `tag` is the last part of the wheel's name."""
    pythons, abis, platforms = tag.split("-")
    tags = [f"{p}-{a}-{q}" for p in pythons.split(".") for a in abis.split(".") for q in platforms.split(".")]
    lines = ["Wheel-Version: 1.0", "Generator: edgekit", f"Root-Is-Purelib: {str(pure).lower()}"]
    return "\n".join([*lines, *(f"Tag: {each}" for each in tags), ""]).encode()
