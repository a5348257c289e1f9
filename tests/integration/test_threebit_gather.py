"""edgekit::Gather3Bits in the installed onnxruntime: the grid's own values, never a crash; a model with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import Tiny

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from test_threebit_operator import compiled, matrix, model, packed_of, session  # noqa: E402

from edgekit import api  # noqa: E402
from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgekit.engines.ort import needs_operators  # noqa: E402
from edgekit.errors import BudgetError  # noqa: E402
from edgekit.grids import Quantized, get  # noqa: E402
from edgekit.options import Budget, Options  # noqa: E402
from edgekit.threebit import library  # noqa: E402

pytestmark = pytest.mark.integration
Indices = NDArray[np.int64]


@pytest.fixture(scope="module")
def operators() -> Path:
    """The compiled library."""
    return compiled()


def graph(tensors: Mapping[str, NDArray[Any]], given: Mapping[str, Any], inputs: Sequence[str] = ()) -> bytes:
    """One node: indices x and `tensors` in, y out."""
    return model(tensors, given, inputs, onnx.TensorProto.INT64, library.LOOKUP)


def attributes(quantized: Quantized, **changes: Any) -> dict[str, Any]:
    """Of a sound node; a change to None leaves one out."""
    rows, columns = quantized.shape
    sound = {"K": columns, "N": rows, "bits": 3, "block_size": get(quantized.grid).block}
    return {name: value for name, value in {**sound, **changes}.items() if value is not None}


def looked_up(quantized: Quantized, indices: Indices, operators: Path) -> NDArray[np.float32]:
    """What the operator yields."""
    made = session(graph(packed_of(quantized), attributes(quantized)), operators)
    found: NDArray[np.float32] = made.run(None, {"x": indices})[0]
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 300)), st.sampled_from([32, 64]), st.integers(0, 1 << 32),
    st.sampled_from([(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (1, 2, 2)]),
)  # fmt: skip
def test_rows_are_the_grids_own(
    operators: Path, shape: tuple[int, int], block: int, seed: int, places: tuple[int, ...]
) -> None:
    """Bit for bit; a negative index counts from the end."""
    quantized = matrix(shape, block, seed)
    indices = np.random.default_rng(seed).integers(-shape[0], shape[0], places, np.int64)
    found = looked_up(quantized, indices, operators)
    expected = get(quantized.grid).dequantize(quantized)[indices]
    assert found.shape == (*places, shape[1])
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("before", [1, 2, 3, 5])
def test_unaligned_tensors_are_grids_own(before: int, operators: Path, tmp_path: Path) -> None:
    """Initializers, indices and results that begin at any byte."""
    quantized, indices = matrix((20, 100)), np.array([[3, -1], [19, 0]], np.int64)
    expected = get(quantized.grid).dequantize(quantized)[indices]
    stored = onnx.load_from_string(graph(packed_of(quantized), attributes(quantized)))
    stored.graph.initializer.insert(0, onnx.numpy_helper.from_array(np.zeros(before, np.uint8), "first"))
    stored.graph.node.append(onnx.helper.make_node("Identity", ["first"], ["z"]))
    stored.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.UINT8, None))
    path = tmp_path / "model.onnx"
    onnx.save(stored, path, save_as_external_data=True, location="data", size_threshold=0)
    made = session(str(path), operators)
    given, found = shifted(indices.shape, np.int64), shifted(expected.shape, np.float32)
    given[...] = indices
    binding = made.io_binding()
    binding.bind_input("x", "cpu", 0, np.int64, given.shape, given.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, found.shape, found.ctypes.data)
    binding.bind_output("z", "cpu")
    made.run_with_iobinding(binding)
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


def shifted(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros that begin one byte behind a multiple of their size."""
    size, count = np.dtype(dtype).itemsize, int(np.prod(shape))
    room = np.zeros(size * (count + 2), np.uint8)
    begin = -room.ctypes.data % size + 1
    made: NDArray[Any] = room[begin : begin + size * count].view(dtype).reshape(shape)
    assert made.ctypes.data % size == 1
    return made


@pytest.mark.parametrize("index", [16, -17, 1 << 40, -(1 << 63), (1 << 63) - 1])
def test_an_index_that_names_no_row_is_refused(index: int, operators: Path) -> None:
    made = session(graph(packed_of(matrix((16, 64))), attributes(matrix((16, 64)))), operators)
    with pytest.raises(Exception, match=rf"edgekit::Gather3Bits: the index {index} names no row; expected -16 to 15"):
        made.run(None, {"x": np.array([0, index], np.int64)})
    assert np.isfinite(made.run(None, {"x": np.array([15], np.int64)})[0]).all(), "the session goes on"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"K": None}, "attribute K is missing"),
        ({"N": 0}, "N is 0"),
        ({"N": 1 << 62}, "N is"),
        ({"K": 1 << 30, "N": 1 << 30}, "has shape"),
        ({"bits": 4}, "bits is 4"),
        ({"block_size": 16}, "block_size is 16"),
        ({"block_size": 64}, "scales has shape"),
        ({"N": 17}, "has shape"),
        ({"K": "64"}, "attribute K is missing or no integer"),
    ],
)
def test_wrong_attributes_are_refused(changes: dict[str, Any], words: str, operators: Path) -> None:
    quantized = matrix((16, 64))
    with pytest.raises(Exception, match=rf"edgekit::Gather3Bits: .*{words}") as refused:
        session(graph(packed_of(quantized), attributes(quantized, **changes)), operators)
    assert type(refused.value).__module__.startswith("onnxruntime")


