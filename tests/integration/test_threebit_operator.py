"""edgekit::MatMul3Bits in the installed onnxruntime: right for every shape and kernel, and never a crash."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import unavailable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import DownloadError, MissingDependencyError
from edgekit.grids import Quantized, get
from edgekit.grids.threebit import CHUNK_COLUMNS
from edgekit.threebit import library

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

KERNELS = ("dotprod", "neon", "portable") if platform.machine() == "aarch64" else ("avx512-vnni", "avx2", "portable")
BIASED = ("B", "scales", "bias")
F32 = NDArray[np.float32]
OTHER = "EDGEKIT_TEST_OPERATORS"
"""Environment variable that names another compiled library to test, such as one with sanitizers."""


def compiled() -> Path:
    """The library for this machine, or the one that :data:`OTHER` names; without either there is no test."""
    if other := os.environ.get(OTHER):
        return Path(other)
    try:
        return library.host_library()
    except (MissingDependencyError, DownloadError) as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def operators() -> Path:
    """The compiled library."""
    return compiled()


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, operators: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel that this processor has, chosen for the sessions of the test."""
    name = str(request.param)
    if name not in library.kernels(operators):
        pytest.skip(f"this processor does not run the kernel {name}")
    monkeypatch.setenv(library.KERNEL_VARIABLE, name)
    return name


def matrix(shape: tuple[int, int], block: int = 32, seed: int = 0) -> Quantized:
    """Normal weights on the grid, with scales in float16."""
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return get(f"int3-sym-b{block}").quantize(weights)


def packed_of(quantized: Quantized) -> dict[str, NDArray[Any]]:
    """Its initializers."""
    return get(quantized.grid).pack(quantized)


def activations(*shape: int, seed: int = 1) -> F32:
    """Normal values with a few outliers."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape)
    return (x * np.where(random.random(shape) < 0.02, 30, 1)).astype(np.float32)


def attributes(quantized: Quantized, level: int = 4, **changes: Any) -> dict[str, Any]:
    """Of a sound node; a change to None leaves one out."""
    rows, columns = quantized.shape
    block = get(quantized.grid).block
    sound = {"K": columns, "N": rows, "bits": 3, "block_size": block, "accuracy_level": level}
    return {name: value for name, value in {**sound, **changes}.items() if value is not None}


def model(
    tensors: Mapping[str, NDArray[Any]],
    given: Mapping[str, Any],
    inputs: Sequence[str] = (),
    x_type: int = 0,
    operator: str = library.OPERATOR,
) -> bytes:
    """A graph of one node: x and `tensors` in, y out. Those of `tensors` that `inputs` names are no initializers."""
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node(operator, ["x", *tensors], ["y"], domain=library.DOMAIN, **given)
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items() if name and array.ndim >= 0]
    stored = [tensor for tensor in stored if tensor.name not in inputs]
    infos = [helper.make_tensor_value_info("x", x_type or kinds.FLOAT, None)]
    for name in inputs:
        kind = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
        infos.append(helper.make_tensor_value_info(name, kind, tensors[name].shape))
    outputs = [helper.make_tensor_value_info("y", kinds.FLOAT, None)]
    graph = helper.make_graph([node], "one", infos, outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(library.DOMAIN, library.VERSION)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = 10
    return bytes(made.SerializeToString())


def session(data: bytes | str, operators: Path, threads: int = 1) -> Any:
    """A graph, or the file of that name, in onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(operators))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def product(
    quantized: Quantized, x: F32, operators: Path, *, level: int = 4, bias: F32 | None = None, threads: int = 1
) -> F32:
    """What the operator yields."""
    tensors = packed_of(quantized) | ({} if bias is None else {"bias": bias})
    made = session(model(tensors, attributes(quantized, level)), operators, threads)
    result: F32 = made.run(None, {"x": x})[0]
    return result


