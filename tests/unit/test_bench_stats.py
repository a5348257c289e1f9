"""Medians, intervals and protocols."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
import pytest
from bench_toys import Clock
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench import plan
from edgekit.bench.stats import median_interval, percentiles, variation
from edgekit.errors import OptionError

SMOKE = plan.protocol("smoke")


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_no_figure_of_what_is_no_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        median_interval(values)
    with pytest.raises(ValueError, match="at least one"):
        percentiles(values)


def test_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'quick'.*smoke, standard, long"):
        plan.protocol("quick")


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_the_interval_holds_the_median(values: list[float]) -> None:
    found = median_interval(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.width >= 0
    assert (found.method == "bootstrap 95 %") == (len(values) >= 6)


def test_width_is_relative_to_the_median() -> None:
    assert median_interval([8.0, 10.0, 12.0]).width == pytest.approx(0.4)
    assert median_interval([5.0]).width == 0
    assert median_interval([-1.0, 0.0, 1.0]).width == float("inf")


def test_variation_is_the_sample_deviation_over_the_mean() -> None:
    assert variation([9.0, 11.0]) == pytest.approx(statistics.stdev([9, 11]) / 10)
    assert variation([3.0]) is None
    assert variation([-1.0, 1.0]) is None


def test_percentiles_interpolate() -> None:
    assert percentiles([1.0, 2.0, 3.0], (0, 25, 100)) == (1.0, 1.5, 3.0)


def test_every_protocol_can_be_kept() -> None:
    for name in plan.names():
        one = plan.protocol(name)
        assert one.repeats_min <= one.repeats_max
        assert list(one.prompt_lengths) == sorted(set(one.prompt_lengths))
    assert len({plan.digest(plan.protocol(name)) for name in plan.names()}) == 3


def test_the_smoke_protocol_stays_small_enough_for_an_emulator() -> None:
    """An emulated board computes a few tokens a second: what one engine has to compute is bounded here."""
    longest = max(SMOKE.prompt_lengths)
    loading = SMOKE.loads * (longest + SMOKE.decode_tokens)
    repeated = SMOKE.repeats_max * (sum(SMOKE.prompt_lengths) + SMOKE.decode_tokens + 64 + SMOKE.talk_tokens)
    coherence = SMOKE.sequences * SMOKE.sequence_tokens + SMOKE.prompts * (64 + SMOKE.continuation_tokens)
    assert loading + repeated + coherence < 1000
    assert not SMOKE.sweep
    assert not SMOKE.items


def repeated(values: list[float], **changes: object) -> plan.Repeated[float]:
    clock, given_ = Clock(), iter(values)

    def once() -> float:
        clock.tick(1.0)
        return next(given_)

    return plan.repeat(once, float, msgspec.structs.replace(SMOKE, **changes), clock=clock)


def test_it_ends_when_the_interval_is_narrow() -> None:
    done = repeated([5.0, 1.0, 1.0, 1.0, 9.0], warmups=1, repeats_min=3, repeats_max=10, relative_width=0.01)
    assert done == plan.Repeated((1.0, 1.0, 1.0), "narrow")


def test_it_ends_at_the_bound_of_repetitions() -> None:
    done = repeated([1.0, 2.0, 4.0, 8.0], repeats_min=2, repeats_max=4, relative_width=0.01, seconds_max=99)
    assert done == plan.Repeated((1.0, 2.0, 4.0, 8.0), "repeats")


def test_it_ends_at_the_bound_of_seconds_but_not_before_the_least_number() -> None:
    bounds = {"repeats_max": 9, "relative_width": 0.01, "seconds_max": 2.5}
    assert repeated([1.0, 2.0, 4.0, 8.0], repeats_min=2, **bounds) == plan.Repeated((1.0, 2.0, 4.0), "seconds")
    assert len(repeated([1.0, 2.0, 4.0, 8.0, 16.0], repeats_min=4, **bounds).runs) == 4


def test_one_value_has_no_width_to_be_narrow() -> None:
    assert repeated([1.0, 1.0], repeats_min=1, repeats_max=5, relative_width=0.5).stopped == "narrow"
    assert repeated([1.0], repeats_min=1, repeats_max=1).stopped == "repeats"


def test_the_document_shows_the_protocols() -> None:
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf8")

    def row(title: str, *cells: object) -> None:
        assert f"| {title} | {' | '.join(map(str, cells))} |" in text

    all_ = [plan.protocol(name) for name in ("smoke", "standard", "long")]
    row("prompts, tokens", *(", ".join(map(str, one.prompt_lengths)) for one in all_))
    row("tokens generated", *(one.decode_tokens for one in all_))
    row("tokens of an answer", *(one.talk_tokens for one in all_))
    row("warm-ups", *(one.warmups for one in all_))
    row("at most, seconds a figure", *(int(one.seconds_max) for one in all_))
    row("loads, each way", *(one.loads for one in all_))
    row("repetitions", 2, *(f"{one.repeats_min} to {one.repeats_max}" for one in all_[1:]))
    row("until the interval is", "–", *(f"{100 * one.relative_width:g} % wide" for one in all_[1:]))
    row("coherence: sequences × tokens", *(f"{one.sequences} × {one.sequence_tokens}" for one in all_[:2]), "all")
    row("prompts × tokens continued", *(f"{one.prompts} × {one.continuation_tokens}" for one in all_[:2]), "all")