@pytest.mark.parametrize("name", ["B", "scales"])
def test_tensors_from_outside_are_refused(name: str, operators: Path) -> None:
    quantized = matrix((16, 64))
    with pytest.raises(Exception, match="expected an initializer"):
        session(graph(packed_of(quantized), attributes(quantized), (name,)), operators)


def test_tensors_of_other_shapes_and_types_are_refused(operators: Path) -> None:
    quantized = matrix((16, 64))
    packed = packed_of(quantized)
    for wrong in (
        {**packed, "B": packed["B"][:, :1]}, {**packed, "B": packed["B"].astype(np.int8)},
        {**packed, "scales": packed["scales"].astype(np.float32)}, {"B": packed["B"]},
        {**packed, "more": packed["scales"]},
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"shape|type|Type|input|Node") as refused:
            session(graph(wrong, attributes(quantized)), operators)
        assert type(refused.value).__module__.startswith("onnxruntime")


# -- the whole way


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head is its embedding."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    shape = Tiny(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=384, tied=True)
    return tiny.make(tmp_path_factory.mktemp("tied") / "model", shape)


def planned(checkpoint_folder: Path, folder: Path, embedding: str) -> Path:
    """A plan file: linear layers in 3 bits, the embedding as asked."""
    from edgekit.cli.plan_curve import write_plan
    from edgekit.quantize.choose import choose
    from edgekit.targets import load

    checkpoint = open_checkpoint(checkpoint_folder)
    path = folder / "plan.json"
    write_plan(checkpoint, [choose(checkpoint.spec, load("rpi5"), "onnx", 3)], path, force=False)
    path.write_text(path.read_text().replace("embed-int8-sym-b32", embedding))
    assert embedding in path.read_text()
    return path


def nodes_of(bundle: Path) -> list[Any]:
    return list(onnx.load(str(bundle / "onnx" / "model.onnx"), load_external_data=False).graph.node)


def test_a_model_with_a_table_of_three_bits(tied: Path, tmp_path: Path) -> None:
    """The tied head reads the bytes of the lookup; stock onnxruntime's form of it holds the same weights."""
    found = []
    for number, grid in enumerate(("embed-int3-sym-b32", "embed-int3-sym-b32-portable")):
        place = tmp_path / str(number)
        place.mkdir()
        options = Options(formats=("onnx",), plan=planned(tied, place, grid), sequences=2, length=24)
        found.append(api.build(tied, output=place / "out", options=options))
    own, other = ({node.name: node for node in nodes_of(built.bundle)} for built in found)
    lookup, head = own["/embedding/Gather"], own["/lm_head/MatMul"]
    assert (lookup.domain, lookup.op_type, head.op_type) == ("edgekit", "Gather3Bits", "MatMul3Bits")
    assert lookup.input[1:] == head.input[1:]
    assert other["/embedding/Gather"].op_type == "GatherBlockQuantized"
    assert needs_operators(found[0].bundle / "onnx")
    divergence = [built.report.artefacts[0].coherence.kl_mean for built in found]
    assert divergence[0] == pytest.approx(divergence[1], rel=0.02), "the same weights"
    assert found[0].report.artefacts[0].bytes < found[1].report.artefacts[0].bytes


def test_a_budget_takes_three_bits_where_the_target_calls_them_fast(tied: Path, tmp_path: Path) -> None:
    """Fewer bits than stock onnxruntime's formats have; --portable leaves these alone."""
    board = tmp_path / "mine.toml"
    head = 'schema_version = 1\ninherits = "rpi5"\nname = "mine"\ntitle = "Mine"\ntier = 3\n'
    board.write_text(head + '[runtime.onnx]\n"+fast" = ["int3-sym-b32"]\n')
    text = tmp_path / "text.txt"
    text.write_text("The kettle sings, and the cat listens to it in the kitchen.\n" * 200)
    options = Options(formats=("onnx",), sequences=2, length=24, calibration_text=text, probes=2, portable=True)
    with pytest.raises(BudgetError) as refused:
        api.build(tied, target=board, output=tmp_path / "stock", options=replace(options, budget=Budget("bits", 1)))
    least = float(re.search(r"([\d.]+) bits per weight —", str(refused.value))[1])  # type: ignore[index]
    options = replace(options, budget=Budget("bits", least - 0.3), portable=False)
    built = api.build(tied, target=board, output=tmp_path / "own", options=options)
    assert {node.op_type for node in nodes_of(built.bundle)} & {"MatMul3Bits", "Gather3Bits"}
    assert built.report.artefacts[0].effective_bits < least
