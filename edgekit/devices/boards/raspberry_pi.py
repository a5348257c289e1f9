"""Raspberry Pi: the firmware is asked through `vcgencmd`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from edgekit.devices.boards import disturb, linux, throttle, vcgencmd
from edgekit.devices.boards.base import BoardFacts, Clock, Reader, Runner, Sample
from edgekit.devices.boards.reading import Reading
from edgekit.targets import Target

_NO_SENSOR = "this board has no power sensor"
_LOW_SUPPLY = 4.8
"""V at EXT5V. Behind the input's protection a good supply reads about 4.9 V and the firmware warns at 4.63 V:
https://github.com/PierreGode/Ragnar/pull/315."""


class RaspberryPi:
    """Every Raspberry Pi; only the 5 can say what it draws."""

    name = "raspberry_pi"

    def __init__(self, target: Target, read: Reader, run: Runner, clock: Clock = time.monotonic) -> None:
        self._target, self._read, self._run, self._clock = target, read, run, clock
        self._has_pmic = target.power.provider == "pmic_read_adc"
        self._rails: frozenset[str] = frozenset()
        self._zones: tuple[tuple[str, str], ...] | None = None

    def facts(self) -> BoardFacts:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        bits, power = self._throttled(), self._pmic()
        bootloader = vcgencmd.firmware(self._run(["vcgencmd", "bootloader_version"]))
        start = vcgencmd.firmware(self._run(["vcgencmd", "version"]))
        ids = [f"bootloader {bootloader}" if bootloader else "", f"firmware {start}" if start else ""]
        supply = power.value.volts.get(vcgencmd.SUPPLY) if power.value else None
        return BoardFacts(
            adapter=self.name,
            model=linux.model(self._read),
            firmware=", ".join(filter(None, ids)) or None,
            governor=linux.governor(self._read, linux.policies(self._read)),
            power_sensor="pmic_read_adc" if power.value else None,
            power_scope=self._target.power.scope if power.value else "",
            power_rails=tuple(self._counted(power.value)) if power.value else (),
            supply_v=supply,
            throttled=bits.value,
            notes=self._notes(bits, power, supply),
        )

    def sample(self, *, full: bool = True) -> Sample:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        begin = self._clock()
        power = self._pmic()
        moment = (begin + self._clock()) / 2
        watts = self._watts(power)
        missing = [watts.reason] if self._has_pmic and watts.value is None else []
        temp, mhz, bits = self._slow() if full else (Reading(None), Reading(None), Reading(None))
        missing += [reading.reason for reading in (temp, mhz, bits) if reading.reason]
        return Sample(
            t=moment,
            full=full,
            took_s=self._clock() - begin,
            temp_c=temp.value,
            clock_mhz=mhz.value,
            power_w=watts.value,
            wall_estimate_w=self._wall(watts.value),
            rails_w=dict(power.value.rails_w) if power.value and watts.value is not None else {},
            supply_v=power.value.volts.get(vcgencmd.SUPPLY) if power.value else None,
            throttled=bits.value,
            missing=tuple(missing),
        )

    def disturbance(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """See :class:`~edgekit.devices.boards.base.Board`.

        A bit that was set before cannot be set again: then only what a sample saw at its own moment counts.
        """
        bits = [sample.throttled for sample in samples if sample.throttled is not None]
        if not bits:
            return disturb.common(self._target, samples)
        mask = self._target.thermal.sticky_mask & throttle.SINCE_BOOT or throttle.SINCE_BOOT
        happened = dict.fromkeys(throttle.fresh(bits[0], bits[-1], mask))
        for one in bits:
            happened |= dict.fromkeys(throttle.since_boot(one << 16 & mask))
        said = [f"{what} during the measurement" for what in happened]
        if any(throttle.restarted(*pair) for pair in itertools.pairwise(bits)):
            said.append("the board was restarted during the measurement")
        return (*said, *disturb.common(self._target, samples))

    def _pmic(self) -> Reading[vcgencmd.Pmic]:
        if not self._has_pmic:
            return Reading(None, _NO_SENSOR)
        reading = vcgencmd.pmic(self._run(["vcgencmd", "pmic_read_adc"]))
        if reading.value:
            here = frozenset(reading.value.rails_w)
            self._rails = self._rails or here
            if lost := sorted(self._rails - here):
                return Reading(None, f"vcgencmd pmic_read_adc has lost the rail {lost[0]}")
        return reading

    def _counted(self, power: vcgencmd.Pmic) -> dict[str, float]:
        wanted = self._target.power.rails or tuple(power.rails_w)
        return {rail: power.rails_w[rail] for rail in wanted if rail in power.rails_w}

    def _watts(self, reading: Reading[vcgencmd.Pmic]) -> Reading[float]:
        if reading.value is None:
            return Reading(None, reading.reason)
        if lost := [rail for rail in self._target.power.rails if rail not in reading.value.rails_w]:
            return Reading(None, f"vcgencmd pmic_read_adc has no rail {lost[0]}")
        return Reading(sum(self._counted(reading.value).values()))

    def _wall(self, watts: float | None) -> float | None:
        power = self._target.power
        if watts is None or power.wall_scale is None:
            return None
        return watts * power.wall_scale + (power.wall_offset_w or 0.0)

    def _throttled(self) -> Reading[int]:
        return vcgencmd.throttled(self._run(["vcgencmd", "get_throttled"]))

    def _slow(self) -> tuple[Reading[float], Reading[float], Reading[int]]:
        if self._target.thermal.provider == "sysfs":
            self._zones = self._zones or linux.thermal_zones(self._read)
            temp = linux.hottest(self._read, self._zones)
        else:
            temp = vcgencmd.temperature(self._run(["vcgencmd", "measure_temp"]))
        return temp, vcgencmd.clock(self._run(["vcgencmd", "measure_clock", "arm"])), self._throttled()

    def _notes(self, bits: Reading[int], power: Reading[vcgencmd.Pmic], supply: float | None) -> tuple[str, ...]:
        notes = []
        if bits.value is None:
            notes.append(f"{bits.reason}: is vcgencmd installed and the user in the group video?")
        elif earlier := throttle.since_boot(bits.value):
            notes.append(
                f"since the board started: {', '.join(earlier)}; that it happens again is seen only at the moment of a"
                " sample, until the board is switched off and on"
            )
        if power.value is None:
            notes.append(f"no power figures: {power.reason}")
        if supply is not None and supply < _LOW_SUPPLY:
            notes.append(f"the supply gives {supply:.2f} V at the board, a good one about 4.9 V")
        return tuple(notes)
