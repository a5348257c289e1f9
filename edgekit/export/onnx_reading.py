"""What is in an ONNX folder, read by the official reader and compared with what was planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.numpy_helper import to_array

from edgekit.checkpoint.checkpoint import F32, PIECE
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import ParityError
from edgekit.export.digests import Digest, Digests
from edgekit.export.onnx_decoder import tensors_of_nodes
from edgekit.quantize.plan import Plan

Tick = Callable[[str], None]
_OPERATORS = ("MatMulNBits", "GatherBlockQuantized", "MatMul3Bits", "SparseMatMul3Bits", "Gather3Bits")
_OURS = 3
"""Bits of the codes of edgekit's own operator."""
_BITS = (
    ((0, 0), (0, 1), (0, 2)), ((0, 5), (0, 6), (0, 7)), ((1, 0), (1, 1), (1, 2)), ((1, 5), (1, 6), (1, 7)),
    ((2, 0), (2, 1), (2, 2)), ((2, 5), (2, 6), (2, 7)), ((0, 3), (0, 4), (2, 3)), ((1, 3), (1, 4), (2, 4)),
)  # fmt: skip
"""For each group of four columns, the vector and the bit where the bits of its codes lie, the lowest first."""


@dataclass(frozen=True)
class _Matrix:
    """One node's arrays as the official reader gives them."""

    node: str
    operator: str
    bits: int
    block: int
    arrays: Mapping[str, NDArray[Any]]


def _matrices(folder: Path) -> Iterator[_Matrix]:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    widened = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for node in model.graph.node:
        if node.op_type not in _OPERATORS:
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        first = 0 if node.op_type == "GatherBlockQuantized" else 1
        names = [widened.get(name, name) for name in (node.input[first], *node.input[2:])]
        arrays = {}
        for key, name in zip(("B", "scales", "zero_points"), names, strict=False):
            tensor = TensorProto()
            tensor.CopyFrom(tensors[name])
            load_external_data_for_tensor(tensor, str(folder))
            arrays[key] = to_array(tensor)
        yield _Matrix(node.name, node.op_type, attributes["bits"], attributes["block_size"], arrays)


def _decode(matrix: _Matrix, rows: slice, columns: int) -> F32:
    """(rows, columns) weights by the operator's documented formula, independent of the grids: (code - zero) * scale."""
    if matrix.operator == "SparseMatMul3Bits":
        return _decode_columns(matrix, rows, columns)
    if matrix.bits == _OURS:
        return _decode_tiles(matrix, rows, columns)
    count = matrix.arrays["B"].shape[0]
    raw, scales = (matrix.arrays[key].reshape(count, -1)[rows] for key in ("B", "scales"))
    codes = _nibbles(raw) if matrix.bits == 4 else raw
    zero: NDArray[Any] = np.full((len(raw), 1), 1 << (matrix.bits - 1), dtype=np.uint8)
    if "zero_points" in matrix.arrays:
        points = matrix.arrays["zero_points"].reshape(count, -1)[rows]
        points = _nibbles(points) if matrix.bits == 4 else points
        zero = np.repeat(points, matrix.block, axis=1)[:, :columns]
    weights: F32 = codes[:, :columns].astype(np.float32) - zero.astype(np.float32)
    weights *= np.repeat(scales.astype(np.float32), matrix.block, axis=1)[:, :columns]
    return weights


