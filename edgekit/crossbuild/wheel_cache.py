"""Official wheels for another machine's Python: pip chooses and checks them, the cache keeps them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec
from packaging.utils import canonicalize_name

from edgekit import cache, locks
from edgekit.crossbuild import wheel_files
from edgekit.crossbuild.wheel_platform import Platform
from edgekit.errors import MissingDependencyError, OutputError, WheelError
from edgekit.files import cache_dir, sha256, sweep, temporary_folder, whole_file
from edgekit.progress import Progress

_INDEX = "index.json"
_MAX_INDEX = 1 << 20
_NONE = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")
_UNREACHABLE = re.compile(
    r"ConnectionError|NewConnection|Retrying \(|ProxyError|SSLError|Read timed out|name resolution"
)
_LAST_WORDS = 300


@dataclass(frozen=True)
class Wanted:
    """A package as the host has it.

    Attributes:
        name: as package indexes spell it.
        version: the host's.
        bounds: what edgekit itself asks for, such as ">=8.1"; counts when `version` is not to be had.
        same: no other version will do.
    """

    name: str
    version: str
    bounds: str = ""
    same: bool = False

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the index: what a wish was answered with."""

    file: str
    sha256: str


def obtain(
    wanted: Sequence[Wanted], platform: Platform, place: Path, *, offline: bool, progress: Progress
) -> Mapping[str, Path]:
    """Put a wheel of each package for the platform into `place`, out of the cache or downloaded into it; name → path.

    The host's version is taken. Where it has no wheel for the platform, the newest that has one is, unless `same`.

    Raises:
        WheelError: there is no wheel for that Python, one is not what the index promised, or it is not in the cache
            and `offline`; names the packages.
        MissingDependencyError: there is no pip.
        OutputError: the cache cannot be written.
    """
    folder = cache_dir() / cache.WHEELS / f"{platform.interpreter}-{platform.machine}-glibc{platform.glibc}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        index = _index(folder)
        missing = [each for each in wanted if not _is_kept(folder, index.get(str(each)), offline)]
        if missing and offline:
            raise WheelError(
                f"wheels that a board with {platform} needs are not in the cache: {', '.join(map(str, missing))}",
                remedy="run once without --offline",
            )
        if missing:
            index |= _download(missing, platform, folder, progress)
            with whole_file(folder / _INDEX, force=True) as fresh:
                fresh.write_bytes(msgspec.json.encode(index, order="sorted"))
        cache.mark_used(folder)
        return {each.name: _copied(folder / index[str(each)].file, place) for each in wanted}


def _copied(path: Path, place: Path) -> Path:
    shutil.copyfile(path, place / path.name)
    return place / path.name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = locks.take(cache.lock_of(folder), create=True)
    try:
        yield
    finally:
        locks.release(lock)


def _index(folder: Path) -> dict[str, _Kept]:
    """What the folder holds; nothing when the index is missing or damaged, so that all is fetched again."""
    try:
        data = (folder / _INDEX).read_bytes()
        return msgspec.json.decode(data[:_MAX_INDEX], type=dict[str, _Kept])
    except (OSError, ValueError):
        return {}


def _is_kept(folder: Path, kept: _Kept | None, offline: bool) -> bool:
    """Whether a wheel is in the cache as it was downloaded; a changed one is fetched again."""
    if kept is None or Path(kept.file).name != kept.file or not (folder / kept.file).is_file():
        return False
    if (found := sha256(folder / kept.file)) == kept.sha256:
        return True
    if offline:
        raise WheelError(
            f"{folder / kept.file} was changed in the cache: its SHA-256 is {found}",
            expected=kept.sha256,
            remedy="run once without --offline to download it again",
        )
    return False


# -- pip


def _download(wanted: Sequence[Wanted], platform: Platform, folder: Path, progress: Progress) -> dict[str, _Kept]:
    if find_spec("pip") is None:
        raise MissingDependencyError("pip, which downloads wheels, is not installed here", remedy="python -m ensurepip")
    sweep(folder)
    with (
        progress.step(f"Downloading {len(wanted)} wheels for {platform}"),
        temporary_folder(folder / "download") as scratch,
    ):
        wishes = {each.name: (each, str(each)) for each in wanted}
        while (nowhere := _pip(platform, [line for _, line in wishes.values()], scratch)) is not None:
            if nowhere not in wishes:
                raise WheelError(f"pip finds no {nowhere}, which nobody asked for", remedy="check pip's configuration")
            each, line = wishes[nowhere]
            if each.same or line != str(each):
                raise _no_wheel(each, platform)
            wishes[each.name] = (each, f"{each.name}{each.bounds}")
        return {str(each): _keep(each, platform, scratch, folder) for each in wanted}


def _pip(platform: Platform, lines: Sequence[str], place: Path) -> str | None:
    """Let pip download; the name of a package that has no fitting wheel, None when all is there."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", platform.python,
        *(part for name in platform.names for part in ("--platform", name)), "--dest", str(place), *lines,
    ]  # fmt: skip
    child = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    if child.returncode == 0:
        return None
    if _UNREACHABLE.search(child.stderr):
        raise WheelError(
            "the package index that pip is set to cannot be reached", remedy="check the network and pip's configuration"
        )
    if match := _NONE.search(child.stderr):
        return canonicalize_name(match[1])
    if "DO NOT MATCH THE HASHES" in child.stderr:
        raise WheelError(
            f"a wheel is not the one that its package index promises ({_names(child.stderr)})",
            expected="the hash of the index",
            remedy="nothing of it was used; check the network and the index that pip is set to",
        )
    if os.strerror(errno.ENOSPC) in child.stderr:
        raise OutputError(f"no space left on the disk while downloading wheels into {place.parent}", remedy="free some")
    errors = [line.strip() for line in child.stderr.splitlines() if line.startswith("ERROR")] or ["it said nothing"]
    raise WheelError(f"pip cannot download wheels for {platform} ({errors[-1][:_LAST_WORDS]})", remedy="try again")


def _names(said: str) -> str:
    return next((line.split()[0] for line in said.splitlines() if " from " in line and "://" in line), "pip names none")


def _no_wheel(each: Wanted, platform: Platform) -> WheelError:
    return WheelError(
        f"there is no wheel of {each} for {platform}"
        if each.same
        else f"there is no wheel of {each.name} for {platform}",
        expected="the very version that runs on this machine, so that host and board compute alike"
        if each.same
        else "",
        remedy=f"give the target another [runtime] python than {platform.python}, or leave the format out",
    )


def _keep(each: Wanted, platform: Platform, scratch: Path, folder: Path) -> _Kept:
    """Check a downloaded wheel and move it into the cache."""
    for path in sorted(scratch.glob("*.whl")):
        facts = wheel_files.facts(path)
        if facts.name != each.name:
            continue
        if not platform.accepts(facts.tags):
            raise WheelError(f"{path.name} is not for {platform}", remedy="check the package index that pip is set to")
        kept = _Kept(file=path.name, sha256=sha256(path))
        path.replace(folder / path.name)
        return kept
    raise WheelError(f"pip downloaded no wheel of {each}", remedy="check the package index that pip is set to")
