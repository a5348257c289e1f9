"""A local Hugging Face folder: its configuration, its tokenizer files and its weights, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
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
)
from edgekit.files import sha256

F32 = NDArray[np.float32]
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


@dataclass(frozen=True)
class Checkpoint:
    """Weights and tokenizer of a full-precision model."""

    root: Path
    name: str
    config: Mapping[str, Any]
    spec: Spec
    files: Mapping[str, Path]
    """Tensor name → the safetensors file that holds it."""
    source: str
    """Where it came from, for people."""
    caveat: str = ""
    """What a reader of any number measured on this model must know."""

    @cached_property
    def sha256(self) -> str:
        """One hash over all weight files (SHA-256 of their SHA-256s, in name order)."""
        parts = [sha256(path) for path in sorted(set(self.files.values()))]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def read(self, tensor: TensorSpec) -> F32:
        """The tensor in float32.

        Raises:
            BadWeightsError: it holds NaN or infinity, or its shape is not what the configuration says.
            CorruptCheckpointError: the file cannot be read.
        """
        path = self.files[tensor.hf]
        try:
            array = read_tensor(path, tensor.hf)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _corrupt(path, error) from error
        if array.shape != tensor.shape:
            raise _wrong_shape(tensor, array.shape)
        if not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise BadWeightsError(
                f"tensor {tensor.hf} holds {count} NaN or infinite values",
                expected="finite weights",
                remedy="the checkpoint is broken: use an earlier one",
            )
        return np.ascontiguousarray(array, dtype=np.float32)

    def tensors(self) -> Iterator[tuple[TensorSpec, F32]]:
        """All tensors, one in memory at a time."""
        for tensor in self.spec.tensors:
            yield tensor, self.read(tensor)

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files that are there."""
        return [self.root / name for name in TOKENIZER_FILES if (self.root / name).is_file()]


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
            if not (root / name).is_file():
                raise InputNotFoundError(
                    f"{index} names {name}, which is not there", remedy="download the missing shard"
                )
        return [root / name for name in files]
    if (single := root / "model.safetensors").is_file():
        return [single]
    return sorted(root.glob("*.safetensors"))


def _tensor_map(files: list[Path], spec: Spec) -> dict[str, Path]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError(
            "the package safetensors is not installed", remedy="pip install 'edgekit[build]'"
        ) from error
    found: dict[str, Path] = {}
    wanted = {tensor.hf: tensor for tensor in spec.tensors}
    for path in files:
        try:
            with safe_open(path, framework="np") as stream:
                names = list(stream.keys())
                headers = {name: stream.get_slice(name) for name in names if name in wanted}
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
    return found


def _check_header(tensor: TensorSpec, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in _DTYPES:
        raise BadWeightsError(
            f"tensor {tensor.hf} is stored as {dtype}",
            expected="one of " + ", ".join(_DTYPES),
            remedy="use the full-precision checkpoint that it was made from",
        )
    if shape != tensor.shape:
        raise _wrong_shape(tensor, shape)


def _wrong_shape(tensor: TensorSpec, shape: tuple[int, ...]) -> BadWeightsError:
    return BadWeightsError(
        f"tensor {tensor.hf} has shape {list(shape)}",
        expected=f"{list(tensor.shape)}, from config.json",
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


def open_checkpoint(root: Path, *, name: str = "", source: str = "", caveat: str = "") -> Checkpoint:
    """Open a local Hugging Face folder; reads headers only.

    Raises:
        InputNotFoundError, UnsafeCheckpointError, CorruptCheckpointError, UnknownArchitectureError.
        BadWeightsError: a tensor's shape is not what the configuration says, or its type is no float.
    """
    _refuse_empty(root)
    config = read_json(root / "config.json")
    spec = spec_from_config(config)
    weights = _weight_files(root)
    if not weights:
        _refuse_pickle(root)
    files = _tensor_map(weights, spec)
    return Checkpoint(
        root=root,
        name=name or root.resolve().name,
        config=config,
        spec=_present(spec, files, root),
        files=files,
        source=source or f"local folder {root.resolve().name}",
        caveat=caveat,
    )
