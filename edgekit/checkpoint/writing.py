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

DType = Literal["F32", "F16", "BF16"]
F32 = NDArray[np.float32]
_BYTES: Mapping[DType, int] = {"F32": 4, "F16": 2, "BF16": 2}


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


def write_safetensors(path: Path, slots: Iterable[Slot], pieces: Iterable[NDArray[Any]]) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors, "Format").

    Args:
        path: of the new file.
        slots: of all tensors, in the order of :func:`ordered`.
        pieces: their values as :func:`stored` makes them, in the same order, cut at will along their rows.

    Raises:
        ValueError: there are more or fewer values than the shapes say.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
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
