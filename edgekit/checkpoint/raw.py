"""One tensor from a safetensors file, without torch: numpy has no bfloat16, and importing torch takes seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HEADER_LIMIT = 100 << 20
"""The format's own bound on its header (safetensors, `MAX_HEADER_SIZE`)."""
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_tensor(path: Path, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """A tensor of a safetensors file in float32 (https://github.com/huggingface/safetensors, "Format").

    With `rows`, only those from the first to before the second: shape (rows[1] - rows[0], …).

    Only for a file that the official library has opened: it checks that offsets are in order and inside the file.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file is not what it was when it was opened.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > _HEADER_LIMIT:
            raise ValueError(f"a header of {size} bytes")
        entry = json.loads(stream.read(size))[name]
        begin, end = entry["data_offsets"]
        shape = tuple(int(length) for length in entry["shape"])
        kind = np.dtype(_DTYPES[entry["dtype"]])
        if end - begin != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{name} has {end - begin} bytes for the shape {list(shape)}")
        if rows is not None:
            begin += rows[0] * math.prod(shape[1:]) * kind.itemsize
            shape = (rows[1] - rows[0], *shape[1:])
        stream.seek(8 + size + begin)
        raw = np.fromfile(stream, dtype=kind, count=math.prod(shape))
    if raw.size != math.prod(shape):
        raise ValueError(f"{name} is cut short")
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return raw.astype(np.float32).reshape(shape)
