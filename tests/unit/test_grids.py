"""What every grid promises: the registry, bad input, round trips, independence of threads, the effect of importance."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgekit.grids as grids
from edgekit.errors import BadWeightsError, FileFormatError, GridError
from edgekit.grids import GRIDS, Grid, Quantized, get, parallel
from edgekit.grids.threebit import ThreeBitGrid
from edgekit.grids.threebit_columns import SparseThreeBitGrid

HAS_GGML = importlib.util.find_spec("llama_cpp") is not None
PLAIN = ("F32", "F16", "BF16")
OWN = [name for name, grid in GRIDS.items() if grid.container == "onnx" or name in (*PLAIN, "Q2_0")]
ALL = [
    pytest.param(name, marks=[] if name in OWN or HAS_GGML else pytest.mark.skip("needs llama-cpp-python"))
    for name in GRIDS
]


def normal(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def random_bytes(grid: Grid, shape: tuple[int, int], seed: int) -> dict[str, NDArray[Any]]:
    """A packed matrix of random bytes, of the arrays and sizes that `grid` writes."""
    rng = np.random.default_rng(seed)
    own = grid if grid.name in OWN else get("F32")
    template = own.pack(own.quantize(np.zeros(shape, np.float32)))
    if grid.nominal_bits < grid.stored_bits:
        return template  # half of the nibbles mean nothing to a 3-bit grid
    if own is not grid:
        template = {"data": np.zeros((shape[0], grid.nbytes(shape) // shape[0]), np.uint8)}
    return {
        name: rng.integers(0, 256, array.nbytes, dtype=np.uint8).view(array.dtype).reshape(array.shape)
        for name, array in template.items()
    }


# ---- bad input


def test_get_names_the_nearest_formats() -> None:
    with pytest.raises(GridError, match=r"'q4_k' is not a number format; expected Q4_K"):
        get("q4_k")
    with pytest.raises(GridError, match="int4-sym-b32"):
        get("int4-sym-32")


def test_get_lists_all_when_nothing_is_near() -> None:
    with pytest.raises(GridError, match=r"Q4_0.*int8-asym-b128"):
        get("???")


@pytest.mark.parametrize("name", GRIDS)
def test_a_matrix_without_weights_is_refused(name: str) -> None:
    assert "no weights" in (GRIDS[name].refusal((0, 256)) or "")
    with pytest.raises(GridError, match="no weights"):
        GRIDS[name].nbytes((4, 0))


@pytest.mark.parametrize(("name", "columns"), [("Q4_K", 576), ("IQ3_S", 896), ("Q2_0", 96), ("Q4_0", 80)])
def test_rows_that_are_no_whole_blocks_are_refused(name: str, columns: int) -> None:
    grid = get(name)
    assert grid.refusal((8, columns)) == f"rows of {columns} weights are not divisible by {grid.row_multiple}"
    with pytest.raises(GridError, match=f"{name} cannot hold the matrix: rows of {columns} weights"):
        grid.quantize(np.zeros((8, columns), np.float32))


@pytest.mark.parametrize("name", ["embed-int4-sym-b32", "embed-int8-asym-b128"])
def test_an_embedding_row_is_whole_blocks(name: str) -> None:
    assert get(name).refusal((100, 80)) == f"rows of 80 weights are not divisible by {get(name).block}"
    assert get(name.removeprefix("embed-")).refusal((100, 80)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", GRIDS)
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    weights = normal(2, 256)
    weights[1, 7] = bad
    with pytest.raises(BadWeightsError, match="NaN or infinity"):
        GRIDS[name].quantize(weights)


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q4_K", "Q2_0", "IQ3_XXS"])
def test_weights_beyond_float16_scales_are_refused(name: str) -> None:
    weights = normal(2, 256)
    weights[0, 0] = -1e6
    with pytest.raises(BadWeightsError, match="a weight has magnitude 1e\\+06"):
        get(name).quantize(weights)


def test_only_a_matrix_is_quantized() -> None:
    with pytest.raises(GridError, match="an array of 1 dimensions was given to F16"):
        get("F16").quantize(np.zeros(256, np.float32))


@pytest.mark.parametrize("name", ["Q2_0", "int4-sym-b32"])
def test_importance_must_be_one_finite_positive_value_for_each_column(name: str) -> None:
    weights = normal(2, 256)
    with pytest.raises(GridError, match=r"importance has shape \(128,\); expected \(256,\)"):
        get(name).quantize(weights, np.ones(128, np.float32))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(BadWeightsError, match="importance holds a negative, infinite or NaN value"):
            get(name).quantize(weights, np.full(256, bad, np.float32))


@pytest.mark.parametrize("name", GRIDS)
def test_missing_and_short_arrays_are_refused(name: str) -> None:
    grid = GRIDS[name]
    packed = random_bytes(grid, (4, 256), 0)
    for key, array in packed.items():
        with pytest.raises(FileFormatError, match=f"the array '{key}' is missing"):
            grid.unpack({other: value for other, value in packed.items() if other != key}, (4, 256))
        with pytest.raises(FileFormatError, match=f"'{key}' holds {array.size - 1} values of {array.dtype}"):
            grid.unpack({**packed, key: array.reshape(-1)[1:]}, (4, 256))


def test_fields_of_another_grid_are_refused() -> None:
    quantized = get("Q2_0").quantize(normal(2, 256))
    with pytest.raises(GridError, match="quantized to Q2_0 was given to Q4_0"):
        get("Q4_0").pack(quantized)


def test_codes_out_of_range_are_refused_rather_than_spilt_into_their_neighbours() -> None:
    for name, low, high in (
        ("Q2_0", -1, 2),
        ("int3-sym-b32", 0, 7),
        ("int3-sym-b32-portable", 4, 11),
        ("int4-asym-b32", 0, 15),
    ):
        grid = get(name)
        quantized = grid.quantize(normal(2, 256))
        codes = quantized.fields["codes"].copy()
        codes[1, 3] = high + 1
        broken = Quantized(name, quantized.shape, {**quantized.fields, "codes": codes})
        for use in (grid.pack, grid.dequantize):
            with pytest.raises(GridError, match=f"field 'codes' of {name} .* expected values from {low} to {high}"):
                use(broken)


def test_fields_of_the_wrong_shape_or_type_are_refused() -> None:
    grid = get("Q2_0")
    good = grid.quantize(normal(2, 256))
    for fields in (
        {"codes": good.fields["codes"]},
        {**good.fields, "scales": good.fields["scales"][:1]},
        {**good.fields, "scales": good.fields["scales"].astype(np.float32)},
    ):
        with pytest.raises(GridError, match=r"field 'scales' of Q2_0 is .*; expected float16 of shape \(2, 4\)"):
            grid.pack(Quantized("Q2_0", (2, 256), fields))


# ---- the registry


@pytest.mark.parametrize("name", GRIDS)
def test_names_and_sizes(name: str) -> None:
    grid = get(name)
    assert grid.name == name
    assert grid.container in ("gguf", "onnx")
    assert grid.nominal_bits <= grid.stored_bits
    assert grid.refusal((3, 512)) is None
    assert grid.nbytes((3, 512)) == sum(array.nbytes for array in random_bytes(grid, (3, 512), 0).values())


def _points(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(grids, "entry_points", lambda group: points)


def test_another_package_can_bring_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, EntryPoint("own", f"{__name__}:OwnGrid", "edgekit.grids"))
    assert get("own") is OwnGrid  # type: ignore[comparison-overlap]


class OwnGrid:
    name = "own"


def test_a_broken_or_doubled_entry_point_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _points(monkeypatch, EntryPoint("broken", "no_such_module:grid", "edgekit.grids"))
    with pytest.raises(GridError, match="'broken' of the entry point no_such_module:grid cannot be loaded"):
        get("own")
    _points(monkeypatch, EntryPoint("x", "edgekit.grids.gguf:GGUF_GRIDS.Q4_0", "edgekit.grids"))
    with pytest.raises(GridError, match="cannot be loaded"):
        get("own")
    _points(monkeypatch, *[EntryPoint("own", f"{__name__}:OwnGrid", "edgekit.grids")] * 2)
    with pytest.raises(GridError, match="a second number format named own"):
        get("own")


# ---- round trips


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3))
def test_any_bytes_survive_unpack_and_pack(name: str, seed: int, rows: int, blocks: int) -> None:
    grid = GRIDS[name]
    if grid.nominal_bits < grid.stored_bits:
        pytest.skip("a 3-bit code in a nibble leaves half of the bytes without meaning")
    # A tile of eight rows, or a slice of 64, is padded with codes that mean zero, which random bytes are not.
    least = 64 if isinstance(grid, SparseThreeBitGrid) else 8 if isinstance(grid, ThreeBitGrid) else 1
    shape = (rows * least, blocks * 256)
    packed = random_bytes(grid, shape, seed)
    quantized = grid.unpack(packed, shape)
    again = grid.pack(quantized)
    assert again.keys() == packed.keys()
    for key, array in packed.items():
        assert again[key].dtype == array.dtype
        assert again[key].shape == array.shape
        assert again[key].tobytes() == array.tobytes()
    assert grid.dequantize(quantized).shape == shape


@pytest.mark.parametrize("name", ALL)
def test_quantized_weights_survive_pack_and_unpack(name: str) -> None:
    grid = GRIDS[name]
    quantized = grid.quantize(normal(7, 512))
    back = grid.unpack(grid.pack(quantized), quantized.shape)
    assert back.fields.keys() == quantized.fields.keys()
    for key, array in quantized.fields.items():
        assert array.dtype == back.fields[key].dtype
        assert array.tobytes() == back.fields[key].tobytes()
    assert np.array_equal(grid.dequantize(back), grid.dequantize(quantized))


HARD: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "zero": np.zeros_like,
    "constant": lambda x: np.full_like(x, 0.3),
    "negative constant": lambda x: np.full_like(x, -0.3),
    "tiny": lambda x: x * np.float32(1e-30),
    "denormal": lambda x: np.full_like(x, 1e-45),
    "huge": lambda x: (x / np.abs(x).max() * 32000).astype(np.float32),
    "one outlier": lambda x: np.where(np.arange(x.shape[1]) == 300, np.float32(30000), x),
    "positive": np.abs,
    "many magnitudes": lambda x: (x * 10.0 ** np.linspace(-20, 3, x.shape[1])).astype(np.float32),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("name", ALL)
def test_hard_weights_stay_finite_and_near(name: str, kind: str) -> None:
    grid = GRIDS[name]
    weights = HARD[kind](normal(3, 512))
    decoded = grid.dequantize(grid.quantize(weights, np.geomspace(1e-20, 1e20, 512).astype(np.float32)))
    assert np.isfinite(decoded).all()
    # No level is farther from a weight than the largest one, but for what float16 scales cannot tell from zero.
    peak = np.abs(weights).max()
    assert np.abs(decoded - weights).max() <= 1.5 * peak + 2e-6
    if kind == "zero":
        assert not decoded.any()


@pytest.mark.parametrize("name", ALL)
def test_threads_do_not_change_the_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = GRIDS[name]
    weights = normal(400, 1024)[: 150 if name.startswith("IQ") else 400]
    packed = []
    for count in (1, 3):
        monkeypatch.setattr(parallel, "threads", lambda count=count: count)
        quantized = grid.quantize(weights)
        packed.append((grid.pack(quantized), grid.dequantize(quantized)))
    assert np.array_equal(packed[0][1], packed[1][1])
    assert all(np.array_equal(packed[0][0][key], packed[1][0][key]) for key in packed[0][0])


def test_an_error_in_a_thread_arrives() -> None:
    def fail(chunk: slice) -> None:
        if chunk.start:
            raise GridError("broken")

    with pytest.raises(GridError, match="broken"):
        parallel.each_chunk(10, 3, fail)


# ---- importance


@pytest.mark.parametrize("name", [case for case in ALL if case.values[0] not in (*PLAIN, "Q8_0")])
def test_importance_lowers_the_error_it_weighs(name: str) -> None:
    grid = GRIDS[name]
    weights = normal(32, 512)
    importance = np.random.default_rng(1).lognormal(0, 1.5, 512).astype(np.float32)

    def error(decoded: NDArray[np.float32]) -> float:
        return float(((decoded - weights) ** 2 @ importance).sum())

    assert error(grid.dequantize(grid.quantize(weights, importance))) < error(grid.dequantize(grid.quantize(weights)))


@pytest.mark.parametrize("name", [*OWN, pytest.param("Q4_K", marks=pytest.mark.skipif(not HAS_GGML, reason="ggml"))])
def test_the_size_of_importance_does_not_matter(name: str) -> None:
    grid, weights = GRIDS[name], normal(4, 256)
    importance = np.random.default_rng(1).lognormal(0, 1, 256).astype(np.float32)
    one, other = (grid.dequantize(grid.quantize(weights, importance * np.float32(2.0**k))) for k in (0, 60))
    assert np.array_equal(one, other)
    none = grid.dequantize(grid.quantize(weights, np.zeros(256, np.float32)))
    assert np.array_equal(none, grid.dequantize(grid.quantize(weights)))
