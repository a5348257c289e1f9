from __future__ import annotations

import html
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from html_pages import CONTROL, Page, labels_are_there_once, needs_nothing_else, section
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_model import UNLIMITED, artefact, coherence, report

from edgekit.report import rows
from edgekit.report.html import render
from edgekit.report.model import Artefact, FlippedItem, Predicted, Report, Sample

EVIL = "</pre></title></style><script>alert('x')</script><img src=x onerror=alert(1)>\" onload=\"{{ 7 * 191 }}"


def strange(text: str) -> Report:
    """A report in which everything that a stranger may choose is `text`."""
    return report(
        model=text,
        name=text,
        source=text,
        caveats=(text,),
        text=text,
        artefacts=(artefact(fallbacks=(text,), shares={text: 1.0}, title=text, flipped=(flip(text),)),),
        samples=(Sample(prompt=text, original="a " + text, artefacts={"gguf": "b " + text}),),
        seconds={text: 1.0},
    )


def flip(text: str) -> FlippedItem:
    return FlippedItem(id=text, question=text, right=text, original=text, artefact="no " + text)


def test_a_script_in_names_and_samples_is_shown_not_run() -> None:
    page = render(strange(EVIL))
    assert "<script" not in page
    assert "<img" not in page
    assert "1337" not in page
    for part in ("samples", "questions"):
        assert html.escape("<script>alert(", quote=False) in section(page, part)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(), min_size=1) | st.text("<>&\"'/={}%#-! abp", min_size=1))
def test_no_text_of_a_stranger_changes_the_structure(text: str) -> None:
    page = render(strange(text))
    page.encode("utf8")
    assert Page(page).tags == Page(render(strange("x"))).tags


def test_control_characters_are_replaced() -> None:
    page = render(strange("\x00\x1b[31m\x9b\udcff\ufffe"))
    assert not CONTROL.search(page)
    assert "\ufffd" in page


def test_endless_texts_are_trimmed_and_say_so() -> None:
    page = render(strange("long " * 1_000_000))
    assert len(page) < 200_000
    assert "characters left out]" in section(page, "samples")


def test_the_page_needs_nothing_else() -> None:
    page = render(report())
    needs_nothing_else(page)
    assert not re.search(r"https?:|//\w", page)


def test_links_and_labels_point_to_something_that_is_there_once() -> None:
    labels_are_there_once(render(report()))


def test_equal_reports_give_equal_pages() -> None:
    assert render(report()) == render(report())


def plots_of(page: str) -> list[ElementTree.Element]:
    """Every outer <svg>, parsed as XML."""
    depth, begin, found = 0, 0, []
    for match in re.finditer(r"<svg\b|</svg>", page):
        if match[0] == "<svg":
            begin = match.start() if depth == 0 else begin
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                found.append(ElementTree.fromstring(page[begin : match.end()]))
    return found


NAN, INF = float("nan"), float("inf")
ODD: dict[str, dict[str, Any]] = {
    "one sequence": {"kl_mean_low": None, "kl_mean_high": None, "ppl_ratio_se": None},
    "no generation": {"generation": None},
    "no divergence": dict.fromkeys(("kl_mean", "kl_mean_low", "kl_mean_high", "kl_median", "kl_p99", "kl_p999"), 0.0),
    "zero on a log axis": {"kl_p999": 0.0},
    "one value": dict.fromkeys(("kl_mean", "kl_mean_low", "kl_mean_high", "kl_median", "kl_p99", "kl_p999"), 1.0),
    "below zero": {"kl_median": -1e-12},
    "not a number": dict.fromkeys(("kl_mean", "kl_median", "kl_p999", "same_top", "ppl_engine", "ppl_ratio"), NAN),
    "infinite": dict.fromkeys(("kl_mean", "kl_median", "kl_p999", "kl_max", "ppl_engine", "ppl_reference"), INF),
    "huge": {"ppl_engine": 1e304, "kl_max": 1e300, "kl_p999": 1e300},
    "tiny": {"kl_median": 1e-300, "kl_mean": 5e-324},
    "zero perplexity": {"ppl_engine": 0.0, "ppl_reference": 0.0},
}


def drawable(page: str) -> None:
    for plot in plots_of(page):
        for element in plot.iter():
            for key in ("x", "x1", "x2", "width"):
                value = element.get(key, "0").removesuffix("%")
                assert math.isfinite(float(value))
                if element.get(key, "").endswith("%"):
                    assert 0 <= float(value) <= 100
    assert "None" not in page.replace("<p>None", "")


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD.keys())
def test_odd_figures_leave_the_page_whole(changes: dict[str, Any]) -> None:
    odd = artefact(coherence(**changes))
    drawable(render(report(artefacts=(odd,))))
    drawable(render(report(artefacts=(odd, artefact()))))


@pytest.mark.parametrize(
    "shares",
    [{}, {"Q4_0": NAN, "F32": 0.5}, {"Q4_0": -1.0}, {"Q4_0": 3.0, "F32": 1.0}, {f"G{i}": 0.05 for i in range(20)}],
)
def test_odd_shares_stay_within_their_bar(shares: dict[str, float]) -> None:
    drawable(render(report(artefacts=(artefact(shares=shares),))))


def test_an_almost_empty_report_is_a_page() -> None:
    page = render(report(samples=(), seconds={}, caveats=(), artefacts=(artefact(limits=UNLIMITED),)))
    drawable(page)
    assert "Before you rely on this" not in page
    assert "nothing was judged" in section(page, "gates")


