"""A checkpoint and a plan become an ONNX folder: the builder's full-precision graph with our weights in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.numpy_helper import to_array

from edgekit.checkpoint.checkpoint import F32, TOKENIZER_FILES, Checkpoint
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import ParityError
from edgekit.export.digests import Digests, digest
from edgekit.grids import get
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry, Plan

Tick = Callable[[str], None]
DATA = "model.onnx.data"
_ALIGN = 64
_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class _Stored:
    """Where an array lies in the data file."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class _DataFile:
    """Appends arrays to the external data file, 64-byte aligned."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, array: NDArray[Any]) -> _Stored:
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGN))
        offset = self._stream.tell()
        self._stream.write(np.ascontiguousarray(array).tobytes())
        return _Stored(offset, array.nbytes, array.dtype.name, array.shape)


def _initializer(name: str, stored: _Stored, shape: Sequence[int] | None = None) -> TensorProto:
    tensor = TensorProto(name=name, data_type=_TYPES[stored.dtype], dims=stored.shape if shape is None else shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@dataclass(frozen=True)
class _Quantizer:
    """Makes the arrays of one node, and notes in `planned` what they stand for."""

    checkpoint: Checkpoint
    importance: Importance
    planned: Digests

    def stacked(self, entries: Sequence[Entry]) -> dict[str, NDArray[Any]]:
        """The matrices of one node quantized and packed, rows of one below the other's."""
        parts = []
        for entry in entries:
            grid, name = get(entry.grid), entry.tensor.hf
            quantized = grid.quantize(self.checkpoint.read(entry.tensor), self.importance.get(name))
            self.planned[name] = digest(grid.dequantize(quantized))
            parts.append(grid.pack(quantized))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


