"""A graph that somebody else exported: its matrices are found, quantized, checked; the concatenating engine runs it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_decoder as toy

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgekit.checkpoint.foreign import foreign_tensor  # noqa: E402
from edgekit.engines.base import greedy  # noqa: E402
from edgekit.engines.opening import open_engine  # noqa: E402
from edgekit.engines.ort_concat import ConcatOrtEngine  # noqa: E402
from edgekit.errors import BadWeightsError, ConverterError, FileFormatError, OptionError, ParityError  # noqa: E402
from edgekit.export.foreign import Stored  # noqa: E402
from edgekit.export.foreign_onnx import OnnxSource  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.quantize.plan import Entry, Plan  # noqa: E402

IDS = np.random.default_rng(3).integers(toy.VOCAB, size=24)
NAMES = {
    "/model/embed_tokens/Gather": (toy.VOCAB, toy.HIDDEN),
    "/model/layers.0/self_attn/v_proj/MatMul": (toy.HIDDEN, toy.HIDDEN),
    "/model/layers.0/mlp/up_proj/Gemm": (toy.FFN, toy.HIDDEN),
    "/model/layers.0/mlp/down_proj/MatMul": (toy.HIDDEN, toy.FFN),
}


def nothing(_: str) -> None:
    pass


def plan_for(source: OnnxSource, grid: str = "int8-sym-b32", *, level: int = 1) -> Plan:
    """Every matrix on one grid; accuracy level 1 computes in float32."""

    def entry(stored: Stored) -> Entry:
        tensor = foreign_tensor(stored.name, stored.shape, stored.kind)
        if not tensor.rule.matrix:
            return Entry(tensor, 32, stored.dtype, stored.nbytes)
        name = f"embed-{grid}" if stored.kind == "embedding" else grid
        return Entry(tensor, 8, name, get(name).nbytes((stored.shape[0], stored.shape[1])))

    return replace(Plan("onnx", 8, tuple(map(entry, source.tensors()))), accuracy_level=level)


def written(source: OnnxSource, folder: Path, grid: str = "int8-sym-b32") -> tuple[Plan, Path, dict[str, str]]:
    plan, path = plan_for(source, grid), folder / "model.onnx"
    folder.mkdir()
    return plan, path, source.write(plan, path, {}, nothing)


# -- bad input


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01not a model")
    with pytest.raises(ConverterError, match="cannot be read as ONNX"):
        OnnxSource(tmp_path / "model.onnx").tensors()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad: float, tmp_path: Path) -> None:
    w = toy.weights()
    w["down"][3, 4] = bad
    source = OnnxSource(toy.write(tmp_path / "toy", w=w))
    with pytest.raises(BadWeightsError, match="down_proj"):
        source.read("/model/layers.0/mlp/down_proj/MatMul")


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy")
    (tmp_path / "secret").write_bytes(b"\0" * (4 * toy.HIDDEN * toy.FFN))
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name == "down_t")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConverterError, match="down_t"):
        OnnxSource(path).read("/model/layers.0/mlp/down_proj/MatMul")


@pytest.mark.parametrize("config", ["", "{}", '{"model": {"vocab_size": "many"}, "search": {}}', "[1]"])
def test_a_folder_without_sizes(config: str, tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy")
    path.with_name("genai_config.json").write_text(config)
    with pytest.raises(FileFormatError, match="genai_config"):
        open_engine("onnx", path)


@pytest.mark.parametrize("size", ["1e999", "-96", "0", "1e15"])
@pytest.mark.parametrize("key", ["vocab_size", "context_length"])
def test_a_size_that_no_model_has(key: str, size: str, tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy")
    other = {"vocab_size": "context_length", "context_length": "vocab_size"}[key]
    config = f'{{"model": {{"{key}": {size}, "{other}": 64}}, "search": {{"past_present_share_buffer": false}}}}'
    path.with_name("genai_config.json").write_text(config)
    with pytest.raises(FileFormatError, match="does not describe a decoder"):
        open_engine("onnx", path)


def test_a_graph_without_a_cache_is_no_decoder(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy")
    model = onnx.load(str(path))
    del model.graph.output[1:]
    onnx.save(model, str(path))
    with pytest.raises(FileFormatError, match="cache"):
        open_engine("onnx", path)


def test_a_sequence_beyond_the_context(tmp_path: Path) -> None:
    engine = open_engine("onnx", toy.write(tmp_path / "toy"), context=8)
    with pytest.raises(OptionError, match="9 tokens"):
        engine.logits(IDS[:9])
    engine.start(IDS[:8])
    with pytest.raises(OptionError, match="9 tokens"):
        engine.step(1)


# -- what is found


@pytest.mark.parametrize("twice", [False, True])
def test_matrices_are_found_and_a_tied_head_is_none_of_its_own(twice: bool, tmp_path: Path) -> None:
    """Behind Transpose or stored twice: the head has the embedding's values."""
    source = OnnxSource(toy.write(tmp_path / "toy", twice=twice))
    found = {item.name: item for item in source.tensors()}
    assert {name: item.shape for name, item in found.items() if item.kind != "norm"} == NAMES
    assert found["/model/embed_tokens/Gather"].kind == "embedding"
    assert found["bias"].kind == "norm", "kept as it is"
    w = toy.weights()
    np.testing.assert_array_equal(source.read("/model/layers.0/mlp/down_proj/MatMul"), w["down"])
    np.testing.assert_array_equal(source.read("/model/layers.0/mlp/up_proj/Gemm"), w["up"])


