"""What the Linux kernel says on any board or host: thermal zones, cpufreq, cooling devices, energy counters.

https://docs.kernel.org/driver-api/thermal/sysfs-api.html, https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit.devices.boards.base import Reader
from edgekit.devices.boards.reading import Reading, label, number, numbered, unknown, whole, words

_CHIP = re.compile(r"cpu|soc|tj|pkg|package|core|cluster|gpu", re.IGNORECASE)
"""Zones of the chip itself; the others are chargers, memory, Wi-Fi and the board."""
_HELD_DOWN = re.compile(r"thermal-cpufreq-[0-9]+|cpufreq-cpu[0-9]+|(?:cpu|soc[0-9]*|tj)-throttle-alert")
_CPUFREQ = "/sys/devices/system/cpu/cpufreq/policy{}/{}"
_MAX_CPUS = 256
_JOULE = 1e-6
_MODEL = ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model", "/sys/class/dmi/id/product_name")


def model(read: Reader) -> str | None:
    """Name of the board, of its device tree or else its firmware's tables."""
    return next((name for name in (words(read(path)) for path in _MODEL) if name), None)


def thermal_zones(read: Reader) -> tuple[tuple[str, str], ...]:
    """Type and path of the temperature of each zone; of those of the chip alone where one of them answers."""
    kinds = numbered(read, "/sys/class/thermal/thermal_zone{}/type".format)
    found = [(label(kind) or "", f"/sys/class/thermal/thermal_zone{index}/temp") for index, kind in kinds]
    chip = [zone for zone in found if _CHIP.search(zone[0])]
    return tuple(chip if hottest(read, chip).value is not None else found)


def celsius(said: str | None) -> float | None:
    """°C of a zone's m°C; what no chip survives is no temperature."""
    value = number(said, -40_000, 150_000)
    return None if value is None else value / 1000


def hottest(read: Reader, zones: Sequence[tuple[str, str]]) -> Reading[float]:
    """°C of the hottest zone; zones that are switched off (a GPU at rest) do not answer and do not count."""
    found = [value for _, path in zones if (value := celsius(read(path))) is not None]
    return Reading(max(found)) if found else Reading(None, "no thermal zone gives a temperature")


def policies(read: Reader) -> tuple[int, ...]:
    """Numbers of the cpufreq policies: one for each group of cores that share a clock."""
    present = words(read("/sys/devices/system/cpu/present")) or ""
    last = re.fullmatch(r"0(?:-([0-9]{1,4}))?", present)
    count = min(int(last[1] or 0) + 1, _MAX_CPUS) if last else 16
    governors = (_CPUFREQ.format(index, "scaling_governor") for index in range(count))
    return tuple(index for index, path in enumerate(governors) if read(path) is not None)


def clock(read: Reader, groups: tuple[int, ...]) -> Reading[float]:
    """MHz of the fastest core: what the hardware says where root lets us see it, else what the governor asked for."""
    found = []
    for group in groups:
        for name in ("cpuinfo_cur_freq", "scaling_cur_freq"):
            if (khz := number(read(_CPUFREQ.format(group, name)), 1000, 20_000_000)) is not None:
                found.append(khz / 1000)
                break
    if found:
        return Reading(max(found))
    said = re.findall(r"^cpu MHz\s*: ([0-9.]{1,12})$", (read("/proc/cpuinfo") or "")[: 1 << 16], re.MULTILINE)
    plain = [value for word in said if (value := number(word, 1, 20_000)) is not None]
    return Reading(max(plain)) if plain else Reading(None, "the kernel tells no clock (no cpufreq)")


def governor(read: Reader, groups: tuple[int, ...]) -> str | None:
    """The governors in use, joined by a comma."""
    names = {label(read(_CPUFREQ.format(group, "scaling_governor"))) for group in groups}
    return ", ".join(sorted(name for name in names if name)) or None


def cooling_devices(read: Reader) -> tuple[str, ...]:
    """Paths of the states of those cooling devices that work by holding the CPU's clock down."""
    kinds = numbered(read, "/sys/class/thermal/cooling_device{}/type".format)
    return tuple(
        f"/sys/class/thermal/cooling_device{index}/cur_state"
        for index, kind in kinds
        if _HELD_DOWN.fullmatch(kind.strip())
    )


def cooling(read: Reader, devices: tuple[str, ...]) -> int | None:
    """Steps by which the CPU's clock is held down for heat, added up; None without such a device."""
    found = [state for path in devices if (state := whole(read(path), 0, 10_000)) is not None]
    return sum(found) if found else None


@dataclass
class EnergyCounter:
    """A counter of microjoules that starts again at 0 after `span`; reads as joules since the first reading.

    More than one turn between two readings cannot be seen: at 300 W a span of 262 kJ lasts fourteen minutes.
    """

    path: str
    span: int
    _last: int | None = field(default=None, repr=False)
    _total: int = field(default=0, repr=False)

    def joules(self, read: Reader) -> Reading[float]:
        """Joules since the first call."""
        said = read(self.path)
        value = whole(said, 0, self.span)
        if value is None:
            return unknown(self.path, said)
        if self._last is not None:
            self._total += value - self._last if value >= self._last else value - self._last + self.span
        self._last = value
        return Reading(self._total * _JOULE)


def energy_counters(read: Reader) -> tuple[EnergyCounter, ...]:
    """One counter for each processor package (RAPL of Intel and AMD); empty where none is that this user may read."""
    found = []
    for index, name in numbered(read, "/sys/class/powercap/intel-rapl:{}/name".format):
        folder = f"/sys/class/powercap/intel-rapl:{index}"
        span = whole(read(f"{folder}/max_energy_range_uj"), 1, 1 << 53)
        readable = span is not None and whole(read(f"{folder}/energy_uj"), 0, span) is not None
        if span is not None and readable and re.fullmatch(r"package-[0-9]{1,3}", name.strip()):
            found.append(EnergyCounter(f"{folder}/energy_uj", span))
    return tuple(found)


def joules(read: Reader, counters: tuple[EnergyCounter, ...]) -> Reading[float]:
    """Joules of all packages; None when one of them did not answer."""
    each = [counter.joules(read) for counter in counters]
    broken = [reading.reason for reading in each if reading.value is None]
    return Reading(None, broken[0]) if broken else Reading(sum(reading.value or 0.0 for reading in each))
