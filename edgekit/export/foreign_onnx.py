"""An ONNX graph that somebody else's exporter wrote, as the source of an artefact: its matrices become codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from edgekit import __version__
from edgekit.checkpoint.checkpoint import F32, TOKENIZER_FILES, Checkpoint
from edgekit.errors import ParityError
from edgekit.export.digests import Digests, digest
from edgekit.export.foreign import Stored, Tick
from edgekit.export.foreign_graph import Graph, Matrix
from edgekit.export.genai_config import genai_config, put_session
from edgekit.grids import get
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry, Plan

DATA = "model.onnx.data"
_ALIGN = 64
_INLINE = 1024
"""Bytes; what is larger goes to the data file."""
_WIDE = ".float32"
"""Ends the name of scales behind the node that widens them."""
_QUANTIZED = ("MatMulNBits", "GatherBlockQuantized")
_FLOATS = {TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16"}


def finished(path: Path, checkpoint: Checkpoint) -> OnnxSource:
    """The exporter's model.onnx as a source, once its folder has what our engine and the bundle need of the original.

    That is genai_config.json, and the original's tokenizer instead of what the exporter's library made of it.
    """
    config = genai_config(checkpoint)
    config["model"]["type"] = str(checkpoint.config.get("model_type", ""))
    config["model"]["decoder"]["inputs"]["position_ids"] = "position_ids"
    config["search"]["past_present_share_buffer"] = False
    path.with_name("genai_config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf8")
    for name in TOKENIZER_FILES:
        path.with_name(name).unlink(missing_ok=True)
    for original in checkpoint.tokenizer_files():
        shutil.copyfile(original, path.with_name(original.name))
    return OnnxSource(path)


class _Data:
    """The external data file; arrays are appended, 64-byte aligned."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def add(self, name: str, array: NDArray[Any]) -> TensorProto:
        """An initializer that lies in the file, or in itself when it is small."""
        if array.nbytes < _INLINE:
            return from_array(np.ascontiguousarray(array), name)
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGN))
        offset = self._stream.tell()
        self._stream.write(np.ascontiguousarray(array).data)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _reshaped(tensor: TensorProto, name: str, shape: Sequence[int]) -> TensorProto:
    """The same bytes under another name and shape."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    del copy.dims[:]
    copy.dims.extend(shape)
    return copy


@dataclass(frozen=True)
class OnnxSource:
    """A float32 decoder with a cache that is concatenated: model.onnx in a folder with its configuration files."""

    path: Path
    container: Literal["onnx"] = "onnx"

    @cached_property
    def graph(self) -> Graph:
        """The parsed file."""
        return Graph(self.path)

    @cached_property
    def _matrices(self) -> Mapping[str, Matrix]:
        """By name, without a tied head."""
        return {matrix.name: matrix for matrix in self.graph.matrices if matrix.name not in self.graph.tied}

    def tensors(self) -> Sequence[Stored]:
        """See Converted."""
        made = [
            Stored(m.name, m.shape, self._kind(m), "F32", 4 * m.shape[0] * m.shape[1]) for m in self._matrices.values()
        ]
        taken = {matrix.tensor for matrix in self.graph.matrices}
        for name, tensor in self.graph.initializers.items():
            if name not in taken and tensor.data_type in _FLOATS:
                dtype = _FLOATS[tensor.data_type]
                count = int(np.prod(tensor.dims))
                made.append(Stored(name, tuple(tensor.dims), "norm", dtype, count * (4 if dtype == "F32" else 2)))
        return made

    def _kind(self, matrix: Matrix) -> Literal["embedding", "head", "linear"]:
        if matrix.lookup:
            return "embedding"
        rows = {table.shape[0] for table in self.graph.matrices if table.lookup}
        return "head" if matrix.shape[0] in rows and matrix == self.graph.matrices[-1] else "linear"

    def read(self, name: str) -> F32:
        """See Converted."""
        return self.graph.weights(self._matrices[name])

    def write(self, plan: Plan, path: Path, importance: Importance, tick: Tick) -> Digests:
        """See Converted; the folder's configuration and tokenizer files go along."""
        entries = {entry.tensor.gguf: entry for entry in plan.entries}
        planned: Digests = {}
        with path.with_name(DATA).open("wb") as stream:
            data, made = _Data(stream), {}
            nodes: dict[str, Entry] = {}
            for matrix in self._matrices.values():
                entry = entries[matrix.name]
                quantized = get(entry.grid).quantize(self.read(matrix.name), importance.get(entry.tensor.hf))
                planned[entry.tensor.gguf] = digest(get(entry.grid).dequantize(quantized))
                made[matrix.name] = _initializers(data, matrix.name, get(entry.grid).pack(quantized))
                nodes |= dict.fromkeys(matrix.nodes, entry)
                tick(entry.tensor.hf)
            for head in self.graph.matrices:
                if (table := self.graph.tied.get(head.name)) is not None:
                    nodes |= dict.fromkeys(head.nodes, entries[table])
            model = self._rewritten(data, made, nodes, plan.accuracy_level)
        path.write_bytes(model.SerializeToString(deterministic=True))
        _check_structure(path)
        for extra in sorted(self.path.parent.iterdir()):
            if extra.is_file() and not extra.name.startswith("model.onnx"):
                shutil.copyfile(extra, path.with_name(extra.name))
        put_session(path.with_name("genai_config.json"), dict(plan.session))
        return planned

    def _rewritten(
        self,
        data: _Data,
        made: Mapping[str, Mapping[str, TensorProto]],
        entries: Mapping[str, Entry],
        level: int,
    ) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            entry = entries.get(node.name)
            nodes += [node] if entry is None else _quantized(node, entry, made[entry.tensor.gguf], level)
        nodes = [_widening(parts) for parts in made.values()] + nodes
        nodes = _needed(nodes, [output.name for output in model.graph.output])
        used = {name for node in nodes for name in _reads(node)}
        tensors = [t for parts in made.values() for t in parts.values() if t.name in used]
        tensors += [data.add(name, self.graph.array(name)) for name in self.graph.initializers if name in used]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]  # which the nodes may still be part of
        model.graph.node.extend(copies)
        model.graph.initializer.extend(tensors)
        if "com.microsoft" not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.producer_name, model.producer_version = "edgekit", __version__
        return model

    def check_bytes(self, plan: Plan, path: Path, planned: Digests, tick: Tick) -> None:
        """See Converted."""
        missing = dict(planned)
        columns = {entry.tensor.gguf: entry.tensor.shape[-1] for entry in plan.entries}
        for name, weights in _decoded(path, columns):
            if digest(weights) != planned[name]:
                raise ParityError(f"tensor {name} does not decode to what was planned", remedy="report this as a bug")
            missing.pop(name, None)
            tick(name)
        if missing:
            raise ParityError(f"{path} lacks the tensor {next(iter(missing))}", remedy="report this as a bug")

    def write_dequantized(self, plan: Plan, written: Path, path: Path) -> None:
        """See Converted."""
        columns = {entry.tensor.gguf: entry.tensor.shape[-1] for entry in plan.entries}
        arrays: dict[str, TensorProto] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(DATA).open("wb") as stream:
            data = _Data(stream)
            for name, weights in _decoded(written, columns):
                for matrix in self._same_as(name):
                    stored = weights.T if matrix.transposed else weights
                    arrays[matrix.tensor] = data.add(matrix.tensor, np.ascontiguousarray(stored))
            others = [data.add(n, self.graph.array(n)) for n in self.graph.initializers if n not in arrays]
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        model.graph.initializer.extend([*arrays.values(), *others])
        path.write_bytes(model.SerializeToString())
        shutil.copyfile(self.path.with_name("genai_config.json"), path.with_name("genai_config.json"))

    def _same_as(self, name: str) -> Iterator[Matrix]:
        """The matrix of that name and a head that is tied to it."""
        for matrix in self.graph.matrices:
            if name in (matrix.name, self.graph.tied.get(matrix.name)):
                yield matrix


