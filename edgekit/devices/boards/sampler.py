"""Sensors read beside a measurement, by a thread that never stops it."""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import msgspec

from edgekit.devices.boards import energy
from edgekit.devices.boards.base import Board, Clock, Sample, Scope
from edgekit.devices.boards.energy import Energy, Point
from edgekit.devices.boards.meter import Meter

Wait = Callable[[threading.Event, float], object]
_PATIENCE = 5.0
"""Seconds that the first and the last reading may take before the measurement goes on without it."""
_NEAR = 1.0
_MOST_REASONS = 50
_MOST_SAMPLES = 1_000_000


class SamplerStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of the readings, and what they cost."""

    taken: int
    missed: int
    """Readings that were due while an earlier one had not ended."""
    failed: int
    """Readings that ended in an error of the adapter; a sensor without an answer is in `reasons`."""
    silent_s: float
    """Seconds for which a reading that never ended has been waited for; 0: all ended."""
    seconds: float
    busy_s: float
    """Spent in readings: waiting for the sensors, and the programs that were started for it."""
    longest_s: float
    """Of one reading."""
    reasons: dict[str, int]
    """Why figures are missing, and how often."""

    @property
    def words(self) -> tuple[str, ...]:
        """What a reader of the figures has to know; empty when all is well."""
        said = []
        if self.missed:
            due = self.taken + self.failed + self.missed
            said.append(f"{self.missed} of {due} sensor readings were missed (the longest took {self.longest_s:.2f} s)")
        if self.failed:
            said.append(f"{self.failed} sensor readings failed")
        if self.silent_s:
            said.append(f"the sensors have not answered for {self.silent_s:.1f} s")
        return (*said, *(f"{reason} ({count} times)" for reason, count in self.reasons.items()))


class Sampler:
    """Reads a board, an external meter or both while the block runs; all times are those of `clock`.

    Power is read `hz` times a second; temperature, clock and throttling `slow_hz` times, because on some boards each is
    a program to start. The first reading is taken before the block begins and the last one after it ends. A reading
    that does not end stops neither the block nor its end.

    Args:
        board: whose sensors; None: only the meter.
        hz: the target's `power.sample_hz`; None: `slow_hz`.
        meter: of the wall power; its readings are another scope and never mixed with the board's.
        scope: :attr:`BoardFacts.power_scope`, for the energies.
        slow_hz: see above.
        meter_hz: how often the meter is asked.
        clock: seconds that never jump, the same that the measured times come from.
        wait: for an event, at most so many seconds of that clock.
    """

    def __init__(
        self,
        board: Board | None,
        hz: float | None = 10.0,
        *,
        meter: Meter | None = None,
        scope: Scope = "",
        slow_hz: float = 1.0,
        meter_hz: float = 4.0,
        clock: Clock = time.monotonic,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self._board, self._meter, self._scope, self._clock = board, meter, scope, clock
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._watts: list[Point] = []
        self._counter: list[Point] = []
        self._wall: list[Point] = []
        self._reasons: Counter[str] = Counter()
        self._slow = _Every(1 / slow_hz, clock)
        self._loops: list[_Loop] = []
        if board is not None:
            period = 1 / max(hz or slow_hz, slow_hz)
            self._loops.append(_Loop(self._read_board, period, clock, wait, "edgekit-sensors"))
        if meter is not None:
            self._loops.append(_Loop(self._read_meter, 1 / meter_hz, clock, wait, "edgekit-meter"))

    def __enter__(self) -> Sampler:
        for loop in self._loops:
            loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slow.now()
        for loop in self._loops:
            loop.stop()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What the board said so far, in order."""
        with self._lock:
            return tuple(self._samples)

    @property
    def scope(self) -> Scope:
        """What :meth:`energy` covers: the wall where there is a meter, else what the board's sensor covers."""
        return "wall" if self._meter is not None else self._scope

    @property
    def status(self) -> SamplerStatus:
        """So far."""
        with self._lock:
            reasons = dict(self._reasons.most_common(_MOST_REASONS))
        return SamplerStatus(
            taken=sum(loop.taken for loop in self._loops),
            missed=sum(loop.missed for loop in self._loops),
            failed=sum(loop.failed for loop in self._loops),
            silent_s=max((loop.silent_s for loop in self._loops), default=0.0),
            seconds=max((loop.seconds for loop in self._loops), default=0.0),
            busy_s=sum(loop.busy_s for loop in self._loops),
            longest_s=max((loop.longest_s for loop in self._loops), default=0.0),
            reasons=reasons,
        )

    def energy(self, begin: float, end: float) -> Energy:
        """Energy between two times of the clock, of the meter where there is one, else of the board."""
        if self._meter is not None:
            with self._lock:
                points = list(self._wall)
            return energy.of_power(points, begin, end, "wall")
        return self.board_energy(begin, end)

    def energy_j(self, begin: float, end: float) -> float | None:
        """Joules of :meth:`energy`; None where they were not measured."""
        return self.energy(begin, end).joules

    def reaches(self, t: float) -> bool:
        """Whether the meter has a reading after `t`; True without one, whose readings come late."""
        with self._lock:
            return self._meter is None or (bool(self._wall) and self._wall[-1][0] > t)

    def watts(self, sample: Sample) -> float | None:
        """Power of :attr:`scope` when `sample` was taken: the meter's nearest reading, at most a second away."""
        if self._meter is None:
            return sample.power_w
        with self._lock:
            place = bisect.bisect_left(self._wall, sample.t, key=lambda point: point[0])
            near = self._wall[max(0, place - 1) : place + 1]
        found = min(near, key=lambda point: abs(point[0] - sample.t), default=None)
        return None if found is None or abs(found[0] - sample.t) > _NEAR else found[1]

    def board_energy(self, begin: float, end: float) -> Energy:
        """Energy by the board's own sensor, meter or not."""
        with self._lock:
            counter, watts = list(self._counter), list(self._watts)
        if counter:
            return energy.of_counter(counter, begin, end, self._scope)
        return energy.of_power(watts, begin, end, self._scope)

    def _read_board(self) -> None:
        if self._board is None:
            return
        sample = self._board.sample(full=self._slow.due())
        with self._lock:
            self._note(sample.missing)
            if len(self._samples) >= _MOST_SAMPLES:
                self._note((f"more than {_MOST_SAMPLES} samples: not kept",))
                return
            self._samples.append(sample)
            if sample.energy_j is not None:
                self._counter.append((sample.t, sample.energy_j))
            elif sample.power_w is not None:
                self._watts.append((sample.t, sample.power_w))

    def _read_meter(self) -> None:
        if self._meter is None:
            return
        reading = self._meter.poll()
        with self._lock:
            self._note(reading.reasons)
            room = _MOST_SAMPLES - len(self._wall)
            self._wall += reading.rows[:room]
            if len(reading.rows) > room:
                self._note((f"more than {_MOST_SAMPLES} meter readings: not kept",))

    def _note(self, reasons: tuple[str, ...]) -> None:
        for reason in reasons:
            if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
                self._reasons[reason] += 1
            else:
                self._reasons["other reasons"] += 1


