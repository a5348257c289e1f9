"""A model that is trained from scratch: a configuration and a tokenizer, and weights that are drawn at random."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import TOKENIZER_FILES, Checkpoint, open_checkpoint, read_json
from edgekit.checkpoint.spec import Spec, spec_from_config
from edgekit.errors import InputNotFoundError, OptionError, TokenizerError, memory_shortage, one_line
from edgekit.hashes import remembered_sha256
from edgekit.training.recipe import Recipe

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Scratch:
    """What is known of a model before it has weights."""

    root: Path
    """Folder of the tokenizer."""
    path: Path
    """The configuration's file."""
    name: str
    config: Mapping[str, Any]
    spec: Spec

    @cached_property
    def sha256(self) -> str:
        """One hash over the configuration and the tokenizer's files."""
        parts = [self.config_sha256, *(f"{path.name} {remembered_sha256(path)}" for path in self.tokenizer_files())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def config_sha256(self) -> str:
        """Of the configuration as JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def tokenizer_files(self) -> list[Path]:
        """See Checkpoint.tokenizer_files."""
        return [self.root / name for name in TOKENIZER_FILES if (self.root / name).is_file()]

    def check(self) -> None:
        """Make the model without memory for its weights.

        Raises:
            OptionError: transformers cannot make it, or its weights are not those that edgekit expects.
        """
        import torch

        with torch.device("meta"):
            module = self._module()
        named = dict(module.named_parameters())
        for tensor in self.spec.tensors:
            found = tuple(named[tensor.hf].shape) if tensor.hf in named else "missing"
            if found != tensor.stored_shape:
                raise OptionError(
                    f"in the model that transformers makes of {self.path}, {tensor.hf} is {found}",
                    expected=f"the shape {tensor.stored_shape}",
                )

    def made(self, folder: Path, seed: int) -> Checkpoint:
        """The model with its first weights, float32, in `folder`, written when it is not there.

        transformers draws them: the same configuration, seed and versions of it and of PyTorch give the same bytes.
        """
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            self._write(part, seed)
            part.rename(folder)
        return open_checkpoint(folder, name=self.name, source=f"random initialisation, seed {seed}")

    def _write(self, folder: Path, seed: int) -> None:
        import torch

        from edgekit.training.output import write_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._module()
        named = dict(module.named_parameters())
        write_model(folder, self, {tensor.hf: named[tensor.hf].detach().numpy() for tensor in self.spec.tensors})

    def _module(self) -> Any:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        try:
            known = {key: value for key, value in self.config.items() if key not in ("torch_dtype", "auto_map")}
            config = CONFIG_MAPPING[str(known["model_type"])].from_dict({**known, "dtype": "float32"})
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # whatever a configuration's values make transformers raise
            if memory_shortage(error) is not None:
                raise
            first = (str(error).splitlines() or [""])[0]
            raise OptionError(
                f"transformers makes no model of {self.path} ({type(error).__name__}: {first})",
                expected="a configuration whose sizes belong together",
            ) from error


def open_scratch(config: Path, tokenizer: Path | None = None) -> Scratch:
    """A model to be trained from scratch.

    Args:
        config: a config.json of a family that edgekit knows, or a folder with one.
        tokenizer: a folder with tokenizer.json (what belongs to it lies beside it), or that file; None: the
            configuration's folder.

    Raises:
        InputNotFoundError: one of them is not there.
        CorruptCheckpointError: the configuration is no JSON object.
        UnknownArchitectureError: edgekit does not know the family, or this variant of it.
        TokenizerError: the tokenizer cannot be read, or has token ids that the configuration has no rows for.
    """
    path = config / _CONFIG if config.is_dir() else config
    if not path.is_file():
        raise InputNotFoundError(
            f"there is no configuration {path}", expected="a config.json of Hugging Face's, or a folder with one"
        )
    values = read_json(path)
    spec = spec_from_config(values)
    folder = _tokenizer(path.resolve().parent if tokenizer is None else tokenizer)
    highest = max(load_tokenizer(folder).backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= spec.vocab_size:
        raise TokenizerError(
            f"the tokenizer in {folder} has token ids up to {highest}, and vocab_size in {path} is {spec.vocab_size}",
            expected=f"a vocab_size of {highest + 1} or more", remedy="write it into the configuration",
        )  # fmt: skip
    name = path.resolve().parent.name if path.name == _CONFIG else path.stem
    return Scratch(folder, path, one_line(name), values, spec)


def _tokenizer(path: Path) -> Path:
    """The folder of a tokenizer that is named by its folder or its file."""
    if path.name == _TOKENIZER and path.is_file():
        return path.parent
    if not (path / _TOKENIZER).is_file():
        raise InputNotFoundError(
            f"there is no tokenizer in {path}", expected=f"a folder with {_TOKENIZER}, or that file",
            remedy="give --tokenizer FOLDER",
        )  # fmt: skip
    return path


def refuse_parented(recipe: Recipe) -> None:
    """Refuse what only a model that exists can be trained by.

    Raises:
        OptionError: distillation, a grid, or no cross-entropy.
    """
    target = recipe.objective
    if target.distillation:
        raise OptionError(
            f"objective.distillation is {target.distillation:g}, but what is trained from scratch has no parent",
            expected="0", remedy="give --no-distill, or --recipe scratch",
        )  # fmt: skip
    if not target.cross_entropy:
        raise OptionError(
            "objective.cross_entropy is 0, but what is trained from scratch learns from the text alone",
            expected="more than 0", remedy="give --cross-entropy 1, or --recipe scratch",
        )  # fmt: skip
    if recipe.grid:
        raise OptionError(
            f"random weights are to be trained on {recipe.grid}",
            expected="full precision",
            remedy="give --grid none, then train the result again on the grid",
        )
