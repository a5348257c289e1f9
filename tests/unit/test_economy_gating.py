"""Leaving out small inputs: thresholds are quantiles, what fires is counted, and no stranger gets into the page."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from html_pages import Page  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgekit import targets  # noqa: E402
from edgekit.economy.allotting import ANCHOR, LEVELS, Site, allot  # noqa: E402
from edgekit.economy.figures import published_watts  # noqa: E402
from edgekit.economy.gating import Counts, gated, inputs  # noqa: E402
from edgekit.economy.record import Economy, Part, Point, within  # noqa: E402
from edgekit.errors import BadWeightsError  # noqa: E402
from edgekit.report.economy import render  # noqa: E402

WEIGHTS = ["first.weight", "second.weight"]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


class Model(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """Two linear layers on rows that the ids name."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows = torch.as_tensor(rows, dtype=torch.float32)
        width = self.rows.shape[1]
        self.first, self.second = (torch.nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, ids: Any, use_cache: bool = False) -> Any:
        return self.second(self.first(self.rows[ids]))


def quiet(_done: int, _total: int) -> None:
    """No progress."""


def random_model(seed: int = 0, tokens: int = 12, width: int = 7) -> Model:
    torch.manual_seed(seed)
    return Model(np.random.default_rng(seed).normal(size=(tokens, width)))