class _Every:
    """Says when something that is done less often is due."""

    def __init__(self, period: float, clock: Clock) -> None:
        self._period, self._clock, self._next = period, clock, float("-inf")

    def due(self) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._period
        return True

    def now(self) -> None:
        """Make it due."""
        self._next = float("-inf")


class _Loop:
    """Calls `take` at fixed times in a thread of its own, and keeps the books."""

    def __init__(self, take: Callable[[], None], period: float, clock: Clock, wait: Wait, name: str) -> None:
        self._take, self._period, self._clock, self._wait = take, period, clock, wait
        self._stop, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._begin = self._reading = 0.0
        self._end: float | None = None
        self.taken = self.missed = self.failed = 0
        self.busy_s = self.longest_s = 0.0

    def start(self) -> None:
        """Returns when the first reading has ended, or not within the time it may take."""
        self._begin = self._clock()
        self._thread.start()
        self._first.wait(_PATIENCE)

    def stop(self) -> None:
        """Returns after one last reading, or without it when it does not end."""
        self._stop.set()
        self._thread.join(_PATIENCE)
        self._end = self._clock()

    @property
    def seconds(self) -> float:
        return (self._end or self._clock()) - self._begin

    @property
    def silent_s(self) -> float:
        """Seconds since a reading began that is far behind its time; 0 when there is none."""
        began = self._reading
        waited = (self._end or self._clock()) - began if began else 0.0
        return waited if waited > max(1.0, 3 * self._period) else 0.0

    def _run(self) -> None:
        tick = 0
        while True:
            last = self._stop.is_set()
            self._one()
            if last:
                return
            due = max(tick, int((self._clock() - self._begin) / self._period)) + 1  # never the same one again
            self.missed += due - tick - 1
            tick = due
            self._wait(self._stop, max(0.0, self._begin + due * self._period - self._clock()))

    def _one(self) -> None:
        begin = self._reading = self._clock()
        try:
            self._take()
            self.taken += 1
        except Exception:  # an adapter of another package may raise anything, and no measurement shall end for it
            self.failed += 1
        took = self._clock() - begin
        self._reading = 0.0
        self.busy_s += took
        self.longest_s = max(self.longest_s, took)
        self._first.set()
