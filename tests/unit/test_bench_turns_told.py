"""Two bundles in turns: what readers of reports, comparisons, gates and JUnit are told of the ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from bench_results import KNOWN, OTHER, other, result, run, turned
from conftest import Cli
from test_compare import row, write
from test_junit import case, parsed

from edgekit import targets
from edgekit.bench import words
from edgekit.bench.judge import Judgement, Overrides, error, judge
from edgekit.bench.result import BenchResult, Failure
from edgekit.bench.verdicts import Check
from edgekit.bench_report.compare import TURNS, compare, html
from edgekit.bench_report.html import render
from edgekit.bench_report.summary import markdown
from edgekit.bench_report.words import Entry

RPI5 = targets.load("rpi5")


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


def test_energy_is_less_or_more() -> None:
    assert [one.says for one in words.turned(turned(1.5, energy=0.8).runs[0])] == ["faster", "slower", "less energy"]
    assert [one.says for one in words.turned(turned(1.5, energy=1.2).runs[0])][-1] == "more energy"
    for name, text in reports(turned(1.5, energy=0.8)).items():
        assert "Energy per token of 64" in text, name
        assert "12.5 mJ/token" in text, name


# --- compare ----------------------------------------------------------------------------------------------------------

CALM: dict[str, Any] = {"disturbances": ()}


def test_ratios_of_another_bundle_or_board_are_not_this_comparison() -> None:
    stranger = result(bundle=msgspec.structs.replace(OTHER, manifest_sha256="ef" * 32))
    device = msgspec.structs.replace(result().device, board=None, machine={"cpu": "another", "cores": "8"})
    for one in (stranger, other(device=device), other(run("onnx")), other(kind="emulated")):
        for found in (compare(one, turned(1.5, **CALM)), compare(turned(1.5, **CALM), one)):
            assert TURNS not in found.notes
            assert {row.how for group in found.groups for row in group.rows} <= {"", "medians"}


def test_a_ratio_in_turns_stands_before_that_of_two_medians() -> None:
    found = compare(other(run(speed=30)), turned(0.9, **CALM, energy=0.8))
    decode, first, energy, prefill = (
        row(found, title) for title in ("Decode", "First token after 32", "Energy per token", "Prefill of 32")
    )
    assert (decode.how, decode.change, decode.verdict) == ("turns", "0.9 × (0.882–0.918) worse", "worse")
    assert (first.how, first.verdict) == ("turns", "better")
    assert (energy.how, energy.change) == ("turns", "0.8 × (0.784–0.816) better")
    assert (prefill.how, prefill.change) == ("medians", "+14.0 % better"), "the two runs alone say the opposite"
    assert row(found, "Mean KL").how == ""
    assert TURNS in found.notes
    assert '<td>turns</td><td class="worse">0.9 ×' in html(found)


def test_the_other_way_round_it_is_the_inverse() -> None:
    decode = row(compare(turned(0.9, **CALM), other()), "Decode")
    assert (decode.how, decode.change) == ("turns", "1.111 × (1.089–1.134) better")


@pytest.mark.parametrize(
    ("ratio", "rounds", "says"), [(1.01, 6, "unclear"), (1.5, 5, "too few rounds"), (1.5, 2, "too few rounds")]
)
def test_a_ratio_that_says_nothing_sure(ratio: float, rounds: int, says: str) -> None:
    decode = row(compare(other(), turned(ratio, rounds=rounds, **CALM)), "Decode")
    assert (decode.verdict, decode.change.endswith(f") {says}")) == ("unclear", True)


def test_what_disturbed_the_rounds_counts_and_what_disturbed_the_runs_beside_them_does_not() -> None:
    assert row(compare(other(), turned(1.5)), "Decode").change.endswith("disturbed")
    loaded = msgspec.structs.replace(turned(1.5, **CALM), preflight={"load": "disturb: 1.2 cores"})
    assert row(compare(other(), loaded), "Decode").verdict == "disturbed"
    found = compare(other(run(disturbances=("hot",))), turned(1.5, **CALM))
    assert (row(found, "Decode").verdict, row(found, "Prefill of 32").verdict) == ("better", "disturbed")


@pytest.mark.parametrize("low", [0.0, -1.0, 1e-320])
def test_a_stranger_s_ratio_breaks_nothing(low: float) -> None:
    made = turned(1.5, **CALM)
    turns: Any = made.runs[0].turns
    quantity = msgspec.structs.replace(turns.ratios[0].ratio.quantity, low=low)
    one = msgspec.structs.replace(
        turns.ratios[0], ratio=msgspec.structs.replace(turns.ratios[0].ratio, quantity=quantity)
    )
    runs = (msgspec.structs.replace(made.runs[0], turns=msgspec.structs.replace(turns, ratios=(one,))),)
    strange = msgspec.structs.replace(made, runs=runs)
    assert row(compare(strange, other()), "Decode")
    assert judged(strange, other()).verdict


def test_compare_says_on_the_terminal_which_it_is(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", other()), write(tmp_path / "b.json", turned(0.9, **CALM))
    out = " ".join(cli("compare", a, b).out.split())
    assert "Decode, tokens/s 34.22 34.22 turns 0.9 ×" in out
    assert "(0.882–0.918) worse" in out
    assert "medians" in out
    assert "both bundles in the same minutes" in out


# --- gates ------------------------------------------------------------------------------------------------------------


def judged(found: BenchResult, baseline: BenchResult | None = None, **limits: Any) -> Judgement:
    return judge(found, RPI5, Overrides(**limits), KNOWN, baseline)


def about(found: Judgement, name: str) -> list[Check]:
    return [one for one in found.engines[0].checks if one.name == name]


def test_a_gate_takes_the_ratio_where_there_are_rounds_enough_and_says_so() -> None:
    found = judged(turned(0.9, **CALM), other(run(speed=30)))
    (decode,) = about(found, "baseline/decode")
    assert (decode.verdict, decode.measured, decode.limit, decode.unit) == ("FAIL", 0.9, 0.95, "×")
    assert decode.title == "Decode, against the baseline in turns"
    assert decode.sentence == (
        "Decode: 0.9 × the baseline's bundle, measured in turns with it (0.882 to 0.918, n = 6), which is worse"
    )
    assert "measured in turns" in str(error(found))
    (prefill,) = about(found, "baseline/prefill/32")
    assert "of the baseline" in prefill.sentence, "what was not measured in turns: two medians"


def test_a_slower_day_is_no_regression_where_turns_say_so() -> None:
    baseline = other(run(speed=40))
    assert about(judged(result(), baseline), "baseline/decode")[0].verdict == "FAIL"
    assert about(judged(turned(1.0, **CALM), baseline), "baseline/decode")[0].verdict == "PASS"
    small = about(judged(turned(0.97, **CALM), baseline), "baseline/decode")[0]
    assert small.verdict == "PASS", "sure, and less than 5 %"


def test_times_and_energy_are_worse_above_one() -> None:
    found = judged(turned(1.2, **CALM, energy=1.2), other())
    said = {name: about(found, f"baseline/{name}")[0].verdict for name in ("decode", "ttft/32", "decode_energy")}
    assert said == {"decode": "PASS", "ttft/32": "FAIL", "decode_energy": "FAIL"}


def test_too_few_rounds_leave_the_medians_and_say_so() -> None:
    found = judged(turned(0.5, rounds=5, **CALM), other())
    (decode,) = about(found, "baseline/decode")
    assert (decode.verdict, "against" in decode.sentence) == ("PASS", True)
    (why,) = about(found, "baseline/turns")
    assert (why.verdict, "5 rounds are too few" in why.sentence) == ("NOT JUDGED", True)


def test_rounds_with_another_bundle_judge_nothing() -> None:
    found = judged(turned(0.5, **CALM), result(run(speed=30)))
    assert about(found, "baseline/decode")[0].verdict == "PASS"
    assert about(found, "baseline/turns") == []


def test_disturbed_rounds_are_invalid() -> None:
    (decode,) = about(judged(turned(0.5), other()), "baseline/decode")
    assert (decode.verdict, "measured in turns" in decode.sentence) == ("INVALID", True)


def test_a_baseline_s_own_heat_and_threads_do_not_matter_to_turns() -> None:
    settings = msgspec.structs.replace(run().settings, prefill_threads=1, decode_threads=1)
    for baseline in (other(run(disturbances=("hot",))), other(run(settings=settings, sweep=()))):
        found = judged(turned(1.0, **CALM), baseline)
        assert about(found, "baseline/decode")[0].verdict == "PASS"
        assert found.verdict == "PASS"
        (rest,) = [
            one for one in found.engines[0].checks if one.name in ("baseline/disturbed", "baseline/threads/talk")
        ]
        assert rest.verdict == "NOT JUDGED"
    assert judged(result(), other(run(disturbances=("hot",)))).verdict == "INVALID", "without turns it is as before"


# --- where it was computed --------------------------------------------------------------------------------------------


def test_speeds_of_cpu_and_gpu_are_side_by_side_and_never_a_regression() -> None:
    cpu, gpu = result(run(accelerator="cpu", speed=20)), result(run(accelerator="cuda", speed=60))
    assert ("GGUF computed on", "GPU (CUDA)", "CPU") in compare(gpu, cpu).differences
    found = judged(cpu, gpu)
    (decode,) = about(found, "baseline/threads/decode")
    assert (decode.verdict, "computed elsewhere (cpu; the baseline cuda)" in decode.sentence) == ("NOT JUDGED", True)
    assert about(found, "baseline/decode") == []
    assert about(judged(cpu, result()), "baseline/decode"), "an older result that does not say is compared as before"


def test_every_report_says_what_computed_it() -> None:
    texts = reports(result(run(accelerator="cuda")))
    assert "GGUF in llama.cpp 0.3.36 on the GPU (CUDA): threads" in texts["terminal"]
    assert "| GGUF, GPU (CUDA) |" in texts["markdown"]
    assert "GPU (CUDA), 4 threads for prompts" in texts["html"]
    root = parsed(Entry(*entry_of(result(run(accelerator="cuda")))))
    assert properties(root)["GGUF computed on"] == "GPU (CUDA)"
    assert not any("computed on" in text for text in reports(result()).values())


# --- JUnit ------------------------------------------------------------------------------------------------------------


def entry_of(found: BenchResult, baseline: BenchResult | None = None, **limits: Any) -> tuple[BenchResult, Judgement]:
    return found, judged(found, baseline, **limits)


def properties(root: ET.Element) -> dict[str, str]:
    return {one.attrib["name"]: one.attrib["value"] for one in root.iter("property")}


def out(element: ET.Element) -> str:
    return element.findtext("system-out", "")


def test_a_case_holds_the_ratio_of_its_figure() -> None:
    root = parsed(Entry(*entry_of(turned(1.5, **CALM), tok_s_min=30, ttft_ms_max=9000, ttft_tokens=32)))
    decode, first = case(root, "Decode ("), case(root, "First token after 32")
    assert "in turns with old" in out(decode)
    assert "1.5 × (1.47 to 1.53, n = 6), 10 tokens/s against 6.667 tokens/s: faster" in out(decode)
    assert ": slower" in out(first)
    assert "in turns" not in out(case(root, "Mean KL"))


def test_a_failed_case_holds_it_beside_the_failure() -> None:
    root = parsed(Entry(*entry_of(turned(0.9, **CALM), other(), tok_s_min=99)))
    for title in ("Decode (", "Decode, against the baseline in turns"):
        found = case(root, title)
        assert [child.tag for child in found] == ["failure", "system-out"]
        assert "0.9 × (0.882 to 0.918" in out(found)


def test_a_suite_has_every_ratio_even_where_nothing_is_limited() -> None:
    root = parsed(Entry(*entry_of(turned(1.5, **CALM, energy=0.8))))
    found = properties(root)
    assert "1.5 × (1.47 to 1.53" in found["GGUF in turns: Decode of 64"]
    assert "less energy" in found["GGUF in turns: Energy per token of 64"]
    assert "less energy" in (root[0].findtext("system-out") or "")
    died = turned(1.5, failure=Failure(kind="crash", sentence="the other engine crashed", exit_code=27), **CALM)
    root = parsed(Entry(*entry_of(died)))
    assert not [name for name in properties(root) if "in turns" in name and "Measured" not in name]
    assert "the other engine crashed" in (root[0].findtext("system-out") or "")
