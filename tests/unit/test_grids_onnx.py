"""ONNX grids against the operators of onnxruntime, and the quality of the scale search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import FileFormatError, GridError
from edgekit.grids.onnx import ONNX_GRIDS, OnnxGrid, tied_head

LINEAR = [name for name, grid in ONNX_GRIDS.items() if not grid.embedding]
EMBEDDING = [name for name, grid in ONNX_GRIDS.items() if grid.embedding]
F32 = NDArray[np.float32]


def normal(rows: int, columns: int, seed: int = 0) -> F32:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def plain_error(grid: OnnxGrid, weights: F32) -> F32:
    """Squared error (rows, blocks) of the textbook scale: largest magnitude, or minimum and maximum with a zero."""
    x = weights.reshape(len(weights), -1, grid.block).astype(np.float64)
    top = (1 << grid.nominal_bits) - 1
    if grid.symmetric:
        zero = np.full((*x.shape[:2], 1), top // 2 + 1)
        step = np.abs(x).max(axis=2, keepdims=True) / zero
    else:
        low, high = np.minimum(x.min(axis=2, keepdims=True), 0), np.maximum(x.max(axis=2, keepdims=True), 0)
        step = (high - low) / top
        zero = np.rint(-low / np.where(step == 0, 1, step))
    q = np.clip(np.rint(x / np.where(step == 0, 1, step)) + zero, 0, top)
    error: F32 = (((q - zero) * step - x) ** 2).sum(axis=2)
    return error


def search_error(grid: OnnxGrid, weights: F32) -> F32:
    difference = grid.dequantize(grid.quantize(weights)).astype(np.float64) - weights
    error: F32 = (difference.reshape(len(weights), -1, grid.block) ** 2).sum(axis=2)
    return error


def run_node(op: str, arrays: dict[str, NDArray[Any]], inputs: dict[str, NDArray[Any]], **attributes: int) -> F32:
    """The output of one com.microsoft node; its other inputs are `arrays`, in order, after or around `inputs`.

    Scales in 16 bits are widened by a node, as in our files.
    """
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    (feed, value), *_ = inputs.items()
    first, *others = arrays
    others = ["wide" if name == "scales" else name for name in others]
    names = [first, feed, *others] if op == "GatherBlockQuantized" else [feed, first, *others]
    widening = helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT)
    node = helper.make_node(op, names, ["Y"], domain="com.microsoft", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    graph = helper.make_graph(
        [widening, node],
        "one",
        [helper.make_tensor_value_info(feed, kind, list(value.shape))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    assert isinstance(model, onnx.ModelProto)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: F32 = session.run(None, inputs)[0]
    return result


def matmul(grid: OnnxGrid, arrays: dict[str, NDArray[Any]], x: F32, rows: int, *, accuracy: int = 0) -> F32:
    return run_node(
        "MatMulNBits",
        arrays,
        {"A": x},
        K=x.shape[1],
        N=rows,
        bits=grid.stored_bits,
        block_size=grid.block,
        accuracy_level=accuracy,
    )


# ---- bad input


def test_a_stored_code_outside_eight_levels_is_refused() -> None:
    grid = ONNX_GRIDS["int3-sym-b32-portable"]
    packed = grid.pack(grid.quantize(normal(2, 64)))
    packed["B"][0, 0, 0] = 0xF8
    with pytest.raises(
        FileFormatError, match="stored codes run from 4 to 15; expected 4 to 11 for int3-sym-b32-portable"
    ):
        grid.unpack(packed, (2, 64))


def test_zero_points_of_a_symmetric_grid_are_refused() -> None:
    asym, sym = ONNX_GRIDS["int4-asym-b32"], ONNX_GRIDS["int4-sym-b32"]
    with pytest.raises(FileFormatError, match="'zero_points' were given; expected none"):
        sym.unpack(asym.pack(asym.quantize(normal(2, 64))), (2, 64))


def test_only_an_embedding_can_be_tied() -> None:
    grid = ONNX_GRIDS["int4-sym-b32"]
    with pytest.raises(GridError, match="int4-sym-b32 is not an embedding format"):
        tied_head(grid, grid.pack(grid.quantize(normal(2, 64))))


# ---- layout


def test_the_lower_nibble_comes_first_and_padding_is_the_zero_point() -> None:
    grid = ONNX_GRIDS["int4-asym-b32"]
    quantized = grid.quantize(normal(3, 80))
    packed = grid.pack(quantized)
    codes, zeros = quantized.fields["codes"], quantized.fields["zero_points"]
    assert packed["B"].shape == (3, 3, 16)
    assert packed["scales"].shape == (3, 3)
    assert packed["zero_points"].shape == (3, 2)
    assert packed["B"][1, 2, 7] == codes[1, 78] | codes[1, 79] << 4
    assert (packed["B"][1, 2, 8:] == zeros[1, 2] * 17).all()
    assert packed["zero_points"][1].tolist() == [zeros[1, 0] | zeros[1, 1] << 4, zeros[1, 2]]
    assert sum(array.nbytes for array in packed.values()) == grid.nbytes((3, 80))


@pytest.mark.parametrize("name", LINEAR)
def test_rows_with_a_short_last_block_survive_pack_and_unpack(name: str) -> None:
    grid = ONNX_GRIDS[name]
    quantized = grid.quantize(normal(5, 200))
    back = grid.unpack(grid.pack(quantized), (5, 200))
    for key, array in quantized.fields.items():
        assert np.array_equal(back.fields[key], array)


def test_three_bit_codes_use_eight_levels_around_the_stock_zero_point() -> None:
    codes = ONNX_GRIDS["int3-sym-b32-portable"].quantize(normal(64, 256)).fields["codes"]
    assert (codes.min(), codes.max()) == (4, 11)
    asym = ONNX_GRIDS["int3-asym-b64-portable"].quantize(normal(64, 256)).fields
    assert (asym["codes"].min(), asym["codes"].max()) == (0, 7)
    assert asym["zero_points"].max() <= 7


# ---- onnxruntime computes what we decode


@pytest.mark.parametrize(("rows", "columns"), [(33, 576), (7, 80), (64, 256)])
@pytest.mark.parametrize("name", LINEAR)
def test_matmulnbits_multiplies_by_the_decoded_weights(name: str, rows: int, columns: int) -> None:
    grid = ONNX_GRIDS[name]
    quantized = grid.quantize(normal(rows, columns) + np.float32(0.01))
    x = normal(3, columns, seed=1) * np.float32(50)
    expected = x @ grid.dequantize(quantized).T
    found = matmul(grid, grid.pack(quantized), x, rows)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name", ["int4-sym-b32", "int4-asym-b64", "int8-sym-b32", "int8-asym-b128", "int3-sym-b32-portable"]
)
def test_the_fast_kernel_agrees_within_the_error_of_eight_bit_activations(name: str) -> None:
    grid = ONNX_GRIDS[name]
    quantized = grid.quantize(normal(96, 512))
    assert (quantized.fields["scales"] < 0).any() == grid.symmetric
    x = normal(1, 512, seed=1) * np.float32(50)
    expected = x @ grid.dequantize(quantized).T
    found = matmul(grid, grid.pack(quantized), x, 96, accuracy=4)
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("name", EMBEDDING)
def test_one_memory_serves_the_embedding_and_the_tied_head(name: str) -> None:
    grid, rows, columns = ONNX_GRIDS[name], 41, 384
    quantized = grid.quantize(normal(rows, columns))
    packed = grid.pack(quantized)
    weights = grid.dequantize(quantized)
    ids = np.array([[0, 40, 7], [7, 1, 39]], np.int64)
    attributes = {"bits": grid.stored_bits, "block_size": grid.block, "gather_axis": 0, "quantize_axis": 1}
    found = run_node("GatherBlockQuantized", packed, {"ids": ids}, **attributes)
    assert np.array_equal(found, weights[ids])

    head = tied_head(grid, packed)
    assert all(np.shares_memory(head["B" if key == "data" else key], array) for key, array in packed.items())
    x = normal(2, columns, seed=1) * np.float32(50)
    expected = x @ weights.T
    assert np.abs(matmul(grid, head, x, rows) - expected).max() < 1e-5 * np.abs(expected).max()


# ---- quality of the search


@pytest.mark.parametrize("name", ONNX_GRIDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 0.5, 2.0]), shift=st.sampled_from([0.0, 1.0]))
def test_no_block_is_worse_than_with_the_plain_scale(name: str, seed: int, spread: float, shift: float) -> None:
    grid = ONNX_GRIDS[name]
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((4, 256)) * np.exp(spread * rng.standard_normal((4, 256))) + shift
    matrix = weights.astype(np.float32)
    plain = plain_error(grid, matrix)
    # What rounding a step to 16 bits can cost: a part in 2048 of every weight.
    half = grid.block * (np.abs(matrix).reshape(4, -1, grid.block).max(axis=2) / 2048) ** 2
    assert (search_error(grid, matrix) <= plain * (1 + 1e-4) + half).all()


@pytest.mark.parametrize(
    ("name", "share"), [("int4-sym-b32", 0.95), ("int4-asym-b128", 0.93), ("int3-sym-b64-portable", 0.92)]
)
def test_the_search_lowers_the_error_of_normal_weights(name: str, share: float) -> None:
    grid, weights = ONNX_GRIDS[name], normal(64, 1024)
    assert search_error(grid, weights).sum() < share * plain_error(grid, weights).sum()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-(2.0**14), 2.0**14, width=32), min_size=32, max_size=32))
def test_any_block_is_within_one_step_of_its_codes(values: list[float]) -> None:
    weights = np.array([values], np.float32)
    grid, before = ONNX_GRIDS["int4-sym-b32"], weights.copy()
    error = np.abs(grid.dequantize(grid.quantize(weights)).astype(np.float64) - weights).max()
    # The plain scale is within one step of every weight, so the sum of squares is at most 32 steps squared; float16
    # holds a scale within a part in 2048 of it, or within 2⁻²⁵.
    assert error <= np.sqrt(32) * np.abs(weights).max() / 8 * (1 + 2**-10) + 8 * 2.0**-25
    assert np.array_equal(weights, before)
