"""Fake quantization computes with what the file will hold, and its gradients are those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgekit.dispersion.fake import FakeQuantized, attach, detach  # noqa: E402
from edgekit.engines.base import F32  # noqa: E402
from edgekit.errors import BadWeightsError, GridError  # noqa: E402
from edgekit.grids import get  # noqa: E402

FORMATS = (
    "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "int4-sym-b32", "int4-asym-b32",
    "int3-sym-b32", "int8-sym-b128",
)  # fmt: skip
FREE = tuple(name for name in FORMATS if "_K" not in name)


def matrix(rows: int = 4, columns: int = 256, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("grid", FORMATS)
@given(seed=st.integers(0, 10_000), drift=st.sampled_from([0.0, 0.01, 0.5]))
@settings(max_examples=8, deadline=None)
def test_what_is_computed_with_is_what_is_stored(grid: str, seed: int, drift: float) -> None:
    """Bit for bit, also after weights and steps have moved, and through the format's bytes."""
    weights = matrix(seed=seed)
    made = FakeQuantized(get(grid).quantize(weights))
    moved = torch.from_numpy(weights + drift * matrix(seed=seed + 1))
    with torch.no_grad():
        if made.steps.requires_grad:
            made.steps.mul_(1 + drift * torch.rand(made.steps.shape, generator=torch.Generator().manual_seed(seed)))
    stored = made.quantized(moved)
    known = get(grid)
    again = known.unpack(known.pack(stored), stored.shape)
    np.testing.assert_array_equal(known.dequantize(again), made(moved).detach().numpy())


@pytest.mark.parametrize("grid", FORMATS)
def test_a_start_on_the_grid_stays_where_it_is(grid: str) -> None:
    start = get(grid).quantize(matrix())
    values = get(grid).dequantize(start)
    np.testing.assert_allclose(FakeQuantized(start)(torch.from_numpy(values)).detach().numpy(), values, atol=1e-7)


@pytest.mark.parametrize("grid", ["int4-sym-b32", "Q4_0", "IQ4_NL"])
def test_gradients_are_straight_through_inside_the_range_and_none_outside(grid: str) -> None:
    weights = matrix(2, 64)
    made = FakeQuantized(get(grid).quantize(weights))
    own = torch.from_numpy(weights).clone()
    own[0, 3], own[1, 40] = 10.0, -10.0
    own.requires_grad_(True)
    pull = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((made(own) * pull).sum())
    expected = pull.clone()
    expected[0, 3] = expected[1, 40] = 0
    reach = made.steps.detach() * (made._levels - made._zeros)  # (rows, groups, levels)
    low, high = (end.repeat_interleave(32, 1) for end in (reach.amin(2), reach.amax(2)))
    inside = (own.detach() >= low) & (own.detach() <= high)
    assert int((~inside).sum()) < 12
    assert torch.allclose(own.grad[inside], expected[inside], atol=1e-5)
    assert not own.grad[0, 3]
    assert not own.grad[1, 40]


def test_the_gradient_of_a_step_is_that_of_lsq() -> None:
    weights = matrix(2, 64)
    made = FakeQuantized(get("int4-sym-b32").quantize(weights))
    own = torch.from_numpy(weights).clone()
    own[0, 3] = 10.0
    pull = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((made(own) * pull).sum())
    steps = made.steps.detach()
    position = own.reshape(2, 2, 32) / steps  # of levels that the zero point makes symmetric
    level = position.round().clamp(-8, 7)
    slope = torch.where((position < -8) | (position > 7), level, level - position)
    expected = (slope * pull.reshape(2, 2, 32)).sum(2, keepdim=True) / (32 * 8) ** 0.5
    assert torch.allclose(made.steps.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", FREE)
def test_training_on_the_grid_lowers_the_error_of_the_output(grid: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(256, 8, bias=False)
    weights = matrix(8)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights))
    inputs = torch.randn(32, 20, generator=generator) @ torch.randn(20, 256, generator=generator)
    wanted = inputs @ torch.from_numpy(weights).t()
    made = attach(linear, get(grid).quantize(weights))
    before = float((linear(inputs) - wanted).detach().square().mean())
    trained = [{"params": [linear.parametrizations.weight.original], "lr": 1e-4}, {"params": [made.steps], "lr": 1e-6}]
    optimizer = torch.optim.Adam(trained)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward((linear(inputs) - wanted).square().mean())
        optimizer.step()
    after = float((linear(inputs) - wanted).detach().square().mean())
    assert after < 0.8 * before
    values, stored = detach(linear)
    np.testing.assert_array_equal(get(grid).dequantize(stored), values.numpy())
    assert list(dict(linear.named_parameters())) == ["weight"]


def test_a_module_that_stores_its_weight_the_other_way_round() -> None:
    from transformers.pytorch_utils import Conv1D

    weights = matrix()
    module = Conv1D(4, 256)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weights.T.copy()))
    attach(module, get("Q4_0").quantize(weights), transposed=True)
    assert tuple(module.weight.shape) == (256, 4)
    values, stored = detach(module)
    np.testing.assert_array_equal(get("Q4_0").dequantize(stored), values.numpy().T)


def test_steps_are_not_learned_where_they_cannot_be_stored_or_shall_not_be() -> None:
    assert not FakeQuantized(get("Q4_K").quantize(matrix())).steps.requires_grad
    assert not FakeQuantized(get("Q4_0").quantize(matrix()), learn=False).steps.requires_grad


def test_a_group_of_zeros_stays_zero_and_has_finite_gradients() -> None:
    weights = matrix()
    weights[1, 32:64] = 0
    made = FakeQuantized(get("Q4_0").quantize(weights))
    own = torch.from_numpy(weights).requires_grad_(True)
    values = made(own)
    torch.autograd.backward(values.square().sum())
    assert not values[1, 32:64].any()
    assert bool(torch.isfinite(own.grad).all())
    assert bool(torch.isfinite(made.steps.grad).all())


def test_formats_without_a_code_for_each_weight_are_refused() -> None:
    for grid in ("IQ3_S", "F16"):
        with pytest.raises(GridError, match="no code of its own"):
            FakeQuantized(get(grid).quantize(matrix()))


def test_a_module_that_is_another_is_refused() -> None:
    start = get("Q4_0").quantize(matrix())
    with pytest.raises(GridError, match=r"\(256, 4\)"):
        attach(torch.nn.Linear(4, 256, bias=False), start)
    with pytest.raises(GridError, match="bfloat16"):
        attach(torch.nn.Linear(256, 4, bias=False).bfloat16(), start)
    twice = torch.nn.Linear(256, 4, bias=False)
    attach(twice, start)
    with pytest.raises(GridError, match="already"):
        attach(twice, start)


def test_a_training_that_diverged_is_not_stored() -> None:
    weights = matrix()
    made = FakeQuantized(get("IQ4_NL").quantize(weights))
    weights[0, 0] = np.nan
    with pytest.raises(BadWeightsError, match="NaN or infinite"):
        made.quantized(torch.from_numpy(weights))
