"""Runs a llama.cpp source tree's own converter, for models whose family edgekit does not know."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from edgekit.errors import ConverterError, EdgekitError, InputNotFoundError, TokenizerError, UnknownArchitectureError
from edgekit.export.child import complaint
from edgekit.files import sha256

SCRIPT = "convert_hf_to_gguf.py"
_SOURCES = (SCRIPT, "conversion/**/*.py", "gguf-py/gguf/**/*.py")


def check_tree(tree: Path) -> None:
    """Raise InputNotFoundError unless `tree` is a folder with the converter and the gguf-py it needs."""
    for needed in (SCRIPT, "gguf-py/gguf"):
        if not (tree / needed).exists():
            raise InputNotFoundError(
                f"{tree} has no {needed}",
                expected="a llama.cpp source tree",
                remedy="give --llama-cpp the folder that holds convert_hf_to_gguf.py and gguf-py",
            )


def tree_sha256(tree: Path) -> str:
    """One hash over the converter's sources: another revision of the tree may write another file."""
    check_tree(tree)
    files = sorted({path for pattern in _SOURCES for path in tree.glob(pattern)})
    parts = [f"{path.relative_to(tree)} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def convert(tree: Path, model: Path, out: Path) -> Path:
    """Write `out`, a GGUF file with matrices in float16 and everything else in float32, and return it.

    The tree's code runs with the user's rights, which is what naming it asks for. Its own gguf-py goes first: the
    released package can lack what the converter uses.

    Args:
        tree: of llama.cpp's sources.
        model: a Hugging Face folder.
        out: of the new file.

    Raises:
        InputNotFoundError: `tree` is no such tree.
        UnknownArchitectureError: the tree does not know the model either.
        TokenizerError: the tree does not know the tokenizer.
        ConverterError: the converter failed otherwise; holds its last line.
        OutputError: the disk is full.
    """
    check_tree(tree)
    tree = tree.resolve()
    arguments = [str(model.resolve()), "--outfile", str(out), "--outtype", "f16"]
    search = os.pathsep.join([str(tree / "gguf-py"), str(tree)])
    environment = {"PYTHONPATH": search}
    last = complaint(Path(sys.executable), tree / SCRIPT, arguments, output=out, environment=environment)
    if last is not None:
        raise _failure(tree, last)
    if not out.is_file():
        raise ConverterError(f"{tree / SCRIPT} ended well but wrote no file", remedy="use another revision of the tree")
    return out


def _failure(tree: Path, last: str) -> EdgekitError:
    if "pre-tokenizer was not recognized" in last:
        return TokenizerError(
            f"the llama.cpp tree {tree} does not know this tokenizer's pre-tokenizer ({last})",
            remedy="use a newer tree, or add the tokenizer to it as its convert_hf_to_gguf_update.py describes",
        )
    if last.endswith("is not supported"):
        return UnknownArchitectureError(
            f"the llama.cpp tree {tree} does not know this model either ({last})", remedy="use a newer tree"
        )
    return ConverterError(
        f"{tree / SCRIPT} failed ({last})", remedy="run it by hand on the model to see everything it says"
    )
