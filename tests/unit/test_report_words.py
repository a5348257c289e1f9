from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_model import scores

from edgekit.coherence.scoring import ItemScores
from edgekit.report import words
from edgekit.report.plots import log_axis


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (float("nan"), "not a number"),
        (float("inf"), "infinite"),
        (-float("inf"), "minus infinite"),
        (0.0, "0"),
        (0.0521, "0.0521"),
        (-0.0521, "-0.0521"),
        (1.5, "1.50"),
        (1234.5, "1,234"),
        (3.1e-7, "3.10e-7"),
        (1e304, "1.00e304"),
        (5e-324, "4.94e-324"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@given(st.floats(-1e307, 1e307))
def test_a_written_number_is_right_to_three_digits(value: float) -> None:
    assert math.isclose(float(words.number(value).replace(",", "")), value, rel_tol=0.006)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100 %"), (0.99999, "> 99.99 %"), (0.0, "0 %"), (1e-9, "< 0.01 %"), (0.8993, "89.93 %"), (1.2, "120 %")],
)
def test_a_share_never_reads_whole_or_nothing_when_it_is_not(value: float, text: str) -> None:
    assert words.percent(value) == text


@given(st.floats(0, 1))
def test_only_a_whole_share_is_100_percent(value: float) -> None:
    assert (words.percent(value) == "100 %") == (value == 1)
    assert (words.percent(value) == "0 %") == (value == 0)


@given(st.text("ab \n"), st.text("ab \n"))
def test_common_part_is_common_and_ends_at_a_word(first: str, second: str) -> None:
    same = words.common_length(first, second)
    assert first[:same] == second[:same]
    assert same in (0, len(first)) or first[same - 1].isspace() or same == len(second)
    if first == second:
        assert same == len(first)


@given(st.lists(st.floats() | st.none()), st.floats(), st.floats())
def test_a_log_axis_keeps_order_and_stays_on_the_page(values: list[float | None], a: float, b: float) -> None:
    axis = log_axis(values)
    assert 2 <= len(axis.ticks) <= 9
    for value in [*values, a, b]:
        place = axis.at(value)
        assert (place is None) == (value is None or math.isnan(value))
        assert place is None or 0 <= place <= 100
    if a <= b:
        assert (axis.at(a) or 0.0) <= (axis.at(b) or 0.0)


def test_answers_are_one_sentence_that_a_person_understands() -> None:
    assert words.answers(scores()) == (
        "Answers 202 of 250 questions right, the original 205 (difference -3, 95 % interval -8 to +2: chance can "
        "explain it); changes its mind on 6 (2.4 %)."
    )


@pytest.mark.parametrize(
    ("low", "high", "cause"),
    [
        (-0.08, -0.01, "a loss beyond chance"),
        (0.01, 0.08, "a gain beyond chance"),
        (-0.01, 0.01, "chance can explain it"),
        (-0.001, 0.0, "chance can explain it"),
    ],
)
def test_a_loss_is_called_one_only_when_the_interval_leaves_out_none(low: float, high: float, cause: str) -> None:
    found: ItemScores = scores(accuracy_difference_low=low, accuracy_difference_high=high)
    assert f": {cause});" in words.answers(found)
