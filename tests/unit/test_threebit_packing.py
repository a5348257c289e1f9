"""The operator's bytes: exactly the grid's codes and scales, in the order that the document says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import FileFormatError, GridError
from edgekit.grids import GRIDS, Quantized
from edgekit.threebit import packing

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 200))


def matrix(name: str, shape: tuple[int, int], seed: int) -> Quantized:
    """Every code, and scales of every kind of float16: negative, zero, subnormal."""
    random, grid = np.random.default_rng(seed), packing.grid_of(name)
    codes = random.integers(grid.span[0], grid.span[1] + 1, shape, dtype=np.uint8)
    bits = random.integers(0, 1 << 16, (shape[0], grid.blocks(shape[1])), dtype=np.uint16)
    halves = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).astype(np.uint16).view(np.float16)
    return Quantized(name, shape, {"codes": codes, "scales": halves.astype(np.float32)})


def code_at(data: NDArray[Any], row: int, column: int) -> int:
    """One code read bit by bit, as docs/int3.md describes the bytes."""
    chunk = data[row // 8, column // 32]
    group, at = column % 32 // 4, row % 8 * 4 + column % 4
    planes = [int(chunk[32 * plane + at]) for plane in range(3)]
    if group < 6:
        return planes[group // 2] >> (5 * (group % 2)) & 7
    return (planes[group - 6] >> 3 & 3) | (planes[2] >> (group - 3) & 1) << 2


@given(st.sampled_from(packing.GRIDS), SHAPES, st.integers(0, 1 << 32))
def test_there_and_back_is_bit_exact(name: str, shape: tuple[int, int], seed: int) -> None:
    quantized = matrix(name, shape, seed)
    packed = packing.pack(quantized)
    again = packing.unpack(packed, name, shape)
    assert again.shape == shape
    assert again.grid == name
    np.testing.assert_array_equal(again.fields["codes"], quantized.fields["codes"])
    assert again.fields["scales"].tobytes() == quantized.fields["scales"].tobytes()
    assert sum(array.nbytes for array in packed.values()) == packing.nbytes(packing.grid_of(name), shape)
    repacked = packing.pack(again)
    assert all(repacked[key].tobytes() == packed[key].tobytes() for key in packed)


@given(st.sampled_from(packing.GRIDS), SHAPES, st.integers(0, 1 << 32))
def test_each_code_and_scale_lies_where_the_document_says(name: str, shape: tuple[int, int], seed: int) -> None:
    quantized, block = matrix(name, shape, seed), packing.grid_of(name).block
    packed = packing.pack(quantized)
    for row in {0, shape[0] - 1, seed % shape[0]}:
        for column in {0, shape[1] - 1, *range(seed % 7, shape[1], 7)}:
            assert code_at(packed["B"], row, column) == quantized.fields["codes"][row, column] - 4
            scale = packed["scales"][row // 8, column // block, row % 8]
            assert np.float32(scale) == quantized.fields["scales"][row, column // block]


@pytest.mark.parametrize(("name", "bits"), [("int3-sym-b32", 3.5), ("int3-sym-b64", 3.25)])
def test_bits_of_a_weight(name: str, bits: float) -> None:
    shape = (576, 1536)
    assert packing.nbytes(packing.grid_of(name), shape) * 8 / (shape[0] * shape[1]) == bits


@given(st.sampled_from(packing.GRIDS), SHAPES, st.integers(0, 1 << 32))
def test_weights_of_a_checkpoint(name: str, shape: tuple[int, int], seed: int) -> None:
    grid = packing.grid_of(name)
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    quantized = grid.quantize(weights)
    rounded = packing.with_half_scales(quantized)
    np.testing.assert_array_equal(rounded.fields["codes"], quantized.fields["codes"])
    np.testing.assert_allclose(rounded.fields["scales"], quantized.fields["scales"], rtol=2**-11, atol=2**-25)
    again = packing.unpack(packing.pack(rounded), name, shape)
    np.testing.assert_array_equal(grid.dequantize(again), grid.dequantize(rounded))


def test_scales_beyond_float16_are_refused() -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    huge = replace(quantized, fields={**quantized.fields, "scales": np.full((2, 1), 7e4, np.float32)})
    with pytest.raises(GridError, match="largest float16"):
        packing.with_half_scales(huge)


@pytest.mark.parametrize("scale", [1e-9, -2e-8, 1.04 * 2**-23])
def test_scales_that_float16_cannot_tell_are_refused(scale: float) -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    scales = np.array([[0], [scale]], np.float32)
    with pytest.raises(GridError, match=r"^1 of 2 scales of int3-sym-b32 change by more than 1%"):
        packing.with_half_scales(replace(quantized, fields={**quantized.fields, "scales": scales}))


@pytest.mark.parametrize("scale", [0.0, 2.0**-24, 3.1e-6, -3.1e-6, 0.1])
def test_scales_that_float16_can_tell_are_rounded(scale: float) -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    scales = np.full((2, 1), scale, np.float32)
    rounded = packing.with_half_scales(replace(quantized, fields={**quantized.fields, "scales": scales}))
    assert (np.abs(rounded.fields["scales"] - scales) <= packing.MOST_CHANGE * np.abs(scales)).all()
    packing.pack(rounded)


@pytest.mark.parametrize("value", [0.1, 7e4, np.nan, np.inf])
def test_scales_are_never_rounded_silently(value: float) -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    odd = replace(quantized, fields={**quantized.fields, "scales": np.full((2, 1), value, np.float32)})
    with pytest.raises(GridError, match="float16"):
        packing.pack(odd)


@pytest.mark.parametrize("code", [0, 3, 12, 255])
def test_codes_outside_of_the_grid_are_refused(code: int) -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    quantized.fields["codes"][1, 5] = code
    with pytest.raises(GridError, match="codes"):
        packing.pack(quantized)


@pytest.mark.parametrize("name", ["int4-sym-b32", "int3-asym-b32", "Q4_0"])
def test_other_grids_are_refused(name: str) -> None:
    assert name in GRIDS
    with pytest.raises(GridError, match=name):
        packing.pack(GRIDS[name].quantize(np.ones((8, 32), np.float32)))


def damaged(change: str) -> dict[str, NDArray[Any]]:
    packed = packing.pack(matrix("int3-sym-b32", (7, 40), 0))
    match change:
        case "no codes":
            del packed["B"]
        case "short codes":
            packed["B"] = packed["B"][:, :1]
        case "codes of another type":
            packed["B"] = packed["B"].astype(np.int8)
        case "scales of another type":
            packed["scales"] = packed["scales"].astype(np.float32)
        case "scales of another shape":
            packed["scales"] = packed["scales"].reshape(-1)
        case "code in a padded row":
            packed["B"][0, 0, 7 * 4] ^= 1
        case "code in a padded column":
            packed["B"][0, 1, 64] ^= 1
        case _:
            packed["scales"][0, 0, 7] = 1
    return packed


@pytest.mark.parametrize(
    "change",
    [
        "no codes", "short codes", "codes of another type", "scales of another type", "scales of another shape",
        "code in a padded row", "code in a padded column", "scale in a padded row",
    ],
)  # fmt: skip
def test_damaged_files_are_refused(change: str) -> None:
    with pytest.raises(FileFormatError):
        packing.unpack(damaged(change), "int3-sym-b32", (7, 40))


def test_a_matrix_without_weights_is_refused() -> None:
    with pytest.raises(GridError):
        packing.unpack(packing.pack(matrix("int3-sym-b32", (8, 32), 0)), "int3-sym-b32", (0, 32))