def _initializers(data: _Data, name: str, packed: Mapping[str, NDArray[Any]]) -> dict[str, TensorProto]:
    """The parts of a stored matrix: codes for MatMulNBits, table (the same bytes) for a lookup, scales, zero points."""
    rows, blocks = packed["scales"].shape
    raw = packed["data"] if "data" in packed else packed["B"]
    codes = data.add(f"{name}.codes", raw.reshape(rows, blocks, -1))
    made = {"codes": codes}
    if "data" in packed:
        made["table"] = _reshaped(codes, f"{name}.table", raw.shape)
    for key in ("scales", "zero_points"):
        if key in packed:
            made[key] = data.add(f"{name}.{key}", packed[key])
    return made


def _widening(parts: Mapping[str, TensorProto]) -> onnx.NodeProto:
    """The node that gives scales in float32; onnxruntime computes it once, when it loads the model."""
    name = parts["scales"].name
    return helper.make_node("Cast", [name], [f"{name}{_WIDE}"], name=f"{name}{_WIDE}", to=TensorProto.FLOAT)


def _quantized(
    node: onnx.NodeProto, entry: Entry, parts: Mapping[str, TensorProto], level: int
) -> list[onnx.NodeProto]:
    """What computes the same as `node` with codes."""
    grid, (rows, columns) = get(entry.grid), entry.tensor.shape
    points = parts.get("zero_points")
    side = [f"{parts['scales'].name}{_WIDE}", *([points.name] if points is not None else [])]
    if node.op_type == "Gather":
        return [
            helper.make_node(
                "GatherBlockQuantized", [parts["table"].name, node.input[1], *side], list(node.output), name=node.name,
                domain="com.microsoft", bits=grid.stored_bits, block_size=grid.block, gather_axis=0, quantize_axis=1,
            )
        ]  # fmt: skip
    biased = node.op_type == "Gemm" and len(node.input) > 2
    output = f"{node.output[0]}.unbiased" if biased else node.output[0]
    product = helper.make_node(
        "MatMulNBits", [node.input[0], parts["codes"].name, *side], [output], name=node.name, domain="com.microsoft",
        K=columns, N=rows, bits=grid.stored_bits, block_size=grid.block, accuracy_level=level,
    )  # fmt: skip
    if not biased:
        return [product]
    return [product, helper.make_node("Add", [output, node.input[2]], list(node.output), name=f"{node.name}.bias")]


