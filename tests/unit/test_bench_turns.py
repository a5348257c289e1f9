"""Two bundles in turns: what is refused, that drift meets both, what an interruption leaves, what readers are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_results
import fake_board
import msgspec
import pytest
from bench_toys import InProcess, Room, table_bundle, toy_bundle
from conftest import Cli
from fake_board import STEPS, Board

from edgekit import targets
from edgekit.bench import plan, ready, words
from edgekit.bench.child import Generate, Open, Read
from edgekit.bench.here import bench_here
from edgekit.bench.judge import judge
from edgekit.bench.remote import Against, Patience, bench_on, decoder
from edgekit.bench.result import BenchResult, BundleRef, Failure, Ratio, Turns, figure, from_json, to_json
from edgekit.bench.worker import EngineDied
from edgekit.bench_report.html import render
from edgekit.bench_report.summary import markdown
from edgekit.bench_report.words import Entry
from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.bundle.manifest import identity
from edgekit.errors import BundleError, DeviceError, OptionError, OutOfMemoryError, WrongBoardError
from edgekit.progress import Quiet

HOST, RPI5 = targets.load("host"), targets.load("rpi5")
SMOKE = plan.protocol("smoke")
FOUR = msgspec.structs.replace(SMOKE, repeats_min=4, repeats_max=4, relative_width=1e-9)
HASTE = Patience(lost_s=20, first_s=0.01, longest_s=0.05)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Loading takes a second, and everything of the bundle "slow" takes twice as long."""
    made = Room(monkeypatch)
    made.speed = lambda options: 2.0 if "slow" in options["path"].parts else 1.0
    made.fail = lambda options: made.clock.tick(made.speed(options))
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return table_bundle(tmp_path / "toy")


@pytest.fixture
def slow(tmp_path: Path) -> Bundle:
    (tmp_path / "slow").mkdir()
    return renamed(table_bundle(tmp_path / "slow" / "other"), "slow")


def renamed(bundle: Bundle, name: str) -> Bundle:
    manifest = msgspec.structs.replace(bundle.manifest, name=name)
    (bundle.root / "manifest.json").unlink()
    write_manifest(bundle.root, manifest)
    return open_bundle(bundle.root)


def bench(
    bundle: Bundle, other: Bundle | None, room: Room, folder: Path, protocol: plan.Protocol = SMOKE, **more: Any
) -> BenchResult:
    return bench_here(
        bundle, HOST, protocol, journal=folder, progress=Quiet(), start=room.start, against=other, **more
    )  # fmt: skip


def turns_of(result: BenchResult) -> Turns:
    assert result.runs[0].turns is not None
    return result.runs[0].turns


def values(result: BenchResult) -> dict[str, float]:
    return {f"{one.name}/{one.tokens}": one.ratio.quantity.value for one in turns_of(result).ratios}


# --- refused before anything is measured ------------------------------------------------------------------------------


def test_no_format_in_common(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    other = toy_bundle(tmp_path / "onnx")
    with pytest.raises(OptionError, match="toy, holds ONNX, which is not measured of toy; expected GGUF"):
        bench(bundle, other, room, tmp_path / "j")
    with pytest.raises(OptionError, match="holds GGUF"):
        bench(other, bundle, room, tmp_path / "j", formats=("onnx",))
    assert room.workers == []


def test_a_changed_byte_in_the_other_bundle(bundle: Bundle, slow: Bundle, cli: Cli, tmp_path: Path) -> None:
    (slow.root / "gguf/model.gguf").write_bytes(b"GGUE")
    journal = tmp_path / "j"
    outcome = cli("bench", bundle.root, "--against", slow.root, "--journal", journal)
    assert outcome.code == 20
    assert "changed since the bundle was built: 'gguf/model.gguf'" in outcome.err.splitlines()[-1]
    assert not journal.exists()
    outcome = cli("bench", bundle.root, "--against", tmp_path / "nothing")
    assert outcome.code == 10
    assert "nothing" in outcome.err.splitlines()[-1]


def test_instructions_are_not_counted_in_turns(bundle: Bundle, cli: Cli) -> None:
    counting = ("--protocol", "instructions", "--device", "emulated:rpi5")
    cli("bench", bundle.root, *counting, "--against", bundle.root).refused(OptionError.exit_code, "--against")


def test_this_machine_has_to_be_the_board_of_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "home"))
    strange = msgspec.structs.replace(
        HOST, probe=msgspec.structs.replace(HOST.probe, require_features=("a-feature-of-no-cpu",))
    )
    with (
        pytest.raises(WrongBoardError, match=r"--against: the CPU lacks a-feature-of-no-cpu"),
        ready.ready(HOST, None, Quiet(), emulated=True, against=strange),
    ):
        pass
    assert not (tmp_path / "home").exists()