def test_questions_are_counted_by_category_and_flips_shown_with_both_answers() -> None:
    page = section(render(report()), "questions")
    counts = re.findall(r'<tr(?: class="total")?><th scope="row">(\w+)</th>((?:<td>\d+</td>)+)', page)
    assert [(name, re.findall(r"\d+", cells)) for name, cells in counts[:3]] == [
        ("facts", ["150", "130", "128", "3", "1", "4"]),
        ("reasoning", ["100", "75", "74", "1", "0", "2"]),
        ("all", ["250", "205", "202", "4", "1", "6"]),
    ]
    row = re.search(r"<tr><th scope=\"row\">One week has seven</th>(.*?)</tr>", page, re.DOTALL)
    assert row is not None
    assert re.findall(r"<td>(\w+) <span class=\"chip (pass|fail)\">", row[1]) == [("days", "pass"), ("years", "fail")]


def test_whole_sentences_get_a_question() -> None:
    pair = FlippedItem(id="agreement-01", question="", right="They are.", original="They are.", artefact="They is.")
    page = section(render(report(artefacts=(artefact(flipped=(pair,)),))), "questions")
    assert "Which sentence is right?" in page


def test_the_card_says_how_many_questions_are_answered() -> None:
    card = render(report()).split("</article>")[0]
    assert "Answers 202 of 250 questions right, the original 205" in card


def test_without_questions_nothing_is_claimed() -> None:
    page = render(report(artefacts=(artefact(coherence(items=None), flipped=()),)))
    assert "None were asked." in section(page, "questions")
    assert "questions right" not in page


def test_it_says_what_was_not_measured_instead_of_a_number() -> None:
    page = section(render(report(artefacts=(artefact(coherence(generation=None)),))), "coherence")
    assert page.count(">not measured<") == 6


@pytest.mark.parametrize(
    ("artefacts", "outcome", "chips"),
    [
        ((artefact(),), "PASS: every artefact is within", ["PASS"]),
        ((artefact(), artefact(coherence(kl_mean=0.2), format="onnx")), "FAIL: ONNX is outside", ["PASS", "FAIL"]),
        ((artefact(coherence(kl_mean=0.2)),) * 2, "FAIL: GGUF and GGUF are outside", ["FAIL", "FAIL"]),
        ((artefact(limits=UNLIMITED),), "Nothing was judged", ["NOT JUDGED"]),
        ((artefact(), artefact(limits=UNLIMITED)), "PASS: 1 of 2 artefacts were judged", ["PASS", "NOT JUDGED"]),
    ],
)
def test_verdicts_head_the_page(artefacts: tuple[Artefact, ...], outcome: str, chips: list[str]) -> None:
    top = html.unescape(render(report(artefacts=artefacts))).split("<section")[0]
    assert f'<p class="outcome">{outcome}' in top
    assert re.findall(r'class="chip">. ([A-Z ]+)<', top) == chips
    assert all(a.verdict.sentence in top and a.title in top for a in artefacts)


def test_a_caveat_stands_before_everything_that_was_measured() -> None:
    page = render(report())
    assert page.index("The original is itself dequantized.") < page.index('id="picture"')


def test_gates_show_limit_and_measurement() -> None:
    table = section(render(report(artefacts=(artefact(coherence(same_top=0.8)),))), "gates")
    row = next(line for line in table.splitlines() if "Same top token" in line)
    assert re.sub("(<[^>]+>)+", "|", row).strip(" |") == "Same top token|at least 85 %|80 %|✗ FAIL"


def test_every_figure_of_the_tables_is_there_with_its_meaning() -> None:
    made = report()
    page = html.unescape(render(made))
    for row in [row for _, group in rows.COHERENCE for row in group] + list(rows.PARITY):
        assert row.title in page
        assert row.meaning
        assert row.meaning in page
        assert all(f"<td>{row.show(a)}</td>" in page for a in made.artefacts)


def test_predicted_figures_stand_apart_from_measured_ones() -> None:
    page = render(report())
    predicted = section(page, "predicted")
    assert predicted.count("<td>132</td>") == 2
    assert "<td>132</td>" not in page.replace(predicted, "")
    assert "measured on the host</span>" not in predicted
    assert "predicted, not measured" in predicted


def test_an_unknown_speed_is_called_unknown() -> None:
    quiet = Predicted(ram_mib=1, usable_mib=2, bytes_per_token=3, tokens_per_second=None, basis="no bandwidth")
    assert "<td>unknown</td>" in section(render(report(artefacts=(artefact(predicted=quiet),))), "predicted")


def test_samples_keep_their_whitespace_and_mark_where_they_part() -> None:
    page = html.unescape(section(render(report()), "samples"))
    assert '<pre dir="auto">\nThe sea is calm.\n\n  He said:\tno  more\n<span class="parts"></span></pre>' in page
    assert '<pre dir="auto">\nThe sea is <span class="parts">calling.</span></pre>' in page


def test_a_leading_newline_of_a_sample_survives_the_pre_element() -> None:
    sample = Sample(prompt="p", original="\nx", artefacts={})
    assert '<pre dir="auto">\n\nx<span' in render(report(samples=(sample,)))


def test_the_host_and_the_text_are_named() -> None:
    page = render(report())
    assert "x86_64, 2 logical CPUs" in section(page, "host")
    assert "2.1.3" in section(page, "host")
    assert "16 sequences, 2560 tokens, written by the model itself" in section(page, "what")


def test_one_number_format_has_one_colour_in_all_bars() -> None:
    both = (artefact(shares={"Q4_0": 0.9, "F32": 0.1}), artefact(shares={"F32": 0.8, "Q4_0": 0.2}))
    page = render(report(artefacts=both))
    found = re.findall(r'class="segment c(\d)"[^>]*><title>(\w+):', page)
    assert len(found) == 4
    assert len(set(found)) == 2
