"""The weights of an ONNX folder: every tensor is read, quantized, appended to the data file and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgekit.checkpoint.checkpoint import F32, PIECE, Checkpoint
from edgekit.checkpoint.spec import TensorSpec
from edgekit.export.digests import Digest, Digests
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.grids.threebit import ThreeBitGrid, portable
from edgekit.grids.threebit_columns import SPARSE, sparse
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry
from edgekit.quantize.rounded import Rounded, pieces

DATA = "model.onnx.data"
FLOAT = "F32"
"""The grid of what is not quantized."""
_ALIGN = 64
_TYPES = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class Stored:
    """Where an array lies in the data file."""

    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


class DataFile:
    """Appends arrays to the external data file, 64-byte aligned."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, pieces: Iterable[NDArray[Any]]) -> Stored:
        """Write the rows of one array, given in pieces, and say where they are."""
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGN))
        offset, rows, shape, dtype = self._stream.tell(), 0, (0,), "uint8"
        for piece in pieces:
            self._stream.write(np.ascontiguousarray(piece).data)
            rows, shape, dtype = rows + len(piece), piece.shape, piece.dtype.name
        return Stored(offset, self._stream.tell() - offset, dtype, (rows, *shape[1:]))


@dataclass(frozen=True)
class Store:
    """Puts tensors into the data file; knows the initializers that came of it."""

    checkpoint: Checkpoint
    importance: Importance
    rounded: Rounded
    data: DataFile
    planned: Digests
    """For each matrix, the digest of the weights that its stored codes stand for."""
    initializers: dict[str, TensorProto]

    def matrices(self, name: str, entries: Sequence[Entry]) -> None:
        """Store the matrices of one node under `name`, rows of one below the other's.

        Quantized ones as "NAME.codes" (rows, blocks, bytes), "NAME.table" (rows, bytes; embeddings),
        "NAME.scales" and "NAME.zero_points"; those in full precision as "NAME.weight" (rows, columns). Those
        of edgekit's own operator have the shapes that it takes.
        """
        if entries[0].grid == FLOAT:
            self._name(f"{name}.weight", self.data.append(self._float(entries)))
            return
        if isinstance(get(entries[0].grid), ThreeBitGrid):
            self._tiles(name, entries)
            return
        others: dict[str, list[NDArray[Any]]] = {}
        codes = self.data.append(self._codes(entries, others))
        for key, parts in others.items():
            self.array(f"{name}.{key}", np.concatenate(parts))
        blocks = self.initializers[f"{name}.scales"].dims
        self._name(f"{name}.codes", codes, (*blocks, codes.length // (blocks[0] * blocks[1])))
        if entries[0].tensor.rule.kind == "embedding":
            self._name(f"{name}.table", codes)

    def _float(self, entries: Sequence[Entry]) -> Iterator[F32]:
        for entry in entries:
            found = Digest()
            for piece in self.checkpoint.pieces(entry.tensor):
                found.update(piece)
                yield piece
            self.planned[entry.tensor.hf] = found.text()

    def _tiles(self, name: str, entries: Sequence[Entry]) -> None:
        """Tiles of eight rows, or columns, do not end where a matrix does, so that the node is packed whole."""
        grid, parts = get(entries[0].grid), list[Quantized]()
        for entry in entries:
            found = Digest()
            for quantized in self._quantized(entry):
                found.update(grid.dequantize(quantized))
                parts.append(quantized)
            self.planned[entry.tensor.hf] = found.text()
        fields = {key: np.concatenate([part.fields[key] for part in parts]) for key in parts[0].fields}
        rows = sum(part.shape[0] for part in parts)
        packed = grid.pack(Quantized(grid.name, (rows, parts[0].shape[1]), fields))
        self.array(f"{name}.codes", packed["B"])
        self.array(f"{name}.scales", packed["scales"])

    def _codes(self, entries: Sequence[Entry], others: dict[str, list[NDArray[Any]]]) -> Iterator[NDArray[Any]]:
        """Codes (rows, bytes) piece by piece; scales and zero points go to `others`."""
        for entry in entries:
            grid, name, found = get(entry.grid), entry.tensor.hf, Digest()
            for quantized in self._quantized(entry):
                found.update(grid.dequantize(quantized))
                packed = dict(grid.pack(quantized))
                codes = packed.pop("data") if "data" in packed else packed.pop("B")
                for key, array in packed.items():
                    others.setdefault(key, []).append(array)
                yield codes.reshape(quantized.shape[0], -1)
            self.planned[name] = found.text()

    def _quantized(self, entry: Entry) -> Iterator[Quantized]:
        """Pieces of the matrix."""
        name = entry.tensor.hf
        if (given := self.rounded.load(name)) is not None:
            yield from pieces(_in_form(given, entry.grid), PIECE)
            return
        for piece in self.checkpoint.pieces(entry.tensor):
            yield get(entry.grid).quantize(piece, self.importance.get(name))

    def vectors(self, name: str, tensors: Sequence[TensorSpec]) -> str:
        """Store norms, biases or positions in float32, one behind the other; returns `name`."""
        arrays = [self.checkpoint.read(tensor) + np.float32(tensor.rule.shift) for tensor in tensors]
        return self.array(name, np.concatenate(arrays))

    def array(self, name: str, array: NDArray[Any]) -> str:
        """Store an array; returns `name`."""
        self._name(name, self.data.append([array]))
        return name

    def _name(self, name: str, stored: Stored, shape: Sequence[int] | None = None) -> None:
        dims = stored.shape if shape is None else shape
        tensor = TensorProto(name=name, data_type=_TYPES[stored.dtype], dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", stored.offset), ("length", stored.length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor


def _in_form(given: Quantized, grid: str) -> Quantized:
    """Codes of a training for edgekit's own operator, asked for so, by columns, or as stock onnxruntime reads them."""
    if given.grid == grid:
        return given
    return sparse(given) if grid.endswith(SPARSE) else portable(given)
