"""A power meter for a board: what is none, readings on their way to a board far away, and a measurement's scope."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fake_board
import pytest
from conftest import Cli
from fake_board import Board

from edgekit.bench import ready
from edgekit.bench.metered import HEADER, Rows, fed
from edgekit.bench.probe import probe
from edgekit.bench.remote import Patience, bench_on
from edgekit.bench.sensors import board_sensors
from edgekit.cli import bench
from edgekit.cli.bench_board import BoardOptions
from edgekit.devices.boards.base import BoardFacts, Sample
from edgekit.devices.boards.meter import CsvMeter, MeterReading, spec_of
from edgekit.devices.boards.sampler import Sampler
from edgekit.errors import OptionError
from edgekit.progress import Quiet
from edgekit.targets import load


class Plug:
    """A meter at 9 W."""

    name = "plug"

    def __init__(self, *reasons: str) -> None:
        self.polls, self.reasons = 0, reasons

    def poll(self) -> MeterReading:
        self.polls += 1
        return MeterReading(((time.monotonic(), 9.0),), self.reasons)


class Deaf:
    """A board at 4 W."""

    name = "deaf"

    def facts(self) -> BoardFacts:
        return BoardFacts(adapter="deaf", power_sensor="own", power_scope="soc", power_rails=("CPU",))

    def sample(self, *, full: bool = True) -> Sample:
        return Sample(t=time.monotonic(), full=full, power_w=4.0)

    def disturbance(self, _samples: Sequence[Sample]) -> tuple[str, ...]:
        return ()


class Notes(Quiet):
    """Remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--meter", "/nowhere/meter.csv"], "meter.csv"),
        (["--meter", "no-such-program --watts"], "'no-such-program' is not on this machine"),
        (["--meter", "cat 'open"], "open quote"),
        (["--meter", "cmd:"], "csv:FILE or cmd:"),
        (["--meter", "echo 4", "--device", "emulated:rpi5"], "--meter is given for an emulated board"),
        (["--meter", "echo 4", "--device", "ssh://a", "--device", "ssh://b"], "several boards"),
        (["--governor", "performance", "--device", "emulated:rpi5"], "--governor is given for an emulated board"),
        (["--power-mode", "15W", "--emulated"], "--power-mode is given for an emulated board"),
    ],
)
def test_what_is_refused_before_the_bundle_is_opened(
    cli: Cli, tmp_path: Path, arguments: list[str], words: str
) -> None:
    cli("bench", tmp_path / "no bundle", *arguments).refused(OptionError.exit_code, words)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("power.csv", "csv:power.csv"), ("csv:log.txt", "csv:log.txt"), ("cat /tmp/w", "cmd:cat /tmp/w"),
        ("cmd:cat a.csv", "cmd:cat a.csv"), ("cat 'my plug'", "cmd:cat 'my plug'"),
    ],
)  # fmt: skip
def test_a_file_or_a_command(text: str, spec: str) -> None:
    assert spec_of(text) == spec


# --- to a board far away ---------------------------------------------------------------------------------------------


def test_readings_arrive_as_a_meters_file(tmp_path: Path) -> None:
    board, meter, notes = Board(tmp_path / "board"), Plug("a loose wire"), Notes()
    path = board.home / "meter.csv"
    with fed(board.device(), str(path), meter, notes, hz=50.0):
        until(path.exists)
        there = CsvMeter(path)
        until(lambda: meter.polls > 20)
        until(lambda: len(path.read_text().splitlines()) > 20)
        reading = there.poll()
    assert path.read_text().startswith(HEADER)
    assert len(reading.rows) > 10
    assert {watts for _, watts in reading.rows} == {9.0}
    assert reading.reasons == ()
    assert notes.said == ["power meter: a loose wire"], "once, not with every reading"
    there.close()
    assert not board.running()


def test_a_cut_cable_spoils_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.bench.metered._AGAIN_S", 0.01)
    board, meter = Board(tmp_path / "board", feed_most=100), Plug()
    path = board.home / "meter.csv"
    with fed(board.device(), str(path), meter, Quiet(), hz=100.0):
        until(lambda: path.exists() and len(path.read_text().splitlines()) > 20)
    assert len(board.calls) == 2
    text = path.read_text()
    assert "?" in text
    path.write_text(HEADER)
    there = CsvMeter(path)
    with path.open("a") as file:
        file.write(text.removeprefix(HEADER))
    assert {watts for _, watts in there.poll().rows} == {9.0}
    there.close()


