"""Rounded matrices on disk: a safetensors file a block, read tensor by tensor when an artefact is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.grids.base import Quantized

SEPARATOR, _WAYS = "|", "ways"
Way = Literal["trained", "learned", "GPTQ", "own"]
"""Who chose a row's codes: a training, learned rounding, GPTQ with its refinements, or the format's own quantizer."""
Ways = dict[str, dict[Way, int]]
"""Tensor name → rows by who chose their codes."""


@dataclass(frozen=True)
class Place:
    """Where a rounded matrix is, and what it is."""

    file: Path
    grid: str
    shape: tuple[int, int]
    way: Way | None = None
    """Who chose all of its codes; None: the file says it row by row."""


@dataclass(frozen=True)
class Rounded:
    """Tensors that rounding has given codes; the others get their grid's own quantizer."""

    places: Mapping[str, Place] = field(default_factory=dict)

    def load(self, name: str) -> Quantized | None:
        """The matrix (in the checkpoint's order of rows); None when it is not among them."""
        place = self.places.get(name)
        return None if place is None else load(name, place)

    def shares(self, matrices: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, float]:
        """Share of the weights of these matrices (name, shape) by who chose their codes: see :data:`Way`."""
        found: Counter[str] = Counter()
        for name, (rows, columns) in matrices:
            place = self.places.get(name)
            for way, count in (_chosen(name, place, rows) or {"own": rows}).items():
                found[way] += count * columns
        return {way: count / found.total() for way, count in found.most_common() if count}


def load(name: str, place: Place) -> Quantized:
    """The matrix of that name at a place."""
    from safetensors import safe_open

    fields: dict[str, NDArray[Any]] = {}
    with safe_open(place.file, framework="numpy") as stored:
        for key in stored.keys():  # noqa: SIM118 (not a dict)
            tensor, part = key.split(SEPARATOR)
            if tensor == name:
                fields[part] = stored.get_tensor(key)
    return Quantized(place.grid, place.shape, fields)


def _chosen(name: str, place: Place | None, rows: int) -> dict[Way, int] | None:
    if place is None:
        return None
    return _ways(place.file).get(name) if place.way is None else {place.way: rows}


def _ways(file: Path) -> Ways:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as stored:
        return msgspec.json.decode((stored.metadata() or {}).get(_WAYS, "{}"), type=Ways)


def pieces(matrix: Quantized, most: int) -> Iterator[Quantized]:
    """Rows of the matrix in order, at most about `most` weights at a time."""
    rows, columns = matrix.shape
    step = max(1, most // columns)
    for begin in range(0, rows, step):
        fields = {name: array[begin : begin + step] for name, array in matrix.fields.items()}
        yield Quantized(matrix.grid, (min(step, rows - begin), columns), fields)


def save(matrices: Mapping[str, Quantized], path: Path, ways: Ways) -> None:
    """Write matrices to a new file, and who chose their codes."""
    from safetensors.numpy import save_file

    arrays = {
        f"{name}{SEPARATOR}{part}": np.ascontiguousarray(array)
        for name, matrix in matrices.items()
        for part, array in matrix.fields.items()
    }
    save_file(arrays, path, {_WAYS: msgspec.json.encode(ways).decode()})
