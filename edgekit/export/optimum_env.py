"""Runs optimum's ONNX exporter in the environment it needs, which is not edgekit's own (transformers below 4.58).

`python -m edgekit.export.optimum_env` makes that environment; so does `nox -s optimum`, which then also tests with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from edgekit import cache, locks
from edgekit.checkpoint.checkpoint import read_json
from edgekit.errors import ConverterError, MissingDependencyError, OptionError
from edgekit.export.child import complaint
from edgekit.files import cache_dir

PYTHON = "EDGEKIT_OPTIMUM_PYTHON"
"""Names another interpreter that has the exporter."""
COMMAND = "python -m edgekit.export.optimum_env"
TASK = "text-generation-with-past"
_MODULE = "optimum.exporters.onnx"
_OPSET = "21"
_VERSIONS = """
import importlib.metadata, json
found = {}
for name in ("torch", "transformers", "optimum", "optimum-onnx", "onnx"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_NEEDED = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Nothing that could run: no Python, no pickle."""


def requirements() -> tuple[str, ...]:
    """The pinned packages, as pip takes them."""
    text = resources.files("edgekit.export").joinpath("optimum-requirements.txt").read_text(encoding="utf8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def environment() -> Path:
    """The environment's folder, named after the versions that decide what the exporter writes."""
    pins = dict(line.split("==") for line in requirements())
    return cache_dir() / cache.ENVIRONMENTS / f"optimum-{pins['optimum']}-transformers-{pins['transformers']}"


def interpreter() -> Path:
    """The Python that has the exporter: $EDGEKIT_OPTIMUM_PYTHON, or that of :func:`environment`.

    Raises:
        OptionError: the variable names no program.
        MissingDependencyError: the environment was not made yet; names the command that makes it.
    """
    if named := os.environ.get(PYTHON):
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise OptionError(f"{PYTHON} is {named}, which is no program", expected="a Python with optimum-onnx")
        return Path(named)
    python = environment() / "bin" / "python"
    if not (environment() / "whole").is_file():
        raise MissingDependencyError(
            f"--exporter optimum needs an environment of its own, which is not at {environment()}",
            remedy=f"make it once (about 1 GB): {COMMAND}",
        )
    return python


def versions() -> dict[str, str]:
    """Versions of what decides what the exporter writes, asked of :func:`interpreter`; what it lacks is left out.

    Raises:
        MissingDependencyError, OptionError: as :func:`interpreter`, or it has no optimum.
    """
    python = interpreter()
    command = [str(python), "-P", "-c", _VERSIONS]
    quiet = {**os.environ, "PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "ignore"}
    try:
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=quiet, check=True)  # noqa: S603
        found = msgspec.json.decode(child.stdout, type=dict[str, str])
    except (OSError, subprocess.CalledProcessError, msgspec.MsgspecError, UnicodeDecodeError):
        found = {}
    if "optimum" not in found:
        raise MissingDependencyError(
            f"{python} has no optimum", remedy=f"install optimum-onnx there, or unset {PYTHON} and run {COMMAND}"
        )
    return found


def make(torch_index: str = "") -> Path:
    """Make the environment and return its interpreter; one that is whole is kept, another process's is waited for.

    Args:
        torch_index: a package index to take torch from; empty: pip's own, whose default torch can be several GB.

    Raises:
        MissingDependencyError: pip cannot install a package.
    """
    folder = environment()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.take(cache.lock_of(folder), create=True)
    try:
        if not (folder / "whole").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            torch, *others = requirements()
            _install(folder, [torch, *(["--index-url", torch_index] if torch_index else [])])
            _install(folder, others)
            (folder / "whole").touch()
    finally:
        locks.release(lock)
    return folder / "bin" / "python"


def _install(folder: Path, arguments: list[str]) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise MissingDependencyError(f"pip cannot install {arguments[0]} into {folder}", remedy="see what it said")


def export(model: Path, folder: Path) -> Path:
    """Write a float32 model.onnx with cache inputs, and its configuration, below the new `folder`.

    Args:
        model: a Hugging Face folder as transformers 5 writes it.
        folder: not there yet.

    Returns:
        The .onnx file.

    Raises:
        MissingDependencyError, OptionError: as :func:`interpreter`.
        ConverterError: the exporter failed, or went on without a tokenizer.
        OutputError: the disk is full.
    """
    python = interpreter()
    with (
        cache.using(python.parent.parent),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".edgekit-optimum-") as scratch,
    ):
        copy = older_copy(model, Path(scratch) / "model")
        arguments = [
            "--model", str(copy), "--task", TASK, "--opset", _OPSET, "--dtype", "fp32", "--library-name",
            "transformers", str(folder),
        ]  # fmt: skip
        last = complaint(python, _MODULE, arguments, output=folder)
    if last is not None or not (folder / "model.onnx").is_file():
        raise ConverterError(
            f"optimum's exporter failed ({last or 'it wrote no model.onnx'})",
            remedy="build with --format gguf --llama-cpp DIR, or use an architecture that optimum exports",
        )
    if not (folder / "tokenizer.json").is_file():
        raise ConverterError(
            "optimum's exporter could not read the tokenizer and went on without one",
            expected="a tokenizer that transformers 4.57 reads",
            remedy="save it with PreTrainedTokenizerFast.save_pretrained",
        )
    return folder / "model.onnx"


def older_copy(model: Path, folder: Path) -> Path:
    """A copy, mostly links, of a transformers 5 checkpoint that transformers 4.57 reads as it is meant.

    4.57 takes no notice of `rope_parameters`, and computes with a base of 10000; it does not know version 5's tokenizer
    class either. Both mistakes would go unnoticed: the exporter compares its graph with the same wrong model.
    """
    folder.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.is_file() and path.suffix in _NEEDED:
            (folder / path.name).symlink_to(path.resolve())
    for name, older in (("config.json", _older_config), ("tokenizer_config.json", _older_tokenizer)):
        if (model / name).is_file():
            (folder / name).unlink()
            (folder / name).write_text(json.dumps(older(read_json(model / name)), indent=1), encoding="utf8")
    return folder


def _older_config(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return dict(config)
    older: dict[str, Any] = {}
    if isinstance(whole := rope.get("full_attention", rope), dict):
        older["rope_theta"] = whole.get("rope_theta") or config.get("rope_theta") or 10000.0
        if whole.get("rope_type", "default") != "default":
            older["rope_scaling"] = {k: v for k, v in whole.items() if k != "rope_theta"}
        if "partial_rotary_factor" in whole:
            older["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if isinstance(local := rope.get("sliding_attention"), dict) and "rope_theta" in local:
        older["rope_local_base_freq"] = local["rope_theta"]
    return {**config, **older}


def _older_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key != "backend"}
    return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}


if __name__ == "__main__":
    sys.stdout.write(f"{make(os.environ.get('TORCH_INDEX', ''))}\n")
