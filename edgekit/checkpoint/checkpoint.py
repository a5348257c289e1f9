"""A local Hugging Face folder: its configuration, its tokenizer files and its weights, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.raw import read_tensor
from edgekit.checkpoint.spec import Spec, TensorSpec, spec_from_config
from edgekit.errors import (
    BadWeightsError,
    CorruptCheckpointError,
    InputNotFoundError,
    MissingDependencyError,
    UnsafeCheckpointError,
    one_line,
)
from edgekit.hashes import remembered_sha256

F32 = NDArray[np.float32]
PIECE = 1 << 24
"""Weights that are held at once of one tensor: 64 MiB in float32."""
_JSON_LIMIT = 256 << 20
_DTYPES = ("F64", "F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "generation_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
CODES = "edgekit/codes.safetensors"
"""Of a model that was trained on number formats, see edgekit.quantize.trained; where no library looks for weights."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and tokenizer of a full-precision model."""

    root: Path
    name: str
    config: Mapping[str, Any]
    spec: Spec
    files: Mapping[str, Path]
    """Tensor name → the safetensors file that holds it."""
    stored_names: Mapping[str, str]
    """Tensor name → its name in that file, where the two differ."""
    source: str
    """Where it came from, for people."""
    caveat: str = ""
    """What a reader of any number measured on this model must know."""

    @cached_property
    def sha256(self) -> str:
        """One hash over all weight files (SHA-256 of their SHA-256s, in name order)."""
        parts = [remembered_sha256(path) for path in sorted(set(self.files.values()))]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def read(self, tensor: TensorSpec) -> F32:
        """The tensor in float32, outputs first.

        Raises:
            BadWeightsError: it holds NaN or infinity, or its shape is not what the configuration says.
            CorruptCheckpointError: the file cannot be read.
        """
        array = self._read(tensor, None)
        if array.shape != tensor.stored_shape:
            raise _wrong_shape(tensor, array.shape)
        return _finite(tensor, array.T if tensor.rule.transposed else array)

    def pieces(self, tensor: TensorSpec, most: int = PIECE) -> Iterator[F32]:
        """The same in groups of rows of at most `most` weights: an embedding may be larger than all else together."""
        if len(tensor.shape) != 2 or tensor.rule.transposed or tensor.parameters <= most:
            yield self.read(tensor)
            return
        step = max(1, most // tensor.shape[1])
        for begin in range(0, tensor.shape[0], step):
            yield _finite(tensor, self._read(tensor, (begin, min(begin + step, tensor.shape[0]))))

    def _read(self, tensor: TensorSpec, rows: tuple[int, int] | None) -> F32:
        path = self.files[tensor.hf]
        try:
            return read_tensor(path, self.stored_names.get(tensor.hf, tensor.hf), rows)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _corrupt(path, error) from error

    def tensors(self) -> Iterator[tuple[TensorSpec, F32]]:
        """All tensors, one in memory at a time."""
        for tensor in self.spec.tensors:
            yield tensor, self.read(tensor)

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that are there."""
        return [self.root / name for name in TOKENIZER_FILES if (self.root / name).is_file()]


def as_stored(tensor: TensorSpec, weights: F32) -> F32:
    """A matrix (outputs, inputs) in the shape that the Hugging Face checkpoint has it in."""
    return weights.T if tensor.rule.transposed else weights


def _finite(tensor: TensorSpec, array: F32) -> F32:
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise BadWeightsError(
            f"tensor {tensor.hf} holds {count} NaN or infinite values",
            expected="finite weights",
            remedy="the checkpoint is broken: use an earlier one",
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _corrupt(path: Path, error: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path} cannot be read as safetensors ({error})",
        expected="a whole file",
        remedy="it is damaged or cut short: download it again",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a stranger's file, size bounded.

    Raises:
        CorruptCheckpointError: not an object, too large, too deep, or not JSON.
    """
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CorruptCheckpointError(f"{path} is larger than {_JSON_LIMIT >> 20} MiB", expected="a small JSON file")
        value = json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CorruptCheckpointError(f"{path} is not valid JSON ({error})", remedy="download it again") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{path} holds a {type(value).__name__}", expected="a JSON object")
    return value


def _weight_files(root: Path) -> list[Path]:
    index = root / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise CorruptCheckpointError(f"{index} has no weight_map", remedy="download it again")
        files = sorted(set(names.values()))
        for name in files:
            if Path(name).name != name:
                raise CorruptCheckpointError(
                    f"{index} points outside the folder ({name!r})", expected="plain file names"
                )
            if not _is_file(root / name):
                raise InputNotFoundError(
                    f"{index} names {name}, which is not there", remedy="download the missing shard"
                )
        return [root / name for name in files]
    if (single := root / "model.safetensors").is_file():
        return [single]
    return sorted(path for path in root.glob("*.safetensors") if path.is_file())  # opening a fifo would wait


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _tensor_map(files: list[Path], spec: Spec) -> tuple[dict[str, Path], dict[str, str]]:
    """Tensor name → file, and → name in the file where that lacks the family's prefix."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            "the package safetensors is not installed", remedy="pip install 'edgekit[build]'"
        ) from error
    found: dict[str, Path] = {}
    stored: dict[str, str] = {}
    wanted = {tensor.hf: tensor for tensor in spec.tensors}
    for path in files:
        try:
            with safe_open(path, framework="np") as stream:
                names = {_full_name(name, wanted, spec): name for name in stream.keys()}  # noqa: SIM118
                headers = {name: stream.get_slice(names[name]) for name in names if name in wanted}
                for name, header in headers.items():
                    _check_header(wanted[name], tuple(header.get_shape()), str(header.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise _corrupt(path, error) from error
        for name in names:
            if name in found:
                raise CorruptCheckpointError(
                    f"tensor {name!a} is in {found[name].name} and in {path.name}", expected="one of them"
                )
            found[name] = path
        stored |= {name: short for name, short in names.items() if name != short}
    return found, stored


def _full_name(name: str, wanted: Mapping[str, TensorSpec], spec: Spec) -> str:
    """A tensor's name with the family's prefix, which checkpoints saved without a head leave out (GPT-2's own)."""
    full = spec.family.base_prefix + name
    return full if name not in wanted and full in wanted else name


def _check_header(tensor: TensorSpec, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in _DTYPES:
        raise BadWeightsError(
            f"tensor {tensor.hf} is stored as {dtype}",
            expected="one of " + ", ".join(_DTYPES),
            remedy="use the full-precision checkpoint that it was made from",
        )
    if shape != tensor.stored_shape:
        raise _wrong_shape(tensor, shape)


def _wrong_shape(tensor: TensorSpec, shape: tuple[int, ...]) -> BadWeightsError:
    return BadWeightsError(
        f"tensor {tensor.hf} has shape {list(shape)}",
        expected=f"{list(tensor.stored_shape)}, from config.json",
        remedy="config.json and weights do not belong together: download both again",
    )


def _refuse_empty(root: Path) -> None:
    try:
        there = root.exists()
    except OSError:  # a name that is too long for the file system
        there = False
    if not there:
        raise InputNotFoundError(
            f"there is no model folder {root}", remedy="give a folder with config.json and *.safetensors"
        )
    if not root.is_dir():
        raise InputNotFoundError(f"{root} is not a folder", expected="a Hugging Face model folder")
    if not any(root.iterdir()):
        raise InputNotFoundError(f"{root} is empty", expected="config.json, *.safetensors and tokenizer.json")
    if not (root / "config.json").is_file():
        raise InputNotFoundError(f"{root} has no config.json", expected="a Hugging Face model folder")


def _refuse_pickle(root: Path) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in root.glob(pattern))
    if pickles:
        raise UnsafeCheckpointError(
            f"{root} holds its weights as a pickle ({pickles[0]}), which can run any code when it is loaded",
            expected="*.safetensors",
            remedy="convert it where you trust it: transformers' from_pretrained(…) then save_pretrained(…)",
        )
    raise InputNotFoundError(f"{root} has no *.safetensors", expected="the model's weights")


def _present(spec: Spec, files: Mapping[str, Path], root: Path) -> Spec:
    missing = [tensor.hf for tensor in spec.tensors if tensor.hf not in files]
    if not missing:
        return spec
    raise CorruptCheckpointError(
        f"{root} lacks {len(missing)} tensors, the first is {missing[0]}",
        expected=f"{len(spec.tensors)} tensors",
        remedy="download the missing shards, or check tie_word_embeddings in config.json",
    )


Describe = Callable[[Mapping[str, Any], Sequence[Path]], Spec]
"""From the contents of config.json and the weight files to a description of the model."""
Open = Callable[..., Checkpoint]
"""As :func:`open_checkpoint` without `describe`."""


def _always(spec: Spec) -> Describe:
    return lambda _config, _files: spec


def open_checkpoint(
    root: Path, *, name: str = "", source: str = "", caveat: str = "", describe: Describe | None = None
) -> Checkpoint:
    """Open a local Hugging Face folder; reads headers only.

    `describe` stands in for the table of the model's family, see edgekit.checkpoint.foreign.

    Raises:
        InputNotFoundError, UnsafeCheckpointError, CorruptCheckpointError, UnknownArchitectureError.
        BadWeightsError: a tensor's shape is not what the configuration says, or its type is no float.
    """
    _refuse_empty(root)
    config = read_json(root / "config.json")
    describe = describe or _always(spec_from_config(config))  # an unknown family is told before missing weights are
    weights = _weight_files(root)
    if not weights:
        _refuse_pickle(root)
    spec = describe(config, weights)
    files, stored_names = _tensor_map(weights, spec)
    return Checkpoint(
        root=root,
        name=one_line(name or root.resolve().name),  # it goes into files and onto terminals
        config=config,
        spec=_present(spec, files, root),
        files=files,
        stored_names=stored_names,
        source=one_line(source or f"local folder {root.resolve().name}"),
        caveat=caveat,
    )
