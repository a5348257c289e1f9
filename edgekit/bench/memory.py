"""How much memory this process holds and held, as Linux counts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

_STATUS = Path("/proc/self/status")
_FIELDS = {"peak_mib": "VmHWM", "resident_mib": "VmRSS", "anonymous_mib": "RssAnon", "file_mib": "RssFile"}


class Resident(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resident memory of one process in MiB; None where the kernel does not say.

    On an emulated device the figures are those of the emulator, which holds more than the program would.
    """

    peak_mib: float | None
    """High-water mark since the process began (VmHWM)."""
    resident_mib: float | None
    """Now (VmRSS)."""
    anonymous_mib: float | None
    """Part of it that belongs to no file."""
    file_mib: float | None
    """Part of it that is mapped from files: the kernel may drop and read it again."""


def resident(status: str | None = None) -> Resident:
    """Of this process; `status` is the text of its /proc/self/status."""
    fields = _fields(_read(_STATUS) if status is None else status)
    return Resident(**{name: _mib(fields.get(key, "")) for name, key in _FIELDS.items()})


def kills(vmstat: str | None = None) -> int | None:
    """Processes that the kernel has killed for want of memory since it booted (oom_kill of /proc/vmstat)."""
    text = _read(Path("/proc/vmstat")) if vmstat is None else vmstat
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.strip().isascii() and value.strip().isdigit():
            return int(value)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _fields(status: str) -> Mapping[str, str]:
    return {key: value for key, _, value in (line.partition(":") for line in status.splitlines())}


def _mib(value: str) -> float | None:
    """MiB of "  1234 kB"."""
    words = value.split()
    if len(words) != 2 or words[1] != "kB" or not (words[0].isascii() and words[0].isdigit()):
        return None
    return int(words[0]) / 1024
