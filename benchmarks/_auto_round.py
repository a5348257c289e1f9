"""auto-round's GGUF export, for the quality benchmark: a process of its own.

    python -m benchmarks._auto_round MODEL OUT.gguf SEQUENCES.json TYPE ITERATIONS

MODEL is a Hugging Face folder, SEQUENCES.json holds lists of token ids of one length, TYPE is a llama.cpp file type
such as Q4_K_M. Settings are auto-round's own where it has any. Needs `pip install auto-round`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

_BATCH = 8


def export(model: Path, out: Path, sequences: Sequence[Sequence[int]], kind: str, iterations: int) -> None:
    """Round the model on `sequences` and write it as `out`.

    Args:
        model: a Hugging Face folder.
        out: the .gguf file.
        sequences: token ids (T,) each, all of one length.
        kind: llama.cpp's file type.
        iterations: steps per block.

    Raises:
        SystemExit: auto-round is not installed, or did not write one file.
    """
    try:  # by name: no requirement of the project, and type checkers need not know it
        auto_round = import_module("auto_round")
    except ImportError as error:
        raise SystemExit(f"auto-round cannot be loaded ({error}): pip install auto-round") from error
    import torch

    texts = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, len(ids)), dtype=torch.int64)}
             for ids in sequences]  # fmt: skip
    rounder = auto_round.AutoRound(
        str(model), scheme=f"GGUF:{kind}", format=f"gguf:{kind.lower()}", dataset=texts, nsamples=len(texts),
        seqlen=len(sequences[0]), batch_size=min(_BATCH, len(texts)), iters=iterations, device_map="cpu",
        # What it asks for itself when it is to learn the rounding of a GGUF file.
        enable_alg_ext=iterations > 0,
    )  # fmt: skip
    with TemporaryDirectory(dir=out.parent) as folder:
        rounder.quantize_and_save(folder, format=f"gguf:{kind.lower()}")
        found = list(Path(folder).rglob("*.gguf"))
        if len(found) != 1:
            raise SystemExit(f"auto-round wrote {len(found)} GGUF files instead of one")
        found[0].rename(out)


def main() -> None:
    """One export."""
    model, out, sequences, kind, iterations = sys.argv[1:]
    export(Path(model), Path(out), json.loads(Path(sequences).read_text("utf-8")), kind, int(iterations))


if __name__ == "__main__":
    main()
