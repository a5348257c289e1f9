"""Two bundles in turns: what is refused, that drift meets both, what an interruption leaves, energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench_toys import InProcess, Room, table_bundle, toy_bundle
from conftest import Cli

from edgekit import targets
from edgekit.bench import plan, ready, words
from edgekit.bench.ab import Round
from edgekit.bench.child import Generate, Open, Read
from edgekit.bench.here import Asked, bench_here
from edgekit.bench.result import BenchResult, Turns, from_json, to_json
from edgekit.bench.sensors import Sensors
from edgekit.bench.worker import EngineDied
from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.bundle.manifest import identity
from edgekit.devices.boards.base import Sample
from edgekit.errors import OptionError, OutOfMemoryError, WrongBoardError
from edgekit.progress import Quiet

HOST = targets.load("host")
SMOKE = plan.protocol("smoke")
FOUR = msgspec.structs.replace(SMOKE, repeats_min=4, repeats_max=4, relative_width=1e-9)


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
    return bench_here(bundle, HOST, Asked(protocol, journal=folder, start=room.start, against=other, **more), Quiet())


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


# --- energy -----------------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """Five watts, but where `blind` says that nothing was read."""

    blind: Callable[[float, float], bool] = lambda _begin, _end: False
    power: float = 5.0
    samples: tuple[Sample, ...] = ()

    def energy_j(self, begin: float, end: float) -> float | None:
        return None if self.blind(begin, end) else self.power * (end - begin)

    def reaches(self, _: float) -> bool:
        return True

    def watts(self, _: Sample) -> float | None:
        return self.power


def metered(meter: Meter, *, energy: bool = True) -> Sensors:
    return Sensors(meter, sleep=lambda _: None, energy=energy)


NOT_METERED = {
    "no sensor": Sensors(),
    "an emulated board": metered(Meter(), energy=False),
    "one side": metered(Meter(lambda begin, end: end - begin > 2)),
    "zero joules": metered(Meter(power=0.0)),
}


@pytest.mark.parametrize("sensors", NOT_METERED.values(), ids=NOT_METERED.keys())
def test_no_energy_is_null_and_no_ratio(
    sensors: Sensors, bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path
) -> None:
    result = bench(bundle, slow, room, tmp_path / "j", FOUR, sensors=sensors)
    assert turns_of(result).energy is None
    assert b'"energy": null' in to_json(result)
    assert "Energy" not in "".join(one.title for one in words.turned(result.runs[0]))


def test_millijoules_a_token_of_both(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    result = bench(bundle, slow, room, tmp_path / "j", FOUR, sensors=metered(Meter()))
    found = turns_of(from_json(to_json(result))).energy
    assert found is not None
    assert (found.name, found.tokens, found.ratio.quantity.n) == ("energy", 12, 4)
    assert found.ours.values == pytest.approx([5000 * 1.11 / 12] * 4), (
        "5 W, 0.01 s for the first token and 0.1 s for others"
    )
    assert found.theirs.quantity.unit == "mJ/token"
    assert found.ratio.values == pytest.approx([0.5] * 4)
    assert "energy/12" not in values(result), "it is no speed: rounds do not wait for it"


def test_only_rounds_in_which_both_were_metered_count(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    first: list[float] = []

    def blind(begin: float, end: float) -> bool:
        if end - begin > 2:
            first.append(begin)
        return bool(first) and begin == first[0]

    found = turns_of(bench(bundle, slow, room, tmp_path / "j", FOUR, sensors=metered(Meter(blind)))).energy
    assert found is not None
    assert found.ratio.quantity.n == 3


def test_rounds_of_an_older_journal_have_none(bundle: Bundle, slow: Bundle, room: Room, tmp_path: Path) -> None:
    window = turns_of(bench(bundle, slow, room, tmp_path / "j")).window
    value = {"name": "decode", "tokens": 12, "value": 1.0}
    old = {"ours": [value], "theirs": [value], "window": msgspec.to_builtins(window)}
    assert msgspec.convert(old, Round).energy is None


# --- where it was computed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "accelerator"), [("CPU", "cpu"), ("CPU (of a CUDA build)", "cpu"), ("GPU (CUDA)", "cuda"), ("", None)]
)
def test_a_run_says_what_computed_it(
    processor: str, accelerator: str | None, bundle: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.bench import child

    monkeypatch.setattr(child, "processor_of", lambda *_: processor)
    result = bench(bundle, None, room, tmp_path / "j")
    assert result.runs[0].accelerator == accelerator
    older = msgspec.structs.replace(result.runs[0], accelerator=None)
    assert older.computed_on == accelerator, "what its loading says"


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
