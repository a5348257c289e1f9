"""Runs the onnxruntime-genai model builder, in a process of its own, for a full-precision graph."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit.errors import MissingDependencyError, OutputError, ParityError

_CHILD = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
"""Runs the builder until its standard input closes, so that it cannot outlive edgekit, however that ends."""


def build_full_precision(checkpoint_root: Path, folder: Path) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer of a float32 CPU model to `folder`.

    The builder runs apart because it imports torch and holds the whole model; its memory is gone when it ends.

    Raises:
        MissingDependencyError: onnxruntime-genai or torch is not installed.
        OutputError: the disk is full.
        ParityError: the builder failed; its last line is quoted.
    """
    # Below the output's own temporary folder, where a failed build is cleaned up anyway.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".edgekit-builder-") as cache:
        arguments = ["-m", str(checkpoint_root), "-o", str(folder), "-p", "fp32", "-e", "cpu", "-c", cache]
        result = _run([sys.executable, "-c", _CHILD, *arguments, "--extra_options", "hf_remote=false"])
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


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    read, write = os.pipe()
    try:
        return subprocess.run(  # noqa: S603
            command, stdin=read, capture_output=True, text=True, check=False, env=environment
        )
    finally:
        os.close(read)
        os.close(write)