def test_a_board_that_takes_no_readings_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.bench.metered._AGAIN_S", 0.01)
    board, notes = Board(tmp_path / "board"), Notes()
    with fed(board.device(), f"{board.home}/nowhere/meter.csv", Plug(), notes, hz=100.0):
        until(lambda: "edgekit-feed" not in [thread.name for thread in threading.enumerate()])
    assert len(board.calls) == 5
    assert "does not take its readings" in notes.said[0]
    assert notes.said[-1] == "power meter: given up after 5 tries"


def test_a_measurement_far_away_follows_the_meter_that_is_here(tmp_path: Path) -> None:
    board, meter = Board(tmp_path / "board"), Plug()
    bundle = fake_board.bundle(tmp_path / "tiny.host")
    board.behave("wait 2")

    def go_on(_number: int, _command: Sequence[str]) -> None:
        files = list(board.base.glob("runs/*/meter.csv"))
        if board.steps_done() == ["0", "1"] and files and len(files[0].read_text().splitlines()) > 3:
            (board.home / "behaviour").unlink(missing_ok=True)

    board.on_call = go_on
    arguments = bench_on(
        board.device(), bundle, load("host"), [], decode=json.loads, progress=Quiet(), meter=meter,
        patience=Patience(lost_s=20, first_s=0.05, longest_s=0.05),
    )["arguments"]  # fmt: skip
    (run,) = {Path(word).parent for word in arguments if word.endswith("bench.json")}
    assert arguments[arguments.index("--meter") + 1] == f"csv:{run}/meter.csv"
    assert board.clean(), "nothing of the measurement is left, no sender either"


def test_no_meter_is_no_connection(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    with fed(board.device(), "/nowhere", None, Quiet()):
        pass
    assert board.calls == []


def test_ctrl_c_ends_the_sending(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    with fed(board.device(), f"{board.home}/meter.csv", Plug(), Quiet(), hz=100.0):
        until((board.home / "meter.csv").exists)
        board.cancel.set()
        until(lambda: "edgekit-feed" not in [thread.name for thread in threading.enumerate()])


def test_a_silent_meter_can_be_stopped() -> None:
    class Silent:
        name = "silent"

        def poll(self) -> MeterReading:
            return MeterReading(())

    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert Rows(Silent(), stop, lambda _: None, hz=1000.0).read(100) == b""


# --- beside a measurement --------------------------------------------------------------------------------------------


def test_with_a_meter_energy_and_trace_are_the_walls() -> None:
    target: Any = load("host")
    with board_sensors(target, Deaf(), meter=Plug()) as sensors:
        begin = time.monotonic()
        sampler: Any = sensors.sampler
        until(lambda: sampler.reaches(begin + 1.2))
        end = time.monotonic()
        (joules,) = sensors.joules([(begin, end)])
        window = sensors.window(begin, end)
    assert joules == pytest.approx(9.0 * (end - begin))
    assert {point.power_w for point in window.trace} == {9.0}, "the board's own 4 W are of another scope"
    assert sensors.facts is not None
    assert (sensors.facts.power_sensor, sensors.facts.power_scope, sensors.facts.power_rails) == ("plug", "wall", ())


def test_a_sample_far_from_every_reading_of_the_meter_has_no_power() -> None:
    sampler = Sampler(None, meter=Plug())
    sampler._wall = [(10.0, 5.0), (11.0, 6.0)]
    assert [sampler.watts(Sample(t=t, power_w=1.0)) for t in (8.9, 9.5, 10.4, 10.6, 11.9, 12.1)] == [
        None, 5.0, 5.0, 6.0, 6.0, None
    ]  # fmt: skip
    assert [sampler.reaches(t) for t in (10.9, 11.0)] == [True, False]


# --- the order of things ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["measured", "emulated"])
def test_nothing_of_ours_works_while_the_load_is_looked_at(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "ours"))
    order: list[str] = []
    begin = Sampler.__enter__

    def looked(*given: Any) -> Any:
        order.append("load")
        return probe(*given)

    def sampling(self: Sampler) -> Sampler:
        order.append("sampler")
        return begin(self)

    monkeypatch.setattr(ready, "probe", looked)
    monkeypatch.setattr(Sampler, "__enter__", sampling)
    with bench._prepared(load("host"), BoardOptions(), None, kind, Quiet()) as found:
        facts = found["sensors"].facts
    assert order == ["load", "sampler"]
    assert (facts.read_gbps is None) == bool(facts.read_gbps_reason)
    if kind == "emulated":
        assert "emulates" in facts.read_gbps_reason
    else:
        assert facts.read_gbps is None or set(facts.read_gbps) <= set(range(1, 1025))
