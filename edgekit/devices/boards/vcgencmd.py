"""What `vcgencmd` of a Raspberry Pi prints.

https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.devices.boards.reading import Reading, lines, number, unknown, whole

_THROTTLED = re.compile(r"throttled=0x([0-9a-fA-F]{1,8})")
_TEMP = re.compile(r"temp=(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)'C")
_CLOCK = re.compile(r"frequency\([0-9]{1,3}\)=([0-9]{1,12})")
_RAIL = re.compile(
    r"([A-Z0-9_]{1,24})_"
    r"(?:A current\([0-9]{1,3}\)=([0-9]{1,4}\.[0-9]{1,12})A|V volt\([0-9]{1,3}\)=([0-9]{1,4}\.[0-9]{1,12})V)"
)
_VERSION = re.compile(r"version ([0-9A-Za-z._-]{1,64})(?: .{0,80})?")
_DATE = re.compile(r"[0-9A-Za-z/: ]{8,40}")
_HASH = 8
"""Characters of a firmware's commit that tell it from others."""
SUPPLY = "EXT5V"


@dataclass(frozen=True)
class Pmic:
    """One `pmic_read_adc`: only rails that have both a voltage and a current carry power."""

    rails_w: dict[str, float]
    volts: dict[str, float]
    """Of every rail with a voltage; EXT5V is the board's input, BATT the clock's battery."""

    @property
    def watts(self) -> float:
        """Sum of V·I."""
        return sum(self.rails_w.values())


def throttled(said: str | None) -> Reading[int]:
    """Bits of `get_throttled`."""
    found = _THROTTLED.fullmatch((said or "")[:64].strip())
    return Reading(int(found[1], 16)) if found else unknown("vcgencmd get_throttled", said)


def temperature(said: str | None) -> Reading[float]:
    """°C of `measure_temp`."""
    found = _TEMP.fullmatch((said or "")[:64].strip())
    value = number(found[1], -40, 150) if found else None
    return unknown("vcgencmd measure_temp", said) if value is None else Reading(value)


def clock(said: str | None) -> Reading[float]:
    """MHz of `measure_clock arm`, the clock that the cores really run at; cpufreq tells only what was asked for."""
    found = _CLOCK.fullmatch((said or "")[:64].strip())
    value = whole(found[1], 1_000_000, 20_000_000_000) if found else None
    return unknown("vcgencmd measure_clock arm", said) if value is None else Reading(value / 1e6)


def pmic(said: str | None) -> Reading[Pmic]:
    """Voltages and currents of `pmic_read_adc` (Raspberry Pi 5).

    An answer that was cut short is refused: a sum without some of its rails would look like a measurement.
    """
    amps: dict[str, float] = {}
    volts: dict[str, float] = {}
    for line in filter(None, lines(said or "")):
        if not (found := _RAIL.fullmatch(line)):
            return unknown("vcgencmd pmic_read_adc", line)
        side, text = (amps, found[2]) if found[2] else (volts, found[3])
        value = number(text, 0, 1000)
        if value is None or found[1] in side:
            return unknown("vcgencmd pmic_read_adc", line)
        side[found[1]] = value
    if not amps:
        return unknown("vcgencmd pmic_read_adc", said)
    if alone := sorted(amps.keys() - volts.keys()):
        return Reading(None, f"vcgencmd pmic_read_adc gives {alone[0]} a current but no voltage")
    return Reading(Pmic({rail: volts[rail] * current for rail, current in amps.items()}, volts))


def firmware(said: str | None) -> str | None:
    """Date and commit of `bootloader_version` or `version`, such as "2025/05/08 15:13:17 69471177"."""
    date, version = "", ""
    for line in lines(said or "")[:12]:
        if not version and (found := _VERSION.fullmatch(line)):
            version = found[1][:_HASH]
        elif not date and any(c.isdigit() for c in line) and _DATE.fullmatch(line) and ":" in line:
            date = line
    return f"{date} {version}".strip() if version else None
