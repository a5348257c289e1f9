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


def _decode(matrix: _Matrix, rows: slice, columns: int) -> F32:
    """(rows, columns) weights by the operator's documented formula, independent of the grids: (code - zero) * scale."""
    count = matrix.arrays["B"].shape[0]
    raw, scales = (matrix.arrays[key].reshape(count, -1)[rows] for key in ("B", "scales"))
    codes = _nibbles(raw) if matrix.bits == 4 else raw
    zero: NDArray[Any] = np.full((len(raw), 1), 1 << (matrix.bits - 1), dtype=np.uint8)
    if "zero_points" in matrix.arrays:
        points = matrix.arrays["zero_points"].reshape(count, -1)[rows]
        points = _nibbles(points) if matrix.bits == 4 else points
        zero = np.repeat(points, matrix.block, axis=1)[:, :columns]
    weights: F32 = codes[:, :columns].astype(np.float32) - zero.astype(np.float32)
    weights *= np.repeat(scales, matrix.block, axis=1)[:, :columns]
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
