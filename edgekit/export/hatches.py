"""The two ways around edgekit's own exporters: a llama.cpp tree's converter for GGUF, optimum's exporter for ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import OptionError
from edgekit.export import llama_tree, optimum_env
from edgekit.export.foreign import Converted, Foreign, match, spec_of
from edgekit.export.foreign_gguf import GgufSource
from edgekit.export.foreign_onnx import OnnxSource, finished
from edgekit.export.gguf_vocab import caveat
from edgekit.options import Container, Options
from edgekit.progress import Progress, counter

_NAMES = "names.json"
_FOLDER = "converted"


def identity(container: Container, options: Options) -> str:
    """What converts, so that another one's result is not mistaken for it.

    Raises:
        InputNotFoundError: --llama-cpp names no llama.cpp tree.
        MissingDependencyError, OptionError: optimum's environment is not there, or lacks optimum.
    """
    if container == "gguf":
        return llama_tree.tree_sha256(_tree(options))
    return f"{str(optimum_env.interpreter())!a} {_optimum_versions()}"


def in_words(container: Container, options: Options) -> str:
    """The converter, for the report's caveats."""
    if container == "gguf":
        name = _tree(options).resolve().name
        return f"GGUF: converted by the llama.cpp tree {name} (sha256 {identity(container, options)[:12]})"
    return f"ONNX: exported by optimum ({_optimum_versions()}), with a cache that is copied at every token"


def _optimum_versions() -> str:
    return ", ".join(f"{name}=={version}" for name, version in optimum_env.versions().items())


def convert(container: Container, checkpoint: Checkpoint, options: Options, folder: Path, progress: Progress) -> None:
    """Fill the empty `folder`; see :func:`opened`.

    Raises:
        EdgekitError: as :func:`edgekit.export.llama_tree.convert` and :func:`edgekit.export.optimum_env.export`.
        BadWeightsError: a tensor holds NaN or infinity.
    """
    place = folder / _FOLDER
    if container == "gguf":
        place.mkdir()
        with progress.step("GGUF: convert with the llama.cpp tree"):
            path = llama_tree.convert(_tree(options), checkpoint.root, place / "model.gguf")
        source: Converted = GgufSource(path)
    else:
        with progress.step("ONNX: export with optimum"):
            source = finished(optimum_env.export(checkpoint.root, place), checkpoint)
    count = sum(1 for tensor in checkpoint.spec.tensors if len(tensor.shape) == 2)
    with progress.step(f"{container.upper()}: recognise {count} matrices by their values") as advance:
        names = match(source, checkpoint, counter(advance, count))
    (folder / _NAMES).write_bytes(msgspec.json.encode(names))


def opened(container: Container, checkpoint: Checkpoint, folder: Path, scratch: Path, key: str) -> Foreign:
    """What :func:`convert` made; `key` is its digest, `scratch` a folder for files on the way."""
    path = folder / _FOLDER / f"model.{container}"
    source: Converted = GgufSource(path) if container == "gguf" else OnnxSource(path)
    names = msgspec.json.decode((folder / _NAMES).read_bytes(), type=dict[str, str])
    return Foreign(source, spec_of(source, checkpoint, names), key, scratch)


def with_caveats(checkpoint: Checkpoint, options: Options) -> Checkpoint:
    """The checkpoint with what the report must say about its tokenizer, and about who converted it."""
    said = [caveat(checkpoint.root)] if "gguf" in options.formats else []
    said += [f"{in_words(container, options)}." for container in options.formats if options.converts(container)]
    return replace(checkpoint, caveat=" ".join(filter(None, [checkpoint.caveat, *said])))


def _tree(options: Options) -> Path:
    if options.llama_cpp is None:
        raise OptionError("no llama.cpp tree is given", expected="--llama-cpp DIR")
    return options.llama_cpp
