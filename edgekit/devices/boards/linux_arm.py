"""Any other Linux board, and the machine that edgekit runs on: what the kernel tells."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgekit.devices.boards import disturb, linux
from edgekit.devices.boards.base import BoardFacts, Clock, Reader, Sample
from edgekit.devices.boards.reading import Reading
from edgekit.targets import Target

_ANY = "any"


class LinuxArm:
    """Thermal zones, cpufreq, cooling devices; on a host whose target asks the machine, its energy counters as well."""

    name = "linux_arm"

    def __init__(self, target: Target, read: Reader, clock: Clock = time.monotonic) -> None:
        self._target, self._read, self._clock = target, read, clock
        self._zones = linux.thermal_zones(read)
        self._groups = linux.policies(read)
        self._cooling = linux.cooling_devices(read)
        self._counters = linux.energy_counters(read) if target.soc.arch == _ANY else ()
        self._last: tuple[float, float] | None = None

    def facts(self) -> BoardFacts:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        notes = [] if self._counters else ["no power figures: no sensor that this user may read"]
        if not self._zones:
            notes.append("no thermal zone gives a temperature")
        return BoardFacts(
            adapter=self.name,
            model=linux.model(self._read),
            governor=linux.governor(self._read, self._groups),
            power_sensor="powercap" if self._counters else None,
            power_scope="soc" if self._counters else "",
            power_rails=tuple(f"package-{index}" for index in range(len(self._counters))),
            notes=tuple(notes),
        )

    def sample(self, *, full: bool = True) -> Sample:
        """See :class:`~edgekit.devices.boards.base.Board`; `power_w` is the mean since the sample before."""
        begin = self._clock()
        energy: Reading[float] = linux.joules(self._read, self._counters) if self._counters else Reading(None)
        moment = (begin + self._clock()) / 2
        temp = linux.hottest(self._read, self._zones) if full else Reading[float](None)
        mhz = linux.clock(self._read, self._groups) if full else Reading[float](None)
        return Sample(
            t=moment,
            full=full,
            temp_c=temp.value,
            clock_mhz=mhz.value,
            power_w=self._mean(moment, energy.value),
            energy_j=energy.value,
            cooling=linux.cooling(self._read, self._cooling) if full else None,
            missing=tuple(reading.reason for reading in (energy, temp, mhz) if reading.reason),
            took_s=self._clock() - begin,
        )

    def disturbance(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        return disturb.common(self._target, samples)

    def _mean(self, moment: float, energy: float | None) -> float | None:
        before, self._last = self._last, None if energy is None else (moment, energy)
        if before is None or energy is None or moment <= before[0]:
            return None
        return (energy - before[1]) / (moment - before[0])
