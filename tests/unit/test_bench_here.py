"""A whole run: what is measured, what a failure leaves, what is taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench_toys import InProcess, Room, Table, reference, table_bundle

from edgekit.bench import child, plan, result, site, sweep, words
from edgekit.bench.child import Generate, Read
from edgekit.bench.engine_run import prompt_text
from edgekit.bench.here import Asked, bench_here
from edgekit.bench.result import BenchResult, SweepPoint, Window
from edgekit.bench.sensors import Sensors, thinned
from edgekit.bench.worker import EngineDied
from edgekit.bundle.bundle import Bundle
from edgekit.devices.boards.base import Sample
from edgekit.engines.base import greedy
from edgekit.errors import BundleError, FileFormatError, MissingDependencyError, OutOfMemoryError, OutputError
from edgekit.progress import Quiet
from edgekit.targets import load

HOST = load("host")
SMOKE = plan.protocol("smoke")
WIDE = msgspec.structs.replace(
    SMOKE, repeats_min=3, repeats_max=7, relative_width=1e-9, loads=2, load_modes=True, sweep=True, warmups=1
)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return table_bundle(tmp_path / "toy")


def bench(bundle: Bundle, room: Room, folder: Path, protocol: plan.Protocol = SMOKE, **more: Any) -> BenchResult:
    return bench_here(bundle, HOST, Asked(protocol, journal=folder, start=room.start, **more), Quiet())


def test_a_format_that_the_bundle_does_not_have(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no onnx"):
        bench(bundle, room, tmp_path / "j", formats=("onnx",))


def test_an_engine_that_is_missing_is_a_failure_and_no_crash(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise MissingDependencyError("llama-cpp-python is missing", remedy="install it")

    room.fail = fail
    run = bench(bundle, room, tmp_path / "j").runs[0]
    assert run.failure is not None
    assert (run.failure.kind, run.failure.exit_code) == ("error", MissingDependencyError.exit_code)
    assert (run.loading, run.prefill, run.decode, run.coherence) == ((), (), None, None)
    assert all(worker.closed for worker in room.workers)


def test_what_was_measured_before_a_kill_is_kept_and_not_measured_again(
    bundle: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = InProcess.ask

    def killed(self: InProcess, request: Any, type_: Any, tell: Any = None) -> Any:
        if isinstance(request, Generate) and len(room.workers) > 1:
            raise EngineDied(OutOfMemoryError("the kernel killed the engine: it held 512 MiB"), 512.0)
        return ask(self, request, type_, tell)

    monkeypatch.setattr(InProcess, "ask", killed)
    first = bench(bundle, room, tmp_path / "j")
    failed = first.runs[0].failure
    assert failed is not None
    assert (failed.kind, failed.resident_mib, failed.exit_code) == ("out of memory", 512.0, 31)
    assert [one.tokens for one in first.runs[0].prefill] == [16, 32]
    assert first.runs[0].decode is None
    assert first.failures == (failed,)

    monkeypatch.setattr(InProcess, "ask", ask)
    room.workers.clear()
    second = bench(bundle, room, tmp_path / "j")
    assert second.failures == ()
    assert second.parts == 2
    assert second.runs[0].prefill == first.runs[0].prefill
    asked = [request for worker in room.workers for request in worker.asked]
    assert not [request for request in asked if isinstance(request, Read)]
    assert "Taken up 1 ×" in "\n".join(words.lines(second))

    room.workers.clear()
    third = bench(bundle, room, tmp_path / "j")
    assert room.workers == []
    assert (third.runs, third.parts) == (second.runs, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "emulated"},
        {"threads": 1},
        {"fresh": True},
    ],
)
def test_another_run_measures_again(change: dict[str, Any], bundle: Bundle, room: Room, tmp_path: Path) -> None:
    bench(bundle, room, tmp_path / "j")
    room.workers.clear()
    bench(bundle, room, tmp_path / "j", **change)
    assert room.workers


def test_a_damaged_journal_ends_it_before_anything_is_measured(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    bench(bundle, room, tmp_path / "j")
    (path,) = (tmp_path / "j").iterdir()
    path.write_bytes(path.read_bytes().replace(b"tokens/s", b"tokens/S", 1))
    room.workers.clear()
    with pytest.raises(FileFormatError, match="damaged"):
        bench(bundle, room, tmp_path / "j")
    assert room.workers == []


def test_a_finished_run_leaves_no_journal_in_the_cache(bundle: Bundle, room: Room, own_cache: Path) -> None:
    bench_here(bundle, HOST, Asked(SMOKE, start=room.start), Quiet())
    assert list((own_cache / "bench").iterdir()) == []


def test_a_result_is_kept_before_its_journal_goes(bundle: Bundle, room: Room, own_cache: Path) -> None:
    there: list[int] = []

    def keep(found: BenchResult) -> None:
        there.append(len(list((own_cache / "bench").glob("*.jsonl"))))
        raise OutputError(f"no room for {found.bundle.name}")

    with pytest.raises(OutputError):
        bench_here(bundle, HOST, Asked(SMOKE, start=room.start, keep=keep), Quiet())
    assert there == [1]
    assert len(list((own_cache / "bench").glob("*.jsonl"))) == 1


def test_figures_of_a_known_engine(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    """The table takes 10 ms for a token of a prompt and 100 ms for one that follows."""
    found = bench(bundle, room, tmp_path / "j", WIDE, threads=1)
    run = found.runs[0]
    assert [(one.mode, one.seconds.quantity.n) for one in run.loading] == [("mmap", 2), ("copy", 2)]
    assert [options["mmap"] for options in room.opened] == [True, True, False, False, True]
    for one in run.prefill:
        assert one.speed.quantity.value == pytest.approx(100)
        assert one.ttft.quantity.value == pytest.approx(10 * one.tokens)
        assert one.energy is None
    assert run.decode is not None
    assert run.decode.speed.quantity.value == pytest.approx(12 / 1.11)
    assert run.decode.inter_token.p99 == pytest.approx(100)
    assert run.decode.token_ms == pytest.approx([10] + [100] * 11)
    assert run.talk is not None
    assert (run.talk.tokens, run.talk.prompt_tokens) == (8, 76)
    assert run.talk.speed.quantity.value == pytest.approx(8 / (0.76 + 0.7))
    assert run.coherence is not None
    assert run.coherence.whole
    assert run.coherence.recorded_kl == pytest.approx(run.coherence.here.kl_mean)
    assert run.coherence.against_host is not None
    assert run.coherence.against_host.identical_share == 1
    assert run.settings.by == "option"
    assert run.sweep == ()
    assert run.bytes == 4
    assert (run.requested_bits, run.effective_bits) == (4, 5)
    assert result.from_json(result.to_json(found)) == found


@pytest.mark.parametrize(
    ("where", "name"),
    [("CPU", "llama.cpp"), ("GPU (CUDA)", "llama.cpp GPU (CUDA)"), ("", "llama.cpp")],
)
def test_a_run_on_a_gpu_has_a_name_of_its_own(
    where: str, name: str, bundle: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "processor_of", lambda *_: where)
    run = bench(bundle, room, tmp_path / "j").runs[0]
    assert (run.engine, run.loading[0].processor) == (name, where)


def test_a_run_with_other_conditions_is_another_one(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    bench(bundle, room, tmp_path / "j")
    room.workers.clear()
    bench(bundle, room, tmp_path / "j", conditions="governor performance")
    assert room.workers


def test_the_sealed_ids_of_the_host_count_and_not_the_reports_text(tmp_path: Path, room: Room) -> None:
    sealed = reference(Table())
    ids = [list(greedy(Table(noise=0.3), prompt, 12, sealed.stop)) for prompt in sealed.prompts.lists()]
    ids[1][4] += 1
    found = bench(table_bundle(tmp_path / "toy", said_ids=ids), room, tmp_path / "j").runs[0].coherence
    assert found is not None
    assert found.against_host is not None
    assert found.against_host.first_divergent_token == (None, 4)


def test_a_bundle_without_a_report_compares_with_no_host(tmp_path: Path, room: Room) -> None:
    found = bench(table_bundle(tmp_path / "toy", report=False), room, tmp_path / "j").runs[0].coherence
    assert found is not None
    assert (found.against_host, found.recorded_kl) == (None, None)


def test_a_small_context_leaves_out_what_does_not_fit_and_says_so(
    bundle: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "open_engine", lambda *_, **__: Table(52, 0.3, room.clock.tick))
    longer = msgspec.structs.replace(SMOKE, prompt_lengths=(16, 40, 64, 128), decode_tokens=99)
    run = bench(bundle, room, tmp_path / "j", longer).runs[0]
    assert [one.tokens for one in run.prefill] == [16, 40]
    assert run.decode is not None
    assert run.decode.tokens == 52
    assert run.talk is None
    assert "64, 128" in run.notes[0]
    assert "end to end" in run.notes[1]
    assert run.failure is None


def test_the_sweep_finds_the_fastest_and_the_rest_is_measured_with_it(
    bundle: Bundle, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.bench.engine_run.cores", lambda: 4)
    monkeypatch.setattr(site, "allowed_cpus", lambda: (0, 1, 2, 3))
    room.speed = lambda options: {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}[options["threads"]]
    run = bench(bundle, room, tmp_path / "j", WIDE).runs[0]
    assert [point.threads for point in run.sweep] == [1, 2, 3, 4]
    assert (run.settings.decode_threads, run.settings.prefill_threads, run.settings.by) == (2, 2, "sweep")
    assert room.opened[-1]["threads"] == 2


def test_an_emulated_board_is_not_swept_and_every_figure_says_what_it_is(
    bundle: Bundle, room: Room, tmp_path: Path
) -> None:
    found = bench(bundle, room, tmp_path / "j", WIDE, kind="emulated")
    run = found.runs[0]
    assert run.sweep == ()
    kinds: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, msgspec.Struct):
            kinds.update([value.kind] if isinstance(value, result.Quantity | result.Percentiles) else [])
            for name in value.__struct_fields__:
                collect(getattr(value, name))
        elif isinstance(value, tuple):
            for item in value:
                collect(item)

    collect(found)
    assert kinds == {"emulated"}
    text = "\n".join(words.lines(found))
    assert "emulated" in text
    assert "latency" not in text.lower()
    assert "ms" not in text.replace("items", "")


# --- the sweep by itself ---------------------------------------------------------------------------------------------


def point(threads: int, prefill: Sequence[float], decode: Sequence[float], cpus: tuple[int, ...] = ()) -> SweepPoint:
    one, two = (result.figure(values, "tokens/s", "measured") for values in (prefill, decode))
    return SweepPoint(
        threads=threads, affinity=cpus, prefill_tokens=1, prefill=one, decode_tokens=1, decode=two,
        window=Window(begin=0, end=1),
    )  # fmt: skip


def test_prefill_and_decode_choose_apart_in_llama_cpp_alone() -> None:
    tried = [point(1, [10, 10], [30, 30]), point(2, [20, 20], [33, 33]), point(4, [40, 40], [27, 27])]
    assert sweep.choose("gguf", sweep.Choice(1, 1), tried) == sweep.Choice(4, 2)
    assert sweep.choose("onnx", sweep.Choice(1, 1), tried) == sweep.Choice(2, 2)


def test_the_guess_stays_where_nothing_is_faster_beyond_doubt() -> None:
    tried = [point(1, [10, 12], [30, 34]), point(2, [11, 13], [33, 36])]
    assert sweep.choose("gguf", sweep.Choice(1, 1), tried) == sweep.Choice(1, 1)
    assert sweep.choose("gguf", sweep.Choice(1, 1), []) == sweep.Choice(1, 1)


def test_prefill_takes_the_cpus_that_decode_chose() -> None:
    tried = [point(4, [90], [10]), point(4, [40], [30], (4, 5)), point(2, [50], [29], (4, 5))]
    assert sweep.choose("gguf", sweep.Choice(4, 4), tried) == sweep.Choice(2, 4, (4, 5))


def test_cpus_to_try_come_from_the_target_and_must_be_there() -> None:
    board = load("rk3588")
    little, big = (0, 1, 2, 3), (4, 5, 6, 7)
    sets = sweep.cpu_sets(board, range(8))
    assert sets[0] == ()
    assert set(sets) == {(), little, big}
    assert sweep.cpu_sets(board, range(4)) == [(), little]
    assert sweep.cpu_sets(load("rpi5"), range(4)) == [()]


@pytest.mark.parametrize(
    ("cpus", "counts"),
    [(0, []), (1, [1]), (4, [1, 2, 3, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (14, [1, 2, 4, 8, 14])],
)
def test_thread_counts(cpus: int, counts: list[int]) -> None:
    assert sweep.thread_counts(cpus) == counts


def test_the_first_guess_is_the_targets_within_what_is_there() -> None:
    board = load("rpi5")
    assert sweep.first_guess(board, "gguf", 4) == sweep.Choice(4, 2)
    assert sweep.first_guess(board, "gguf", 1) == sweep.Choice(1, 1)
    assert sweep.first_guess(board, "onnx", 3) == sweep.Choice(3, 3)
    assert sweep.first_guess(HOST, "gguf", 6) == sweep.Choice(6, 6)


# --- sensors ---------------------------------------------------------------------------------------------------------


class Recorded:
    def __init__(self, samples: Sequence[Sample], watts: float | None = 3.0) -> None:
        self.samples, self.power = samples, watts

    def energy_j(self, begin: float, end: float) -> float | None:
        return None if self.power is None else self.power * (end - begin)

    def reaches(self, _t: float) -> bool:
        return True

    def watts(self, sample: Sample) -> float | None:
        return sample.power_w


def sample(t: float, **more: Any) -> Sample:
    return Sample(t=t, **more)


def test_energy_is_none_without_a_sensor_and_where_one_part_was_not_measured() -> None:
    assert Sensors().joules([(0, 1)]) == []
    assert Sensors(Recorded([], None), sleep=lambda _: None).joules([(0, 1)]) == []
    assert Sensors(Recorded([sample(9)])).joules([(0, 1), (2, 4)]) == [3, 6]


def test_the_look_after_a_measurement_is_awaited() -> None:
    recorded = Recorded([sample(0, temp_c=40.0), sample(1), sample(2)])

    def sleep(_: float) -> None:
        recorded.samples = [*recorded.samples, sample(3 + len(recorded.samples)), sample(20, temp_c=70.0)]

    seen: list[Sequence[Sample]] = []

    def disturbance(samples: Sequence[Sample]) -> tuple[str, ...]:
        seen.append(samples)
        return ("hot",)

    window = Sensors(recorded, disturbance, offset=100.0, sleep=sleep).window(1.0, 2.5)
    assert (window.begin, window.end, window.disturbances) == (101.0, 102.5, ("hot",))
    assert seen[0][0].temp_c == 40.0
    assert seen[0][-1].temp_c == 70.0
    assert window.trace[0].t == 100.0


def test_a_board_that_only_knows_power_is_not_waited_for() -> None:
    recorded = Recorded([sample(0), sample(2)])
    Sensors(recorded, sleep=lambda _: pytest.fail("waits")).window(0.5, 1.0)


def test_silent_sensors_hold_nothing_up_for_ever() -> None:
    slept: list[float] = []
    Sensors(Recorded([sample(0, temp_c=1.0)]), sleep=slept.append).window(0.5, 1.0)
    assert 1 < sum(slept) < 2


def test_a_long_trace_is_thinned_evenly() -> None:
    many = [sample(float(t)) for t in range(1000)]
    kept = thinned(many, 200)
    assert len(kept) == 200
    assert (kept[0].t, kept[-1].t) == (0, 999)
    assert thinned(many[:5], 200) == many[:5]


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 10_000, b"\xff", b'{"schema_version": 2}', b"x" * (65 << 20)])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError, match=r"bench\.json"):
        result.from_json(data)


def test_hostile_texts_of_a_device_are_not_passed_on(bundle: Bundle, room: Room, tmp_path: Path) -> None:
    found = bench(bundle, room, tmp_path / "j", url="ssh://\x1b[2Jx", preflight={"load": "0"})
    hostile = msgspec.structs.replace(found, notes=("\x1b]0;title\x07",))
    assert "\x1b" not in "\n".join(words.lines(hostile))


def test_prompt_text_is_what_the_model_wrote(bundle: Bundle) -> None:
    from edgekit.bundle.tokenizer import load_tokenizer
    from edgekit.coherence.container import load as load_reference

    tokenizer, known = load_tokenizer(bundle.tokenizer), load_reference(bundle.reference)
    text = prompt_text(tokenizer, known, 20)
    assert tokenizer.decode(known.sequences.ids.tolist()).strip().startswith(text.strip()[:15])
