"""Verdicts: what fails, what is invalid, what cannot be judged, and what stops a pipeline."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bench_results import FACTS, KNOWN, coherence, repeated, result, run, window

from edgekit.bench import judge as judging
from edgekit.bench import plan
from edgekit.bench.baseline import digest
from edgekit.bench.instructions import PROTOCOL as COUNTS
from edgekit.bench.judge import Judgement, Judgements, Overrides, judge
from edgekit.bench.plausibility import family_and_size
from edgekit.bench.result import BenchResult, Failure, Instructions, TracePoint, figure, from_json, to_json
from edgekit.bench.verdicts import Absent, Check
from edgekit.errors import FileFormatError, GateError, InvalidMeasurementError, OptionError
from edgekit.targets import load

RPI5 = load("rpi5")
HOT = "throttling during the measurement"
BROKEN = coherence(kl_mean=2.5, kl_mean_low=2.3, kl_mean_high=2.7, same_top=0.2, ppl_ratio=9.0)


def judged(found: BenchResult, baseline: BenchResult | None = None, **limits: Any) -> Judgement:
    return judge(found, RPI5, Overrides(**limits), KNOWN, baseline)


def check(found: Judgement, name: str) -> Check:
    return next(one for one in found.engines[0].checks if one.name == name)


def disturbed(*more: Any, **changes: Any) -> BenchResult:
    return result(run(disturbances=(HOT,), **changes), *more)


# --- coherence -------------------------------------------------------------------------------------------------------


def test_a_sound_run_passes_the_target_s_own_limits() -> None:
    found = judged(result())
    assert found.verdict == "PASS"
    assert found.sentence == "PASS: 5 checks"
    assert judging.error(found) is None
    one = check(found, "kl_mean_max")
    assert (one.limit, one.measured, one.low, one.high) == (0.15, 0.052, 0.047, 0.059)


@pytest.mark.parametrize("kind", ["measured", "emulated"])
def test_a_broken_model_fails_on_every_kind_of_device(kind: str) -> None:
    found = judged(result(run(kind=kind, seen=BROKEN), kind=kind))
    assert found.verdict == "FAIL"
    assert "mean KL divergence 2.5 nats is above the limit" in found.sentence
    assert isinstance(judging.error(found), GateError)


def test_failing_coherence_beats_a_disturbance() -> None:
    found = judged(disturbed(seen=BROKEN), tok_s_min=1)
    assert found.verdict == "FAIL"
    assert check(found, "tok_s_min").verdict == "INVALID"


def test_one_bad_format_is_enough() -> None:
    found = judged(result(run(), run("onnx", seen=BROKEN)))
    assert [engine.verdict for engine in found.engines] == ["PASS", "FAIL"]
    assert found.verdict == "FAIL"
    assert found.sentence.startswith("FAIL: ONNX: ")


def test_limits_depend_on_the_requested_bits() -> None:
    eight = {"gguf": msgspec.structs.replace(FACTS, requested_bits=8.0)}
    assert judge(result(), RPI5, None, eight).verdict == "FAIL"  # 0.052 nats are fine for 4 bits, and not for 8


def test_without_the_bits_coherence_is_not_judged_and_nothing_passes() -> None:
    found = judge(result(), RPI5, Overrides(tok_s_min=1))
    assert found.verdict == "NOT JUDGED"
    assert check(found, "bits").verdict == "NOT JUDGED"
    assert isinstance(judging.error(found), GateError)


def test_without_a_reference_nothing_passes() -> None:
    found = judged(result(run(coherence=None)), tok_s_min=1)
    assert found.verdict == "NOT JUDGED"
    assert "no sealed reference" in found.sentence


def test_a_format_without_coherence_does_not_hide_behind_another() -> None:
    found = judged(result(run("gguf"), run("onnx", coherence=None)))
    assert [engine.verdict for engine in found.engines] == ["PASS", "NOT JUDGED"]
    assert found.verdict == "NOT JUDGED"
    assert "coherence was not measured" in found.sentence


def test_a_limited_figure_that_was_not_made_fails() -> None:
    assert judged(result(run(seen=coherence(generation=None)))).verdict == "FAIL"


def test_the_command_line_replaces_the_target_s_limits() -> None:
    assert judged(result(), kl_mean_max=0.05).verdict == "FAIL"
    assert judged(result(run(seen=BROKEN)), kl_mean_max=3, same_top_min=0.1, ppl_ratio_max=10).verdict == "PASS"


def test_the_result_s_own_bits_decide_where_nobody_else_says_them() -> None:
    def found(bits: float) -> Judgement:
        return judge(result(run(requested_bits=bits, effective_bits=4.97, types=("IQ4_NL",))), RPI5)

    assert found(4).verdict == "PASS"
    assert found(8).verdict == "FAIL"
    assert found(4).engines[0].notes, "the number format is known as well"


# --- instructions ----------------------------------------------------------------------------------------------------


def counted(*values: float, **changes: Any) -> BenchResult:
    """A run of the protocol that counts, with these counts of a decoded token in millions."""
    counts = figure(values, "M instructions/token", "emulated")
    made = Instructions(decode=counts, prefill=counts, cpu="cortex-a76", program="runtime/bin/llama-bench")
    bare: dict[str, Any] = {"sweep": (), "loading": (), "prefill": (), "decode": None, "talk": None, "coherence": None}
    one = run(kind="emulated", instructions=made, **bare)
    return result(one, **{"kind": "emulated", "protocol": COUNTS, **changes})


@pytest.mark.parametrize("changes", [{"kind": "measured"}, {"protocol": plan.protocol("standard")}])
def test_counts_are_no_way_around_coherence(changes: dict[str, Any]) -> None:
    assert judged(counted(36.9, 36.9)).verdict == "PASS"
    assert judged(counted(36.9, 36.9, **changes)).verdict == "NOT JUDGED"


@pytest.mark.parametrize(("values", "verdict"), [((36.9, 36.95), "FAIL"), ((36.9,), "FAIL"), ((36.9, 36.91), "PASS")])
def test_counts_repeat_within_a_tenth_of_a_percent(values: tuple[float, ...], verdict: str) -> None:
    found = judged(counted(*values))
    assert {one.verdict for one in found.engines[0].checks} == {verdict}
    assert found.verdict == verdict


def test_more_instructions_than_the_baseline_are_a_regression_on_any_machine() -> None:
    assert judged(counted(37.2, 37.2), counted(36.9, 36.9)).verdict == "PASS"
    worse = judged(counted(37.4, 37.4), counted(36.9, 36.9))
    assert check(worse, "baseline/instructions/decode").verdict == "FAIL"
    assert "+1.4 %" in worse.sentence


# --- speed, energy, memory -------------------------------------------------------------------------------------------

PASSING: dict[str, Any] = {"tok_s_min": 34, "ttft_ms_max": 2400, "rss_mib_max": 745, "mj_per_token_max": 147}
FAILING: dict[str, Any] = {"tok_s_min": 35, "ttft_ms_max": 2200, "rss_mib_max": 743, "mj_per_token_max": 145}


@pytest.mark.parametrize("name", PASSING)
def test_limits_of_the_measurement(name: str) -> None:
    assert judged(result(), **{name: PASSING[name]}).verdict == "PASS"
    found = judged(result(), **{name: FAILING[name]})
    assert found.verdict == "FAIL"
    assert check(found, name).verdict == "FAIL"
    assert f"{FAILING[name]:g}" in found.sentence


def test_a_limit_is_inclusive() -> None:
    exact = run()
    assert exact.decode is not None
    value = exact.decode.speed.quantity.value
    assert (
        check(judged(result(exact), ttft_ms_max=exact.prefill[-1].ttft.quantity.value), "ttft_ms_max").verdict == "PASS"
    )
    found = judged(result(exact), tok_s_min=value)
    assert check(found, "tok_s_min").verdict == "PASS"
    assert "its interval reaches across" in check(found, "tok_s_min").sentence


def test_the_first_token_s_limit_is_for_the_longest_prompt_or_the_named_one() -> None:
    assert check(judged(result(), ttft_ms_max=700), "ttft_ms_max").verdict == "FAIL"
    assert check(judged(result(), ttft_ms_max=700, ttft_tokens=128), "ttft_ms_max").verdict == "PASS"
    missing = check(judged(result(), ttft_ms_max=700, ttft_tokens=64), "ttft_ms_max")
    assert missing.verdict == "FAIL"
    assert "not measured" in missing.sentence


def test_energy_that_no_sensor_measured_does_not_pass() -> None:
    made = run()
    assert made.decode is not None
    blind = msgspec.structs.replace(made, decode=msgspec.structs.replace(made.decode, energy=None))
    found = judged(result(blind), mj_per_token_max=1000)
    assert found.verdict == "FAIL"
    assert "was not measured" in found.sentence


def test_memory_counts_the_mode_that_was_measured_with() -> None:
    made = run()
    copied = msgspec.structs.replace(made, settings=msgspec.structs.replace(made.settings, mode="copy"))
    assert judged(result(copied), rss_mib_max=500).verdict == "PASS"
    assert judged(result(made), rss_mib_max=500).verdict == "FAIL"


def test_an_emulated_time_is_not_judged() -> None:
    found = judged(result(kind="emulated"), **FAILING)
    assert found.verdict == "PASS"
    assert {check(found, name).verdict for name in FAILING} == {"NOT JUDGED"}


def test_an_engine_that_ended_early_fails_with_its_sentence() -> None:
    dead = Failure(kind="out of memory", sentence="the kernel ended it at 3,900 MiB.", exit_code=31)
    found = judged(result(run(failure=dead, coherence=None, decode=None), run("onnx")), tok_s_min=1)
    assert found.verdict == "FAIL"
    assert "3,900 MiB" in found.sentence
    assert [one.name for one in found.engines[0].checks] == ["ended"]


# --- disturbances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, PASSING, FAILING])
def test_a_throttled_run_is_invalid_with_and_without_limits_of_speed(limits: dict[str, Any]) -> None:
    found = judged(disturbed(), **{name: limit for name, limit in limits.items() if name != "rss_mib_max"})
    assert found.verdict == "INVALID"
    assert HOT in found.sentence
    assert isinstance(judging.error(found), InvalidMeasurementError)
    assert "prompt of 32" in found.engines[0].disturbances[0]


def test_memory_is_judged_in_a_disturbed_run() -> None:
    assert judged(disturbed(), rss_mib_max=500).verdict == "FAIL"


def test_an_emulated_board_that_says_it_throttles_is_invalid_too() -> None:
    assert judged(result(run(kind="emulated", disturbances=(HOT,)), kind="emulated")).verdict == "INVALID"


def test_heat_during_coherence_alone_disturbs_nothing() -> None:
    made = run()
    assert made.coherence is not None
    hot = msgspec.structs.replace(made.coherence, window=window(0, HOT))
    assert judged(result(msgspec.structs.replace(made, coherence=hot))).verdict == "PASS"


def test_what_the_preflight_found_disturbs_every_engine() -> None:
    found = judged(result(run(), run("onnx"), preflight={"load": "disturb: 1.2 cores are at work for others"}))
    assert [engine.verdict for engine in found.engines] == ["INVALID", "INVALID"]
    assert "1.2 cores" in found.sentence
    assert judged(result(preflight={"load": "note: nothing"})).verdict == "PASS"


def test_other_load_beside_an_emulator_says_nothing() -> None:
    load_ = {"load": "disturb: 1.2 cores are at work for others"}
    assert judged(result(kind="emulated", preflight=load_)).verdict == "PASS"
    assert judged(result(kind="emulated", preflight={"heat": "disturb: 81 °C"})).verdict == "INVALID"


def test_a_hot_start_is_found_without_a_preflight() -> None:
    target = msgspec.structs.replace(RPI5, thermal=msgspec.structs.replace(RPI5.thermal, start_below_c=60.0))
    for temp, verdict in ((60.0, "INVALID"), (59.0, "PASS")):
        hot = result(environment=(TracePoint(t=0), TracePoint(t=1, temp_c=temp), TracePoint(t=2, temp_c=90)))
        assert judge(hot, target, None, KNOWN).verdict == verdict


def test_repetitions_that_differ_too_much_are_invalid() -> None:
    found = judged(result(run(spread=0.2)))
    assert found.verdict == "INVALID"
    assert "the 8 repetitions vary by" in found.sentence
    assert judged(result(run(spread=0.2)), cv_max=0.5).verdict == "PASS"


def test_two_repetitions_have_no_variation_to_speak_of() -> None:
    assert judged(result(run(spread=0.2, n=2))).verdict == "PASS"


# --- plausibility ----------------------------------------------------------------------------------------------------


def test_a_published_figure_gives_a_note_and_never_a_verdict() -> None:
    assert "plausible" in judged(result()).engines[0].notes[0]
    slow = judged(result(run(speed=20)))
    assert slow.verdict == "PASS"
    assert "look for the cause" in slow.engines[0].notes[0]


@pytest.mark.parametrize(
    "changes",
    [{"kind": "emulated"}, {"model": "Qwen2.5-3B-Instruct"}, {"model": "Llama-0.5B"}, {"types": ("Q4_K",)}],
)
def test_nothing_is_compared_with_a_figure_for_something_else(changes: dict[str, Any]) -> None:
    found = result(kind=changes.get("kind", "measured"))
    named = msgspec.structs.replace(found.bundle, model=changes.get("model", found.bundle.model))
    facts = msgspec.structs.replace(FACTS, types=changes.get("types", FACTS.types))
    assert not judge(msgspec.structs.replace(found, bundle=named), RPI5, None, {"gguf": facts}).engines[0].notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", ("qwen2.5", "0.5b")),
        ("smollm2-135m", ("smollm2", "135m")),
        ("Llama_3.2_1B", ("llama-3.2", "1b")),
        ("135m", None), ("gpt2", None), ("", None), ("a" * 10_000 + "-1b", None), ("x-٣b", None),
    ],
)  # fmt: skip
def test_family_and_size(name: str, expected: tuple[str, str] | None) -> None:
    assert family_and_size(name) == expected


def test_a_board_that_computes_otherwise_is_noted() -> None:
    made = run(seen=coherence(kl_mean=0.1))
    assert made.coherence is not None
    whole = msgspec.structs.replace(made.coherence, whole=True)
    found = judged(result(msgspec.structs.replace(made, coherence=whole)))
    assert any("this CPU's kernels" in note for note in found.engines[0].notes)


# --- baseline --------------------------------------------------------------------------------------------------------


def test_an_equal_baseline_passes() -> None:
    assert judged(result(), result()).verdict == "PASS"


def test_a_clear_loss_is_a_regression() -> None:
    found = judged(result(run(speed=30)), result())
    assert found.verdict == "FAIL"
    assert check(found, "baseline/decode").verdict == "FAIL"
    assert "is worse" in check(found, "baseline/ttft/512").sentence


def test_a_gain_is_none() -> None:
    assert judged(result(run(speed=40)), result()).verdict == "PASS"


def test_a_loss_within_the_intervals_or_within_five_percent_is_none() -> None:
    assert judged(result(run(speed=30, spread=0.3)), result(run(spread=0.3)), cv_max=1).verdict == "PASS"
    assert judged(result(run(speed=33)), result()).verdict == "PASS"


def test_coherence_is_held_to_the_baseline_too() -> None:
    worse = coherence(kl_mean=0.08, kl_mean_low=0.075, kl_mean_high=0.085)
    assert check(judged(result(run(seen=worse)), result()), "baseline/kl_mean").verdict == "FAIL"


@pytest.mark.parametrize("side", ["now", "before"])
def test_a_disturbance_on_either_side_makes_speeds_invalid(side: str) -> None:
    pair = (disturbed(speed=20), result()) if side == "now" else (result(run(speed=20)), disturbed())
    found = judged(*pair)
    assert found.verdict == "INVALID"
    assert check(found, "baseline/decode" if side == "now" else "baseline/disturbed").verdict == "INVALID"
    assert found.sentence != "INVALID: "


def test_emulated_runs_are_compared_in_what_they_say_alone() -> None:
    names = [one.name for one in judged(result(kind="emulated"), result(kind="emulated")).engines[0].checks]
    assert "baseline/kl_mean" in names
    assert "baseline/decode" not in names


SPOILT: dict[str, tuple[BenchResult, str]] = {
    "throttled": (disturbed(), HOT),
    "a hot start": (result(environment=(TracePoint(t=0, temp_c=84.0),)), "hot start: 84.0 °C"),
    "other load": (result(preflight={"load": "disturb: 1.2 cores are at work for others"}), "1.2 cores"),
    "unsteady": (result(run(spread=0.3)), "the 8 repetitions vary by"),
}


@pytest.mark.parametrize(("baseline", "words"), SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("speed", [10, 34.2])
def test_a_baseline_that_was_itself_invalid_gives_no_verdict_on_speed(
    baseline: BenchResult, words: str, speed: float
) -> None:
    assert judged(baseline).verdict == "INVALID"
    found = judged(result(run(speed=speed)), baseline)
    one = check(found, "baseline/disturbed")
    assert one.verdict == found.verdict == "INVALID"
    assert not [one for one in found.engines[0].checks if one.name in ("baseline/decode", "baseline/talk")]
    assert "the baseline itself was disturbed" in one.sentence
    assert words in one.sentence
    stop = judging.error(found)
    assert isinstance(stop, InvalidMeasurementError)
    assert "new baseline" in stop.remedy
    assert check(found, "baseline/kl_mean").verdict == "PASS", "what it says does not depend on heat"


def test_a_baseline_that_ended_early_is_not_passed_over() -> None:
    dead = run(failure=Failure(kind="crash", sentence="signal 11", exit_code=37))
    found = judged(result(), result(dead))
    assert check(found, "baseline/format").verdict == "NOT JUDGED"
    assert "its run ended early" in check(found, "baseline/format").sentence


def _threads(found: BenchResult, decode: int, **changes: Any) -> BenchResult:
    one = found.runs[0]
    settings = msgspec.structs.replace(one.settings, decode_threads=decode)
    return msgspec.structs.replace(found, runs=(msgspec.structs.replace(one, settings=settings, **changes),))


def test_other_threads_are_no_regression_and_that_is_said() -> None:
    found = judged(result(run(speed=20, sweep=())), _threads(result(), 4))
    names = {one.name for one in found.engines[0].checks}
    assert not names & {"baseline/decode", "baseline/decode_energy", "baseline/talk"}
    one = check(found, "baseline/threads/decode")
    assert one.verdict == "NOT JUDGED"
    assert "2 for decoding" in one.sentence
    assert "the baseline 4 for prompts, 4 for decoding" in one.sentence
    assert "baseline/prefill/128" in names, "prompts were read with the same threads"


@pytest.mark.parametrize(("speed", "verdict"), [(34.2, "PASS"), (20, "FAIL")])
def test_other_threads_are_compared_where_both_sweeps_have_them(speed: float, verdict: str) -> None:
    """The sweep of a run may choose 2 threads today and 4 tomorrow: with 4 both were measured."""
    slower = run().sweep if speed == 34.2 else run(speed=speed).sweep
    found = judged(result(run(sweep=slower)), _threads(result(), 4))
    assert check(found, "baseline/sweep/decode/4").verdict == verdict
    assert found.verdict == verdict


def test_points_of_a_sweep_with_other_tokens_or_cpus_are_not_compared() -> None:
    base = _threads(result(), 4)
    for change in ({"decode_tokens": 32}, {"affinity": (1, 2)}):
        sweep = tuple(msgspec.structs.replace(point, **change) for point in run().sweep)
        names = {one.name for one in judged(result(run(sweep=sweep)), base).engines[0].checks}
        assert "baseline/sweep/decode/4" not in names
        assert "baseline/threads/decode" in names


def _other_board(found: BenchResult) -> BenchResult:
    assert found.device.board is not None
    board = msgspec.structs.replace(found.device.board, model="Raspberry Pi 4\x1b[31m")
    return msgspec.structs.replace(found, device=msgspec.structs.replace(found.device, board=board))


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (result(kind="emulated"), "its kind is emulated"),
        (_other_board(result()), "its board is Raspberry Pi 4\\x1b"),
        (result(run("onnx")), "its format is onnx"),
        (result(protocol=msgspec.structs.replace(result().protocol, repeats_min=3)), "protocol"),
        (result(target=msgspec.structs.replace(result().target, id="rpi4")), "its target is rpi4"),
    ],
)
def test_a_baseline_of_something_else_is_refused_in_one_sentence(baseline: BenchResult, words: str) -> None:
    with pytest.raises(OptionError, match="the baseline cannot be compared") as caught:
        judged(result(), baseline)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


# --- files -----------------------------------------------------------------------------------------------------------


def test_there_and_back() -> None:
    found = judged(disturbed(), **PASSING)
    lost = Absent(device="ssh://b", bundle="toy", error="DeviceError", sentence="b is busy.", exit_code=37)
    back = judging.from_json(judging.to_json([found], [lost]))
    assert back == Judgements(judgements=(found,), absent=(lost,))
    assert found.result_sha256 == digest(from_json(to_json(disturbed())))


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"schema_version":2,"judgements":[]}'])
def test_what_is_no_judgement_is_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="some file"):
        judging.from_json(data, "some file")


def test_hostile_words_and_numbers_do_no_harm() -> None:
    evil = "\x1b]0;x\x07" + "y" * 100_000
    made = run(disturbances=(evil,) * 3, engine=evil, notes=(evil,))
    assert made.decode is not None
    odd = msgspec.structs.replace(made.decode, speed=repeated(-1e308, "tokens/s", n=1))
    found = judged(result(msgspec.structs.replace(made, decode=odd), preflight={evil: f"disturb: {evil}"}), tok_s_min=1)
    assert found.verdict == "INVALID"
    assert found.sentence.isprintable()
    assert len(judging.to_json([found])) < 50_000
