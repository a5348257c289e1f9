"""Measuring how condensed a model is, from the checkpoint to the figures."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import msgspec
import numpy as np

from edgekit import cache
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence.text import EvalText
from edgekit.dispersion.condensation import Condensation, Layer, measured, trend, weight_kurtosis
from edgekit.options import Options
from edgekit.original import Original, make_texts
from edgekit.progress import Progress


def condensation(checkpoint: Checkpoint, options: Options, progress: Progress) -> Condensation:
    """Measure one model.

    Args:
        checkpoint: the model.
        options: `text` or none for text of the model's own, `sequences` of `length` tokens (at most its
            context), `seed`.
        progress: told about the steps.

    Raises:
        TextError: the text is missing or too short.
        BadWeightsError: a weight or a state is NaN or infinite.
    """
    length = min(options.length, checkpoint.spec.context_length)
    if length < options.length:
        progress.note(f"{checkpoint.name} has a context of {length} tokens: its sequences are as long as that")
    options = replace(options, length=length, calibrate=False)
    original = Original(checkpoint.root, progress)
    with cache.using(checkpoint.root), closing(original):
        text = make_texts(original.engine, load_tokenizer(checkpoint.root), options, progress).evaluation
        sequences = [np.asarray(ids, np.int64) for ids in text.sequences]
        title = f"condensation: states of {len(sequences)} × {length} tokens in {checkpoint.spec.layers} blocks"
        with progress.step(title) as advance:
            layers = measured(original.engine().states, sequences, advance)
    with progress.step(f"condensation: weights of {checkpoint.spec.layers} blocks"):
        layers = _weighed(checkpoint, layers)
    spearman, kendall = trend(layer.mean_cosine for layer in layers)
    return Condensation(
        model=checkpoint.name, model_sha256=checkpoint.sha256, text=_words(text, options), sequences=len(sequences),
        length=length, layers=layers, spearman=spearman, kendall=kendall,
    )  # fmt: skip


def _weighed(checkpoint: Checkpoint, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """With the kurtosis of the block's weights beside what the block gave."""
    found: dict[int, list[float]] = {}
    for tensor in checkpoint.spec.tensors:
        if tensor.layer is not None and tensor.rule.kind == "linear":
            found.setdefault(tensor.layer + 1, []).append(weight_kurtosis(checkpoint.read(tensor)))
    return tuple(
        msgspec.structs.replace(layer, weight_kurtosis=float(np.mean(found[number])) if number in found else None)
        for number, layer in enumerate(layers)
    )


def _words(text: EvalText, options: Options) -> str:
    if text.kind == "self-generated":
        return f"text of the model's own, seed {options.seed}"
    return f"a text file, sha256 {text.sha256[:12]}"
