"""Dispersion losses against their formulas written out, and their gradients against differences."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgekit.dispersion.layers import Dispersion, Layers, chosen  # noqa: E402
from edgekit.dispersion.losses import (  # noqa: E402
    LOSSES,
    Form,
    Name,
    Shape,
    _squared_distances,
    angular_spread,
    orthogonalization,
)
from edgekit.errors import OptionError  # noqa: E402

NAMES: tuple[Name, ...] = get_args(Name)
FORMS: tuple[Form, ...] = get_args(Form)


def states(batch: int = 2, tokens: int = 5, features: int = 7, seed: int = 0, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, tokens, features, generator=generator, dtype=torch.float64)


def angle(a: Any, b: Any, clamp: float) -> float:
    cosine = float(a @ b) / ((float(a.norm()) + 0.01) * (float(b.norm()) + 0.01))
    return math.acos(min(max(cosine, clamp - 1), 1 - clamp)) / math.pi


def pearson(a: Any, b: Any) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def written_out(name: Name, rows: Any, shape: Shape) -> float:
    """One sequence, as the papers print it."""
    count = len(rows)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    if name == "angular_spread":
        total = sum(math.exp(-angle(rows[i], rows[j], shape.clamp) / shape.temperature) for i, j in pairs)
        return math.log(total / (len(pairs) if shape.form == "code" else 1))
    if name == "orthogonalization":
        return sum(max(0.0, 0.5 - angle(rows[i], rows[j], shape.clamp)) ** 2 for i, j in pairs) / len(pairs)
    if name == "l2_repel":
        if shape.form == "code":
            pairs += [(i, i) for i in range(count)]
        total = sum(math.exp(-float((rows[i] - rows[j]).square().sum()) / shape.temperature) for i, j in pairs)
        if shape.form == "code":
            return math.log(total / len(pairs)) + 0.1 * float(rows.square().mean())
        return math.log(total) + 0.1 * float(rows.square().sum())
    if shape.form == "code":
        return sum(pearson(rows[i], rows[j]) ** 2 for i, j in pairs) / len(pairs)
    width = rows.shape[1]
    return sum(pearson(rows[:, m], rows[:, n]) ** 2 for m in range(width) for n in range(width) if m != n)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 1000), temperature=st.sampled_from([0.1, 0.5, 1.0]), clamp=st.sampled_from([0.1, 0.25]))
@settings(max_examples=15, deadline=None)
def test_a_loss_is_its_formula(name: Name, form: Form, seed: int, temperature: float, clamp: float) -> None:
    shape = Shape(temperature, clamp, form)
    given_states = states(seed=seed, scale=0.7)
    expected = sum(written_out(name, rows, shape) for rows in given_states) / len(given_states)
    assert float(LOSSES[name](given_states, shape)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_differences(name: Name, form: Form) -> None:
    """Away from the clamp, whose gradient is on purpose not that of its value."""
    given_states = states(batch=1, tokens=4, features=9).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, Shape(0.5, 0.01, form)), (given_states,))


@pytest.mark.parametrize("loss", [angular_spread, orthogonalization])
@pytest.mark.parametrize("clamp", [0.1, 0.25])
def test_tokens_that_point_the_same_way_are_pushed_apart_with_the_gradient_of_the_boundary(
    loss: Any, clamp: float
) -> None:
    def slope(cosine: float) -> float:
        """Of the loss along the angle, by a second token that turns away from the first."""
        turn = torch.tensor(math.acos(cosine), dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(())
        rows = 1e6 * torch.stack([torch.stack([zero + 1, zero]), torch.stack([torch.cos(turn), torch.sin(turn)])])
        torch.autograd.backward(loss(rows[None].double(), Shape(clamp=clamp)))
        return float(turn.grad) / -math.sin(math.acos(cosine))  # per cosine

    assert slope(1 - clamp / 2) == pytest.approx(slope(1 - clamp - 1e-9), rel=1e-5)
    assert slope(1 - clamp / 2) > 0


def test_what_the_values_mean() -> None:
    """One direction, right angles, and the limits of the clamp, as arXiv:2602.00217's defaults give them."""
    one = torch.ones(1, 6, 8)
    assert float(angular_spread(one)) == pytest.approx(-math.acos(0.75) / math.pi, abs=1e-6)
    apart = 1e3 * torch.eye(6)[None]
    assert float(angular_spread(apart)) == pytest.approx(-0.5, abs=1e-6)
    assert float(orthogonalization(apart)) == pytest.approx(0, abs=1e-9)
    assert float(angular_spread(one, Shape(temperature=0.5))) == pytest.approx(-2 * math.acos(0.75) / math.pi, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_sequences_do_not_see_each_other(name: Name) -> None:
    both = states(batch=2)
    alone = [float(LOSSES[name](rows[None], Shape())) for rows in both]
    assert float(LOSSES[name](both, Shape())) == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["same", "zero", "large"])
