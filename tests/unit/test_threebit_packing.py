"""The operator's bytes: exactly the grid's codes and scales, in the order that the document says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError, FileFormatError, GridError
from edgekit.grids import Quantized, get
from edgekit.grids.threebit import THREE_BIT_GRIDS, portable

NAMES = tuple(THREE_BIT_GRIDS)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[str, tuple[int, int]]:
    """A format and a shape that it takes."""
    name = draw(st.sampled_from(NAMES))
    multiple = THREE_BIT_GRIDS[name].row_multiple
    return name, (draw(st.integers(1, 40)), multiple * draw(st.integers(1, 200 // multiple)))


def matrix(name: str, shape: tuple[int, int], seed: int) -> Quantized:
    """Every code, and scales of every kind of float16: negative, zero, subnormal."""
    random, grid = np.random.default_rng(seed), THREE_BIT_GRIDS[name]
    codes = random.integers(grid.span[0], grid.span[1] + 1, shape, dtype=np.uint8)
    bits = random.integers(0, 1 << 16, (shape[0], grid.blocks(shape[1])), dtype=np.uint16)
    halves = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).astype(np.uint16).view(np.float16)
    return Quantized(name, shape, {"codes": codes, "scales": halves})


def code_at(data: NDArray[Any], row: int, column: int) -> int:
    """One code read bit by bit, as docs/int3.md describes the bytes."""
    chunk = data[row // 8, column // 32]
    group, at = column % 32 // 4, row % 8 * 4 + column % 4
    planes = [int(chunk[32 * plane + at]) for plane in range(3)]
    if group < 6:
        return planes[group // 2] >> (5 * (group % 2)) & 7
    return (planes[group - 6] >> 3 & 3) | (planes[2] >> (group - 3) & 1) << 2


@given(matrices(), st.integers(0, 1 << 32))
def test_there_and_back_is_bit_exact(named: tuple[str, tuple[int, int]], seed: int) -> None:
    name, shape = named
    quantized = matrix(name, shape, seed)
    grid = get(name)
    packed = grid.pack(quantized)
    again = grid.unpack(packed, shape)
    assert again.shape == shape
    assert again.grid == name
    np.testing.assert_array_equal(again.fields["codes"], quantized.fields["codes"])
    assert again.fields["scales"].tobytes() == quantized.fields["scales"].tobytes()
    assert sum(array.nbytes for array in packed.values()) == get(name).nbytes(shape)
    repacked = grid.pack(again)
    assert all(repacked[key].tobytes() == packed[key].tobytes() for key in packed)


@given(matrices(), st.integers(0, 1 << 32))
def test_each_code_and_scale_lies_where_the_document_says(named: tuple[str, tuple[int, int]], seed: int) -> None:
    name, shape = named
    quantized, block = matrix(name, shape, seed), get(name).block
    packed = get(name).pack(quantized)
    for row in {0, shape[0] - 1, seed % shape[0]}:
        for column in {0, shape[1] - 1, *range(seed % 7, shape[1], 7)}:
            assert code_at(packed["B"], row, column) == quantized.fields["codes"][row, column]
            scale = packed["scales"][row // 8, column // block, row % 8]
            assert scale == quantized.fields["scales"][row, column // block]


@pytest.mark.parametrize(("name", "bits"), [("int3-sym-b32", 3.5), ("int3-sym-b64", 3.25)])
def test_bits_of_a_weight(name: str, bits: float) -> None:
    shape = (576, 1536)
    assert get(name).nbytes(shape) * 8 / (shape[0] * shape[1]) == bits


@given(matrices(), st.integers(0, 1 << 32))
def test_weights_of_a_checkpoint(named: tuple[str, tuple[int, int]], seed: int) -> None:
    """Stock onnxruntime's form holds the very same weights."""
    name, shape = named
    grid = get(name)
    quantized = grid.quantize(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    stock = portable(quantized)
    assert stock.grid == f"{name}-portable"
    np.testing.assert_array_equal(get(stock.grid).dequantize(stock), grid.dequantize(quantized))
    again = grid.unpack(grid.pack(quantized), shape)
    np.testing.assert_array_equal(grid.dequantize(again), grid.dequantize(quantized))


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(BadWeightsError, match="magnitude 70000; expected at most 32752"):
        get("int3-sym-b32").quantize(np.full((2, 32), 7e4, np.float32))


@pytest.mark.parametrize("code", [8, 255])
def test_codes_outside_of_the_grid_are_refused(code: int) -> None:
    quantized = matrix("int3-sym-b32", (2, 32), 0)
    quantized.fields["codes"][1, 5] = code
    with pytest.raises(GridError, match="codes"):
        get("int3-sym-b32").pack(quantized)


@pytest.mark.parametrize("name", ["int4-sym-b32", "int3-asym-b32-portable", "int3-sym-b64-portable", "Q4_0"])
def test_other_grids_have_no_portable_form(name: str) -> None:
    with pytest.raises(GridError, match=name):
        portable(get(name).quantize(np.ones((8, 64), np.float32)))


def damaged(change: str) -> dict[str, NDArray[Any]]:
    packed = get("int3-sym-b32").pack(matrix("int3-sym-b32", (7, 40), 0))
    match change:
        case "no codes":
            del packed["B"]
        case "short codes":
            packed["B"] = packed["B"][:, :1]
        case "codes of another type":
            packed["B"] = packed["B"].astype(np.int8)
        case "scales of another type":
            packed["scales"] = packed["scales"].astype(np.float32)
        case "few scales":
            packed["scales"] = packed["scales"][:, :1]
        case "zero points":
            packed["zero_points"] = np.zeros(1, np.uint8)
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
        "no codes", "short codes", "codes of another type", "scales of another type", "few scales", "zero points",
        "code in a padded row", "code in a padded column", "scale in a padded row",
    ],
)  # fmt: skip
def test_damaged_files_are_refused(change: str) -> None:
    with pytest.raises(FileFormatError):
        get("int3-sym-b32").unpack(damaged(change), (7, 40))


def test_a_matrix_without_weights_is_refused() -> None:
    with pytest.raises(GridError):
        get("int3-sym-b32").unpack(get("int3-sym-b32").pack(matrix("int3-sym-b32", (8, 32), 0)), (0, 32))
