"""The trained model as an ordinary Hugging Face folder, with what was done to it beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.writing import Slot, ordered, write_safetensors
from edgekit.errors import ParityError
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize import trained
from edgekit.report import training as pages
from edgekit.report.model_card import model_card
from edgekit.training.record import RUN, Run
from edgekit.training.scratch import Scratch

Source = Checkpoint | Scratch
"""What was trained: configuration and tokenizer are its."""
CARD, PAGE = "README.md", "edgekit/run.html"


def write(
    folder: Path,
    title: str,
    checkpoint: Source,
    weights: Mapping[str, F32],
    matrices: Mapping[str, Quantized],
    run: Run,
) -> None:
    """Fill an empty folder.

    Args:
        folder: of the output.
        title: what the output is called.
        checkpoint: what was trained.
        weights: tensor name → values as Hugging Face stores them, of every tensor.
        matrices: tensor name → codes and scales, of those on a grid.
        run: for the cards.

    Raises:
        ParityError: a matrix's codes are not its weights.
    """
    write_weights(folder, checkpoint, weights, matrices)
    (folder / RUN).parent.mkdir(exist_ok=True)
    (folder / RUN).write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    (folder / PAGE).write_text(pages.render(run), "utf8")
    (folder / CARD).write_text(model_card(run, title), "utf8")


def write_weights(
    folder: Path, checkpoint: Source, weights: Mapping[str, F32], matrices: Mapping[str, Quantized]
) -> None:
    """Weights, configuration, tokenizer and codes of :func:`write`."""
    for tensor in checkpoint.spec.tensors:
        if tensor.hf in matrices:
            values = get(matrices[tensor.hf].grid).dequantize(matrices[tensor.hf])
            if not np.array_equal(as_stored(tensor, values), weights[tensor.hf]):
                raise ParityError(
                    f"the trained codes of {tensor.hf} are not its trained weights", expected="equal ones"
                )
    write_model(folder, checkpoint, weights)
    if matrices:
        (folder / RUN).parent.mkdir()
        trained.save(folder, matrices)


def write_model(folder: Path, checkpoint: Source, weights: Mapping[str, F32]) -> None:
    """An ordinary Hugging Face folder in float32: weights, configuration and tokenizer."""
    slots = ordered(Slot(name, "F32", values.shape) for name, values in weights.items())

    def values_of() -> Iterator[NDArray[Any]]:
        for slot in slots:
            yield weights[slot.name]

    write_safetensors(folder / "model.safetensors", slots, values_of())
    # Values of a grid are not values of bfloat16: who loads them as their config says must get float32.
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", "utf8")
    for path in checkpoint.tokenizer_files():
        shutil.copyfile(path, folder / path.name)