class _Writer:
    """Turns the builder's nodes into quantized ones and moves every initializer to the new data file."""

    def __init__(self, source: Path, quantizer: _Quantizer, plan: Plan, data: _DataFile, tick: Tick) -> None:
        self.model = onnx.load(str(source / "model.onnx"), load_external_data=False)
        self._source, self._quantizer, self._data, self._tick = source, quantizer, data, tick
        self._by_node = _entries_by_node(quantizer.checkpoint.spec, plan)
        self._old = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._new: list[TensorProto] = []
        self._level = plan.accuracy_level
        self._producers = {name: node for node in self.model.graph.node for name in node.output}

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        nodes = [self._replace(node) for node in graph.node]
        kept = _still_needed([node for node in nodes if node is not None], graph)
        del graph.node[:]
        graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        quantized = {tensor.name for tensor in self._new}
        for name, tensor in self._old.items():
            if name in used and name not in quantized:
                self._new.append(self._moved(tensor))
        del graph.initializer[:]
        graph.initializer.extend(self._new)
        if self._by_node:
            raise ParityError(
                f"the ONNX graph has no node {sorted(self._by_node)[0]}", remedy="use the tested onnxruntime-genai"
            )
        return self.model

    def _moved(self, tensor: TensorProto) -> TensorProto:
        load_external_data_for_tensor(tensor, str(self._source))
        array = to_array(tensor)
        if array.dtype.name in _TYPES:
            return _initializer(tensor.name, self._data.append(array))
        return onnx.numpy_helper.from_array(array, tensor.name)

    def _replace(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        entries = self._by_node.get(node.name)
        if entries is None:
            return node
        if node.op_type == "Gather":
            return self._embedding(node, entries[0])
        del self._by_node[node.name]
        if node.op_type != "MatMul":
            raise ParityError(f"node {node.name} is a {node.op_type}", expected="a MatMul")
        prefix = node.input[1]
        if not any(tensor.name == f"{prefix}.codes" for tensor in self._new):
            packed = self._quantizer.stacked(entries)
            self._store(prefix, packed)
            self._tick(node.name)
        return self._matmul(node, prefix, entries)

    def _store(self, prefix: str, packed: Mapping[str, NDArray[Any]]) -> None:
        raw = packed["data"] if "data" in packed else packed["B"]
        codes, blocks = self._data.append(raw), packed["scales"].shape
        self._new.append(_initializer(f"{prefix}.codes", codes, (*blocks, raw.size // (blocks[0] * blocks[1]))))
        if "data" in packed:
            self._new.append(_initializer(f"{prefix}.table", codes, raw.shape))
        for key in ("scales", "zero_points"):
            if key in packed:
                self._new.append(_initializer(f"{prefix}.{key}", self._data.append(packed[key])))

    def _names(self, prefix: str) -> list[str]:
        name = f"{prefix}.zero_points"
        return [f"{prefix}.scales"] + ([name] if any(tensor.name == name for tensor in self._new) else [])

    def _matmul(self, node: onnx.NodeProto, prefix: str, entries: Sequence[Entry]) -> onnx.NodeProto:
        grid = get(entries[0].grid)
        return helper.make_node(
            "MatMulNBits", [node.input[0], f"{prefix}.codes", *self._names(prefix)], list(node.output), name=node.name,
            domain="com.microsoft", K=entries[0].tensor.shape[1], N=sum(e.tensor.shape[0] for e in entries),
            bits=grid.stored_bits, block_size=grid.block, accuracy_level=self._level,
        )  # fmt: skip

    def _embedding(self, node: onnx.NodeProto, entry: Entry) -> onnx.NodeProto:
        """The embedding lookup; a tied head's MatMulNBits reads the very same bytes under another shape."""
        del self._by_node[node.name]
        producer = self._producers.get(node.input[0])
        prefix = producer.input[0] if producer is not None else node.input[0]
        packed = self._quantizer.stacked([entry])
        self._store(prefix, packed)
        self._tick(node.name)
        grid = get(entry.grid)
        return helper.make_node(
            "GatherBlockQuantized", [f"{prefix}.table", node.input[1], *self._names(prefix)], list(node.output),
            name=node.name, domain="com.microsoft", bits=grid.stored_bits, block_size=grid.block, gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip


def _still_needed(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop nodes whose outputs nobody reads any more (the transpose of a float embedding)."""
    wanted = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    return [node for node in nodes if any(name in wanted for name in node.output)]


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _entries_by_node(spec: Spec, plan: Plan) -> dict[str, list[Entry]]:
    """Which matrices each graph node holds: fused projections by the fused name and by their own."""
    fused = {role: name for name, roles in spec.family.fused.items() for role in roles}
    found: dict[str, list[Entry]] = {}
    embedding: Entry | None = None
    for entry in plan.entries:
        tensor = entry.tensor
        if not tensor.rule.onnx:
            continue
        if tensor.rule.kind == "embedding":
            embedding = entry
        pattern = fused.get(tensor.role, tensor.rule.onnx)
        found.setdefault(pattern.replace("{i}", str(tensor.layer)), []).append(entry)
    if spec.tied and embedding is not None:
        head = next(rule for rule in spec.family.tensors if rule.kind == "head")
        found[head.onnx] = [embedding]
    return found


def write_onnx(
    checkpoint: Checkpoint,
    plan: Plan,
    source: Path,
    folder: Path,
    *,
    importance: Importance | None = None,
    tick: Tick = lambda _: None,
) -> Digests:
    """Write `folder` from the builder's full-precision `source` folder, one matrix in memory at a time.

    Args:
        checkpoint: the full-precision model.
        plan: of container "onnx".
        source: as :func:`edgekit.export.onnx_builder.build_full_precision` writes it.
        folder: an existing, empty folder.
        importance: weighs the inputs of a layer when its codes are chosen; None: all the same.
        tick: called with the name of each node written.

    Returns:
        For each matrix, the digest of the weights that its stored codes stand for; see :func:`check_bytes`.

    Raises:
        ParityError: the graph is not the one this version of edgekit knows.
    """
    with (folder / DATA).open("wb") as stream:
        quantizer = _Quantizer(checkpoint, importance or {}, {})
        model = _Writer(source, quantizer, plan, _DataFile(stream), tick).run()
    _drop_unused(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _check_structure(model, folder)
    for name in ("genai_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # The builder writes what transformers made of it, which can split text by other rules than the file's own.
    shutil.copyfile(checkpoint.root / "tokenizer.json", folder / "tokenizer.json")
    return quantizer.planned


def _check_structure(model: onnx.ModelProto, folder: Path) -> None:
    """onnx.checker on the file, as far as it can: onnxruntime puts this operator into ONNX's own domain, where the
    checker does not know it, so the checked copy calls it what it is, a contributed one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    path = folder / "check.onnx"
    try:
        path.write_bytes(copy.SerializeToString())
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ParityError(
            f"onnx.checker refuses the model ({str(error).splitlines()[0]})", remedy="report this"
        ) from error
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Matrix:
    """One node's arrays as the official reader gives them."""

    node: str
    bits: int
    block: int
    arrays: Mapping[str, NDArray[Any]]


def _matrices(folder: Path) -> Iterator[_Matrix]:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        first = 1 if node.op_type == "MatMulNBits" else 0
        names = [node.input[first], *node.input[2:]]
        arrays = {}
        for key, name in zip(("B", "scales", "zero_points"), names, strict=False):
            tensor = TensorProto()
            tensor.CopyFrom(tensors[name])
            load_external_data_for_tensor(tensor, str(folder))
            arrays[key] = to_array(tensor)
        yield _Matrix(node.name, attributes["bits"], attributes["block_size"], arrays)


def _decode(matrix: _Matrix, columns: int) -> F32:
    """(rows, columns) weights by the operator's documented formula, independent of the grids: (code - zero) * scale."""
    rows = matrix.arrays["B"].shape[0]
    raw = matrix.arrays["B"].reshape(rows, -1)
    codes = _nibbles(raw) if matrix.bits == 4 else raw
    scales = np.repeat(matrix.arrays["scales"].reshape(rows, -1), matrix.block, axis=1)[:, :columns]
    zero: NDArray[Any] = np.full((rows, 1), 1 << (matrix.bits - 1), dtype=np.uint8)
    if "zero_points" in matrix.arrays:
        points = matrix.arrays["zero_points"].reshape(rows, -1)
        points = _nibbles(points) if matrix.bits == 4 else points
        zero = np.repeat(points, matrix.block, axis=1)[:, :columns]
    weights: F32 = (codes[:, :columns].astype(np.float32) - zero.astype(np.float32)) * scales
    return weights


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(raw.shape[0], -1)


def _split(weights: F32, entries: Sequence[Entry]) -> Iterator[tuple[TensorSpec, F32]]:
    row = 0
    for entry in entries:
        count = entry.tensor.shape[0]
        yield entry.tensor, weights[row : row + count]
        row += count


def decoded(folder: Path, spec: Spec, plan: Plan) -> Iterator[tuple[TensorSpec, F32]]:
    """Tensor and decoded weights of every quantized matrix in the folder; a tied head comes after its embedding."""
    by_node = _entries_by_node(spec, plan)
    for matrix in _matrices(folder):
        entries = by_node[matrix.node]
        yield from _split(_decode(matrix, entries[0].tensor.shape[1]), entries)


def read_weights(folder: Path, spec: Spec, plan: Plan) -> Iterator[tuple[str, F32]]:
    """Hugging Face name and decoded weights of every quantized matrix of the folder."""
    for tensor, weights in decoded(folder, spec, plan):
        yield tensor.hf, weights


def check_bytes(folder: Path, spec: Spec, plan: Plan, planned: Digests, *, tick: Tick = lambda _: None) -> None:
    """Compare every matrix of the folder, read by `onnx` and decoded by the operator's formula, with what was planned.

    Args:
        folder: with model.onnx and its data.
        spec: the model.
        plan: what it was written from.
        planned: as :func:`write_onnx` returned it.
        tick: called with the name of each compared tensor.

    Raises:
        ParityError: names the first tensor that differs or is not there.
    """
    missing = dict.fromkeys(entry.tensor.hf for entry in plan.entries if entry.tensor.rule.onnx)
    for tensor, weights in decoded(folder, spec, plan):
        if digest(weights) != planned[tensor.hf]:
            raise ParityError(f"tensor {tensor.hf} does not decode to what was planned", remedy="report this as a bug")
        missing.pop(tensor.hf, None)
        tick(tensor.hf)
    if missing:
        raise ParityError(f"the ONNX folder lacks the tensor {next(iter(missing))}", remedy="report this as a bug")
