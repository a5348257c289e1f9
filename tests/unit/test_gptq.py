"""Rounding by GPTQ, coordinate descent and least squares: never worse than nearest codes, always storable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError
from edgekit.grids import GRIDS, get
from edgekit.grids.scalar import is_scalar, scalar, with_codes
from edgekit.quantize.gptq import output_error, round_matrix

F32 = NDArray[np.float32]
SCALAR = sorted(name for name in GRIDS if is_scalar(name))
CHEAP = (
    "Q4_0",
    "Q4_1",
    "IQ4_NL",
    "Q3_K",
    "Q4_K",
    "Q2_0",
    "int4-sym-b32",
    "int4-asym-b32",
    "int3-asym-b64-portable",
    "int3-sym-b64",
)


def _weights(rows: int, columns: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32) * np.float32(0.05)


def _moment(columns: int, seed: int = 1, rank: int | None = None) -> F32:
    """Of correlated inputs, some much larger than others."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rank or 2 * columns, columns)) @ generator.normal(size=(columns, columns))
    inputs *= np.exp(generator.normal(size=columns))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def _error(weights: F32, moment: F32, grid: str, **settings: int) -> float:
    found = round_matrix(weights, moment, grid, **settings)  # type: ignore[arg-type]
    return output_error(weights, get(grid).dequantize(found), moment)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_moment_that_is_not_finite_is_refused(bad: float) -> None:
    moment = _moment(64)
    moment[3, 5] = bad
    with pytest.raises(BadWeightsError, match="second moment"):
        round_matrix(_weights(2, 64), moment, "Q4_0")


def test_a_moment_of_another_width_is_refused() -> None:
    with pytest.raises(BadWeightsError, match=r"\(64, 64\)"):
        round_matrix(_weights(2, 64), _moment(32), "Q4_0")


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = _weights(2, 64)
    weights[1, 1] = np.nan
    with pytest.raises(BadWeightsError):
        round_matrix(weights, _moment(64), "Q4_0")


@pytest.mark.parametrize("grid", SCALAR)
def test_every_format_says_what_its_codes_mean(grid: str) -> None:
    columns = max(get(grid).row_multiple, 64)
    quantized = get(grid).quantize(_weights(5, columns))
    form = scalar(quantized)
    assert form is not None
    index = quantized.fields["codes"].astype(int) - form.first
    step, zero, offset = (np.repeat(a, form.group, axis=1)[:, :columns] for a in (form.steps, form.zeros, form.offsets))
    np.testing.assert_array_equal(step * (form.levels[index] - zero) + offset, get(grid).dequantize(quantized))
    again = with_codes(quantized, form, index)
    assert all(np.array_equal(again.fields[name], quantized.fields[name]) for name in quantized.fields)


@pytest.mark.parametrize("grid", SCALAR)
def test_the_error_is_below_the_nearest_codes_and_the_file_can_hold_them(grid: str) -> None:
    columns = max(get(grid).row_multiple, 96 if get(grid).row_multiple in (1, 32) else 128)
    weights, moment = _weights(9, columns), _moment(columns)
    found = round_matrix(weights, moment, grid)
    own = get(grid)
    assert own.unpack(own.pack(found), found.shape).fields.keys() == found.fields.keys()
    nearest = output_error(weights, own.dequantize(own.quantize(weights, moment.diagonal().copy())), moment)
    assert output_error(weights, own.dequantize(found), moment) <= nearest * 1.02
    if own.nominal_bits <= 4:
        assert output_error(weights, own.dequantize(found), moment) < 0.8 * nearest


@pytest.mark.parametrize("grid", ["F16", "IQ3_XXS"])
def test_other_formats_keep_their_own_quantizer(grid: str) -> None:
    weights, moment = _weights(3, 256), _moment(256)
    found, own = round_matrix(weights, moment, grid), get(grid).quantize(weights, moment.diagonal().copy())
    assert all(np.array_equal(found.fields[name], own.fields[name]) for name in own.fields)


def test_refinement_lowers_the_error() -> None:
    weights, moment = _weights(24, 128), _moment(128)
    plain, refined = (_error(weights, moment, "int3-sym-b32", refinements=count) for count in (0, 2))
    assert refined < 0.97 * plain


def test_a_row_does_not_depend_on_the_others() -> None:
    weights, moment = _weights(7, 64), _moment(64)
    whole, part = round_matrix(weights, moment, "Q4_0"), round_matrix(weights[2:4], moment, "Q4_0")
    assert np.array_equal(whole.fields["codes"][2:4], part.fields["codes"])


@settings(max_examples=25, deadline=None)
@given(
    grid=st.sampled_from(CHEAP),
    rows=st.integers(1, 6),
    blocks=st.integers(1, 3),
    rank=st.integers(1, 40),
    seed=st.integers(0, 99),
    dead=st.booleans(),
)
def test_any_moment_gives_codes_that_the_file_can_hold(
    grid: str, rows: int, blocks: int, rank: int, seed: int, dead: bool
) -> None:
    own = get(grid)
    columns = blocks * own.row_multiple if own.row_multiple > 1 else blocks * 32 + 5
    weights, moment = _weights(rows, columns, seed), _moment(columns, seed, rank)
    if dead:
        weights[:, ::3], moment[::3], moment[:, ::3] = 0, 0, 0
    found = round_matrix(weights, moment, grid)
    packed = own.pack(found)
    again = own.unpack(packed, found.shape)
    assert all(np.array_equal(again.fields[name], found.fields[name]) for name in found.fields)
    assert np.isfinite(own.dequantize(found)).all()


def test_inputs_that_are_always_zero_keep_their_nearest_codes_finite() -> None:
    found = round_matrix(_weights(4, 64), np.zeros((64, 64), np.float32), "Q4_0")
    assert np.isfinite(get("Q4_0").dequantize(found)).all()
