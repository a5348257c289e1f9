"""Sampling beside a measurement, energy from samples, external meters."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.devices.boards import energy
from edgekit.devices.boards.access import access, here
from edgekit.devices.boards.base import BoardFacts, Sample
from edgekit.devices.boards.meter import CommandMeter, CsvMeter, MeterReading, open_meter
from edgekit.devices.boards.sampler import Sampler
from edgekit.devices.local import local
from edgekit.errors import OptionError

# --- energy ----------------------------------------------------------------------------------------------------------


def ramp(count: int, apart: float = 0.1) -> list[tuple[float, float]]:
    """Power that rises by 1 W a second."""
    return [(index * apart, index * apart) for index in range(count)]


def test_energy_between_two_times_is_the_area() -> None:
    found = energy.of_power(ramp(101), 2.05, 6.05, "board")
    assert found.joules == pytest.approx((6.05**2 - 2.05**2) / 2)
    assert (found.readings, found.scope, found.reason) == (40, "board", "")


def test_a_constant_power_holds_to_the_end_of_its_reading_but_no_longer() -> None:
    points = [(index / 10, 5.0) for index in range(21)]
    assert energy.of_power(points, 0.5, 2.1, "soc").joules == pytest.approx(8.0)
    assert energy.of_power(points, 0.5, 3.0, "soc").joules is None
    assert energy.of_power(points, -1.0, 1.0, "soc").joules is None


@pytest.mark.parametrize(
    ("points", "begin", "end", "reason"),
    [
        ([], 0.0, 1.0, "no power was measured"),
        (ramp(100), 1.01, 1.09, "0 power readings"),
        (ramp(100), 1.01, 1.19, "1 power readings"),
        ([*ramp(20), *[(t + 8, p) for t, p in ramp(20)]], 0.5, 9.0, "power was not measured for 6.1 s of it"),
        (ramp(20), 0.5, 30.0, "from the beginning to the end"),
        (ramp(100), 3.0, 1.0, "0 power readings"),
    ],
)
def test_what_the_readings_do_not_carry_is_none(
    points: list[tuple[float, float]], begin: float, end: float, reason: str
) -> None:
    found = energy.of_power(points, begin, end, "board")
    assert found.joules is None
    assert reason in found.reason


def test_a_counter_is_interpolated() -> None:
    points = [(t, 7.0 * t) for t in (0.0, 0.5, 1.1, 1.4, 2.0)]
    assert energy.of_counter(points, 0.25, 1.75, "soc").joules == pytest.approx(7.0 * 1.5)
    assert energy.of_counter(points, 0.6, 1.0, "soc").joules is None


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=30),
    st.floats(-10, 110),
    st.floats(-10, 110),
)
def test_energy_never_fails_and_lies_between_the_extremes(
    points: list[tuple[float, float]], begin: float, end: float
) -> None:
    points.sort()
    found = energy.of_power(points, begin, end, "")
    assert (found.joules is None) == bool(found.reason)
    if found.joules is not None:
        least, most = min(w for _, w in points), max(w for _, w in points)
        assert least * (end - begin) - 1e-6 <= found.joules <= most * (end - begin) + 1e-6


# --- sampler ---------------------------------------------------------------------------------------------------------


class Time:
    """A clock that a test moves. Whoever waits for a time by it has done all that is due then before it moves on."""

    def __init__(self) -> None:
        self.now, self.waiting = 1000.0, dict[int, float]()
        self.changed = threading.Condition()

    def __call__(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> None:
        own = threading.get_ident()
        with self.changed:
            self.waiting[own] = due = self.now + seconds
            self.changed.notify_all()
            while self.now < due and not event.is_set():
                self.changed.wait(0.01)
            self.waiting.pop(own, None)

    def pass_by(self, seconds: float, threads: int = 1) -> None:
        """Let time go by, with so many threads that wait for it."""
        with self.changed:
            end = self.now + seconds
            while self.now < end:
                assert self.changed.wait_for(lambda: len(self.waiting) >= threads, 60)
                self.now = min(end, *self.waiting.values())
                for own in [own for own, due in self.waiting.items() if due <= self.now]:
                    del self.waiting[own]
                self.changed.notify_all()
            assert self.changed.wait_for(lambda: len(self.waiting) >= threads, 60)

    def jump(self, seconds: float) -> None:
        """Let time go by while nobody waits for it."""
        with self.changed:
            self.now += seconds
            self.changed.notify_all()


@pytest.fixture
def clock() -> Time:
    return Time()


class Steady:
    """A board at 4 W that counts what it is asked."""

    name = "steady"

    def __init__(self, clock: Time, watts: float | None = 4.0) -> None:
        self.clock, self.watts, self.full, self.asked = clock, watts, 0, 0

    def facts(self) -> BoardFacts:
        return BoardFacts(adapter="steady")

    def sample(self, *, full: bool = True) -> Sample:
        self.asked += 1
        self.full += full
        missing = () if self.watts is not None else ("no sensor",)
        return Sample(t=self.clock(), full=full, power_w=self.watts, missing=missing)

    def disturbance(self, _samples: Sequence[Sample]) -> tuple[str, ...]:
        return ()


class Failing(Steady):
    """A sensor that raises after some readings."""

    def sample(self, *, full: bool = True) -> Sample:
        if self.asked >= 3:
            self.asked += 1
            raise RuntimeError("\x1b[31mgone")
        return super().sample(full=full)


class Hanging(Steady):
    """A sensor that does not return after some readings until it is let go."""

    def __init__(self, clock: Time) -> None:
        super().__init__(clock)
        self.hangs, self.go = threading.Event(), threading.Event()

    def sample(self, *, full: bool = True) -> Sample:
        if self.asked >= 3:
            self.hangs.set()
            assert self.go.wait(60)
        return super().sample(full=full)


def sampled(board: Steady | None, hz: float, clock: Time, **more: Any) -> Sampler:
    return Sampler(board, hz, clock=clock, wait=clock.wait, **more)


def test_a_steady_board(clock: Time) -> None:
    board = Steady(clock)
    with sampled(board, 100.0, clock, scope="board") as sampler:
        assert len(sampler.samples) == 1, "one before the block"
        clock.pass_by(0.1)
        begin = clock()
        clock.pass_by(2.0)
        end = clock()
    found = sampler.energy(begin, end)
    assert found.joules == pytest.approx(8.0)
    assert sampler.energy_j(begin, end) == found.joules
    assert (found.scope, sampler.scope) == ("board", "board")
    assert sampler.samples[0].full
    assert sampler.samples[-1].full, "and one after it"
    assert board.full == 4, "once a second, and the last one"
    status = sampler.status
    assert (status.failed, status.missed, status.silent_s) == (0, 0, 0.0)
    assert status.taken == len(sampler.samples) == board.asked == 1 + 210 + 1
    assert status.seconds == pytest.approx(2.1)


def test_a_board_without_a_sensor_has_no_energy_and_says_why(clock: Time) -> None:
    with sampled(Steady(clock, watts=None), 50.0, clock) as sampler:
        clock.pass_by(0.1)
    found = sampler.energy(sampler.samples[0].t, sampler.samples[-1].t)
    assert found.joules is None
    assert found.reason == "no power was measured"
    assert sampler.status.reasons == {"no sensor": 7}
    assert sampler.status.words == ("no sensor (7 times)",)


def test_a_sensor_that_fails_is_counted_and_stops_nothing(clock: Time) -> None:
    board = Failing(clock)
    with sampled(board, 100.0, clock) as sampler:
        clock.pass_by(0.07)
    assert board.asked == 9
    assert len(sampler.samples) == 3
    assert sampler.status.failed == 6
    assert any("failed" in words and words.isprintable() for words in sampler.status.words)


def test_a_sensor_that_hangs_stops_nothing_and_is_told(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.devices.boards.sampler._PATIENCE", 0.01)
    board = Hanging(clock)
    with sampled(board, 100.0, clock) as sampler:
        until_it_hangs(board, 0.01)
        begin = clock()
        clock.jump(1.2)
        assert sampler.energy(begin, clock()).joules is None
    try:
        assert sampler.status.silent_s == pytest.approx(1.2)
        assert any("have not answered" in words for words in sampler.status.words)
    finally:
        board.go.set()


def until_it_hangs(board: Hanging, period: float) -> None:
    """At its fourth reading: the first is taken at once."""
    board.clock.pass_by(2.2 * period)
    board.clock.jump(period)
    assert board.hangs.wait(60)


def test_a_sensor_that_hangs_for_a_while_leaves_a_gap_and_missed_readings(clock: Time) -> None:
    board = Hanging(clock)
    with sampled(board, 50.0, clock) as sampler:
        until_it_hangs(board, 0.02)
        begin = clock() - 0.03
        clock.jump(1.0)
        board.go.set()
        clock.pass_by(0.4)
        end = clock()
    assert sampler.status.missed == 50
    assert "were missed" in sampler.status.words[0]
    assert sampler.energy(begin, end).joules is None


def test_a_block_that_fails_ends_the_sampling(clock: Time) -> None:
    with pytest.raises(KeyError), sampled(Steady(clock), 50.0, clock) as sampler:
        raise KeyError
    assert len(sampler.samples) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "edgekit-sensors"]


def test_a_jump_of_the_calendar_clock_changes_nothing(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    with sampled(Steady(clock), 50.0, clock) as sampler:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        begin = clock()
        clock.pass_by(0.5)
    assert sampler.energy_j(begin, begin + 0.5) == pytest.approx(2.0)


def test_a_meter_is_another_scope_and_never_mixed(clock: Time) -> None:
    class Wall:
        name = "wall"

        def poll(self) -> MeterReading:
            return MeterReading(((clock(), 9.0),), ())

    with sampled(Steady(clock), 50.0, clock, scope="board", meter=Wall(), meter_hz=50.0) as sampler:
        begin = clock()
        clock.pass_by(1.0, threads=2)
        end = clock()
    assert (sampler.energy(begin, end).scope, sampler.board_energy(begin, end).scope) == ("wall", "board")
    assert sampler.energy_j(begin, end) == pytest.approx(9.0)
    assert sampler.board_energy(begin, end).joules == pytest.approx(4.0)


def test_a_meter_alone(clock: Time) -> None:
    class Silent:
        name = "silent"

        def poll(self) -> MeterReading:
            return MeterReading((), ("the meter is silent",))

    with sampled(None, 10.0, clock, meter=Silent(), meter_hz=50.0) as sampler:
        clock.pass_by(0.1)
    assert sampler.samples == ()
    assert sampler.energy_j(0.0, 1.0) is None
    assert sampler.status.reasons == {"the meter is silent": 7}


def test_by_the_clock_of_this_machine() -> None:
    """The same in earnest, without a figure that another program's load could change."""
    clock = Time()
    with Sampler(Steady(clock), 100.0) as sampler:
        deadline = time.monotonic() + 60
        while len(sampler.samples) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(sampler.samples) >= 5