def test_a_head_with_other_values_is_quantized_on_its_own(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy", twice=True)
    model = onnx.load(str(path))
    head = next(t for t in model.graph.initializer if t.name == "head_t")
    values = onnx.numpy_helper.to_array(head) * np.float32(1.5)
    head.CopyFrom(onnx.numpy_helper.from_array(values, "head_t"))
    onnx.save(model, str(path))
    kinds = {item.name: item.kind for item in OnnxSource(path).tensors()}
    assert kinds["/lm_head/MatMul"] == "head"


def test_a_scaled_gemm_stays_as_it_is(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "toy")
    model = onnx.load(str(path))
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    gemm.attribute.append(onnx.helper.make_attribute("alpha", 0.5))
    onnx.save(model, str(path))
    found = {item.name: item.kind for item in OnnxSource(path).tensors()}
    assert "/model/layers.0/mlp/up_proj/Gemm" not in found
    assert found["up"] == "norm"


# -- what is written


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("grid", ["int8-sym-b32", "int4-sym-b32", "int4-asym-b32"])
def test_the_artefact_computes_with_what_was_planned(grid: str, twice: bool, tmp_path: Path) -> None:
    source = OnnxSource(toy.write(tmp_path / "toy", twice=twice))
    plan, path, planned = written(source, tmp_path / "out", grid)
    source.check_bytes(plan, path, planned, nothing)
    source.write_dequantized(plan, path, tmp_path / "float" / "model.onnx")
    shipped, floats = (open_engine("onnx", each) for each in (path, tmp_path / "float" / "model.onnx"))
    np.testing.assert_allclose(shipped.logits(IDS), floats.logits(IDS), rtol=1e-4, atol=1e-4)
    error = np.abs(shipped.logits(IDS) - toy.expected(toy.weights(), IDS)).max()
    assert 1e-4 < error < (0.2 if grid.startswith("int8") else 4), "quantized, and still the same model"


@pytest.mark.parametrize("twice", [False, True])
def test_nothing_of_the_old_weights_is_left(twice: bool, tmp_path: Path) -> None:
    source = OnnxSource(toy.write(tmp_path / "toy", twice=twice))
    _, path, _ = written(source, tmp_path / "out")
    model = onnx.load(str(path), load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["MatMulNBits"], kinds["GatherBlockQuantized"]) == (4, 1)
    assert not {"MatMul", "Gemm", "Gather"} & set(kinds)
    assert {"embed", "up", "down_t", "head_t", "value_t"}.isdisjoint(t.name for t in model.graph.initializer)
    places = {t.name: [(e.key, e.value) for e in t.external_data] for t in model.graph.initializer}
    quantized = [node for node in model.graph.node if node.op_type != "Cast"]
    lookup, head = (next(n for n in quantized if word in n.name) for word in ("embed_tokens", "lm_head"))
    assert places[lookup.input[0]] == places[head.input[1]], "a tied head reads the embedding's bytes"
    assert {item.name for item in path.parent.iterdir()} == {"model.onnx", "model.onnx.data", "genai_config.json"}


@pytest.mark.parametrize("what", ["codes", "scales"])
def test_one_altered_byte_is_caught(what: str, tmp_path: Path) -> None:
    source = OnnxSource(toy.write(tmp_path / "toy"))
    plan, path, planned = written(source, tmp_path / "out")
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if "down_proj" in t.name and t.name.endswith(what))
    if tensor.external_data:
        place = int(next(e.value for e in tensor.external_data if e.key == "offset"))
        with path.with_name("model.onnx.data").open("r+b") as stream:
            stream.seek(place)
            old = stream.read(1)
            stream.seek(place)
            stream.write(bytes([old[0] ^ 1]))
    else:  # small tensors lie in the graph
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
        path.write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match="down_proj"):
        source.check_bytes(plan, path, planned, nothing)


