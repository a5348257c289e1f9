"""The board's sensors beside a measurement: energy, heat, clock, and what spoiled it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from edgekit.bench.result import TracePoint, Window
from edgekit.devices.boards.base import Board, BoardFacts, Sample
from edgekit.devices.boards.meter import Meter
from edgekit.targets import Target

_MOST = 200
"""Points of the trace that are kept of one measurement."""
_BESIDE = 2.0
"""Seconds before a measurement that its first look at heat and throttling may be old; they are read once a second."""
_PATIENCE = 1.5
"""Seconds to wait for the look after it."""


class Sampler(Protocol):
    """A board that is sampled all the time; see :mod:`edgekit.devices.boards.sampler`."""

    @property
    def samples(self) -> Sequence[Sample]:
        """So far, by time; `t` is of the monotonic clock."""
        ...

    def energy_j(self, begin: float, end: float) -> float | None:
        """Joules between two times of the monotonic clock; None when it was not measured, never an estimate."""
        ...

    def reaches(self, t: float) -> bool:
        """Whether there is a reading of power after `t`, or none will come."""
        ...

    def watts(self, sample: Sample) -> float | None:
        """Power of the same scope as the energy, when `sample` was taken."""
        ...


Disturbance = Callable[[Sequence[Sample]], tuple[str, ...]]
"""What spoiled a measurement beside which these samples were taken."""


@dataclass(frozen=True)
class Sensors:
    """What is known of the board while it works; a machine without sensors has none of it."""

    sampler: Sampler | None = None
    disturbance: Disturbance = lambda _: ()
    facts: BoardFacts | None = None
    notes: Callable[[], tuple[str, ...]] = lambda: ()
    """What a reader of the figures has to know about the sensors."""
    offset: float = 0.0
    """Seconds of a run's time at zero of the monotonic clock."""
    sleep: Callable[[float], None] = time.sleep
    board: Board | None = None
    """Who is asked; None: nobody."""
    energy: bool = True
    """False on an emulated board: its sensors are props that a test moves, and nothing there consumes what they say."""

    def window(self, begin: float, end: float) -> Window:
        """A stretch of the monotonic clock as the result holds it."""
        samples = [sample for sample in self._after(end) if begin - _BESIDE <= sample.t]
        return Window(
            begin=self.offset + begin,
            end=self.offset + end,
            trace=tuple(self._point(sample) for sample in thinned(samples, _MOST)),
            disturbances=self.disturbance([_clock_inside(sample, begin, end) for sample in samples]) if samples else (),
        )

    def joules(self, stretches: Sequence[tuple[float, float]]) -> list[float]:
        """Energy of each (begin, end); empty when one of them was not measured."""
        if self.sampler is None or not self.energy:
            return []
        self._after(end := max(end for _, end in stretches))
        self._reached(self.sampler, end)
        found = [self.sampler.energy_j(begin, end) for begin, end in stretches]
        return [value for value in found if value is not None] if None not in found else []

    def _reached(self, sampler: Sampler, end: float) -> None:
        """Wait for the meter, whose readings may come later than the board's."""
        waited, step = 0.0, 0.05
        while waited < _PATIENCE and not sampler.reaches(end):
            self.sleep(step)
            waited += step

    def _point(self, sample: Sample) -> TracePoint:
        watts = None if self.sampler is None else self.sampler.watts(sample)
        return TracePoint(
            t=self.offset + sample.t, temp_c=sample.temp_c, clock_mhz=sample.clock_mhz, power_w=watts,
            throttled=sample.throttled,
        )  # fmt: skip

    def _after(self, end: float) -> Sequence[Sample]:
        """All samples, once there is one after `end`; a full one, where the board has more to say than its power."""
        if self.sampler is None:
            return ()
        waited, step = 0.0, 0.05
        while waited < _PATIENCE:
            samples = self.sampler.samples
            later = [sample for sample in samples if sample.t > end]
            if later and (any(map(_full, later)) or not any(map(_full, samples))):
                break
            self.sleep(step)
            waited += step
        return self.sampler.samples


def board_here(target: Target) -> Board:
    """The board that this machine is, by the target; nothing of it is sampled yet."""
    from edgekit.devices.boards.access import here
    from edgekit.devices.boards.detect import detect

    return detect(target, *here())


@contextmanager
def board_sensors(
    target: Target, board: Board, *, energy: bool = True, meter: Meter | None = None
) -> Iterator[Sensors]:
    """The sensors of a board, as the target describes them, sampled while the block runs.

    Args:
        target: how often.
        board: this machine.
        energy: False on an emulated board.
        meter: of the wall power, instead of the board's own sensor.
    """
    from edgekit.devices.boards.sampler import Sampler as Thread

    facts = board.facts()
    if meter is not None:
        facts = msgspec.structs.replace(facts, power_sensor=meter.name, power_scope="wall", power_rails=())
    with Thread(board, target.power.sample_hz, scope=facts.power_scope, meter=meter) as sampler:
        yield Sensors(sampler, board.disturbance, facts, lambda: sampler.status.words, board=board, energy=energy)


def _clock_inside(sample: Sample, begin: float, end: float) -> Sample:
    """Before and after a measurement a processor is idle, and its clock says nothing of the measurement."""
    return sample if begin <= sample.t <= end else msgspec.structs.replace(sample, clock_mhz=None)


def _full(sample: Sample) -> bool:
    return not (sample.temp_c is None and sample.clock_mhz is None and sample.throttled is None)


def thinned(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` (two or more) of them, evenly, the first and the last included."""
    if len(samples) <= most:
        return list(samples)
    step = (len(samples) - 1) / (most - 1)
    return [samples[round(index * step)] for index in range(most)]
