"""What a machine is, asked without changing anything on it: one script, one round trip, a strict reader."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from edgekit.bundle.paths import plain
from edgekit.devices.base import Device
from edgekit.devices.sections import SAY, sections
from edgekit.devices.shell import script
from edgekit.devices.upload import free_bytes
from edgekit.errors import DeviceError

_LIMIT = 1 << 20
_SECONDS = 120.0
_TICKS = re.compile(r"(?<= )[0-9]{1,18}(?= |$)")
_TOOLS = ("cat", "df", "find", "head", "ln", "mkdir", "mv", "nohup", "readlink", "rm", "sed", "sha256sum", "tail", "tr")
"""What our scripts need on a device; all are in coreutils, findutils and sed, and in BusyBox."""
_NAMES = (
    "machine", "kernel", "boot", "uptime", "load", "os", "model", "cpu", "memory", "glibc", "pythons", "clock",
    "governor", "home", "place", "disk", "missing", "before", "after",
)  # fmt: skip
_SCRIPT = f"""\
{SAY}
case ${{EDGEKIT_HOME:-}} in
    /*) place=$EDGEKIT_HOME ;;
    *) case $1 in /*) place=$1 ;; *) place=${{HOME:-$(pwd)}}/$1 ;; esac ;;
esac
echo begin:
uname -m | say machine 64
uname -r | say kernel 256
cat /proc/sys/kernel/random/boot_id 2>/dev/null | say boot 64
cat /proc/uptime 2>/dev/null | say uptime 64
cat /proc/loadavg 2>/dev/null | say load 64
cat /etc/os-release 2>/dev/null | say os 4096
cat /proc/device-tree/model 2>/dev/null | say model 256
{{
    sed -n '/^processor/p;/^CPU part/p;/^Features/p' /proc/cpuinfo
    grep -m 1 '^flags' /proc/cpuinfo
}} 2>/dev/null | say cpu 262144
sed -n '/^MemTotal/p;/^MemAvailable/p' /proc/meminfo 2>/dev/null | say memory 256
{{ getconf GNU_LIBC_VERSION || ldd --version 2>&1; }} 2>/dev/null | head -n 1 | say glibc 256
{{
    python3 -V
    for minor in 9 10 11 12 13 14 15; do
        ! command -v "python3.$minor" >/dev/null || echo "Python 3.$minor"
    done
}} 2>/dev/null | say pythons 512
cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq 2>/dev/null | say clock 16384
cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor 2>/dev/null | say governor 16384
echo "${{HOME:-}}" | say home 1024
echo "$place" | say place 1024
there=$place
until [ -d "$there" ] || [ -z "$there" ]; do there=${{there%/*}}; done
df -Pk "${{there:-/}}" 2>/dev/null | tail -n 1 | say disk 4096
for tool in {" ".join(_TOOLS)}; do
    command -v "$tool" >/dev/null || echo "$tool"
done | say missing 1024
head -n 1 /proc/stat 2>/dev/null | say before 256
sleep 1
head -n 1 /proc/stat 2>/dev/null | say after 256
echo end:
"""


class Probed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Facts of a machine; an empty text or None is what it does not tell."""

    machine: str
    """As `uname -m` says it."""
    kernel: str
    boot_id: str
    """Another one after every start."""
    uptime_s: float | None
    load: float | None
    """Processes that wanted to run, mean of the last minute."""
    busy: float | None
    """Cores that were at work during one second in which nothing of ours ran."""
    os_id: str
    os_version: str
    os_title: str
    model: str
    """Of the device tree."""
    cores: int
    cpu_parts: tuple[str, ...]
    """MIDR parts such as "0xd0b", each once."""
    features: tuple[str, ...]
    """Of /proc/cpuinfo, common to all cores."""
    ram_mib: int | None
    available_mib: int | None
    glibc: str
    """Such as "2.36"."""
    pythons: tuple[str, ...]
    """Such as "3.11"."""
    clock_mhz: float | None
    """The highest that a core can be set to."""
    governors: tuple[str, ...]
    home: str
    """The user's."""
    place: str
    """Where our folder is or would be: absolute."""
    free_mib: int | None
    """Of the disk with `place`."""
    missing: tuple[str, ...] = ()
    """Tools that our scripts need and that are not there."""


def probe(device: Device, remote_dir: str = ".local/share/edgekit") -> Probed:
    """Ask a device what it is.

    Args:
        device: which one.
        remote_dir: `deploy.remote_dir` of a target; what EDGEKIT_HOME says there goes before it.

    Raises:
        DeviceError: it cannot be reached, or answers something else.
    """
    done = device.run(script(_SCRIPT, remote_dir), timeout=_SECONDS, limit=_LIMIT)
    return parse(done.out, device.title)


def parse(data: bytes, title: str) -> Probed:
    """Read what the script printed on a device that may be hostile: every text in the result is short and printable.

    Raises:
        DeviceError: it is something else.
    """
    found = sections(data, _NAMES, title)
    release = dict(line.partition("=")[::2] for line in found["os"])
    numbers, parts, features = _cores(found["cpu"])
    machine = _first(found["machine"], 64)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", machine):
        raise DeviceError(f"{title} says it is a '{machine}'", expected="a machine such as aarch64")
    return Probed(
        machine=machine, kernel=_first(found["kernel"]), boot_id=_first(found["boot"], 64),
        uptime_s=_number(found["uptime"]), load=_number(found["load"]),
        busy=_busy(found["before"], found["after"], numbers), os_id=_unquoted(release.get("ID", "")),
        os_version=_unquoted(release.get("VERSION_ID", "")), os_title=_unquoted(release.get("PRETTY_NAME", "")),
        model=_first(found["model"]), cores=numbers, cpu_parts=parts, features=features,
        ram_mib=_mib(found["memory"], "MemTotal"), available_mib=_mib(found["memory"], "MemAvailable"),
        glibc=_glibc(found["glibc"]), pythons=_pythons(found["pythons"]), clock_mhz=_clock(found["clock"]),
        governors=tuple(sorted({plain(line.strip(), 32) for line in found["governor"] if line.strip()}))[:16],
        home=_first(found["home"], 1024), place=_first(found["place"], 1024),
        free_mib=free_bytes(found["disk"], title) >> 20 if any(found["disk"]) else None,
        missing=tuple(line for line in found["missing"] if line in _TOOLS),
    )  # fmt: skip


def _first(lines: Sequence[str], limit: int = 200) -> str:
    return plain(next((line.strip() for line in lines if line.strip()), ""), limit)


def _unquoted(value: str) -> str:
    return plain(value.strip().strip("\"'"), 100)


def _number(lines: Sequence[str]) -> float | None:
    """The first field of the first line."""
    match = re.match(r"[0-9]{1,12}(\.[0-9]{1,6})?(?=\s|$)", next(iter(lines), ""))
    return float(match[0]) if match else None


def _busy(before: Sequence[str], after: Sequence[str], cores: int) -> float | None:
    """From two first lines of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal in clock ticks."""
    first, last = ([int(word) for word in _TICKS.findall(next(iter(lines), ""))][:8] for lines in (before, after))
    spent = [max(0, end - begin) for begin, end in zip(first, last, strict=False)]
    if len(spent) < 5 or not sum(spent):
        return None
    return round(cores * (1 - (spent[3] + spent[4]) / sum(spent)), 3)


def _mib(lines: Sequence[str], key: str) -> int | None:
    for line in lines:
        if match := re.fullmatch(rf"{key}: +([0-9]{{1,15}}) kB", line):
            return int(match[1]) >> 10
    return None


def _glibc(lines: Sequence[str]) -> str:
    """From `glibc 2.36`, or `ldd (Debian GLIBC 2.36-9) 2.36`."""
    line = next(iter(lines), "")
    match = re.search(r"([0-9]{1,3}\.[0-9]{1,3})(?:\.[0-9]{1,3})?\s*$", line) if "libc" in line.lower() else None
    return match[1] if match else ""


def _pythons(lines: Sequence[str]) -> tuple[str, ...]:
    found = {match[1] for line in lines if (match := re.match(r"Python (3\.[0-9]{1,2})(?![0-9])", line))}
    return tuple(sorted(found, key=lambda version: int(version[2:])))


def _clock(lines: Sequence[str]) -> float | None:
    found = [int(line) for line in lines if re.fullmatch(r"[0-9]{1,9}", line)]
    return max(found) / 1000 if found else None


def _cores(lines: Sequence[str]) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Number of cores, parts, and the features that all cores have."""
    cores, parts, common = 0, set(), None
    for line in lines:
        key, _, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if key == "processor" and value.isdigit():
            cores += 1
        elif key == "CPU part" and re.fullmatch(r"0x[0-9a-f]{3}", value):
            parts.add(value)
        elif key in ("Features", "flags"):
            words = {word for word in value.split() if re.fullmatch(r"[a-z0-9_]{1,32}", word)}
            common = words if common is None else common & words
    return cores, tuple(sorted(parts)), tuple(sorted(common or ()))