def _decode_tiles(matrix: _Matrix, rows: slice, columns: int) -> F32:
    """As :func:`_decode`, for tiles of eight rows (docs/int3.md)."""
    tiles = slice(rows.start // 8, -(-rows.stop // 8))
    own = slice(rows.start - 8 * tiles.start, rows.stop - 8 * tiles.start)
    data, scales = matrix.arrays["B"][tiles], matrix.arrays["scales"][tiles]
    count, chunks = data.shape[:2]
    bits = np.unpackbits(data.reshape(count, chunks, 3, 8, 4, 1), axis=-1, bitorder="little")
    groups = [sum(bits[:, :, vector, :, :, bit] << place for place, (vector, bit) in enumerate(at)) for at in _BITS]
    codes = np.stack(groups, axis=2).transpose(0, 3, 1, 2, 4).reshape(8 * count, -1)  # tile, row, chunk, group, column
    wide = scales.transpose(0, 2, 1).reshape(8 * count, -1).astype(np.float32)
    weights: F32 = codes[own, :columns].astype(np.float32) - np.float32(4)
    weights *= np.repeat(wide[own], matrix.block, axis=1)[:, :columns]
    return weights


def _decode_columns(matrix: _Matrix, rows: slice, columns: int) -> F32:
    """As :func:`_decode`, for columns that lie one after the other (docs/int3.md)."""
    data, scales = matrix.arrays["B"], matrix.arrays["scales"]
    row = np.arange(rows.start, rows.stop)
    plane = np.minimum(256, scales.shape[1] - row // 256 * 256) // 8
    group, first = row % 256 // plane, row // 256 * 96 + row % 256 % plane
    bits = np.zeros((3, len(row), data.shape[0]), np.uint8)
    for bit in range(3):
        places = np.array([at[bit] for at in _BITS])[group]
        bits[bit] = data[:, first + places[:, 0] * plane].T >> places[:, 1][:, None] & 1
    codes = bits[0] | bits[1] << 1 | bits[2] << 2
    weights: F32 = codes[:, :columns].astype(np.float32) - np.float32(4)
    weights *= np.repeat(scales.T[rows].astype(np.float32), matrix.block, axis=1)[:, :columns]
    return weights


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(raw.shape[0], -1)


def _pieces(folder: Path, spec: Spec) -> Iterator[tuple[TensorSpec, Iterator[F32]]]:
    """Every quantized matrix of the folder, its decoded rows a piece at a time; a tied head after its embedding."""
    by_node = tensors_of_nodes(spec)
    for matrix in _matrices(folder):
        first = 0
        for tensor in by_node[matrix.node]:
            yield tensor, _rows(matrix, first, tensor)
            first += tensor.shape[0]


def _rows(matrix: _Matrix, first: int, tensor: TensorSpec) -> Iterator[F32]:
    rows, columns = tensor.shape
    step = max(1, PIECE // columns)
    for begin in range(0, rows, step):
        yield _decode(matrix, slice(first + begin, first + min(begin + step, rows)), columns)


def read_weights(folder: Path, spec: Spec) -> Iterator[tuple[str, F32]]:
    """Hugging Face name and decoded weights of every quantized matrix of the folder."""
    for tensor, pieces in _pieces(folder, spec):
        yield tensor.hf, np.concatenate(list(pieces))


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
    missing = dict.fromkeys(entry.tensor.hf for entry in plan.entries if entry.tensor.rule.matrix)
    for tensor, pieces in _pieces(folder, spec):
        found = Digest()
        for piece in pieces:
            found.update(piece)
        if found.text() != planned[tensor.hf]:
            raise ParityError(f"tensor {tensor.hf} does not decode to what was planned", remedy="report this as a bug")
        missing.pop(tensor.hf, None)
        tick(tensor.hf)
    if missing:
        raise ParityError(f"the ONNX folder lacks the tensor {next(iter(missing))}", remedy="report this as a bug")
    _check_thresholds(folder, spec, plan)


def _check_thresholds(folder: Path, spec: Spec, plan: Plan) -> None:
    by_node = tensors_of_nodes(spec)
    nodes = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
    written = {
        tensor.hf: attribute.f
        for node in nodes for attribute in node.attribute if attribute.name == "threshold"
        for tensor in by_node[node.name]
    }  # fmt: skip
    for entry in plan.entries:
        if written.get(entry.tensor.hf, 0.0) != entry.threshold:
            raise ParityError(
                f"inputs of {entry.tensor.hf} are left out below {written.get(entry.tensor.hf, 0.0):g}",
                expected=f"{entry.threshold:g}", remedy="report this as a bug",
            )  # fmt: skip
