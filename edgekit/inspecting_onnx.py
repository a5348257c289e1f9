"""What an ONNX file holds: operators, quantized matrices, bytes by kind, external data. No weight is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgekit.bundle.paths import check_path, plain
from edgekit.errors import BundleError, FileFormatError, MissingDependencyError
from edgekit.inspecting_files import Findings, Row, Value, shares

_MAX_BYTES = 2 << 30
"""protobuf's own limit; weights of larger models are external."""
_MAX_PLACE = 1 << 50
_EXTERNAL = 1
"""TensorProto.EXTERNAL."""
_INPUTS = {
    "MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3), "MatMul3Bits": (1, 2), "SparseMatMul3Bits": (1, 2),
    "Gather3Bits": (1, 2),
}  # fmt: skip
"""Places of codes, scales and zero points among an operator's inputs (onnxruntime docs/ContribOperators.md)."""
_OWN = ("MatMul3Bits", "SparseMatMul3Bits", "Gather3Bits")
_PARTS = ("codes", "scales", "zero points")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor's bytes lie; two tensors with the same place share them."""

    location: str
    """Name of the external file, empty for the .onnx file itself."""
    offset: int
    nbytes: int
    name: str


def _bad(path: Path, clause: str) -> FileFormatError:
    return FileFormatError(f"{path} {clause}", expected="an ONNX model", remedy="download or export it again")


def _load(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "the package onnx, which reads .onnx files, is not installed", remedy="pip install 'edgekit[build]'"
        ) from error
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _bad(path, f"has more than {_MAX_BYTES} bytes")
        model = onnx.load_model_from_string(path.read_bytes())
    except FileFormatError:
        raise
    except Exception as error:  # protobuf's error has no typed name, and a stranger's bytes may raise others
        raise _bad(path, f"cannot be read as ONNX ({plain(str(error))})") from error
    if not model.graph.node and not model.graph.initializer:
        raise _bad(path, "holds no graph")
    return model


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those in branches and loops included; protobuf bounds the depth."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _refuse_bytes(path: Path, model: Any, nodes: Sequence[Any]) -> None:
    """Protobuf hands out a string that is not UTF-8 as bytes; raise FileFormatError when there is one."""
    texts = [model.producer_name, model.producer_version, *(opset.domain for opset in model.opset_import)]
    for node in nodes:
        texts += [node.domain, node.op_type, *node.input, *(attribute.name for attribute in node.attribute)]
    for tensor in model.graph.initializer:
        texts += [tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value))]
    if not all(isinstance(text, str) for text in texts):
        raise _bad(path, "holds a name that is not UTF-8")


def _stored(path: Path, tensor: Any) -> _Stored:
    """Place of an initializer.

    Raises:
        FileFormatError: external data outside the model's folder, or with a place that is no number.
    """
    if tensor.data_location != _EXTERNAL:
        return _Stored("", 0, tensor.ByteSize(), tensor.name)
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    try:
        check_path(location)
        offset, nbytes = int(told.get("offset", 0)), int(told.get("length", -1))
    except (BundleError, ValueError) as error:
        raise _bad(
            path, f"keeps '{plain(tensor.name)}' at a place that is not allowed ({plain(str(error))})"
        ) from error
    if nbytes < 0:
        nbytes = max(0, (_size(path, location) or 0) - offset)
    if not 0 <= offset <= _MAX_PLACE or nbytes > _MAX_PLACE:
        raise _bad(path, f"keeps '{plain(tensor.name)}' beyond the end of any file")
    return _Stored(location, offset, nbytes, tensor.name)


def _size(path: Path, location: str) -> int | None:
    """Bytes of an external data file; None when it is not there."""
    try:
        return (path.parent / location).stat().st_size
    except OSError:
        return None


def _quantized(nodes: Sequence[Any]) -> Iterator[tuple[Any, list[str]]]:
    """Quantized operators and their codes, scales and zero points; what a Cast only widens goes by its own name."""
    widened = {n.output[0]: n.input[0] for n in nodes if n.op_type == "Cast" and n.input and n.output}
    for node in nodes:
        places = _INPUTS.get(node.op_type, ())
        if places:
            yield node, [widened.get(node.input[i], node.input[i]) for i in places if i < len(node.input)]