# --- meters ----------------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def follow(path: Path, start: str) -> tuple[CsvMeter, Ticking]:
    path.write_text(start)
    clock = Ticking()
    return CsvMeter(path, clock), clock


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_csv_file_is_followed_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, clock = follow(path, "timestamp,voltage,power\n1700000000.0,5.1,3.0\n")
    assert meter.poll() == MeterReading(())
    add(path, "1700000010.0,5.1,4.5\n1700000010.5,5.1,5")
    assert meter.poll().rows == ((1000.0, 4.5),)
    clock.now += 0.7
    add(path, ".5\n1700000011.0,5.1,6.0\n")
    assert meter.poll().rows == ((1000.5, 5.5), (1001.0, 6.0))
    meter.close()


def test_a_row_that_was_half_written_at_the_beginning_is_not_half_read(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, _ = follow(path, "4.0\n4")
    add(path, "1.5\n6.0\n")
    assert meter.poll() == MeterReading(((1000.0, 6.0),))
    meter.close()


def test_rows_that_come_in_bursts_keep_their_distances(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, clock = follow(path, "time_s;power_mw\n")
    add(path, "".join(f"{second};{1000 + second}\n" for second in range(30)))
    rows = meter.poll().rows
    assert rows[-1] == pytest.approx((1000.0, 1.029))
    assert rows[0] == pytest.approx((971.0, 1.0))
    clock.now += 30
    add(path, "".join(f"{second};{1000 + second}\n" for second in range(30, 60)))
    assert [t for t, _ in meter.poll().rows] == [pytest.approx(972.0 + second) for second in range(29, 59)]
    meter.close()


@pytest.mark.parametrize(
    ("start", "row", "watts"),
    [
        ("", "4.25\n", 4.25),
        ("", "2026-01-01T00:00:00Z,5.0,0.85,4.25\n", 4.25),
        ('"Time","Power [W]"\n', '"12:00","4.25"\n', None),
        ("t\tW\n", "1\t4.25\n", 4.25),
        ("time;power\n", "1,5;4,25\n", 4.25),
        ("\ufeffDatetime,mW\r\n", "2026-01-01 00:00:00.5,4250\r\n", 4.25),
        ("", "1767225600123,4.25\n", 4.25),
        ("time,power\n", "1\n", None),
        ("time,power\n", "1,nan\n", None),
        ("time,power\n", "1,-4\n", None),
        ("time,power\n", "1,1e9\n", None),
        ("time,power\n", "\x1b[2J,4\n", None),
    ],
)
def test_forms_of_rows(tmp_path: Path, start: str, row: str, watts: float | None) -> None:
    path = tmp_path / "meter.csv"
    meter, _ = follow(path, start)
    add(path, row)
    reading = meter.poll()
    assert [power for _, power in reading.rows] == ([] if watts is None else [watts])
    assert bool(reading.reasons) == (watts is None)
    assert all(reason.isprintable() for reason in reading.reasons)
    meter.close()


def test_a_meter_whose_clock_is_set(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, clock = follow(path, "t,w\n")
    add(path, "100,4\n")
    assert meter.poll().rows == ((1000.0, 4.0),)
    clock.now += 1
    add(path, "7300,5\n")
    reading = meter.poll()
    assert reading.rows == ((1001.0, 5.0),)
    assert "jumped" in reading.reasons[0]
    clock.now += 1
    add(path, "7301,5\n7300.5,9\n")
    reading = meter.poll()
    assert "out of order" in reading.reasons[0]
    meter.close()


def test_a_meter_that_wrote_much_before_the_first_poll_is_not_late(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, clock = follow(path, "t,w\n")
    add(path, "".join(f"{100 + row / 1000:.3f},4.0\n" for row in range(250_000)))  # 3 MB, the newest is of 349.999 s
    rows = meter.poll().rows
    assert rows[-1] == (1000.0, 4.0), "the newest row has just arrived"
    assert {watts for _, watts in rows} == {4.0}, "the first of them is whole"
    clock.now += 1
    add(path, "350.999,5\n")
    assert meter.poll() == MeterReading(((1001.0, 5.0),))
    meter.close()


def test_a_meter_that_wrote_much_between_two_polls_is_no_clock_that_jumped(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, clock = follow(path, "t,w\n")
    add(path, "100,4\n")
    assert meter.poll().rows == ((1000.0, 4.0),)
    clock.now += 250
    add(path, "".join(f"{100 + row / 1000:.3f},4.0\n" for row in range(1, 250_001)))
    found = [meter.poll() for _ in range(4)]
    assert [reading.reasons for reading in found] == [()] * 4
    rows = [row for reading in found for row in reading.rows]
    assert len(rows) == 250_000
    assert rows[0][0] == pytest.approx(1000.001)
    assert rows[-1][0] == pytest.approx(1250)
    meter.close()


def test_a_file_that_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, _ = follow(path, "t,w\n" + "1,4\n" * 50)
    path.write_text("t,w\n2,5\n")
    reading = meter.poll()
    assert [power for _, power in reading.rows] == [5.0]
    assert "begun anew" in reading.reasons[0]
    fresh = tmp_path / "fresh.csv"
    fresh.write_text("3,6\n" * 60)
    fresh.replace(path)
    assert "begun anew" in meter.poll().reasons[0]
    path.unlink()
    assert "cannot be read any more" in meter.poll().reasons[0]
    meter.close()


def test_a_row_without_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    meter, _ = follow(path, "t,w\n")
    add(path, "9" * 100_000)
    assert "without end" in meter.poll().reasons[0]
    add(path, "9" * 100 + "\n1,4\n")
    assert [power for _, power in meter.poll().rows] == [4.0]
    meter.close()


@given(
    st.lists(st.one_of(st.binary(max_size=60), st.sampled_from((b"t,w", b"1,4", b"2,5.5", b"\x1b[2J,1"))), max_size=8)
)
def test_any_bytes_in_a_meters_file(lines: list[bytes]) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"edgekit-meter-{os.getpid()}-{threading.get_ident()}.csv"
    path.write_bytes(b"t,w\n")
    try:
        meter = CsvMeter(path, Ticking())
        with path.open("ab") as file:
            file.write(b"\n".join(lines) + b"\n")
        reading = meter.poll()
        meter.close()
    finally:
        path.unlink()
    assert all(0 <= watts <= 100_000 for _, watts in reading.rows)
    assert all(reason.isprintable() for reason in reading.reasons)
    assert [t for t, _ in reading.rows] == sorted(t for t, _ in reading.rows)


@pytest.mark.parametrize(
    ("said", "watts"),
    [
        ("4.25\n", 4.25), ("4.25 W\n", 4.25), ("4250mW", 4.25), ("power=4.25W\n", 4.25), ("Power: 4.25 W\n", 4.25),
        ("warming up\n4.25\n", 4.25), ("", None), ("4.25 V\n", None), ("NaN\n", None), ("1e9", None), ("9999999", None),
        ("\x1b[2J4.25", None), (None, None),
    ],
)  # fmt: skip
def test_a_command_that_prints_watts(said: str | None, watts: float | None) -> None:
    clock = Ticking()
    reading = CommandMeter(["read-plug", "--once"], lambda _: said, clock).poll()
    assert reading.rows == (() if watts is None else ((1000.0, watts),))
    assert bool(reading.reasons) == (watts is None)
    assert all(reason.isprintable() for reason in reading.reasons)


def test_a_command_is_split_into_words_and_no_shell_sees_it() -> None:
    seen: list[list[str]] = []

    def run(command: Sequence[str]) -> str:
        seen.append(list(command))
        return "1"

    open_meter("cmd:read-plug 'my plug' ; rm -rf $HOME", run).poll()
    assert seen == [["read-plug", "my plug", ";", "rm", "-rf", "$HOME"]]


@pytest.mark.parametrize(
    "spec", ["", "csv", "csv:", "cmd:", "cmd: ", "file:x", "cmd:'open", "csv:/nowhere/x.csv", "csv:/"]
)
def test_what_is_no_meter(spec: str) -> None:
    with pytest.raises(OptionError):
        open_meter(spec, lambda _: None)


def test_a_fifo_is_no_csv_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError):
        CsvMeter(tmp_path / "pipe")


# --- files and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["here", "device"])
def test_files_and_commands_of_this_machine(way: str, tmp_path: Path) -> None:
    read, run = here() if way == "here" else access(local())
    (tmp_path / "x").write_bytes(b"42\n\xff")
    assert read(str(tmp_path / "x")) == "42\n\ufffd"
    assert read(str(tmp_path / "absent")) is None
    assert read(str(tmp_path)) is None
    assert run(["echo", "5 W"]) == "5 W\n"
    assert run(["false"]) is None
    assert run(["edgekit-no-such-program"]) is None


def test_a_command_that_hangs_is_none() -> None:
    _, run = here(timeout=0.2)
    assert run(["sleep", "30"]) is None


def test_a_command_that_never_stops_talking_is_cut() -> None:
    _, run = here(timeout=5)
    said = run(["yes"])
    assert said is None or len(said) <= 1 << 16