# --- in turns ---------------------------------------------------------------------------------------------------------


def test_drift_meets_both_and_the_ratio_does_not_notice(
    bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path
) -> None:
    plain, begun = room.clock.tick, room.clock.now
    room.clock.tick = lambda seconds: plain(seconds * (1 + (room.clock.now - begun) / 60))  # type: ignore[method-assign]
    found = turns_of(bench(bundle, slow, room, tmp_path / "j", FOUR))
    decode = found.ratios[0]
    assert (decode.name, decode.tokens, decode.ratio.quantity.n, decode.ratio.stopped) == ("decode", 12, 4, "repeats")
    assert decode.ours.variation is not None
    assert decode.ours.variation > 0.15, "the heat must show in the speeds"
    assert decode.ratio.quantity.value == pytest.approx(2, rel=0.1)
    assert min(decode.ratio.values) < 2 < max(decode.ratio.values), "who comes first has the cooler board"


def test_every_figure_has_a_ratio(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    result = bench(bundle, slow, room, tmp_path / "j")
    assert values(result) == pytest.approx(
        {"decode/12": 2, "prefill/16": 2, "prefill/32": 2, "ttft/16": 0.5, "ttft/32": 0.5, "load/0": 0.5}
    )
    assert result.against is not None
    assert result.against.manifest_sha256 == identity(slow.manifest)
    assert from_json(to_json(result)).runs[0].turns is not None


def test_who_begins_alternates_and_only_one_is_in_memory(
    bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = room.start

    def alone() -> InProcess:
        assert all(worker.closed for worker in room.workers)
        return start()

    monkeypatch.setattr(room, "start", alone)
    bench(bundle, slow, room, tmp_path / "j", FOUR)
    sides = "".join("B" if "slow" in options["path"].parts else "A" for options in room.opened)
    assert sides == "AA" + "ABBAABBA", "one load and the measurements of its own, then the turns"
    same = [{**options, "path": ""} for options in room.opened[2:]]
    assert all(options == same[0] for options in same), "the same threads and context"


def test_warm_ups_come_with_every_load(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    bench(bundle, slow, room, tmp_path / "j", msgspec.structs.replace(FOUR, warmups=2))
    asked = [type(request) for request in room.workers[-1].asked]
    assert asked == [Open, Read, Generate, Read, Read, Generate]


def test_contexts_that_differ_leave_the_prompts_that_fit_both(
    bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.bench import child

    opened = room.open

    def small(form: str, path: Path, **options: Any) -> Any:
        most = 20 if "slow" in path.parts else options["context"]
        return opened(form, path, **{**options, "context": min(most, options["context"])})

    monkeypatch.setattr(child, "open_engine", small)
    assert set(values(bench(bundle, slow, room, tmp_path / "j"))) == {"decode/12", "prefill/16", "ttft/16", "load/0"}


def test_nothing_else_of_the_result_changes(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    with_it, without = (bench(bundle, other, room, tmp_path / "j").runs[0] for other in (slow, None))
    assert without.turns is None
    assert with_it.coherence is not None
    assert without.coherence is not None
    assert with_it.coherence.here == without.coherence.here
    assert with_it.decode is not None
    assert without.decode is not None
    assert with_it.decode.speed.values == pytest.approx(without.decode.speed.values)


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_a_bundle_that_dies_takes_nothing_from_the_other(
    bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = InProcess.ask

    def killed(self: InProcess, request: Any, type_: Any, tell: Any = None) -> Any:
        if len(room.workers) == 2 + 3 and isinstance(request, Generate):
            raise EngineDied(OutOfMemoryError("the kernel killed the engine: it held 512 MiB"), 512.0)
        return ask(self, request, type_, tell)

    monkeypatch.setattr(InProcess, "ask", killed)
    first = bench(bundle, slow, room, tmp_path / "j", FOUR)
    assert first.failures == ()
    assert first.runs[0].coherence is not None
    failed = turns_of(first).failure
    assert failed is not None
    assert (failed.kind, failed.exit_code, turns_of(first).ratios) == ("out of memory", 31, ())
    assert "in turns with slow, it ended here: the kernel killed" in "\n".join(words.lines(first))
    assert all(worker.closed for worker in room.workers)

    monkeypatch.setattr(InProcess, "ask", ask)
    room.workers.clear()
    second = bench(bundle, slow, room, tmp_path / "j", FOUR)
    assert len(room.workers) == 2 * 3, "the first round was measured before"
    assert values(second)["decode/12"] == pytest.approx(2)
    assert second.parts == 2

    room.workers.clear()
    assert bench(bundle, slow, room, tmp_path / "j", FOUR).runs == second.runs
    assert room.workers == []


def test_another_second_bundle_is_another_run(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    bench(bundle, slow, room, tmp_path / "j")
    room.workers.clear()
    assert values(bench(bundle, bundle, room, tmp_path / "j"))["decode/12"] == pytest.approx(1)
    assert room.workers


# --- far away ---------------------------------------------------------------------------------------------------------


@dataclass
class Far:
    """A board, and a bundle that it is made for."""

    board: Board
    bundle: Bundle

    def measure(self, other: Bundle, target: Any = HOST) -> list[str]:
        """What the program on the board was asked for."""
        import json

        done = bench_on(
            self.board.device(), self.bundle, HOST, ["--protocol", "smoke"], decode=json.loads, progress=Quiet(),
            patience=HASTE, against=Against(other, target),
        )  # fmt: skip
        assert len(done["steps"]) == STEPS
        return list(done["arguments"])


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(Board(tmp_path / "board"), fake_board.bundle(tmp_path / "new" / "tiny.host"))


def test_a_bundle_for_another_board_is_refused_before_a_byte_is_sent(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", target="rpi5")
    with pytest.raises(WrongBoardError, match="for the bundle of --against: the .*(0xd0b|aarch64)"):
        far.measure(other, RPI5)
    with pytest.raises(BundleError, match="model"):
        far.measure(open_bundle(fake_board.damaged_copy(other, tmp_path / "damaged" / "tiny.host")))
    assert far.board.fed == 0
    assert list(far.board.home.iterdir()) == []


def test_room_is_needed_for_both(far: Far, tmp_path: Path) -> None:
    least = HOST.deploy.min_free_mib
    (far.board.folder / "free").write_text(str((least + 1) << 10))
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", size=2 << 20)
    with pytest.raises(DeviceError, match=rf"--against: {least + 1} MiB of its disk are free; expected {least + 2}"):
        far.measure(other)
    assert far.board.fed == 0


def test_both_arrive_under_one_name_without_engines_for_the_second(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", size=5000, installer=False)
    place = str(far.board.base / "against" / "tiny.host")
    asked = far.measure(other)
    assert asked[asked.index("--against") + 1] == place
    assert open_bundle(Path(place)).manifest == other.manifest
    assert open_bundle(far.board.base / "bundles" / "tiny.host").manifest == far.bundle.manifest
    assert far.board.clean()
    far.board.fed = 0
    far.measure(other)
    assert far.board.fed == 0, "both are there already"
    older = fake_board.bundle(tmp_path / "older" / "older.host", size=5000, installer=False)
    far.measure(older)
    assert not (far.board.base / "against" / "tiny.host").exists(), "an earlier one takes no room"


def test_only_a_result_of_both_bundles_is_taken(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host")
    made = bench_results.result(bench_results.run("gguf"))
    own = msgspec.structs.replace(made.bundle, manifest_sha256=identity(far.bundle.manifest))
    their = msgspec.structs.replace(made.bundle, manifest_sha256=identity(other.manifest))
    device = far.board.device()
    alone, both = (
        to_json(msgspec.structs.replace(made, bundle=own, against=against)) for against in (None, their)
    )  # fmt: skip
    assert decoder(device, far.bundle, other)(both).against == their
    for data, against in ((alone, other), (both, None)):
        with pytest.raises(DeviceError, match="of another bundle"):
            decoder(device, far.bundle, against)(data)


# --- what readers are told --------------------------------------------------------------------------------------------


def turned(ratio: float, kind: Any = "measured", failure: Failure | None = None, rounds: int = 6) -> BenchResult:
    """A result whose decode speed and first token are `ratio` times the other's."""

    def one(name: Any, tokens: int, unit: str) -> Ratio:
        spread = [ratio * share for share in (0.98, 1.02, 1, 1, 0.98, 1.02)[:rounds]]
        return Ratio(
            name=name, tokens=tokens, ratio=figure(spread, "ratio", kind), ours=figure([10.0] * rounds, unit, kind),
            theirs=figure([10 / ratio] * rounds, unit, kind),
        )  # fmt: skip

    window = bench_results.window(500.0, "throttled <b>", temp=80)
    ratios = (one("decode", 64, "tokens/s"), one("ttft", 32, "ms"))
    turns = Turns(ratios=() if failure else ratios, window=window, failure=failure)
    other = BundleRef(name="old|<script>\x1b[2J", model="x", manifest_sha256="cd" * 32, target="rpi5")
    run = bench_results.run("gguf", kind=kind, turns=turns)
    return bench_results.result(run, kind=kind, against=other)


def reports(result: BenchResult) -> dict[str, str]:
    entry = Entry(result, judge(result, RPI5))
    return {
        "terminal": "\n".join(words.lines(result)), "markdown": markdown([entry]), "html": render([entry]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "rounds", "decode", "first"),
    [
        (1.5, 6, "faster", "slower"), (0.5, 6, "slower", "faster"), (1.01, 6, *["no sure difference"] * 2),
        (1.5, 2, *["too few rounds to say"] * 2), (1.5, 5, *["too few rounds to say"] * 2),
    ],
)  # fmt: skip
def test_faster_and_slower(ratio: float, rounds: int, decode: str, first: str) -> None:
    speed, ttft = words.turned(turned(ratio, rounds=rounds).runs[0])
    assert (speed.title, speed.says, ttft.title, ttft.says) == ("Decode of 64", decode, "First token after 32", first)


def test_every_report_has_the_ratio_and_nothing_of_a_stranger_passes() -> None:
    for name, text in reports(turned(1.5)).items():
        assert "1.5 ×" in text, name
        assert "1.47 to 1.53" in text, name
        assert "6.667 tokens/s" in text, name
        assert "throttled" in text, name
        assert "\x1b" not in text, name
        assert name == "terminal" or "<script>" not in text


def test_an_emulated_ratio_is_called_so_and_is_no_latency() -> None:
    for name, text in reports(turned(1.5, "emulated")).items():
        assert "says nothing about the board" in text, name
        assert "First token" not in text.partition("turns")[2].partition("Memory")[0], name
    assert "1.5 × emulated" in reports(turned(1.5, "emulated"))["terminal"]


def test_turns_that_failed_are_told_everywhere() -> None:
    failure = Failure(kind="crash", sentence="the other engine crashed", exit_code=27)
    assert all("the other engine crashed" in text for text in reports(turned(1.5, failure=failure)).values())


def test_the_verdict_does_not_depend_on_it() -> None:
    result = turned(0.5)
    runs = tuple(msgspec.structs.replace(run, turns=None) for run in result.runs)
    alone = msgspec.structs.replace(result, runs=runs, against=None)
    assert judge(result, RPI5).engines == judge(alone, RPI5).engines


# --- as a user --------------------------------------------------------------------------------------------------------


def test_a_whole_run_of_real_engines(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    bundle, other, out = toy_bundle(tmp_path / "a"), toy_bundle(tmp_path / "b"), tmp_path / "out.json"
    asked = ("--protocol", "smoke", "--threads", "1", "--emulated", "--json", out)
    outcome = cli("bench", bundle.root, "--against", other.root, *asked)
    assert outcome.code == 0, outcome.err
    assert "in turns with toy, Decode of 12: " in outcome.out
    found = turns_of(from_json(out.read_bytes()))
    assert {one.name for one in found.ratios} == {"decode", "prefill", "ttft", "load"}
    assert {one.ratio.quantity.kind for one in found.ratios} == {"emulated"}
