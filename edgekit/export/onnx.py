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

from edgekit import __version__
from edgekit.checkpoint.checkpoint import F32, Checkpoint
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
class _Store:
    """Quantizes matrices into the data file; knows the initializers that came of it, by the first matrix's name."""

    checkpoint: Checkpoint
    importance: Importance
    data: _DataFile
    planned: Digests
    initializers: dict[str, TensorProto]

    def add(self, entries: Sequence[Entry]) -> None:
        """Store the matrices of one node, rows of one below the other's; once, however often it is asked."""
        prefix = entries[0].tensor.hf
        if f"{prefix}.codes" in self.initializers:
            return
        packed = self._stacked(entries)
        raw = packed["data"] if "data" in packed else packed["B"]
        codes, blocks = self.data.append(raw), packed["scales"].shape
        self._name(f"{prefix}.codes", codes, (*blocks, raw.size // (blocks[0] * blocks[1])))
        if "data" in packed:
            self._name(f"{prefix}.table", codes, raw.shape)
        for key in ("scales", "zero_points"):
            if key in packed:
                self._name(f"{prefix}.{key}", self.data.append(packed[key]))

    def _stacked(self, entries: Sequence[Entry]) -> dict[str, NDArray[Any]]:
        parts = []
        for entry in entries:
            grid, name = get(entry.grid), entry.tensor.hf
            quantized = grid.quantize(self.checkpoint.read(entry.tensor), self.importance.get(name))
            self.planned[name] = digest(grid.dequantize(quantized))
            parts.append(grid.pack(quantized))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _name(self, name: str, stored: _Stored, shape: Sequence[int] | None = None) -> None:
        self.initializers[name] = _initializer(name, stored, shape)

    def inputs(self, entry: Entry, first: str) -> list[str]:
        """Names of a node's weight inputs: `first` ("codes" or "table"), scales and, if there are any, zero points."""
        names = [f"{entry.tensor.hf}.{key}" for key in (first, "scales", "zero_points")]
        return [name for name in names if name in self.initializers]


class _Graph:
    """The builder's graph, its matrices replaced by those of a store."""

    def __init__(self, source: Path, store: _Store, by_node: Mapping[str, Sequence[Entry]], level: int) -> None:
        self.model = onnx.load(str(source / "model.onnx"), load_external_data=False)
        self._source, self._store, self._by_node, self._level = source, store, by_node, level

    def rewrite(self) -> onnx.ModelProto:
        graph = self.model.graph
        if missing := set(self._by_node) - {node.name for node in graph.node}:
            raise ParityError(
                f"the ONNX graph has no node {sorted(missing)[0]}", remedy="use the tested onnxruntime-genai"
            )
        kept = _still_needed([self._replace(node) for node in graph.node], graph)
        del graph.node[:]
        graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        others = [self._moved(tensor) for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*(t for name, t in self._store.initializers.items() if name in used), *others])
        return self.model

    def _moved(self, tensor: TensorProto) -> TensorProto:
        load_external_data_for_tensor(tensor, str(self._source))
        array = to_array(tensor)
        if array.dtype.name in _TYPES:
            return _initializer(tensor.name, self._store.data.append(array))
        return onnx.numpy_helper.from_array(array, tensor.name)

    def _replace(self, node: onnx.NodeProto) -> onnx.NodeProto:
        entries = self._by_node.get(node.name)
        if entries is None:
            return node
        if node.op_type == "Gather":
            return self._lookup(node, entries[0])
        if node.op_type != "MatMul":
            raise ParityError(f"node {node.name} is a {node.op_type}", expected="a MatMul")
        return self._matmul(node, entries)

    def _matmul(self, node: onnx.NodeProto, entries: Sequence[Entry]) -> onnx.NodeProto:
        grid = get(entries[0].grid)
        return helper.make_node(
            "MatMulNBits", [node.input[0], *self._store.inputs(entries[0], "codes")], list(node.output),
            name=node.name, domain="com.microsoft", K=entries[0].tensor.shape[1],
            N=sum(e.tensor.shape[0] for e in entries), bits=grid.stored_bits, block_size=grid.block,
            accuracy_level=self._level,
        )  # fmt: skip

    def _lookup(self, node: onnx.NodeProto, entry: Entry) -> onnx.NodeProto:
        """The embedding; a tied head's MatMulNBits reads the very same bytes under another shape."""
        grid, (table, *scales) = get(entry.grid), self._store.inputs(entry, "table")
        return helper.make_node(
            "GatherBlockQuantized", [table, node.input[1], *scales], list(node.output), name=node.name,
            domain="com.microsoft", bits=grid.stored_bits, block_size=grid.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip


def _still_needed(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop nodes whose outputs nobody reads any more (the transpose of a float embedding)."""
    wanted = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    return [node for node in nodes if any(name in wanted for name in node.output)]


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
    source: Callable[[], Path],
    folder: Path,
    *,
    importance: Importance | None = None,
    tick: Tick = lambda _: None,
) -> Digests:
    """Write an ONNX folder: our matrices in the builder's full-precision graph. Holds one node's matrices at a time.

    Args:
        checkpoint: the full-precision model.
        plan: of container "onnx".
        source: called when the matrices are stored and the graph is needed; returns the builder's folder, see
            :func:`edgekit.export.onnx_builder.full_precision_graph`.
        folder: an existing, empty folder.
        importance: weighs the inputs of a layer when its codes are chosen; None: all the same.
        tick: called with the name of each node stored.

    Returns:
        For each matrix, the digest of the weights that its stored codes stand for; see :func:`check_bytes`.

    Raises:
        ParityError: the graph is not the one this version of edgekit knows.
    """
    by_node = _entries_by_node(checkpoint.spec, plan)
    with (folder / DATA).open("wb") as stream:
        store = _Store(checkpoint, importance or {}, _DataFile(stream), {}, {})
        for node, entries in by_node.items():
            store.add(entries)
            tick(node)
        graph = source()
        model = _Graph(graph, store, by_node, plan.accuracy_level).rewrite()
    # The builder puts the git commit of the folder it happens to run in here: equal builds would differ.
    model.producer_name, model.producer_version = "edgekit", __version__
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _check_structure(model, folder)
    shutil.copyfile(graph / "genai_config.json", folder / "genai_config.json")
    for path in checkpoint.tokenizer_files():  # the original's, not what the builder's library made of them
        shutil.copyfile(path, folder / path.name)
    return store.planned


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