def test_no_input_gives_a_gradient_that_is_not_a_number(name: Name, what: str) -> None:
    rows = {"same": torch.ones(1, 4, 6), "zero": torch.zeros(1, 4, 6), "large": 1e15 * torch.ones(1, 4, 6)}[what]
    rows.requires_grad_(True)
    loss = LOSSES[name](rows, Shape())
    torch.autograd.backward(loss)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(rows.grad).all())


@pytest.mark.parametrize("shape", [(4, 6), (1, 1, 6), (1, 4, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_dispersed_is_refused(name: Name, shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="cannot be dispersed"):
        LOSSES[name](torch.ones(shape), Shape())


def test_what_all_tokens_have_in_common_costs_no_digits() -> None:
    """Massive activations are ten thousand times as large as the rest of a layer's states."""
    rows = states(batch=1, tokens=6, features=8, scale=0.3)
    moved = rows.clone()
    moved[..., 3] += 24_000.0
    expected = (rows[:, :, None] - rows[:, None]).square().sum(-1)
    # Of 24,000 a float32 keeps two thousandths: no more is lost.
    assert torch.allclose(_squared_distances(moved.float()).double(), expected, atol=1e-2)


def test_a_constant_token_correlates_with_nothing() -> None:
    assert float(LOSSES["decorrelation"](torch.full((1, 4, 8), 0.1), Shape())) < 1e-3


@pytest.mark.parametrize(
    "wrong", [{"form": "nonsense"}, {"temperature": 0.0}, {"temperature": math.nan}, {"clamp": 0.0}, {"clamp": 1.0}]
)
def test_constants_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Shape(**wrong)


# -- layers


@pytest.mark.parametrize(
    ("blocks", "layers", "expected"),
    [(5, "all", [0, 1, 2, 3, 4]), (5, "last", [4]), (5, "early_half", [0, 1]), (5, "late_half", [2, 3, 4]),
     (1, "early_half", [0]), (1, "late_half", [0])],
)  # fmt: skip
def test_the_layers_of_a_selection(blocks: int, layers: Layers, expected: list[int]) -> None:
    assert list(chosen(blocks, layers)) == expected


def test_the_embedding_is_left_out_and_the_layers_are_averaged() -> None:
    hidden = [states(seed=seed) for seed in range(5)]
    found = Dispersion(layers="late_half")(hidden, torch.Generator())
    expected = (angular_spread(hidden[3]) + angular_spread(hidden[4])) / 2
    assert float(found) == pytest.approx(float(expected))


def test_long_sequences_are_sampled_by_seed_the_same_in_all_layers() -> None:
    one = states(tokens=40)
    hidden = [one, one, one]
    asked = Dispersion(layers="all", tokens=8)
    first, again, other = (float(asked(hidden, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1))
    assert first == again != other
    single = Dispersion(layers="last", tokens=8)(hidden, torch.Generator().manual_seed(0))
    assert float(single) == pytest.approx(first)


@pytest.mark.parametrize("wrong", [{"loss": "spread"}, {"tokens": 1}])
def test_a_dispersion_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Dispersion(**wrong)


def test_a_selection_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match="middle of 4 layers"):
        chosen(4, "middle")  # type: ignore[arg-type]
