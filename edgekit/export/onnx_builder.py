"""Runs the onnxruntime-genai model builder, in a process of its own, for a full-precision graph."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit.errors import MissingDependencyError, OutputError, ParityError


def build_full_precision(checkpoint_root: Path, folder: Path) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer of a float32 CPU model to `folder`.

    The builder runs apart because it imports torch and holds the whole model; its memory is gone when it ends.

    Raises:
        MissingDependencyError: onnxruntime-genai or torch is not installed.
        OutputError: the disk is full.
        ParityError: the builder failed; its last line is quoted.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-builder-") as cache:
        command = [
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint_root), "-o", str(folder),
            "-p", "fp32", "-e", "cpu", "-c", cache, "--extra_options", "hf_remote=false",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONWARNINGS": "ignore",
        }
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if result.returncode == 0 and (folder / "model.onnx").is_file():
        return
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    if os.strerror(errno.ENOSPC) in last:
        raise OutputError(
            f"no space left on the disk while writing {folder}",
            remedy="free some space and run again; nothing was left half-written",
        )
    if "No module named" in last:
        raise MissingDependencyError(f"the ONNX builder cannot start ({last})", remedy="pip install 'edgekit[build]'")
    raise ParityError(f"the ONNX builder failed ({last[:300]})", remedy="build with --format gguf, and report this")
