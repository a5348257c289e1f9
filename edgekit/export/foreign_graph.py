"""Finds the weight matrices in an ONNX graph that somebody else's exporter wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.numpy_helper import to_array

from edgekit.errors import BadWeightsError, ConverterError

F32 = NDArray[np.float32]
IDS = "input_ids"
_PASS = ("Identity", "Cast")


@dataclass(frozen=True)
class Matrix:
    """A constant matrix and the nodes that multiply by it or look rows up in it."""

    name: str
    """Of the first node that uses it."""
    tensor: str
    """Of the initializer."""
    transposed: bool
    """Whether the initializer is stored inputs first: (columns, rows)."""
    shape: tuple[int, int]
    """Rows (outputs) and columns (inputs)."""
    lookup: bool
    """Whether token ids look rows up in it."""
    nodes: tuple[str, ...]


class Graph:
    """A parsed model.onnx; weights that lie in a data file are read when asked for, one at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self.model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's error has no typed name
            raise ConverterError(f"{path} cannot be read as ONNX ({error})", remedy="export it again") from error
        self.path = path
        self.initializers: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in self.model.graph.initializer}
        """Constant tensors by name; they are taken out of the model, so that copies of it are small."""
        del self.model.graph.initializer[:]
        self._makers = {output: node for node in self.model.graph.node for output in node.output}

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Name of a head → of the embedding that has the same values; the exporter may have stored them twice."""
        tables = [matrix for matrix in self.matrices if matrix.lookup]
        return {
            head.name: table.name
            for table in tables
            for head in self.matrices
            if not head.lookup and head.shape == table.shape and np.array_equal(self.weights(head), self.weights(table))
        }

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Every matrix that could be quantized, in the graph's order; one that several nodes use comes once.

        These are the constant second inputs of MatMul and of Gemm (with factors of 1), and the table in which
        `input_ids` are looked up; both also behind Identity and Transpose nodes.
        """
        found: dict[tuple[str, bool, bool], Matrix] = {}
        for node in self.model.graph.node:
            matrix = self._matrix(node)
            if matrix is None:
                continue
            key = (matrix.tensor, matrix.transposed, matrix.lookup)
            if before := found.get(key):
                matrix = Matrix(**{**vars(before), "nodes": (*before.nodes, *matrix.nodes)})
            found[key] = matrix
        return tuple(found.values())

    def array(self, name: str) -> NDArray[Any]:
        """An initializer's values.

        Raises:
            ConverterError: its data cannot be read.
        """
        tensor = TensorProto()
        tensor.CopyFrom(self.initializers[name])
        try:
            load_external_data_for_tensor(tensor, str(self.path.parent)) if tensor.external_data else None
            return np.asarray(to_array(tensor))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ConverterError(f"{self.path} has no readable tensor {name} ({error})") from error

    def weights(self, matrix: Matrix) -> F32:
        """The matrix (rows, columns), float32.

        Raises:
            BadWeightsError: it holds NaN or infinity.
        """
        array = self.array(matrix.tensor).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise BadWeightsError(f"the matrix of {matrix.name} in {self.path.name} holds NaN or infinite values")
        return np.ascontiguousarray(array.T if matrix.transposed else array)

    def _matrix(self, node: onnx.NodeProto) -> Matrix | None:
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gather" and settings.get("axis", 0) == 0 and self._is_ids(node.input[1]):
            found = self._constant(node.input[0])
            return None if found is None else self._made(node, found[0], found[1], lookup=True)
        flipped = settings.get("transB", 0) == 0  # stored (columns, rows), as MatMul takes it
        plain = settings.get("alpha", 1) == settings.get("beta", 1) == 1 and settings.get("transA", 0) == 0
        if node.op_type not in ("MatMul", "Gemm") or not plain:
            return None
        found = self._constant(node.input[1])
        return None if found is None else self._made(node, found[0], found[1] != flipped, lookup=False)

    def _made(self, node: onnx.NodeProto, tensor: str, transposed: bool, *, lookup: bool) -> Matrix:
        first, second = self.initializers[tensor].dims
        shape = (second, first) if transposed else (first, second)
        return Matrix(node.name, tensor, transposed, shape, lookup, (node.name,))

    def _constant(self, name: str) -> tuple[str, bool] | None:
        """The 2-D float initializer that `name` is, and whether it is transposed on the way; None: it is no such."""
        transposed = False
        while (node := self._makers.get(name)) is not None:
            if node.op_type == "Transpose":
                transposed = not transposed
            elif node.op_type != "Identity":
                return None
            name = node.input[0]
        tensor = self.initializers.get(name)
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            return None
        return name, transposed

    def _is_ids(self, name: str) -> bool:
        while (node := self._makers.get(name)) is not None and node.op_type in _PASS:
            name = node.input[0]
        return name == IDS
