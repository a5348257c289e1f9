"""Making a folder on a device equal to one here: only what differs is sent, and after a cut only the rest of it.

A file travels under the name of its SHA-256 in a folder beside its place, is hashed there, and is renamed when it is
right. Whatever the connection does, a folder there never holds half a file under its own name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit.bundle.manifest import MANIFEST, MAX_BYTES, FileEntry, from_json
from edgekit.bundle.paths import check_path, names, plain, read_bounded, scan
from edgekit.devices.process import Completed
from edgekit.devices.sections import SAY, sections
from edgekit.errors import BundleError, DeviceError
from edgekit.files import sha256
from edgekit.progress import Advance

IDLE = 120.0
"""Seconds without a byte going out, after which a transfer is given up."""
_SURVEY_S = 1800.0
"""Seconds for hashing all that is there; a slow SD card reads 10 MB/s."""
_LISTING = 16 << 20
PARTS = ".parts"
"""Appended to the place: the folder of what is on its way."""
_SPARE = 8 << 20
"""Bytes of disk beyond the files: folders, and blocks that are not filled."""
_SUM = re.compile(r"([0-9a-f]{64})  \./(.+)")
_PART = re.compile(r"([0-9a-f]{64})\.([0-9]{1,15})\.([0-9a-f]{64})")

_SURVEY = f"""\
{SAY}
place=$1
parts=$2
mkdir -p -- "$place" "$parts" && cd -- "$place" || exit 3
find . ! -type f ! -type d -exec rm -f -- {{}} +
echo begin:
find . -type f -exec sha256sum {{}} + | say files $3
cd -- "$parts" || exit 3
for part in *; do
    [ -f "$part" ] && [ ! -L "$part" ] || continue
    sum=$(sha256sum <"$part") && echo "$part.$(wc -c <"$part" | tr -d ' ').${{sum%% *}}"
done | say parts 65536
df -Pk . | tail -n 1 | say disk 4096
echo end:
"""
_REMOVE = """\
cd -- "$1" || exit 3
shift
rm -f -- "$@"
find . -depth -type d -exec rmdir -- {} + 2>/dev/null
exit 0
"""
_RECEIVE = """\
part=$1 final=$2 sum=$3 size=$4 mode=$5
export LC_ALL=C
[ "$mode" = append ] || rm -f -- "$part"
if ! said=$(cat 2>&1 >>"$part"); then
    rm -f -- "$part"
    case $said in
        *"No space"* | *[Qq]uota*) df -Pk "${part%/*}" | tail -n 1; exit 5 ;;
    esac
    echo "$said" >&2
    exit 3
fi
[ "$(wc -c <"$part" | tr -d ' ')" -ge "$size" ] || exit 4
found=$(sha256sum <"$part")
if [ "${found%% *}" != "$sum" ]; then
    rm -f -- "$part"
    exit 6
