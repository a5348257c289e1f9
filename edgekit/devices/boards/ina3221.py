"""Power rails of a Jetson: INA3221 monitors as the kernel shows them.

Since L4T 34 it is a hwmon driver (in*_label, in*_input in mV, curr*_input in mA;
https://docs.kernel.org/hwmon/ina3221.html), up to L4T 32 an IIO driver of NVIDIA's (rail_name_*, in_voltage*_input,
in_current*_input; https://docs.nvidia.com/jetson/l4t/, "Power Management for Jetson Nano"). The carrier board of Thor
has an INA238 on its input, in µW (https://github.com/rbonghi/jetson_stats/pull/900).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgekit.devices.boards.base import Reader, Runner
from edgekit.devices.boards.reading import Reading, label, lines, number, numbered, unknown

INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that are the whole: all others hang on them."""
_INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails of an AGX Orin that hang on another measured one:
https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance/JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html."""
_DRIVER = "/sys/bus/i2c/drivers"
_ADDRESS = re.compile(r"[0-9]{1,3}-00[0-9a-f]{2}")
_HWMON = re.compile(r"hwmon[0-9]{1,3}")
_IIO = re.compile(r"iio:device[0-9]{1,3}")


@dataclass(frozen=True)
class Channel:
    """Where one rail is read."""

    rail: str
    millivolts: str
    milliamperes: str
    microwatts: str = ""
    """Instead of the other two."""

    def watts(self, read: Reader) -> Reading[float]:
        """Power now."""
        if self.microwatts:
            said = read(self.microwatts)
            value = number(said, 0, 1e10)
            return unknown(self.microwatts, said) if value is None else Reading(value / 1e6)
        volts, amps = read(self.millivolts), read(self.milliamperes)
        mv, ma = number(volts, -1e5, 1e5), number(amps, -1e6, 1e6)
        if mv is None:
            return unknown(self.millivolts, volts)
        return unknown(self.milliamperes, amps) if ma is None else Reading(mv * ma / 1e6)


def find(read: Reader, run: Runner) -> tuple[Channel, ...]:
    """The rails of all monitors; the first way that finds some is taken."""
    for way in (_class_hwmon(read), _driver_hwmon(read, run), _driver_iio(read, run)):
        if channels := tuple({channel.rail: channel for channel in way}.values()):
            return channels
    return ()


def rails(channels: Iterable[Channel], read: Reader) -> Reading[dict[str, float]]:
    """Watts by rail, of all of them or none: a sum without one rail would look like a measurement."""
    found = {}
    for channel in channels:
        reading = channel.watts(read)
        if reading.value is None:
            return Reading(None, reading.reason)
        found[channel.rail] = reading.value
    return Reading(found) if found else Reading(None, "no INA3221 rail is found")


def counted(names: Iterable[str], wanted: tuple[str, ...]) -> Reading[tuple[str, ...]]:
    """Which rails make the board's power: the wanted ones; else its input; else all that hang on no other one."""
    there = tuple(names)
    if lost := [rail for rail in wanted if rail not in there]:
        return Reading(None, f"there is no rail {lost[0]}; there are {', '.join(there) or 'none'}")
    if wanted:
        return Reading(wanted)
    if whole := [rail for rail in INPUTS if rail in there]:
        return Reading((whole[0],))
    return Reading(tuple(rail for rail in there if _INSIDE.get(rail) not in there))


def _class_hwmon(read: Reader) -> Iterator[Channel]:
    for index, said in numbered(read, "/sys/class/hwmon/hwmon{}/name".format, gaps=4):
        folder, name = f"/sys/class/hwmon/hwmon{index}", said.strip()
        if name == "ina3221":
            yield from _hwmon_channels(read, folder)
        elif name == "ina238":
            yield Channel("VIN", "", "", f"{folder}/power1_input")


def _driver_hwmon(read: Reader, run: Runner) -> Iterator[Channel]:
    for address in _entries(run, f"{_DRIVER}/ina3221", _ADDRESS):
        for hwmon in _entries(run, f"{_DRIVER}/ina3221/{address}/hwmon", _HWMON):
            yield from _hwmon_channels(read, f"{_DRIVER}/ina3221/{address}/hwmon/{hwmon}")


def _hwmon_channels(read: Reader, folder: str) -> Iterator[Channel]:
    for index in (1, 2, 3):
        if rail := _rail(read(f"{folder}/in{index}_label")):
            yield Channel(rail, f"{folder}/in{index}_input", f"{folder}/curr{index}_input")


def _driver_iio(read: Reader, run: Runner) -> Iterator[Channel]:
    for address in _entries(run, f"{_DRIVER}/ina3221x", _ADDRESS):
        for device in _entries(run, f"{_DRIVER}/ina3221x/{address}", _IIO):
            folder = f"{_DRIVER}/ina3221x/{address}/{device}"
            for index in range(3):
                if rail := _rail(read(f"{folder}/rail_name_{index}")):
                    yield Channel(rail, f"{folder}/in_voltage{index}_input", f"{folder}/in_current{index}_input")


def _rail(said: str | None) -> str | None:
    """A connected channel's name."""
    name = label(said)
    return None if name in (None, "NC") else name


def _entries(run: Runner, folder: str, form: re.Pattern[str]) -> list[str]:
    """Names in a folder that have the form of a device; nothing else becomes part of a path."""
    return sorted(name for name in lines(run(["ls", "-1", folder]) or "") if form.fullmatch(name))[:16]
