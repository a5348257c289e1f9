"""What a safetensors or GGUF file holds. It may come from a stranger; no weight is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle.paths import plain
from edgekit.errors import CorruptCheckpointError
from edgekit.gguf_header import GgufField, GgufTensor, read_header

Value = str | int | float | bool | None
Row = Mapping[str, Value]


@dataclass(frozen=True)
class Findings:
    """What was found, for a person and as JSON: bytes are bytes, shares go from 0 to 1, text is printable."""

    kind: str
    """"model", "bundle", "gguf", "onnx" or "safetensors"."""
    path: str
    facts: Mapping[str, Value]
    tables: Mapping[str, Sequence[Row]]


def shares(kinds: Mapping[str, Sequence[int]], names: Sequence[str]) -> list[Row]:
    """Rows of (kind, …counts, bytes, share), largest first; `names` are those of the counts, the last is the bytes."""
    total = sum(counts[-1] for counts in kinds.values()) or 1
    ordered = sorted(kinds.items(), key=lambda item: (-item[1][-1], item[0]))
    return [
        {"type": kind, **dict(zip(names, counts, strict=True)), "share": counts[-1] / total} for kind, counts in ordered
    ]


# --- safetensors -----------------------------------------------------------------------------------------------------

_HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit (safetensors README, "Format")."""
_DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "C64": 64,
}  # fmt: skip


class TensorHeader(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def parameters(self) -> int:
        """Number of values."""
        return prod(self.shape)


def _corrupt(path: Path, clause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path} is not a whole safetensors file: {clause}", remedy="it is damaged or cut short: download it again"
    )


def safetensors_header(path: Path) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """Tensors by name and the file's metadata, checked against the file's size.

    Raises:
        CorruptCheckpointError: too large, not JSON, or a tensor that does not lie in the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise _corrupt(path, f"its header would have {length} bytes, the file has {size}")
            raw = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        tensors = {name: msgspec.json.decode(value, type=TensorHeader) for name, value in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _corrupt(path, f"its header cannot be read ({plain(str(error))})") from error
    except OSError as error:
        raise _corrupt(path, f"it cannot be read ({error.strerror})") from error
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, size - 8 - length)
    return tensors, metadata


def _check_tensor(path: Path, name: str, tensor: TensorHeader, room: int) -> None:
    begin, end = tensor.data_offsets
    bits = _DTYPE_BITS.get(tensor.dtype)
    if not 0 <= begin <= end <= room or min(tensor.shape, default=0) < 0:
        raise _corrupt(path, f"tensor '{plain(name)}' lies outside the file")
    wrong = tensor.parameters > 8 * room if bits is None else bits * tensor.parameters != 8 * (end - begin)
    if wrong:
        raise _corrupt(path, f"tensor '{plain(name)}' has {end - begin} bytes, not those of its shape")


def dtype_rows(tensors: Mapping[str, TensorHeader]) -> list[Row]:
    """Number of tensors, parameters and bytes of each data type."""
    count: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in tensors.values():
        begin, end = tensor.data_offsets
        row = count[plain(tensor.dtype, 40)]
        row[:] = row[0] + 1, row[1] + tensor.parameters, row[2] + end - begin
    return shares(count, ("tensors", "parameters", "bytes"))


def safetensors_file(path: Path) -> Findings:
    """The header of a .safetensors file.

    Raises:
        CorruptCheckpointError: see :func:`safetensors_header`.
    """
    tensors, metadata = safetensors_header(path)
    facts: dict[str, Value] = {
        "file_bytes": path.stat().st_size,
        "tensors": len(tensors),
        "parameters": sum(tensor.parameters for tensor in tensors.values()),
    }
    rows: list[Row] = [
        {"tensor": plain(name), "type": plain(t.dtype, 40), "shape": "x".join(map(str, t.shape)),
         "bytes": t.data_offsets[1] - t.data_offsets[0]}
        for name, t in sorted(tensors.items())
    ]  # fmt: skip
    told: list[Row] = [{"key": plain(key), "value": plain(value)} for key, value in sorted(metadata.items())]
    return Findings("safetensors", str(path), facts, {"types": dtype_rows(tensors), "tensors": rows, "metadata": told})


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _shown_value(field: GgufField) -> str:
    """A value for one line: long arrays as their length, long strings cut."""
    return f"{field.count} x {field.item}" if field.value is None else plain(str(field.value), 100)


def _gguf_types(tensors: Sequence[GgufTensor]) -> list[Row]:
    count: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in tensors:
        row = count[tensor.type]
        row[:] = row[0] + 1, row[1] + tensor.parameters, row[2] + tensor.nbytes
    return [
        {**row, "bits": 8 * count[kind][2] / count[kind][1] if count[kind][1] else None}
        for row in shares(count, ("tensors", "parameters", "bytes")) if (kind := str(row["type"]))
    ]  # fmt: skip


def _claim(number: Any) -> tuple[str, str] | None:
    """What general.file_type says, for example ("Q4_K_M", "Q4_K"): its name, and the tensor type it stands for."""
    from gguf import GGMLQuantizationType, LlamaFileType

    if number is None:
        return None
    try:
        name = LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (ValueError, TypeError):
        return f"an unknown number ({plain(str(number), 20)})", ""
    known = GGMLQuantizationType.__members__
    return name, next((part for part in (name, name.rpartition("_")[0]) if part in known), "")


def _judged(claim: tuple[str, str] | None, types: Sequence[Row]) -> str:
    """One sentence: the claim against the bytes."""
    shown = [(float(row["share"] or 0), row["type"]) for row in types]
    most = ", ".join(f"{share:.0%} {kind}" for share, kind in shown if share >= 0.005) or "none"
    if claim is None:
        return f"no general.file_type; tensor bytes: {most}"
    name, kind = claim
    share = next((share for share, other in shown if other == kind), 0.0)
    if not kind:
        return f"general.file_type says {name}, which is no single type; tensor bytes: {most}"
    verdict = "as the bytes are" if share >= 0.5 else f"but only {share:.0%} of the tensor bytes are {kind}"
    return f"general.file_type says {name}, {verdict}; tensor bytes: {most}"


def gguf_file(path: Path) -> Findings:
    """Metadata without its big arrays, and tensor types by share of bytes.

    Raises:
        FileFormatError: not a GGUF file, cut short, or with counts that the file cannot hold.
    """
    header = read_header(path)

    def value(key: str) -> Any:
        return header.fields[key].value if key in header.fields else None

    types, size = _gguf_types(header.tensors), path.stat().st_size
    parameters = sum(tensor.parameters for tensor in header.tensors)
    claim = _claim(value("general.file_type"))
    facts: dict[str, Value] = {
        "name": plain(str(value("general.name") or "")) or None,
        "architecture": plain(str(value("general.architecture") or "")) or None,
        "gguf_version": header.version,
        "byte_order": header.byte_order,
        "file_bytes": size,
        "tensors": len(header.tensors),
        "parameters": parameters,
        "effective_bits": 8 * size / parameters if parameters else None,
        "claimed_type": claim[0] if claim else None,
        "claim_against_bytes": _judged(claim, types),
    }
    metadata: list[Row] = [{"key": plain(key), "value": _shown_value(field)} for key, field in header.fields.items()]
    return Findings("gguf", str(path), facts, {"types": types, "metadata": metadata})
