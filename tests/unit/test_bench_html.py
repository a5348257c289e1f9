"""bench.html and the terminal: complete, self-contained, and harmless whatever a result holds."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest
from bench_results import KNOWN, coherence, repeated, result, run
from html_pages import CONTROL, Page, labels_are_there_once, needs_nothing_else, section
from hypothesis import given, settings
from hypothesis import strategies as st
from test_junit import EVIL, strange

from edgekit.bench.judge import Overrides, judge
from edgekit.bench.result import BenchResult, Failure, TracePoint
from edgekit.bench_report import plots
from edgekit.bench_report.html import render
from edgekit.bench_report.terminal import show
from edgekit.bench_report.words import Entry
from edgekit.targets import load

RPI5 = load("rpi5")


def entry(found: BenchResult, **limits: Any) -> Entry:
    return Entry(found, judge(found, RPI5, Overrides(**limits), KNOWN))


@pytest.fixture(scope="module")
def page() -> str:
    return render([entry(result(run(), run("onnx", begin=300)), tok_s_min=30)])


def test_a_whole_page(page: str) -> None:
    for words in ("34.22 tokens/s", "2,287 ms", "744.0 MiB", "146.1 mJ/token", "chosen", "Time of each token", "Power"):
        assert words in page
    assert "11 of 12 continuations" in section(page, "r1-coherence")
    assert "predicted, not measured" in section(page, "r1-predicted-GGUF")
    assert "34.22 tokens/s (+1 %)" in section(page, "r1-predicted-GGUF")


def test_the_page_needs_nothing_else(page: str) -> None:
    needs_nothing_else(page)


def test_ids_are_there_once_and_labels_point_to_them() -> None:
    labels_are_there_once(render([entry(result(run(), run("onnx"))), entry(result(kind="emulated"))]))


def test_equal_results_give_equal_pages(page: str) -> None:
    assert render([entry(result(run(), run("onnx", begin=300)), tok_s_min=30)]) == page


def test_emulated_figures_are_called_that_and_none_of_them_a_latency() -> None:
    page = render([entry(result(kind="emulated"), tok_s_min=30)])
    assert "First token" not in page
    assert "Time of each token" not in page
    assert "Between tokens" not in page
    speed = section(page, "r1-speed")
    assert 'class="is-emulated"' in speed
    assert 'class="is-measured"' not in page
    assert "NOT JUDGED" in section(page, "r1-gates")


def test_disturbances_are_marked_in_words_and_in_the_traces() -> None:
    page = render([entry(result(run(disturbances=("throttling during the measurement",))))])
    assert "INVALID" in page
    assert 'class="band"' in section(page, "r1-sensors")
    assert "throttling during the measurement (loading, prompt of 32" in page
    calm = render([entry(result())])
    assert 'class="band"' not in calm
    assert "Disturbed" not in calm


def test_an_engine_that_failed_has_its_sentence() -> None:
    dead = Failure(kind="crash", sentence="the engine ended with signal 11", exit_code=1)
    bare: dict[str, Any] = {"decode": None, "talk": None, "prefill": (), "loading": (), "sweep": (), "coherence": None}
    page = render([entry(result(run(failure=dead, **bare)))])
    assert "the engine ended with signal 11" in page
    assert "No sensor could be read" in page


def test_no_emulated_speed_or_memory_stands_beside_measured_ones() -> None:
    fleet = section(render([entry(result(speed)) for speed in (run(speed=30), run(speed=40))]), "fleet")
    assert ("30.02 tokens/s" in fleet, "744.0 MiB" in fleet) == (True, True)
    alone = [entry(result(run(kind="emulated"), kind="emulated"))] * 2
    assert not re.search(r"tokens/s|MiB|\bms\b", section(render(alone), "fleet"))


def test_many_results_have_one_table() -> None:
    page = render([entry(result()), entry(result(run(seen=coherence(kl_mean=9.0)))), entry(result(kind="emulated"))])
    fleet = section(page, "fleet")
    assert fleet.count('href="#r') == 3
    assert all(word in fleet for word in ("PASS", "FAIL", "emulated"))


def test_a_script_in_names_is_shown_not_run() -> None:
    page = render([entry(strange(EVIL))])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not CONTROL.search(page)


@settings(max_examples=15, deadline=None)
@given(st.text(min_size=1) | st.text("<>&\"'/={}%#-! abp", min_size=1))
def test_no_text_of_a_stranger_changes_the_structure(text: str) -> None:
    page = render([entry(strange(text))])
    page.encode()
    assert Page(page).tags == Page(render([entry(strange("x"))])).tags


def test_endless_texts_are_cut() -> None:
    assert len(render([entry(strange("long " * 200_000))])) < 400_000


def test_a_huge_trace_is_thinned() -> None:
    points = tuple(TracePoint(t=float(i), temp_c=50.0, clock_mhz=2400.0, power_w=5.0) for i in range(50_000))
    assert len(render([entry(result(environment=points))])) < 200_000


ODD = (-1e308, -1.0, 0.0, 5e-324, 1e-9, 1.0, 1e18, 1.7e308)


@pytest.mark.parametrize("value", ODD)
def test_any_number_can_be_drawn(value: float) -> None:
    made = run(speed=1.0)
    assert made.decode is not None
    assert made.coherence is not None
    speed, here = repeated(value, "tokens/s", spread=0, n=1), coherence(kl_mean=value, kl_p999=value, ppl_ratio=value)
    odd = msgspec.structs.replace(
        made,
        decode=msgspec.structs.replace(made.decode, speed=speed, token_ms=(value,)),
        coherence=msgspec.structs.replace(made.coherence, here=here),
    )
    points = tuple(TracePoint(t=value * i, temp_c=value, clock_mhz=value * i, power_w=-value) for i in range(3))
    page = render([entry(result(odd, environment=points), tok_s_min=30)])
    for key, text in Page(page).attributes:
        if key in ("x", "x1", "x2", "width") and text:
            assert math.isfinite(float(text.removesuffix("%")))
        if key == "points" and text:
            assert all(0 <= float(number) <= 100 for pair in text.split() for number in pair.split(","))


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS | st.none()), max_size=12), st.booleans())
def test_a_chart_of_anything_stays_in_its_box(points: list[tuple[float, float | None]], from_zero: bool) -> None:
    made = plots.chart("t", "c", ("x", "y"), [("a", points)], "measured", from_zero=from_zero)
    for piece in [piece for line in made.lines for piece in line.pieces] if made else []:
        assert all(0 <= float(number) <= 100 for pair in piece.split() for number in pair.split(","))
    assert made is None or len(made.y_ticks) < 30


def test_a_gap_interrupts_a_line_and_a_single_point_is_a_dot() -> None:
    made = plots.chart("t", "c", ("x", "y"), [("a", [(0, 1.0), (1, 2.0), (50, 1.0), (51, None)])], "measured", gap=5)
    assert made is not None
    assert len(made.lines[0].pieces) == 2
    dot = made.lines[0].pieces[1].split()
    assert dot[0] == dot[1]


# --- terminal --------------------------------------------------------------------------------------------------------


def test_one_screen_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(entry(result(run(), run("onnx")), tok_s_min=30, rss_mib_max=1000, ttft_ms_max=2200))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert any(line.startswith("Decode") and "34.22 tokens/s" in line and "PASS" in line for line in lines)
    assert any(line.startswith("FAIL GGUF: First token") for line in lines)


def test_the_terminal_calls_emulated_figures_so(capsys: pytest.CaptureFixture[str]) -> None:
    show(entry(result(kind="emulated"), tok_s_min=30))
    out = capsys.readouterr().out
    assert "emulated board" in out
    assert "First token" not in out
    assert "NOT JUDGED" in out


def test_no_escape_sequence_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(entry(strange(EVIL * 1000)))
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert len(out) < 40_000