@settings(max_examples=60)
@given(rows=st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=12), share=st.floats(0, 0.99))
def test_a_threshold_is_the_largest_that_keeps_the_share(rows: list[list[float]], share: float) -> None:
    model = Model(rows)
    model.first.weight.data.zero_()
    made = inputs(model, WEIGHTS[:1], [np.arange(len(rows))], [share], quiet)["first.weight"]
    (found,), (energy,) = made.limits, made.energies
    sizes = np.abs(np.array(rows, np.float32)).flatten()
    assert (sizes < found).sum() <= share * sizes.size
    if share > 0 and np.isfinite(found):
        above = (np.array([found], np.float32).view(np.uint32) + np.uint32(1 << 16)).view(np.float32)[0]
        assert (sizes < above).sum() > share * sizes.size  # the next bfloat16 leaves out too much
    if share == 0:
        assert found == 0
    squares = sizes.astype(np.float64) ** 2
    if squares.sum() > 0:  # a bin's middle is within 1/256 of what lies in it
        assert energy == pytest.approx(squares[sizes < found].sum() / squares.sum(), rel=0.02, abs=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_what_is_below_is_left_out_and_counted_the_first_token_excepted(tokens: int) -> None:
    model, ids = random_model(), torch.arange(tokens)[None]
    limit, counts = 0.6, Counts()
    first, second = (getattr(model, name).weight.detach().numpy() for name in ("first", "second"))
    rows = model.rows[:tokens].numpy()
    masks, given_rows = [], rows
    for weights in (first, second):
        mask = np.abs(given_rows) >= limit
        masks.append(mask if tokens == 1 else mask[1:])
        kept = mask if tokens == 1 else np.vstack([np.ones_like(mask[:1]), mask[1:]])
        given_rows = np.where(kept, given_rows, 0) @ weights.T
    with torch.inference_mode(), gated(model, dict.fromkeys(WEIGHTS, limit), counts):
        found = model(ids)[0].numpy()
    np.testing.assert_allclose(found, given_rows, atol=1e-5)
    for name, mask in zip(WEIGHTS, masks, strict=True):
        assert (counts.layers[name].fired, counts.layers[name].seen) == (mask.sum(), mask.size)
        assert 0 < counts.layers[name].share < 1 or tokens == 1
    with torch.inference_mode():  # nothing of it is left
        np.testing.assert_allclose(model(ids)[0].numpy(), rows @ first.T @ second.T, atol=1e-5)


def test_nothing_is_left_out_at_zero() -> None:
    model, ids = random_model(), torch.arange(12)[None]
    model.rows[3] = 0
    limits = {name: found.limits[0] for name, found in inputs(model, WEIGHTS, [np.arange(6)], [0.0], quiet).items()}
    counts = Counts()
    with torch.inference_mode():
        plain = model(ids)
        with gated(model, limits, counts):
            assert torch.equal(model(ids), plain)
    assert [one.share for one in counts.layers.values()] == [1.0, 1.0]
    assert Counts().layers == {}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_no_numbers_name_the_layer(wrong: float) -> None:
    model = random_model()
    model.rows[2, 1] = wrong
    with pytest.raises(BadWeightsError, match=r"first\.weight"):
        inputs(model, WEIGHTS, [np.arange(6)], [0.5], quiet)


def point(asked: float, kl: float) -> Point:
    return Point(
        asked=asked, skipped=asked, kl_mean=kl, kl_low=None, kl_high=None, same_top=1.0, ppl_ratio=1.0, unread=0
    )


def test_the_chosen_point_is_the_emptiest_within_the_limit() -> None:
    points = [point(0.0, 0.4), point(0.1, 0.42), point(0.2, 0.5), point(0.3, 0.425)]
    assert within(points, 0.03).asked == 0.3  # damage of the format itself does not count
    assert within(points, 0.0).asked == 0.0


def test_energy_is_predicted_only_where_somebody_published_it() -> None:
    board = targets.load("rpi5")
    each = [a.mj_per_token * a.tg_tok_s / 1000 for a in board.anchors if a.mj_per_token and a.tg_tok_s]
    assert published_watts(board) == pytest.approx(np.median(each))
    assert published_watts(msgspec.structs.replace(board, anchors=())) is None


def economy(**changes: Any) -> Economy:
    part = Part(name="0", connections=10, fired=0.8, nbytes=20, kl=0.01)
    made = Economy(
        model="m", model_sha256="0" * 64, reference="m", weights="", text="text", formats="GGUF", target="rpi5",
        connections=20, linear=10, multiply_adds=30, context=4, bytes_per_token=40, uniform=False,
        points=(point(0.0, 0.0), point(0.2, 0.02)), max_kl=0.03, chosen=0.2, roles=(part,), blocks=(part, part),
        tokens_per_second=10.0, tokens_per_second_chosen=12.0, millijoules=3.0, millijoules_chosen=2.5, basis="b",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_the_page_shows_every_model_and_no_stranger_gets_into_it() -> None:
    hostile = "<script>alert(1)</script>\x00"
    unknown = economy(
        model=hostile, reference=hostile, text=hostile, formats=hostile, basis=hostile, weights="Q4_0",
        tokens_per_second=None, tokens_per_second_chosen=None, millijoules=None, millijoules_chosen=None,
    )  # fmt: skip
    text = render([economy(), unknown])
    page = Page(text)
    assert "script" not in page.tags
    assert "\x00" not in text
    assert text.count('<polyline class="curve"') == 2
    assert page.tags.count("rect") == 4
    assert "unknown tokens/s, unknown energy" in text
    assert "10.0 tokens/s, 3.00 mJ a token" in text
    assert "different texts" in text
    assert text == render([economy(), unknown])


def test_a_model_that_needs_everything_is_told() -> None:
    text = render([economy(points=(point(0.0, 0.0), point(0.2, 2.0)), chosen=0.0)])
    assert "No measured share of the connections can be left out within 0.0300 nats." in text


def site(name: str, connections: int, kl: float, power: float = 3.0) -> Site:
    energies = tuple(level**power for level in LEVELS)
    return Site(weights=(name,), connections=connections, kl=kl, energies=energies)


@settings(max_examples=40, deadline=None)
@given(
    kls=st.lists(st.floats(0, 10), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, LEVELS[-1]), min_size=1, max_size=3),
)
def test_what_is_allotted_is_the_best_of_all(kls: list[float], shares: list[float]) -> None:
    """Compared with every combination."""
    sites = [site(str(index), 20 * (index + 1), kl) for index, kl in enumerate(kls)]
    coarse = range(0, len(LEVELS), 1 if len(sites) < 3 else 4)
    whole = sum(one.connections for one in sites)
    for share, found in allot(sites, shares).items():
        kept = sum(one.connections * (1 - LEVELS[found.levels[one.weights[0]]]) for one in sites)
        assert kept <= whole * (1 - share) + 1
        assert found.predicted_kl == pytest.approx(
            sum(one.damage(found.levels[one.weights[0]]) for one in sites), abs=1e-9
        )
        for picks in itertools.product(coarse, repeat=len(sites)):
            others = sum(one.connections * (1 - LEVELS[pick]) for one, pick in zip(sites, picks, strict=True))
            if others <= whole * (1 - share):
                damage = sum(one.damage(pick) for one, pick in zip(sites, picks, strict=True))
                assert found.predicted_kl <= damage * (1 + 1e-6) + 1e-9


def test_who_costs_nothing_leaves_out_first() -> None:
    cheap, dear = site("cheap", 100, 0.0), site("dear", 100, 1.0)
    (found,) = allot([cheap, dear], [0.4]).values()
    assert LEVELS[found.levels["cheap"]] >= 0.8
    assert found.levels["dear"] == 0
    assert found.predicted_kl == 0
    assert dear.damage(LEVELS.index(ANCHOR)) == pytest.approx(1.0)
    dead = Site(weights=("dead",), connections=1, kl=0.0, energies=(0.0,) * len(LEVELS))
    assert dead.damage(5) == 0
    assert allot([], [0.5])[0.5].levels == {}
