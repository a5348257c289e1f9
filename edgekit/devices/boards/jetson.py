"""NVIDIA Jetson: power monitors and thermal zones of the kernel, settings from NVIDIA's programs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from edgekit.devices.boards import disturb, ina3221, linux, tegra
from edgekit.devices.boards.base import BoardFacts, Clock, Reader, Runner, Sample
from edgekit.devices.boards.reading import Reading, numbered, whole
from edgekit.targets import Target

_TEGRASTATS = ["sh", "-c", "timeout 3 tegrastats --interval 100 | head -n 1"]
"""It never ends by itself; the first line comes after one interval."""
_EVENTS = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
"""Counters of Orin and Thor: https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/
PlatformPowerAndPerformance/JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html"""


class Jetson:
    """Orin, Thor and their predecessors."""

    name = "jetson"

    def __init__(self, target: Target, read: Reader, run: Runner, clock: Clock = time.monotonic) -> None:
        self._target, self._read, self._run, self._clock = target, read, run, clock
        self._channels = ina3221.find(read, run) if target.power.provider == "ina3221" else ()
        self._counted = ina3221.counted((channel.rail for channel in self._channels), target.power.rails)
        self._zones = linux.thermal_zones(read)
        self._groups = linux.policies(read)
        self._cooling = linux.cooling_devices(read)
        self._events = _event_counters(read)

    def facts(self) -> BoardFacts:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        version = tegra.l4t(self._read("/etc/nv_tegra_release"))
        mode = tegra.power_mode(self._run(["nvpmodel", "-q"]))
        clocks = tegra.clocks(self._run(["jetson_clocks", "--show"]))
        watts, _ = self._power()
        works = watts.value is not None
        return BoardFacts(
            adapter=self.name,
            model=linux.model(self._read),
            firmware=f"L4T {version.value}" if version.value else None,
            governor=linux.governor(self._read, self._groups),
            jetpack=tegra.jetpack(version.value),
            power_mode=mode.value.name if mode.value else None,
            clocks_pinned=clocks.value.pinned if clocks.value else None,
            power_sensor="ina3221" if works else None,
            power_scope=self._target.power.scope if works else "",
            power_rails=self._counted.value or () if works else (),
            notes=self._notes(version, mode, clocks, watts),
        )

    def sample(self, *, full: bool = True) -> Sample:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        begin = self._clock()
        watts, rails = self._power()
        moment = (begin + self._clock()) / 2
        temp, mhz = (linux.hottest(self._read, self._zones), self._mhz()) if full else (Reading(None), Reading(None))
        return Sample(
            t=moment,
            full=full,
            temp_c=temp.value,
            clock_mhz=mhz.value,
            power_w=watts.value,
            rails_w=rails,
            cooling=linux.cooling(self._read, self._cooling) if full else None,
            events=self._count() if full else {},
            missing=tuple(reading.reason for reading in (watts, temp, mhz) if reading.reason),
            took_s=self._clock() - begin,
        )

    def disturbance(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """See :class:`~edgekit.devices.boards.base.Board`."""
        counts = [sample.events for sample in samples if sample.events]
        said = []
        for counter, words in _EVENTS.items():
            seen = [count[counter] for count in counts if counter in count]
            if seen and seen[-1] > seen[0]:
                said.append(f"{seen[-1] - seen[0]} times {words} throttled the board during the measurement")
            elif seen and seen[-1] < seen[0]:
                said.append("the board was restarted during the measurement")
        return (*dict.fromkeys(said), *disturb.common(self._target, samples))

    def stats(self) -> Reading[tegra.Tegrastats]:
        """One line of `tegrastats`, for what the kernel's files do not tell: the GPU's load. Takes 0.1 s or more."""
        return tegra.tegrastats(self._run(_TEGRASTATS))

    def _power(self) -> tuple[Reading[float], dict[str, float]]:
        if self._target.power.provider != "ina3221":
            return Reading(None, "the target names no power sensor"), {}
        reading = ina3221.rails(self._channels, self._read)
        if reading.value is None or self._counted.value is None:
            return Reading(None, reading.reason or self._counted.reason), {}
        return Reading(sum(reading.value[rail] for rail in self._counted.value)), reading.value

    def _mhz(self) -> Reading[float]:
        return linux.clock(self._read, self._groups)

    def _count(self) -> dict[str, int]:
        found = {name: whole(self._read(path), 0, 1 << 62) for name, path in self._events.items()}
        return {name: count for name, count in found.items() if count is not None}

    def _notes(
        self, version: Reading[str], mode: Reading[tegra.Mode], clocks: Reading[tegra.Clocks], watts: Reading[float]
    ) -> tuple[str, ...]:
        notes = [reading.reason for reading in (version, mode) if reading.reason]
        if clocks.reason:
            notes.append(f"{clocks.reason}: only root may ask whether the clocks are pinned")
        wanted = self._target.power.default_mode
        if mode.value and wanted and mode.value.name.removeprefix("MODE_") != wanted:
            notes.append(f"power mode {mode.value.name}; the target's figures are for {wanted}")
        if watts.reason:
            notes.append(f"no power figures: {watts.reason}")
        elif self._counted.value and len(self._counted.value) > 1:
            notes.append(f"power is the sum of {', '.join(self._counted.value)}: the module, not its carrier board")
        return tuple(notes)


def _event_counters(read: Reader) -> dict[str, str]:
    """Paths of the counters of events that throttle."""
    for index, name in numbered(read, "/sys/class/hwmon/hwmon{}/name".format, gaps=4):
        if re.fullmatch(r"soctherm_oc\s*", name):
            folder = f"/sys/class/hwmon/hwmon{index}"
            return {counter: f"{folder}/{counter}_event_cnt" for counter in _EVENTS}
    return {}
