"""The bytes of the operator that skips columns: exactly the grid's codes and scales, in the order of the document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import FileFormatError
from edgekit.grids import Quantized, get
from edgekit.grids.threebit_columns import SPARSE_GRIDS

NAMES = tuple(SPARSE_GRIDS)
SHAPES = st.tuples(st.sampled_from([1, 40, 64, 65, 130, 192, 256, 257, 448, 576]), st.integers(1, 140))


def matrix(name: str, shape: tuple[int, int], seed: int = 0) -> Quantized:
    random, grid = np.random.default_rng(seed), SPARSE_GRIDS[name]
    scales = random.standard_normal((shape[0], grid.blocks(shape[1]))).astype(np.float16)
    return Quantized(name, shape, {"codes": random.integers(0, 8, shape, dtype=np.uint8), "scales": scales})


def code_at(data: NDArray[Any], rows: int, row: int, column: int) -> int:
    """One code read bit by bit, as docs/int3.md describes the bytes."""
    unit, plane = row // 256, min(256, rows - row // 256 * 256) // 8
    group, at = row % 256 // plane, row % 256 % plane
    planes = [int(data[column, 96 * unit + plane * index + at]) for index in range(3)]
    if group < 6:
        return planes[group // 2] >> (5 * (group % 2)) & 7
    return (planes[group - 6] >> 3 & 3) | (planes[2] >> (group - 3) & 1) << 2


@given(st.sampled_from(NAMES), SHAPES, st.integers(0, 1 << 32))
def test_there_and_back_is_bit_exact(name: str, shape: tuple[int, int], seed: int) -> None:
    quantized, grid = matrix(name, shape, seed), get(name)
    packed = grid.pack(quantized)
    again = grid.unpack(packed, shape)
    np.testing.assert_array_equal(again.fields["codes"], quantized.fields["codes"])
    assert again.fields["scales"].tobytes() == quantized.fields["scales"].tobytes()
    assert sum(array.nbytes for array in packed.values()) == grid.nbytes(shape)
    padded = packed["scales"].shape[1]
    for row in {0, shape[0] - 1, seed % shape[0]}:
        for column in {0, shape[1] - 1, seed % shape[1]}:
            assert code_at(packed["B"], padded, row, column) == quantized.fields["codes"][row, column]
            assert packed["scales"][column // grid.block, row] == quantized.fields["scales"][row, column // grid.block]


@given(SHAPES, st.integers(0, 1 << 32))
def test_the_weights_are_those_of_the_dense_grid(shape: tuple[int, int], seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    dense, sparse = (get(name) for name in ("int3-sym-b32", "int3-sym-b32-sparse"))
    np.testing.assert_array_equal(
        sparse.dequantize(sparse.quantize(weights)), dense.dequantize(dense.quantize(weights))
    )


@pytest.mark.parametrize(("name", "bits"), [("int3-sym-b32-sparse", 3.5), ("int3-sym-b64-sparse", 3.25)])
def test_bits_of_a_weight(name: str, bits: float) -> None:
    assert get(name).nbytes((576, 1536)) * 8 / (576 * 1536) == bits


def damaged(change: str) -> dict[str, NDArray[Any]]:
    packed = get("int3-sym-b32-sparse").pack(matrix("int3-sym-b32-sparse", (60, 40)))
    match change:
        case "no codes":
            del packed["B"]
        case "short codes":
            packed["B"] = packed["B"][:, :1]
        case "scales of another type":
            packed["scales"] = packed["scales"].astype(np.float32)
        case "zero points":
            packed["zero_points"] = np.zeros(1, np.uint8)
        case "code in a padded row":
            packed["B"][0, 7 + 8] ^= 1 << 3  # byte 7 of plane 1 has group 7: row 63
        case "code in a padded column":
            packed["B"][40, 0] ^= 1
        case _:
            packed["scales"][0, 60] = 1
    return packed


@pytest.mark.parametrize(
    "change",
    [
        "no codes",
        "short codes",
        "scales of another type",
        "zero points",
        "code in a padded row",
        "code in a padded column",
        "padded scale",
    ],
)
def test_damaged_arrays_are_refused(change: str) -> None:
    with pytest.raises(FileFormatError):
        get("int3-sym-b32-sparse").unpack(damaged(change), (60, 40))
