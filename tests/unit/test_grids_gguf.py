"""GGUF grids against gguf-py and against ggml itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import BadWeightsError, MissingDependencyError
from edgekit.grids import ggml
from edgekit.grids.base import Quantized
from edgekit.grids.ggml_types import TYPES, GgmlType, type_of_id
from edgekit.grids.gguf import GGUF_GRIDS, GgufGrid

needs_ggml = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
IN_GGUF_PY = [name for name in TYPES if name in gguf.GGMLQuantizationType.__members__]
LARGEST_ERROR = {
    "F32": 0.0,
    "F16": 1e-6,
    "BF16": 1e-5,
    "Q8_0": 4e-5,
    "Q6_K": 4e-4,
    "Q5_K": 2e-3,
    "Q5_1": 2e-3,
    "Q5_0": 2.5e-3,
    "Q4_K": 7e-3,
    "Q4_1": 7e-3,
    "Q4_0": 9e-3,
    "IQ4_NL": 8e-3,
    "Q3_K": 0.03,
    "IQ3_S": 0.03,
    "IQ3_XXS": 0.045,
    "Q2_0": 0.15,
}
"""Squared error over squared weights, of normally distributed weights."""


def normal(rows: int, columns: int) -> NDArray[np.float32]:
    return (np.random.default_rng(0).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def relative_error(grid: GgufGrid, quantized: Quantized, weights: NDArray[np.float32]) -> float:
    return float(((grid.dequantize(quantized) - weights) ** 2).sum() / (weights**2).sum())


# ---- bad input


def test_without_llama_cpp_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgekit\[gguf\]'"):
        ggml.library_path()


def test_a_llama_cpp_without_the_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_loader("llama_cpp", None, is_package=True)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(MissingDependencyError, match="libggml-base"):
        ggml.library_path()


@needs_ggml
def test_a_type_that_the_installed_ggml_numbers_otherwise_is_told() -> None:
    stranger = GgmlType("Q2_0", 41, 128, 34, 2)
    with pytest.raises(MissingDependencyError, match="says that type 41 is Q1_0"):
        ggml.quantize(stranger, normal(1, 128), np.ones(128, np.float32))


@needs_ggml
def test_scales_that_overflow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ggml, "quantize", lambda kind, weights, importance: np.full((1, kind.block_bytes), 0x7C, np.uint8)
    )
    grid = GGUF_GRIDS["Q4_0"]
    with pytest.raises(BadWeightsError, match="a float16 scale of Q4_0 overflow"):
        grid.quantize(normal(1, 32))


# ---- the table of types


@pytest.mark.parametrize("name", IN_GGUF_PY)
def test_ids_and_sizes_are_those_of_gguf_py(name: str) -> None:
    kind = TYPES[name]
    number = gguf.GGMLQuantizationType[name]
    assert kind.id == number.value
    assert gguf.GGML_QUANT_SIZES[number] == (kind.block, kind.block_bytes)
    assert type_of_id(kind.id) is kind


def test_only_q2_0_may_be_unknown_to_gguf_py() -> None:
    assert {*TYPES} - {*IN_GGUF_PY} <= {"Q2_0"}
    assert type_of_id(9999) is None


# ---- decoding


@pytest.mark.parametrize("name", IN_GGUF_PY)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_blocks_decode_as_in_gguf_py(name: str, seed: int) -> None:
    grid, shape = GGUF_GRIDS[name], (5, 512)
    data = np.random.default_rng(seed).integers(0, 256, (5, grid.nbytes(shape) // 5), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(data, gguf.GGMLQuantizationType[name])
    assert np.array_equal(grid.dequantize(grid.unpack({"data": data}, shape)), expected, equal_nan=True)


@needs_ggml
@pytest.mark.parametrize("name", [name for name in TYPES if name != "F32"])
def test_random_blocks_decode_as_in_ggml(name: str) -> None:
    grid, shape = GGUF_GRIDS[name], (64, 1024)
    data = np.random.default_rng(3).integers(0, 256, (64, grid.nbytes(shape) // 64), dtype=np.uint8)
    ours = grid.dequantize(grid.unpack({"data": data}, shape)).reshape(-1)
    theirs = ggml.to_float(grid.kind, data)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    finite = np.isfinite(theirs)
    # A compiler may fuse the multiplication and the addition of a scale and a minimum: one unit in the last place.
    with np.errstate(all="ignore"):
        exact = name not in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
        assert np.allclose(ours[finite], theirs[finite], rtol=0 if exact else 1e-6, atol=0 if exact else 1e-2)


@needs_ggml
@pytest.mark.parametrize("name", [name for name in TYPES if name != "F32"])
def test_quantized_weights_decode_as_in_ggml(name: str) -> None:
    grid, weights = GGUF_GRIDS[name], normal(16, 512)
    quantized = grid.quantize(weights)
    theirs = ggml.to_float(grid.kind, grid.pack(quantized)["data"]).reshape(weights.shape)
    assert np.allclose(grid.dequantize(quantized), theirs, rtol=0, atol=1e-8)


def test_the_fields_say_what_a_block_means() -> None:
    """A Q4_0 block and a Q2_0 block written by hand."""
    block = np.array([0x00, 0x3C, *[0x8F] * 16], np.uint8)  # scale 1; low nibbles 15, high nibbles 8
    found = GGUF_GRIDS["Q4_0"].unpack({"data": block}, (1, 32))
    assert found.fields["codes"].tolist() == [[7] * 16 + [0] * 16]
    assert found.fields["scales"].tolist() == [[1.0]]
    block = np.array([0x00, 0x40, *[0b11100100] * 16], np.uint8)  # scale 2; codes 0, 1, 2, 3
    decoded = GGUF_GRIDS["Q2_0"].dequantize(GGUF_GRIDS["Q2_0"].unpack({"data": block}, (1, 64)))
    assert decoded.tolist() == [[-2.0, 0.0, 2.0, 4.0] * 16]


# ---- quantizing


@needs_ggml
@pytest.mark.parametrize("name", TYPES)
def test_error_of_normal_weights(name: str) -> None:
    grid, weights = GGUF_GRIDS[name], normal(32, 1024)
    assert relative_error(grid, grid.quantize(weights), weights) <= LARGEST_ERROR[name]


@needs_ggml
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_scales_are_searched_without_importance_too(name: str) -> None:
    grid, weights = GGUF_GRIDS[name], normal(32, 1024)
    plain = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    searched = relative_error(grid, grid.quantize(weights), weights)
    assert searched < 0.95 * relative_error(grid, grid.unpack({"data": plain}, weights.shape), weights)


@needs_ggml
def test_the_search_for_q2_0_is_far_better_than_ggmls_ternary_quantizer() -> None:
    grid, weights = GGUF_GRIDS["Q2_0"], normal(32, 1024)
    ternary = ggml.quantize(grid.kind, weights, np.ones(1024, np.float32))
    theirs = relative_error(grid, grid.unpack({"data": ternary}, weights.shape), weights)
    assert relative_error(grid, grid.quantize(weights), weights) < 0.3 * theirs


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_round_as_gguf_py_does(name: str) -> None:
    grid = GGUF_GRIDS[name]
    weights = np.concatenate([normal(8, 256), normal(1, 256) * np.float32(1e-36), np.full((1, 256), 1.00390625)])
    weights = weights.astype(np.float32)
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    assert grid.pack(grid.quantize(weights))["data"].tobytes() == expected.tobytes()


def test_bf16_refuses_what_rounds_to_infinity() -> None:
    with pytest.raises(BadWeightsError, match="BF16"):
        GGUF_GRIDS["BF16"].quantize(np.full((1, 1), 3.4e38, np.float32))
