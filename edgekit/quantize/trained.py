"""Codes and scales that a training found, beside the weights that they stand for.

A model that was trained on its number formats is an ordinary Hugging Face folder: its weights are what the codes
decode to. Quantizing those weights again would not find the same scales, so the codes go with them in a file of their
own, in a folder of its own, where no library takes it for weights. It is read as a stranger's file, and believed only
for matrices whose weights are still what it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgekit.checkpoint.checkpoint import CODES, Checkpoint
from edgekit.checkpoint.spec import TensorSpec
from edgekit.checkpoint.writing import STORABLE, Slot, ordered, write_safetensors
from edgekit.errors import CorruptCheckpointError, FileFormatError, GridError
from edgekit.files import whole_file
from edgekit.grids import get
from edgekit.grids.base import F32, Quantized
from edgekit.quantize.rounded import SEPARATOR, Place, load

FILE = CODES
"""In the model's folder."""
_KEY = "edgekit"
_MAX_HEADER = 64 << 20
"""Characters."""
_Length = Annotated[int, Meta(ge=1, le=1 << 31)]
_READ = {"U8", "I8", "U16", "I16", "U32", "I32", "F16", "F32"}
"""Types of fields, as safetensors calls them."""


class _Matrix(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grid: Annotated[str, Meta(min_length=1, max_length=64)]
    shape: tuple[_Length, _Length]


class _Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema_version: Literal[1] = 1
    kind: Literal["edgekit codes"] = "edgekit codes"
    matrices: Annotated[dict[str, _Matrix], Meta(max_length=1_000_000)]


def save(folder: Path, matrices: Mapping[str, Quantized]) -> None:
    """Write the codes of a model's linear layers to :data:`FILE`, in the place of older ones.

    Args:
        folder: of the model, whose weights are exactly what the matrices decode to: in float32, since 16 bits do not
            hold the products of codes and scales.
        matrices: tensor name → matrix (outputs, inputs). Each is asked for a few times and none is kept, so a mapping
            that reads them from a disk keeps one in memory.

    Raises:
        OutputError: the disk is full or not writable.
    """
    listed: dict[str, _Matrix] = {}
    slots: list[Slot] = []
    for name, matrix in matrices.items():
        listed[name] = _Matrix(grid=matrix.grid, shape=matrix.shape)
        slots += [
            Slot(f"{name}{SEPARATOR}{part}", STORABLE[array.dtype.newbyteorder("=")], array.shape)
            for part, array in matrix.fields.items()
        ]
    slots = ordered(slots)

    def arrays() -> Iterator[NDArray[Any]]:
        for slot in slots:
            name, _, part = slot.name.rpartition(SEPARATOR)
            yield matrices[name].fields[part]

    header = msgspec.json.encode(_Header(matrices=listed)).decode()
    with whole_file(folder / FILE, force=True) as fresh:
        write_safetensors(fresh, slots, arrays(), {_KEY: header})


def places(checkpoint: Checkpoint) -> dict[str, Place]:
    """Tensor name → where its trained codes are and of which grid; {} without such a file. Reads headers only.

    Raises:
        CorruptCheckpointError: the file is damaged, of another model, or names a format that is not installed.
    """
    from safetensors import SafetensorError, safe_open

    path = checkpoint.root / FILE
    stored: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        if not path.is_file():
            return {}
        with safe_open(path, framework="numpy") as stream:
            text = (stream.metadata() or {}).get(_KEY, "")
            for key in stream.keys():  # noqa: SIM118 (not a dict)
                header = stream.get_slice(key)
                stored[key] = (str(header.get_dtype()), tuple(header.get_shape()))
    except (OSError, SafetensorError) as error:
        raise _corrupt(path, f"cannot be read as safetensors ({error})") from error
    matrices = _header(path, text).matrices
    linear = {tensor.hf: tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    for name, matrix in matrices.items():
        _check_matrix(path, name, matrix, linear.get(name))
    for key, (dtype, shape) in stored.items():
        _check_field(path, key, dtype, shape, matrices)
    if lacking := sorted(matrices.keys() - {key.rpartition(SEPARATOR)[0] for key in stored}):
        raise _corrupt(path, f"has no codes of {lacking[0]}")
    return {name: Place(path, matrix.grid, matrix.shape, "trained") for name, matrix in matrices.items()}


def fits(checkpoint: Checkpoint, tensor: TensorSpec, place: Place) -> bool:
    """Whether the codes at `place` still stand for the checkpoint's weights, exactly but for the sign of zeros.

    They do not when the weights were changed after the training: trained further, merged, or cast to 16 bits.

    Raises:
        CorruptCheckpointError: a field is missing or unknown, or holds what its format does not have.
        BadWeightsError: as :meth:`Checkpoint.read`.
    """
    return bool(np.array_equal(_decoded(tensor.hf, place), checkpoint.read(tensor)))


def _decoded(name: str, place: Place) -> F32:
    from safetensors import SafetensorError

    grid = get(place.grid)
    try:
        matrix = load(name, place)
        # What the file of an artefact holds, so that an unknown field is found whatever the grid.
        known = grid.unpack(grid.pack(matrix), place.shape).fields.keys()
        values = grid.dequantize(matrix)
    except (OSError, SafetensorError, GridError, FileFormatError) as error:
        raise _corrupt(place.file, f"holds no codes for {name} ({error})") from error
    if unknown := sorted(matrix.fields.keys() - known):
        raise _corrupt(place.file, f"gives {name} the field {unknown[0]!a}, which {place.grid} does not have")
    if not np.isfinite(values).all():
        raise _corrupt(place.file, f"gives {name} scales that are NaN or infinite")
    return values


def _header(path: Path, text: str) -> _Header:
    if len(text) > _MAX_HEADER:
        raise _corrupt(path, f"has a header of {len(text)} characters")
    try:
        return msgspec.json.decode(text, type=_Header)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _corrupt(path, f"does not say what it holds ({error})") from error


def _check_matrix(path: Path, name: str, matrix: _Matrix, tensor: TensorSpec | None) -> None:
    if tensor is None:
        raise _corrupt(path, f"names {name!a}, which is no linear layer of this model")
    if matrix.shape != tensor.shape:
        raise _corrupt(path, f"gives {name} the shape {list(matrix.shape)}, the model has {list(tensor.shape)}")
    try:
        refusal = get(matrix.grid).refusal(matrix.shape)
    except GridError as error:
        raise _corrupt(path, f"gives {name} the format {matrix.grid!a}, which edgekit does not know") from error
    if refusal is not None:
        raise _corrupt(path, f"gives {name} the format {matrix.grid}, which cannot hold it: {refusal}")


def _check_field(path: Path, key: str, dtype: str, shape: tuple[int, ...], matrices: Mapping[str, _Matrix]) -> None:
    """One value for each weight at most, so that no more is read than the matrix is worth."""
    matrix = matrices.get(key.rpartition(SEPARATOR)[0])
    if matrix is None:
        raise _corrupt(path, f"holds {key!a}, which belongs to no matrix that it names")
    if dtype not in _READ:
        raise _corrupt(path, f"holds {key!a} as {dtype}")
    if len(shape) != 2 or shape[0] != matrix.shape[0] or math.prod(shape) > math.prod(matrix.shape):
        raise _corrupt(path, f"holds {key!a} of shape {list(shape)} for a matrix of {list(matrix.shape)}")


def _corrupt(path: Path, clause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path} {clause}",
        expected="the codes that a training wrote for these weights",
        remedy="delete that file: the weights are then quantized anew",
    )
