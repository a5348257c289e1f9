"""Runs the onnxruntime-genai model builder, in a process of its own, for a full-precision graph."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgekit.errors import EdgekitError, MissingDependencyError, OutputError, ParityError

_CHILD = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""
"""Runs the builder until its standard input closes, so that it cannot outlive edgekit, however that ends."""


@contextmanager
def full_precision_graph(checkpoint_root: Path, folder: Path) -> Iterator[Callable[[], Path]]:
    """Start writing model.onnx, model.onnx.data, genai_config.json and the tokenizer of a float32 CPU model.

    The builder runs apart because it imports torch and holds the whole model: its memory is gone when it ends, and the
    caller can do something else meanwhile.

    Args:
        checkpoint_root: a Hugging Face folder.
        folder: to be made by the builder.

    Yields:
        A function that waits for the builder and returns `folder`. It raises MissingDependencyError when
        onnxruntime-genai or torch is not installed, OutputError when the disk is full, and ParityError with the
        builder's last line when it fails otherwise.
    """
    # Below the output's own temporary folder, where a failed build is cleaned up anyway.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".edgekit-builder-") as scratch:
        arguments = ["-m", str(checkpoint_root), "-o", str(folder), "-p", "fp32", "-e", "cpu", "-c", scratch]
        command = [sys.executable, "-c", _CHILD, *arguments, "--extra_options", "hf_remote=false"]
        # What it says goes elsewhere: the output's disk may be the full one.
        with tempfile.TemporaryFile() as said, _child(command, said) as child:

            def finish() -> Path:
                if child.wait() == 0 and (folder / "model.onnx").is_file():
                    return folder
                said.seek(0)
                lines = said.read().decode("utf8", "replace").strip().splitlines()
                raise _failure((lines or ["no message"])[-1], folder)

            yield finish


def build_full_precision(checkpoint_root: Path, folder: Path) -> Path:
    """As :func:`full_precision_graph`, for a caller with nothing else to do: returns when `folder` is written."""
    with full_precision_graph(checkpoint_root, folder) as finish:
        return finish()


@contextmanager
def _child(command: list[str], said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    read, write = os.pipe()
    try:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=read, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **quiet}
        )
        try:
            yield child
        finally:
            child.kill()  # nothing happens to one that has ended
            child.wait()
    finally:
        os.close(read)
        os.close(write)


def _failure(last: str, folder: Path) -> EdgekitError:
    if os.strerror(errno.ENOSPC) in last:
        return OutputError(
            f"no space left on the disk while writing {folder}",
            remedy="free some space and run again; nothing was left half-written",
        )
    if "No module named" in last:
        return MissingDependencyError(f"the ONNX builder cannot start ({last})", remedy="pip install 'edgekit[build]'")
    return ParityError(f"the ONNX builder failed ({last[:300]})", remedy="build with --format gguf, and report this")