def exact(quantized: Quantized, x: F32, bias: F32 | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """The product in float64, and the sum of the magnitudes that went into it."""
    weights = get(quantized.grid).dequantize(quantized).astype(np.float64)
    added = np.zeros(quantized.shape[0]) if bias is None else bias.astype(np.float64)
    return x @ weights.T + added, np.abs(x).astype(np.float64) @ np.abs(weights).T + np.abs(added)


def bound(quantized: Quantized, x: F32) -> NDArray[Any]:
    """Most that 8-bit activations may change: half a step of each, times the magnitude of its weight."""
    weights = np.abs(get(quantized.grid).dequantize(quantized)).astype(np.float64)
    total = np.zeros((*x.shape[:-1], quantized.shape[0]))
    for begin in range(0, quantized.shape[1], CHUNK_COLUMNS):
        columns = slice(begin, begin + CHUNK_COLUMNS)
        step = np.abs(x[..., columns]).max(axis=-1, keepdims=True).astype(np.float64) / 127
        total += step / 2 * weights[:, columns].sum(axis=1)
    return total


def assert_right(quantized: Quantized, x: F32, operators: Path, bias: F32 | None = None) -> None:
    """Level 0 to the rounding of float32, level 4 within the bound of 8-bit activations."""
    expected, size = exact(quantized, x, bias)
    floats = product(quantized, x, operators, level=0, bias=bias)
    assert floats.shape == expected.shape
    assert (np.abs(floats - expected) <= 1e-5 * size).all()
    whole = product(quantized, x, operators, level=4, bias=bias)
    assert whole.shape == expected.shape
    assert (np.abs(whole - expected) <= bound(quantized, x) * 1.0001 + 1e-5 * size).all()


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 130])
@pytest.mark.parametrize("shape", [(1, 1), (8, 32), (9, 33), (7, 31), (24, 96), (20, 100), (192, 576)])
def test_products(shape: tuple[int, int], rows: int, block: int, kernel: str, operators: Path) -> None:
    assert_right(matrix(shape, block), activations(rows, shape[1]), operators)


@pytest.mark.parametrize("shape", [(576, 1536), (2048, 2048)])
@pytest.mark.parametrize("rows", [1, 512])
def test_large_products(shape: tuple[int, int], rows: int, operators: Path) -> None:
    assert_right(matrix(shape), activations(rows, shape[1]), operators)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 300)), st.integers(1, 40), st.sampled_from([32, 64]), st.booleans(),
    st.integers(0, 1 << 32),
)  # fmt: skip
def test_any_product(
    kernel: str, operators: Path, shape: tuple[int, int], rows: int, block: int, biased: bool, seed: int
) -> None:
    bias = activations(shape[0], seed=seed + 1) if biased else None
    assert_right(matrix(shape, block, seed), activations(rows, shape[1], seed=seed), operators, bias)


@pytest.mark.parametrize("shape", [(100, 2048), (20, 100)])
def test_all_kernels_and_thread_counts_yield_the_same_bits(
    shape: tuple[int, int], operators: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, x = matrix(shape), activations(40, shape[1])
    found = set()
    for name in library.kernels(operators):
        monkeypatch.setenv(library.KERNEL_VARIABLE, name)
        found |= {product(quantized, x, operators, threads=threads).tobytes() for threads in (1, 2, 3)}
    assert len(found) == 1


def test_a_row_does_not_depend_on_its_neighbours(kernel: str, operators: Path) -> None:
    quantized, x = matrix((50, 200)), activations(37, 200)
    together = product(quantized, x, operators)
    alone = [product(quantized, x[row : row + 1], operators) for row in range(37)]
    assert together.tobytes() == b"".join(each.tobytes() for each in alone)


@pytest.mark.parametrize("shape", [(64,), (0, 64), (3, 1, 64), (2, 3, 5, 64), (2, 0, 64)])
@pytest.mark.parametrize("level", [0, 4])
def test_any_number_of_dimensions(shape: tuple[int, ...], level: int, operators: Path) -> None:
    quantized, x = matrix((24, 64)), activations(*shape)
    found = product(quantized, x, operators, level=level)
    assert found.shape == (*shape[:-1], 24)
    flat = x.reshape(-1, 64)
    if len(flat):
        np.testing.assert_array_equal(found.reshape(-1, 24), product(quantized, flat, operators, level=level))


def test_zeros_and_numbers_that_are_none(kernel: str, operators: Path) -> None:
    quantized = matrix((16, 96))
    assert not product(quantized, np.zeros((2, 96), np.float32), operators).any()
    for odd in (np.nan, np.inf, -np.inf):
        x = activations(3, 96)
        x[1, 40] = odd
        found = product(quantized, x, operators)
        assert np.isnan(found[1]).all()
        assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_unaligned_initializers(before: int, level: int, kernel: str, operators: Path, tmp_path: Path) -> None:
    """A file of weights in which each tensor begins where the one before it ends."""
    quantized, x, bias = matrix((16, 96)), activations(3, 96), activations(16)
    packed = packed_of(quantized) | {"bias": bias}
    stored = onnx.load_from_string(model(packed, attributes(quantized, level)))
    stored.graph.initializer.insert(0, onnx.numpy_helper.from_array(np.zeros(before, np.uint8), "first"))
    stored.graph.node.append(onnx.helper.make_node("Identity", ["first"], ["z"]))
    stored.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.UINT8, None))
    path = tmp_path / "model.onnx"
    onnx.save(stored, path, save_as_external_data=True, location="data", size_threshold=0)
    written = onnx.load(path, load_external_data=False).graph.initializer
    offsets = {each.name: int(next(e.value for e in each.external_data if e.key == "offset")) for each in written}
    assert offsets["bias"] % 4 == before, "another packing of the file would make this test say nothing"
    found = session(str(path), operators).run(["y"], {"x": x})[0]
    np.testing.assert_array_equal(found, product(quantized, x, operators, level=level, bias=bias))


