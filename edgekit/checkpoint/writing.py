"""Writing a safetensors file piece by piece; the official library wants all tensors in memory at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DType = Literal["F32", "F16", "BF16", "U8", "I8", "U16", "I16", "U32", "I32"]
F32 = NDArray[np.float32]
_BYTES: Mapping[DType, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4,
}  # fmt: skip
STORABLE: Mapping[np.dtype[Any], DType] = {
    np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8",
    np.dtype(np.uint16): "U16", np.dtype(np.int16): "I16", np.dtype(np.uint32): "U32", np.dtype(np.int32): "I32",
}  # fmt: skip
"""Types of arrays that a file holds as they are."""
_PLAIN: Mapping[str, str] = {"format": "pt"}
"""What transformers wants to be told of a file of weights."""


@dataclass(frozen=True)
class Slot:
    """Name, type and shape of a tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * _BYTES[self.dtype]


def ordered(slots: Iterable[Slot]) -> list[Slot]:
    """As the official library orders them: wide types first, so that every tensor is aligned; then by name."""
    return sorted(slots, key=lambda slot: (-_BYTES[slot.dtype], slot.name))


def stored(values: F32, dtype: DType) -> NDArray[Any]:
    """The values as the file holds them. F16 rounds to nearest; BF16 cuts, and is for what came from bfloat16."""
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2")
    return (values.view(np.uint32) >> 16).astype("<u2")


def write_safetensors(
    path: Path, slots: Iterable[Slot], pieces: Iterable[NDArray[Any]], metadata: Mapping[str, str] = _PLAIN
) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors, "Format").

    Args:
        path: of the new file.
        slots: of all tensors, in the order of :func:`ordered`.
        pieces: their values as :func:`stored` makes them, in the same order, cut at will along their rows.
        metadata: of the file.

    Raises:
        ValueError: there are more or fewer values than the shapes say.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for slot in slots:
        begin, end = end, end + slot.nbytes
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)
        written = stream.tell() - 8 - len(text)
    if written != end:
        raise ValueError(f"{written} bytes were written, {end} were announced")