def _needed(nodes: list[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Without the nodes whose outputs nobody reads any more; an ONNX graph lists makers before readers."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_reads(node))
            kept.append(node)
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node reads, those of its branches and loops included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for part in inner.node:
                yield from _reads(part)
            yield from (output.name for output in inner.output)


def _check_structure(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ParityError(
            f"onnx.checker refuses the model ({str(error).splitlines()[0]})", remedy="report this as a bug"
        ) from error


def _decoded(path: Path, columns: Mapping[str, int]) -> Iterator[tuple[str, F32]]:
    """Name and weights of every quantized matrix, once, by the operators' documented formula: (code - zero) * scale."""
    graph = Graph(path)
    seen: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type not in _QUANTIZED:
            continue
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        first = 1 if node.op_type == "MatMulNBits" else 0
        name = node.input[first].rsplit(".", 1)[0]
        if name not in seen:
            seen.add(name)
            arrays = [graph.array(each.removesuffix(_WIDE)) for each in (node.input[first], *node.input[2:])]
            yield name, _decode(arrays, settings["bits"], settings["block_size"], columns[name])


def _decode(arrays: Sequence[NDArray[Any]], bits: int, block: int, columns: int) -> F32:
    codes, scales, *points = arrays
    rows = len(codes)
    levels = _unpacked(codes.reshape(rows, -1), bits)[:, :columns].astype(np.float32)
    wide = np.repeat(scales.reshape(rows, -1).astype(np.float32), block, axis=1)[:, :columns]
    zero: NDArray[Any] = np.full((rows, 1), 1 << (bits - 1), np.float32)
    if points:
        zero = np.repeat(_unpacked(points[0].reshape(rows, -1), bits), block, axis=1)[:, :columns].astype(np.float32)
    weights: F32 = (levels - zero) * wide
    return weights


def _unpacked(raw: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return raw
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