def _kinds(nodes: Sequence[Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """What each initializer is for: part of a quantized matrix, or its plain type."""
    from onnx import TensorProto

    types = {number: name.lower() for name, number in TensorProto.DataType.items()}
    kinds = {name: f"{types.get(tensor.data_type, 'unknown type')}, not quantized" for name, tensor in tensors.items()}
    for node, names in _quantized(nodes):
        for name, part in zip(names, _PARTS, strict=False):
            if name in kinds:
                kinds[name] = f"{part} of {_attributes(node)['bits']}-bit matrices"
    return kinds


def _attributes(node: Any) -> dict[str, int]:
    """Bits and block_size, with the operators' defaults; edgekit's own have 3 bits and no default of the block."""
    defaults = {"bits": 3, "block_size": 0} if node.op_type in _OWN else {"bits": 4, "block_size": 128}
    return defaults | {attribute.name: int(attribute.i) for attribute in node.attribute}


def _weights(node: Any, tensors: Mapping[str, Any]) -> int:
    """Number of weights in a quantized matrix; codes of fewer than 8 bits are packed into bytes."""
    settings = _attributes(node)
    if node.op_type == "MatMulNBits" or node.op_type in _OWN:
        return settings.get("K", 0) * settings.get("N", 0)
    codes = tensors.get(node.input[0]) if node.input else None
    per_byte = 8 // settings["bits"] if codes is not None and codes.data_type == 2 and settings["bits"] in (2, 4) else 1
    return 0 if codes is None else prod(codes.dims) * per_byte


def _matrices(nodes: Sequence[Any], tensors: Mapping[str, Any], places: Mapping[str, _Stored]) -> list[Row]:
    """Quantized operators by bits and block, with weights and bits per weight, scales and zero points included."""
    groups: dict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for node, names in _quantized(nodes):
        settings = _attributes(node)
        row = groups[node.op_type, settings["bits"], settings["block_size"]]
        nbytes = sum(places[name].nbytes for name in names if name in places)
        row[:] = row[0] + 1, row[1] + _weights(node, tensors), row[2] + nbytes
    return [
        {"operator": op, "bits": bits, "block": block, "nodes": count,
         "parameters": weights if weights > 0 else None, "bytes": nbytes,
         "bits_per_weight": 8 * nbytes / weights if weights > 0 else None}
        for (op, bits, block), (count, weights, nbytes) in sorted(groups.items())
    ]  # fmt: skip


def _bytes_by_kind(kinds: Mapping[str, str], places: Mapping[str, _Stored]) -> list[Row]:
    """Bytes by kind; those that two tensors share (a tied embedding) count once."""
    count: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    seen: set[tuple[str, int]] = set()
    for name, place in places.items():
        fresh = not place.location or (place.location, place.offset) not in seen
        seen.add((place.location, place.offset))
        row = count[kinds[name]]
        row[:] = row[0] + 1, row[1] + place.nbytes * fresh
    return shares(count, ("tensors", "bytes"))


def _external(path: Path, places: Mapping[str, _Stored]) -> list[Row]:
    """External files: what the model needs of them, and their bytes on disk (None: missing)."""
    needed: dict[str, list[_Stored]] = defaultdict(list)
    for place in places.values():
        if place.location:
            needed[place.location].append(place)
    rows: list[Row] = []
    for location, items in sorted(needed.items()):
        size, end = _size(path, location), max(item.offset + item.nbytes for item in items)
        state = "missing" if size is None else "whole" if size >= end else "cut short"
        rows.append({"file": location, "tensors": len(items), "needed_bytes": end, "file_bytes": size, "state": state})
    return rows


def onnx_file(path: Path) -> Findings:
    """Operators, quantized matrices, bytes by kind and external data of a .onnx file.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        FileFormatError: not an ONNX model, or its external data lies outside its folder.
    """
    model = _load(path)
    nodes = list(_nodes(model.graph))
    _refuse_bytes(path, model, nodes)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    places = {name: _stored(path, tensor) for name, tensor in tensors.items()}
    external = _external(path, places)
    operators = Counter(plain(f"{n.domain}::{n.op_type}" if n.domain else n.op_type, 100) for n in nodes)
    facts: dict[str, Value] = {
        "producer": plain(f"{model.producer_name} {model.producer_version}".strip()) or None,
        "ir_version": int(model.ir_version),
        "opsets": ", ".join(f"{plain(o.domain or 'ai.onnx', 60)} {o.version}" for o in model.opset_import),
        "graph_bytes": path.stat().st_size,
        "all_bytes": path.stat().st_size + sum(int(row["file_bytes"] or 0) for row in external),
        "nodes": len(nodes),
        "initializers": len(tensors),
    }
    tables: dict[str, Sequence[Row]] = {
        "operators": [{"operator": name, "count": count} for name, count in operators.most_common()],
        "quantized": _matrices(nodes, tensors, places),
        "bytes": _bytes_by_kind(_kinds(nodes, tensors), places),
        "external_data": external,
    }
    return Findings("onnx", str(path), facts, tables)
