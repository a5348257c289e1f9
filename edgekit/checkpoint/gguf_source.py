"""A GGUF file as a checkpoint: dequantized once into a Hugging Face folder in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.cached import cached_folder
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint, read_json
from edgekit.checkpoint.gguf_config import config_from_gguf
from edgekit.checkpoint.gguf_tokenizer import write_tokenizer
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.checkpoint.writing import DType, Slot, ordered, stored, write_safetensors
from edgekit.errors import BadWeightsError, CorruptCheckpointError, FileFormatError, InputNotFoundError
from edgekit.gguf_header import gguf_errors, open_gguf
from edgekit.hashes import remembered_sha256
from edgekit.progress import Advance, Progress, Quiet, counter

F32 = NDArray[np.float32]
_FORMAT = 2
"""Raised when the conversion changes, so that an old folder in the cache is not taken for a new one."""
_PIECE = 4 << 20
"""Weights that are in memory at once, where a tensor can be cut into rows."""
_WIDE = ("F64", "F32", "F16", "BF16")
"""Tensor types that are not quantized."""
_FACTORS = "rope_freqs.weight"
_ORIGIN = "origin.json"
"""In the converted folder: which number formats its weights come from."""
_QUIET = Quiet()


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file that can become a checkpoint; no weight is read yet."""

    path: Path
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    spec: Spec
    stored: Mapping[str, Any]
    """Name in the file → gguf.ReaderTensor, for every tensor of `spec`."""

    @property
    def quantized_types(self) -> list[str]:
        """Names of the number formats whose grid the weights lie on, by their share of the weights."""
        count: dict[str, int] = {}
        for tensor in self.stored.values():
            name = str(tensor.tensor_type.name)
            if name not in _WIDE:
                count[name] = count.get(name, 0) + int(tensor.n_elements)
        return sorted(count, key=lambda name: (-count[name], name))


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes or its name.

    Raises:
        InputNotFoundError: it cannot be read.
    """
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF" or path.suffix == ".gguf"
    except OSError as error:
        raise InputNotFoundError(f"{path} cannot be read ({error.strerror})", expected="a file you may read") from error


def gguf_checkpoint(path: Path, *, progress: Progress = _QUIET) -> Checkpoint:
    """A GGUF file as a checkpoint. Its weights are what llama.cpp computes with: a quantized file stays quantized.

    Raises:
        FileFormatError, CorruptCheckpointError, UnknownArchitectureError, TokenizerError, BadWeightsError: the file is
            broken, or of a kind that is not supported; see :func:`read_gguf` and :func:`gguf_folder`.
    """
    folder = gguf_folder(path, progress=progress)
    types = ", ".join(map(str, read_json(folder / _ORIGIN).get("quantized_types", [])))
    source = f"GGUF file {path.name}"
    if not types:
        return open_checkpoint(folder, name=path.stem, source=source)
    caveat = (
        f"The weights come from a quantized file ({types}): they already lie on its grids, so any result on such a "
        "grid is flattered, and the reference is that file, not the model it was made from."
    )
    return open_checkpoint(folder, name=path.stem, source=f"{source}, dequantized from {types}", caveat=caveat)


def gguf_folder(path: Path, *, kind: str = "gguf", name: str = "", progress: Progress = _QUIET) -> Path:
    """The Hugging Face folder of a GGUF file, converted once into the cache; memory is a few pieces of a tensor.

    Args:
        path: of the file.
        kind: the cache's folder for it.
        name: for people; the file's by default.
        progress: shows it.

    Raises:
        See :func:`read_gguf` and :func:`convert`.
    """
    key = f"{remembered_sha256(path)[:24]}-v{_FORMAT}"

    def write(fresh: Path) -> None:
        model = read_gguf(path)
        with progress.step(f"Dequantize {path.name}, once") as advance:
            convert(model, fresh, advance)

    return cached_folder(kind, name or path.stem, key, write)


def read_gguf(path: Path) -> GgufModel:
    """Open a GGUF file and find every tensor that its architecture needs.

    Raises:
        InputNotFoundError: there is no such file.
        FileFormatError: not a GGUF file, cut short, split, or of the other byte order.
        UnknownArchitectureError: the architecture, or a variant of it, is not supported.
        CorruptCheckpointError: a tensor or a fact is missing, or does not fit the others.
    """
    if not path.is_file():
        raise InputNotFoundError(f"there is no file {path}", expected="a GGUF file")
    reader = open_gguf(path)
    with gguf_errors(path):
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        found = {str(tensor.name): tensor for tensor in reader.tensors}
        shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in found.items()}
    _refuse_shape_of_file(path, reader, metadata)
    config, spec = config_from_gguf(metadata, shapes, _divisors(found))
    needed = {tensor.gguf: tensor for tensor in spec.tensors}
    _refuse_misfit(path, needed, shapes)
    return GgufModel(path, metadata, config, spec, {name: found[name] for name in needed})


def _refuse_shape_of_file(path: Path, reader: Any, metadata: Mapping[str, Any]) -> None:
    if reader.endianess.name != "LITTLE":
        raise FileFormatError(
            f"{path} is a big-endian GGUF file",
            expected="little-endian",
            remedy="convert it with gguf-convert-endian FILE little",
        )
    if metadata.get("split.count") not in (None, 0, 1):
        raise FileFormatError(
            f"{path} is one of {metadata['split.count']} parts of a split GGUF file",
            expected="one whole file",
            remedy="join them with llama-gguf-split --merge FIRST-PART WHOLE.gguf",
        )


def _divisors(found: Mapping[str, Any]) -> F32 | None:
    tensor = found.get(_FACTORS)
    return None if tensor is None else _dequantized(tensor, tensor.data).reshape(-1)


def _refuse_misfit(path: Path, needed: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    remedy = "use the Hugging Face checkpoint that it was made from"
    if missing := [name for name in needed if name not in shapes]:
        raise CorruptCheckpointError(
            f"{path} lacks {len(missing)} tensors, the first is {missing[0]}",
            expected=f"{len(needed)} tensors",
            remedy=remedy,
        )
    if more := [name for name in shapes if name not in needed and name != _FACTORS]:
        raise CorruptCheckpointError(
            f"{path} holds {len(more)} tensors that its architecture has no place for, the first is "
            f"{ascii(more[0])[:80]}",
            expected=f"{len(needed)} tensors",
            remedy=remedy,
        )
    for name, tensor in needed.items():
        if shapes[name] != tensor.shape:
            raise BadWeightsError(
                f"tensor {name} of {path} has shape {list(shapes[name])}",
                expected=f"{list(tensor.shape)}, from its metadata",
                remedy=remedy,
            )


# --- weights ---------------------------------------------------------------------------------------------------------


def convert(model: GgufModel, folder: Path, advance: Advance = lambda _done, _total: None) -> None:
    """Write config.json, the tokenizer and the weights into an empty folder.

    Quantized weights become float16: its rounding is 2^-11, far below any quantization step. A tensor that float16
    cannot hold that well becomes float32; what is stored in 16 or 32 bits keeps its values exactly.

    Raises:
        TokenizerError: the tokenizer cannot be expressed.
        BadWeightsError: a tensor holds NaN or infinity, or is of a type that is no float.
    """
    spec, config = model.spec, dict(model.config)
    write_tokenizer(model.metadata, spec.vocab_size, folder, spec.context_length)
    types = {tensor.hf: _first_type(model, tensor) for tensor in spec.tensors}
    while wider := _write_weights(model, types, folder / "model.safetensors", advance):
        types |= dict.fromkeys(wider, "F32")
    kind = "float16" if set(types.values()) == {"F16"} else "float32"
    _dump(folder / "config.json", {**config, "dtype": kind, "torch_dtype": kind})
    _dump(folder / "generation_config.json", _generation(model.metadata, config))
    _dump(folder / _ORIGIN, {"quantized_types": model.quantized_types})


def _first_type(model: GgufModel, tensor: TensorSpec) -> DType:
    source = model.stored[tensor.gguf]
    kind = str(source.tensor_type.name)
    if kind == "BF16" and not tensor.rule.shift:
        return "BF16"
    if kind not in ("F32", "F64", "BF16"):
        return "F16"
    return "F16" if all(_exact(piece) for piece in _pieces(model, tensor)) else "F32"


def _exact(values: F32) -> bool:
    return bool((stored(values, "F16").astype(np.float32) == values).all())


def _write_weights(model: GgufModel, types: Mapping[str, DType], path: Path, advance: Advance) -> list[str]:
    """Write all tensors; the names of those for which their type turns out to be too narrow."""
    named = {tensor.hf: tensor for tensor in model.spec.tensors}
    slots = ordered(Slot(name, types[name], tensor.stored_shape) for name, tensor in named.items())
    narrow: list[str] = []
    tick = counter(advance, len(slots))

    def pieces() -> Iterator[NDArray[Any]]:
        for slot in slots:
            error = largest = 0.0
            for piece in _pieces(model, named[slot.name]):
                written = stored(piece, slot.dtype)
                if slot.dtype == "F16":
                    error = max(error, float(np.abs(written.astype(np.float32) - piece).max()))
                    largest = max(largest, float(np.abs(piece).max()))
                yield written
            if error > largest * 2**-11:
                narrow.append(slot.name)
            tick(slot.name)

    write_safetensors(path, slots, pieces())
    return narrow


def _pieces(model: GgufModel, tensor: TensorSpec) -> Iterator[F32]:
    """The tensor's values as Hugging Face stores them, some rows at a time where rows keep their places."""
    source, rule = model.stored[tensor.gguf], tensor.rule
    whole = rule.transposed or rule.rows != "as_is" or len(tensor.shape) == 1
    step = tensor.shape[0] if whole else max(_PIECE // tensor.shape[1], 1)
    for begin in range(0, tensor.shape[0], step):
        rows = source.data[begin : begin + step]
        values = _dequantized(source, rows).reshape(-1, *tensor.shape[1:])
        if not np.isfinite(values).all():
            raise BadWeightsError(
                f"tensor {tensor.gguf} of {model.path} holds NaN or infinite values",
                expected="finite weights",
                remedy="the file is broken: download it again",
            )
        if rule.shift:
            values = values - np.float32(rule.shift)
        if rule.rows != "as_is":
            values = _halves(values, model.spec.heads if rule.rows == "rope_q" else model.spec.kv_heads)
        yield np.ascontiguousarray(values.T if rule.transposed else values)


def _dequantized(tensor: Any, rows: NDArray[Any]) -> F32:
    from gguf import dequantize

    try:
        with np.errstate(all="ignore"):  # what is not finite then is refused by the caller
            values: F32 = dequantize(rows, tensor.tensor_type).astype(np.float32)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise BadWeightsError(
            f"tensor {ascii(tensor.name)[:80]} is stored as {tensor.tensor_type.name}, which cannot be dequantized",
            expected="a number format that gguf-py decodes",
            remedy="use another file of the model",
        ) from error
    return values


def _halves(rows: F32, heads: int) -> F32:
    """Undo GGUF's order of rotary rows (pairs adjacent) to Hugging Face's (first half, second half)."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


# --- the rest --------------------------------------------------------------------------------------------------------


def _generation(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    ends = [found["eos_token_id"], metadata.get("tokenizer.ggml.eot_token_id")]
    known = [end for end in dict.fromkeys(ends) if type(end) is int]
    if len(known) > 1:
        found["eos_token_id"] = known
    return {key: value for key, value in found.items() if value is not None}


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
