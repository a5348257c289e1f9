"""edgekit::SparseMatMul3Bits in the installed onnxruntime: what is below the threshold counts as zero, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from test_threebit_operator import (  # noqa: E402
    F32,
    activations,
    attributes,
    compiled,
    matrix,
    model,
    packed_of,
    product,
    session,
    unaligned,
)

from edgekit.grids import Quantized  # noqa: E402
from edgekit.grids.threebit_columns import sparse  # noqa: E402
from edgekit.threebit import library  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def operators() -> Path:
    """The compiled library."""
    return compiled()


def graph(quantized: Quantized, bias: F32 | None = None, level: int = 4, **changes: Any) -> bytes:
    """A node with the weights of `quantized`, stored by columns."""
    columns = sparse(quantized)
    tensors = packed_of(columns) | ({} if bias is None else {"bias": bias})
    return model(tensors, attributes(columns, level, **changes), operator=library.SPARSE)


def kept(x: F32, threshold: float) -> F32:
    """As the document says: the first row of several is left whole."""
    found = np.where(np.abs(x) < np.float32(threshold), np.float32(0), x)
    if x.ndim > 1 and x.shape[-2] > 1:
        found[..., 0, :] = x[..., 0, :]
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.sampled_from([1, 9, 64, 100, 256, 300, 576]), st.integers(1, 200)), st.integers(1, 40),
    st.sampled_from([32, 64]), st.sampled_from([0.0, 0.3, 1.0, 100.0]), st.booleans(), st.integers(0, 1 << 32),
)  # fmt: skip
def test_the_same_bits_as_the_dense_operator(
    operators: Path, shape: tuple[int, int], rows: int, block: int, threshold: float, biased: bool, seed: int
) -> None:
    quantized, x = matrix(shape, block, seed), activations(rows, shape[1], seed=seed)
    bias = activations(shape[0], seed=seed + 1) if biased else None
    for name in library.kernels(operators):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(library.KERNEL_VARIABLE, name)
            made = session(graph(quantized, bias, threshold=threshold), operators, threads=2)
        expected = product(quantized, kept(x, threshold), operators, bias=bias)
        np.testing.assert_array_equal(made.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 1, 64), (2, 5, 64), (0, 64), (2, 0, 64)])
def test_the_first_row_of_a_sequence_is_left_whole(shape: tuple[int, ...], level: int, operators: Path) -> None:
    quantized, x = matrix((70, 64)), activations(*shape)
    found = session(graph(quantized, level=level, threshold=0.7), operators).run(None, {"x": x})[0]
    expected = product(quantized, kept(x, 0.7), operators, level=level)
    np.testing.assert_allclose(found, expected, rtol=0 if level == 4 else 1e-4, atol=0 if level == 4 else 1e-4)
    if x.size:
        assert not np.array_equal(found, product(quantized, x, operators, level=level)), "nothing was left out"


def test_without_a_threshold_nothing_is_left_out(operators: Path) -> None:
    quantized, x = matrix((100, 96)), activations(3, 96)
    found = session(graph(quantized), operators).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, product(quantized, x, operators))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen(odd: float, operators: Path) -> None:
    x = activations(3, 96)
    x[1, 40] = odd
    found = session(graph(matrix((16, 96)), threshold=50.0), operators).run(None, {"x": x})[0]
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_unaligned_activations_and_results(operators: Path) -> None:
    quantized = matrix((100, 70))
    x, y = unaligned(5, 70), unaligned(5, 100)
    x[...] = activations(5, 70)
    made = session(graph(quantized, threshold=0.4), operators)
    binding = made.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(y, product(quantized, kept(x.copy(), 0.4), operators))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": -1.0}, "threshold is -1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": float("inf")}, "threshold is inf"),
        ({"threshold": 1}, "threshold is no float"),
        ({"threshold": "1"}, "threshold is no float"),
        ({"threshold": [1.0]}, "threshold is no float"),
        ({"K": 1 << 30}, "has shape"),
        ({"N": 65}, "has shape"),
        ({"block_size": 64}, "scales"),
        ({"bits": 4}, "bits is 4"),
    ],
)
def test_wrong_attributes_are_refused(changes: dict[str, Any], words: str, operators: Path) -> None:
    with pytest.raises(Exception, match=words) as refused:
        session(graph(matrix((64, 64)), **changes), operators)
    assert type(refused.value).__module__.startswith("onnxruntime")


@pytest.mark.parametrize("part", ["B", "scales"])
def test_tensors_of_the_other_layout_are_refused(part: str, operators: Path) -> None:
    quantized = matrix((64, 64))
    tensors: dict[str, NDArray[Any]] = packed_of(sparse(quantized)) | {part: packed_of(quantized)[part]}
    with pytest.raises(Exception, match="has shape"):
        session(model(tensors, attributes(quantized), operator=library.SPARSE), operators)