def unaligned(*shape: int) -> F32:
    """Zeros that begin one byte behind a multiple of their size."""
    count = int(np.prod(shape))
    room = np.zeros(4 * count + 8, np.uint8)
    begin = -room.ctypes.data % 4 + 1
    made: F32 = room[begin : begin + 4 * count].view(np.float32).reshape(shape)
    assert made.ctypes.data % 4 == 1
    return made


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("rows", [1, 17])
def test_unaligned_activations_and_results(rows: int, level: int, kernel: str, operators: Path) -> None:
    quantized = matrix((20, 100))
    x, y = unaligned(rows, 100), unaligned(rows, 20)
    x[...] = activations(rows, 100)
    expected = product(quantized, x.copy(), operators, level=level)
    made = session(model(packed_of(quantized), attributes(quantized, level)), operators)
    np.testing.assert_array_equal(made.run(None, {"x": x})[0], expected)
    binding = made.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    made.run_with_iobinding(binding)
    np.testing.assert_array_equal(y, expected)


def test_a_bias_may_be_left_out_by_name(operators: Path) -> None:
    quantized, x = matrix((16, 64)), activations(2, 64)
    packed = packed_of(quantized)
    node = onnx.load_from_string(model(packed, attributes(quantized)))
    node.graph.node[0].input.append("")
    found = session(node.SerializeToString(), operators).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, product(quantized, x, operators))


def test_the_weights_are_read_where_they_lie(operators: Path, tmp_path: Path) -> None:
    shape = (8192, 4096)
    random = np.random.default_rng(0)
    packed: dict[str, NDArray[Any]] = {
        "B": random.integers(0, 256, (shape[0] // 8, shape[1] // 32, 96), np.uint8),
        "scales": np.ones((shape[0] // 8, shape[1] // 32, 8), np.float16),
    }
    given = {"K": shape[1], "N": shape[0], "bits": 3, "block_size": 32}
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load_from_string(model(packed, given)), path, save_as_external_data=True, location="data")
    told = subprocess.run(
        [sys.executable, "-c", _ANONYMOUS, str(path), str(operators)], capture_output=True, text=True, check=True
    )
    size = sum(array.nbytes for array in packed.values())
    assert int(told.stdout) < size / 2, "onnxruntime maps the file; whoever copies the weights needs as much again"


_ANONYMOUS = """
import sys, numpy as np, onnxruntime as ort
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.register_custom_ops_library(sys.argv[2])
before = anonymous()
session = ort.InferenceSession(sys.argv[1], options)
for rows in (1, 20):
    session.run(None, {"x": np.ones((rows, 4096), np.float32)})
print(anonymous() - before)
"""


# -- malformed nodes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"K": None}, "attribute K is missing"),
        ({"N": None}, "attribute N is missing"),
        ({"bits": None}, "attribute bits is missing"),
        ({"block_size": None}, "attribute block_size is missing"),
        ({"K": 0}, "K is 0"),
        ({"K": -32}, "K is -32"),
        ({"N": 0}, "N is 0"),
        ({"N": 1 << 62}, "N is"),
        ({"K": 1 << 30, "N": 1 << 30}, "has shape"),
        ({"bits": 4}, "bits is 4"),
        ({"block_size": 16}, "block_size is 16"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 64}, "scales has shape"),
        ({"K": 65}, "has shape"),
        ({"N": 17}, "has shape"),
        ({"K": 64.0}, "attribute K is missing or no integer"),
        ({"K": "64"}, "attribute K is missing or no integer"),
        ({"accuracy_level": 1}, "accuracy_level is 1"),
        ({"accuracy_level": "4"}, "accuracy_level is no integer"),
        ({"accuracy_level": 4.0}, "accuracy_level is no integer"),
        ({"accuracy_level": [4, 4]}, "accuracy_level is no integer"),
    ],
)
def test_wrong_attributes_are_refused(changes: dict[str, Any], words: str, operators: Path) -> None:
    quantized = matrix((16, 64))
    with pytest.raises(Exception, match=words) as refused:
        session(model(packed_of(quantized), attributes(quantized, **changes)), operators)
    assert type(refused.value).__module__.startswith("onnxruntime")