def test_a_missing_matrix_is_caught(tmp_path: Path) -> None:
    source = OnnxSource(toy.write(tmp_path / "toy"))
    plan, path, planned = written(source, tmp_path / "out")
    with pytest.raises(ParityError, match="lacks the tensor another"):
        source.check_bytes(plan, path, {**planned, "another": ""}, nothing)


# -- the engine


def test_step_by_step_says_what_a_whole_pass_says(tmp_path: Path) -> None:
    engine = open_engine("onnx", toy.write(tmp_path / "toy"))
    assert isinstance(engine, ConcatOrtEngine)
    whole = engine.logits(IDS)
    np.testing.assert_allclose(whole, toy.expected(toy.weights(), IDS), rtol=1e-4, atol=1e-4)
    rows = [engine.start(IDS[:5]), *(engine.step(int(token)) for token in IDS[5:])]
    np.testing.assert_allclose(rows, whole[4:], rtol=1e-4, atol=1e-4)
    again = engine.start(IDS[:5])
    np.testing.assert_array_equal(again, rows[0], "start forgets")


def test_greedy_follows_the_formula(tmp_path: Path) -> None:
    engine = open_engine("onnx", toy.write(tmp_path / "toy"))
    text = list(IDS[:6])
    for _ in range(8):
        text.append(int(toy.expected(toy.weights(), np.array(text))[-1].argmax()))
    assert list(greedy(engine, IDS[:6], 8, frozenset())) == text[6:]


def test_positions_go_on_where_the_cache_ends(tmp_path: Path) -> None:
    """A graph with position_ids gets them: here they are added to the logits' first column."""
    path = toy.write(tmp_path / "toy")
    model = onnx.load(str(path))
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    model.graph.input.append(value("position_ids", onnx.TensorProto.INT64, ["b", "t"]))
    model.graph.node[-2].output[0] = "before_positions"
    model.graph.node.extend(
        [
            node("Cast", ["position_ids"], ["p"], to=onnx.TensorProto.FLOAT, name="/p"),
            node("Unsqueeze", ["p", "two_"], ["p3"], name="/p3"),
            node("Add", ["before_positions", "p3"], ["logits"], name="/p4"),
        ]
    )
    onnx.save(model, str(path))
    engine = open_engine("onnx", path)
    want = toy.expected(toy.weights(), IDS) + np.arange(len(IDS))[:, None]
    np.testing.assert_allclose(engine.logits(IDS), want, rtol=1e-4, atol=1e-3)
    rows = [engine.start(IDS[:3]), *(engine.step(int(token)) for token in IDS[3:])]
    np.testing.assert_allclose(rows, want[2:], rtol=1e-4, atol=1e-3)


def test_the_buffer_decides_the_engine(tmp_path: Path) -> None:
    """What shares past and present is for the other engine, which says that this graph is none of its kind."""
    path = toy.write(tmp_path / "toy")
    config = json.loads(path.with_name("genai_config.json").read_text())
    config["search"]["past_present_share_buffer"] = True
    path.with_name("genai_config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="does not describe a decoder"):
        open_engine("onnx", path)
