"""What the programs and files of Jetson Linux (L4T) say.

https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/AT/JetsonLinuxDevelopmentTools/TegrastatsUtility.html,
https://developer.nvidia.com/embedded/jetpack-archive
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.devices.boards.reading import MAX_TEXT, Reading, label, lines, number, unknown, whole, words

_RELEASE = re.compile(r"# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})(?:,.*)?")
JETPACK = {
    "39.2.1": "7.2.1", "39.2": "7.2", "38.4": "7.1", "38.2": "7.0",
    "36.5": "6.2.2", "36.4.7": "6.2.1", "36.4.4": "6.2.1", "36.4.3": "6.2", "36.4": "6.1", "36.3": "6.0",
    "35.6.4": "5.1.6", "35.6.1": "5.1.5", "35.6": "5.1.4", "35.5": "5.1.3", "35.4.1": "5.1.2", "35.3.1": "5.1.1",
    "35.2.1": "5.1", "35.1": "5.0.2",
    "32.7.6": "4.6.6", "32.7.5": "4.6.5", "32.7.4": "4.6.4", "32.7.3": "4.6.3", "32.7.2": "4.6.2", "32.7.1": "4.6.1",
    "32.6.1": "4.6", "32.5.1": "4.5.1", "32.5": "4.5", "32.4.4": "4.4.1", "32.4.3": "4.4",
}  # fmt: skip
"""L4T without a final ".0" → JetPack."""

_TEMP = re.compile(r"(?<!\S)([A-Za-z0-9_-]{1,24})@(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)C(?!\S)")
_RAIL = re.compile(
    r"(?<!\S)([A-Z][A-Z0-9_]{0,31}) (?:([0-9]{1,7})mW(?:/[0-9]{1,7}mW){0,2}|([0-9]{1,7})/[0-9]{1,7})(?!\S)"
)
_CPUS = re.compile(r"(?<!\S)CPU \[([^\]\n]{1,2000})\](?:@([0-9]{1,5}))?", re.IGNORECASE)
_CPU = re.compile(r"([0-9]{1,3})%(?:@([0-9]{1,5}))?")
_GPU = re.compile(r"(?<!\S)GR3D(?:_FREQ)? ([0-9]{1,3})%(?:@\[?([0-9]{1,5})(?:,[0-9]{1,5})*\]?)?(?!\S)")
_PLACEHOLDER = "pmic"
"""A zone that always says 100 °C (or 50 °C): there is no sensor behind it."""

_MODE = re.compile(r"(?:NVPM VERB: Current mode: )?NV Power Mode: ?(\S{1,40})")
_FREQS = r"MinFreq=([0-9]{1,12}) +MaxFreq=([0-9]{1,12}) +CurrentFreq=([0-9]{1,12})"
_CLOCKS_CPU = re.compile(rf"cpu([0-9]{{1,3}}): +(?:Online=([01]) +)?Go[nv]*ernor=(\S{{1,40}}) +{_FREQS}.*")
_CLOCKS_GPU = re.compile(rf"GPU +{_FREQS}.*")


def l4t(said: str | None) -> Reading[str]:
    """Version of Jetson Linux in `/etc/nv_tegra_release`, such as "36.4.3"."""
    first = (said or "")[:400].split("\n", 1)[0].strip()
    found = _RELEASE.fullmatch(first)
    return Reading(f"{found[1]}.{found[2]}") if found else unknown("/etc/nv_tegra_release", said)


def jetpack(version: str | None) -> str | None:
    """The JetPack that came with a version of L4T; None when it is not in the table."""
    return JETPACK.get((version or "").removesuffix(".0"))


@dataclass(frozen=True)
class Tegrastats:
    """One line of `tegrastats`."""

    temps_c: dict[str, float]
    rails_w: dict[str, float]
    """Power now, not the average that the line gives beside it."""
    cpu_mhz: tuple[int, ...]
    """Of the cores that are on."""
    gpu_percent: int | None
    gpu_mhz: int | None

    @property
    def temp_c(self) -> float | None:
        """Hottest sensor."""
        return max(self.temps_c.values(), default=None)


def tegrastats(said: str | None) -> Reading[Tegrastats]:
    """The last whole line; its forms of L4T 28 to 39 differ in units, brackets and case."""
    line = next((line for line in reversed(lines(said or "")) if "RAM " in line), "")[:MAX_TEXT]
    cpus = _CPUS.search(line)
    if not cpus:
        return unknown("tegrastats", said)
    temps = {
        name: value
        for name, text in _TEMP.findall(line)
        if name.lower() != _PLACEHOLDER and (value := number(text, -40, 150)) is not None
    }
    rails = {name: int(new or old) / 1000 for name, new, old in _RAIL.findall(line)}
    common = cpus[2] or ""
    clocks = (int(own or common) for _, own in _CPU.findall(cpus[1]) if own or common)
    gpu = _GPU.search(line)
    return Reading(
        Tegrastats(
            temps,
            rails,
            tuple(clocks),
            min(int(gpu[1]), 100) if gpu else None,
            int(gpu[2]) if gpu and gpu[2] else None,
        )
    )


@dataclass(frozen=True)
class Mode:
    """What `nvpmodel -q` says."""

    name: str
    id: int | None


def power_mode(said: str | None) -> Reading[Mode]:
    """Name and number of the power mode; the number is the line after the name."""
    text = lines(said or "")
    for line, after in zip(text, [*text[1:], ""], strict=True):
        if (found := _MODE.fullmatch(line)) and (name := label(found[1])):
            return Reading(Mode(name, whole(after, 0, 255)))
    return unknown("nvpmodel -q", said)


@dataclass(frozen=True)
class Clocks:
    """What `jetson_clocks --show` says."""

    machine: str | None
    governors: tuple[str, ...]
    cpu_mhz: tuple[float, ...]
    """Of the cores that are on, now."""
    gpu_mhz: float | None
    pinned: bool | None
    """CPU and GPU may not run below their highest clock; None where no GPU is told."""


def clocks(said: str | None) -> Reading[Clocks]:
    """Clocks and whether they are pinned; the program asks for root and says so otherwise."""
    text = lines(said or "")
    cpus = [found for line in text if (found := _CLOCKS_CPU.fullmatch(line)) and found[2] != "0"]
    if not cpus:
        return unknown("jetson_clocks --show", said)
    gpu = next((found for line in text if (found := _CLOCKS_GPU.fullmatch(line))), None)
    machine = re.match(r"SOC family:\S{1,40}\s+Machine:(.{1,100})", text[0])
    held = all(cpu[4] == cpu[5] for cpu in cpus)
    return Reading(
        Clocks(
            machine=words(machine[1]) if machine else None,
            governors=tuple(sorted({name for cpu in cpus if (name := label(cpu[3]))})),
            cpu_mhz=tuple(int(cpu[6]) / 1e3 for cpu in cpus),
            gpu_mhz=int(gpu[3]) / 1e6 if gpu else None,
            pinned=held and gpu[1] == gpu[2] if gpu else None,
        )
    )