def wrong_tensors(change: str) -> dict[str, NDArray[Any]]:
    packed = packed_of(matrix((16, 64))) | {"bias": np.zeros(16, np.float32)}
    match change:
        case "flat codes":
            packed["B"] = packed["B"].reshape(-1)
        case "too few codes":
            packed["B"] = packed["B"][:, :1]
        case "no codes at all":
            packed["B"] = packed["B"][:0]
        case "codes of another type":
            packed["B"] = packed["B"].astype(np.int8)
        case "scales of another type":
            packed["scales"] = packed["scales"].astype(np.float32)
        case "too few scales":
            packed["scales"] = packed["scales"][:1]
        case "bias of another length":
            packed["bias"] = packed["bias"][:15]
        case "bias of another type":
            packed["bias"] = packed["bias"].astype(np.float64)
        case _:
            packed["more"] = packed["bias"]
    return packed


@pytest.mark.parametrize(
    "change",
    [
        "flat codes", "too few codes", "no codes at all", "codes of another type", "scales of another type",
        "too few scales", "bias of another length", "bias of another type", "one input more",
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused(change: str, operators: Path) -> None:
    with pytest.raises(Exception, match=r"shape|type|Type|input|Node") as refused:
        session(model(wrong_tensors(change), attributes(matrix((16, 64)))), operators)
    assert type(refused.value).__module__.startswith("onnxruntime")


@pytest.mark.parametrize("name", BIASED)
def test_tensors_from_outside_are_refused(name: str, operators: Path) -> None:
    tensors = packed_of(matrix((16, 64))) | {"bias": np.zeros(16, np.float32)}
    with pytest.raises(Exception, match="expected an initializer"):
        session(model(tensors, attributes(matrix((16, 64))), inputs=[name]), operators)


def test_missing_inputs_are_refused(operators: Path) -> None:
    packed = packed_of(matrix((16, 64)))
    for tensors in ({}, {"B": packed["B"]}):
        with pytest.raises(Exception, match=r"input|Input") as refused:
            session(model(tensors, attributes(matrix((16, 64)))), operators)
        assert type(refused.value).__module__.startswith("onnxruntime")


def test_activations_of_another_type_are_refused(operators: Path) -> None:
    quantized = matrix((16, 64))
    data = model(packed_of(quantized), attributes(quantized), x_type=onnx.TensorProto.FLOAT16)
    with pytest.raises(Exception, match=r"type|Type"):
        session(data, operators)


@pytest.mark.parametrize("shape", [(), (1, 63), (1, 65), (64, 1), (1, 0), (0,)])
@pytest.mark.parametrize("level", [0, 4])
def test_activations_of_another_shape_are_refused(shape: tuple[int, ...], level: int, operators: Path) -> None:
    quantized = matrix((16, 64))
    made = session(model(packed_of(quantized), attributes(quantized, level)), operators)
    with pytest.raises(Exception, match="the activations have shape"):
        made.run(None, {"x": np.ones(shape, np.float32)})
    assert np.isfinite(made.run(None, {"x": np.ones((1, 64), np.float32)})[0]).all(), "the session goes on"


def test_unknown_kernels_are_refused(operators: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.KERNEL_VARIABLE, "mmx")
    quantized = matrix((16, 64))
    with pytest.raises(Exception, match=r"no kernel 'mmx' .* portable"):
        session(model(packed_of(quantized), attributes(quantized)), operators)