fi
mkdir -p -- "${final%/*}" && mv -f -- "$part" "$final" || exit 3
"""
_SHORT, _FULL, _WRONG = 4, 5, 6


class Link(Protocol):
    """What is needed of a device."""

    @property
    def title(self) -> str:
        """What messages call it."""

    def run(self, command: Sequence[str], *, timeout: float, input: bytes = b"", limit: int = 1 << 20) -> Completed:  # noqa: A002
        """See Device.run."""

    def feed(
        self, command: Sequence[str], source: BinaryIO, *, timeout: float, sent: Callable[[int], None]
    ) -> Completed:
        """See Device.feed."""


@dataclass(frozen=True)
class Survey:
    """What is there already."""

    files: Mapping[str, str]
    """Path below the place → SHA-256."""
    parts: Mapping[str, tuple[int, str]]
    """SHA-256 of a whole file → size and SHA-256 of the part of it that has arrived."""
    free: int
    """Bytes of disk."""


def push(link: Link, folder: Path, place: str, progress: Advance | None = None) -> None:
    """Make `place` on the device equal to `folder`; `progress` gets bytes sent and bytes to send.

    Raises:
        BundleError: a file changes while it is sent, or `folder` holds links or unsafe names.
        DeviceError: the disk there is too small or full, or the device answers something else.
        UnreachableError: the connection was cut; calling again sends the rest.
    """
    wanted = listed(folder)
    there = survey(link, place)
    extra = sorted(path for path in there.files if path not in wanted)
    _remove(link, place, extra)
    missing = {path: entry for path, entry in wanted.items() if there.files.get(path) != entry.sha256}
    total = sum(entry.size for entry in missing.values())
    arrived = sum(there.parts[entry.sha256][0] for entry in missing.values() if entry.sha256 in there.parts)
    if missing and there.free < total - arrived + _SPARE:
        raise no_space(link.title, there.free, total - arrived + _SPARE)
    done = 0

    def sent(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(min(done, total), total)

    for path, entry in sorted(missing.items()):
        _send(link, folder / path, f"{place}/{path}", place, entry, there, sent)
    _remove(link, place + PARTS, [name for name in there.parts if name not in {e.sha256 for e in missing.values()}])
    link.run(["rmdir", "--", place + PARTS], timeout=60)


def listed(folder: Path) -> dict[str, FileEntry]:
    """Size and SHA-256 of all files below `folder`: of a bundle from its manifest, otherwise counted now.

    Raises:
        BundleError: the manifest is not one, or `folder` holds links or unsafe names.
    """
    found, _folders = scan(folder)
    if MANIFEST in found:
        data = read_bounded(folder, MANIFEST, MAX_BYTES)
        manifest = from_json(data)
        own = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        return {**manifest.files, **manifest.reports, MANIFEST: own}
    return {path: FileEntry(sha256=sha256(folder / path), size=size) for path, size in found.items()}


def survey(link: Link, place: str) -> Survey:
    """Hash what is at `place` on the device, which is made when it is missing."""
    command = ["sh", "-c", _SURVEY, "edgekit", place, place + PARTS, str(_LISTING)]
    done = link.run(command, timeout=_SURVEY_S, limit=_LISTING + (1 << 20))
    if done.code == 3:
        raise DeviceError(f"'{plain(place)}' on {link.title} cannot be written", remedy="check who owns the folder")
    return parse_survey(done.out, link.title)


def parse_survey(data: bytes, title: str) -> Survey:
    """Read what the survey printed.

    Raises:
        DeviceError: it is something else.
    """
    found = sections(data, ("files", "parts", "disk"), title)
    files, parts = {}, {}
    for line in filter(None, found["files"]):
        match = _SUM.fullmatch(line)
        if match is None or not _safe(match[2]):
            raise DeviceError(
                f"{title} holds '{plain(line[66:], 100)}' in a folder of ours, which edgekit did not put there",
                remedy="remove it, or everything of ours: edgekit devices clean",
            )
        files[match[2]] = match[1]
    for line in filter(None, found["parts"]):
        if match := _PART.fullmatch(line):
            parts[match[1]] = (int(match[2]), match[3])
    return Survey(files, parts, free_bytes(found["disk"], title))


def free_bytes(lines: Sequence[str], title: str) -> int:
    """Free bytes from the last line of `df -Pk`.

    Raises:
        DeviceError: it is something else.
    """
    fields = next((line for line in lines if line), "").split()
    if len(fields) < 6 or not re.fullmatch(r"[0-9]{1,15}", fields[3]):
        raise DeviceError(f"{title} does not say how much disk is free", remedy="check `df -Pk` there")
    return int(fields[3]) << 10


def no_space(title: str, free: int, needed: int) -> DeviceError:
    """The sentence for a disk that is too small."""
    return DeviceError(
        f"the disk of {title} has {free >> 20} MiB free", expected=f"{-(-needed >> 20)} MiB",
        remedy="free some space there; `edgekit devices clean` removes what edgekit has left",
    )  # fmt: skip


def _safe(path: str) -> bool:
    try:
        check_path(path)
    except BundleError:
        return False
    return True


def _remove(link: Link, place: str, paths: Sequence[str]) -> None:
    """Remove files and the folders that they leave empty; paths are checked, and relative to `place`."""
    for begin in range(0, len(paths), 100):
        batch = [f"./{path}" for path in paths[begin : begin + 100]]
        link.run(["sh", "-c", _REMOVE, "edgekit", place, *batch], timeout=60)


def _send(
    link: Link, path: Path, final: str, place: str, entry: FileEntry, there: Survey, sent: Callable[[int], None]
) -> None:
    part, offset = f"{place}{PARTS}/{entry.sha256}", 0
    size, known = there.parts.get(entry.sha256, (0, ""))
    with path.open("rb") as source:
        if 0 < size <= entry.size and _prefix_sha256(source, size) == known:
            offset = size
        source.seek(offset)
        mode = "append" if offset else "new"
        command = ["sh", "-c", _RECEIVE, "edgekit", part, final, entry.sha256, str(entry.size), mode]
        done = link.feed(command, source, timeout=IDLE, sent=sent)
        if done.code == _WRONG and offset:  # an earlier transfer was still writing when the rest came
            source.seek(0)
            done = link.feed([*command[:-1], "new"], source, timeout=IDLE, sent=lambda _count: None)
    _judge(link, path, entry, done)


def _prefix_sha256(source: BinaryIO, size: int) -> str:
    value = hashlib.sha256()
    while size > 0 and (piece := source.read(min(size, 1 << 20))):
        value.update(piece)
        size -= len(piece)
    return value.hexdigest()


def _judge(link: Link, path: Path, entry: FileEntry, done: Completed) -> None:
    if done.code == 0:
        return
    if done.code == _FULL:
        raise no_space(link.title, free_bytes(done.out.decode("utf8", "replace").splitlines(), link.title), entry.size)
    if done.code in (_WRONG, _SHORT):
        raise BundleError(
            f"{names([path.name])} arrived on {link.title} as something else than the manifest says",
            expected=f"{entry.size} bytes with the SHA-256 of the manifest",
            remedy="stop what writes to the bundle; check the memory and the SD card of the board",
        )
    said = plain(done.err[-300:].decode("utf8", "replace").strip())
    raise DeviceError(f"{names([path.name])} cannot be written on {link.title} ({said or done.code})")
