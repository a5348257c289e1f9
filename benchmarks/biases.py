"""Whether biases make up for what rounding does to the mean of a layer's output.

    python -m benchmarks.biases [MODEL | --dithered] --text FILE --calibration-text FILE [--grids IQ4_NL,int4-sym-b32]
        [--chunks 24] [--write docs/experiments/rounding.md]

A rounded layer V x differs from W x by (W - V) x; its mean over calibration text, each token weighed as in rounding,
can be added as a bias, for which llama.cpp's graph of this family and any ONNX graph have a slot. Fake-quantized in
torch, embedding and activations in full precision, mean KL divergence in nats on --chunks × 256 tokens of --text.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks.coherence_table import replace
from benchmarks.rounding import divergence
from edgekit import rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.text import from_file
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.progress import Bars
from edgekit.quantize.blocks import Blocks
from edgekit.quantize.curvature import token_weights
from edgekit.quantize.gptq import round_matrix
from edgekit.quantize.rounding import second_moment

Changes = dict[str, tuple[F32, torch.Tensor]]
"""Tensor name → rounded weights (outputs, inputs) and the bias (outputs,) that makes up for their mean error."""


def changes(
    checkpoint: Checkpoint, engine: TorchEngine, grid: str, sequences: Sequence[Ids], weights: Mapping[str, F32],
    *, gptq: bool,
) -> Changes:  # fmt: skip
    """Every linear layer, block after block, by GPTQ or to the nearest level with importance."""
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    blocks, found = Blocks(engine.module, checkpoint.spec, sequences), Changes()
    for layer in range(checkpoint.spec.layers):
        with blocks.borrowed(layer):
            for group in blocks.groups(layer):
                inputs = blocks.inputs(layer, group[0])
                for name in group:
                    own, moment = checkpoint.read(tensors[name]), second_moment(inputs, weights[name])
                    importance = np.ascontiguousarray(moment.diagonal())
                    rounded = round_matrix(own, moment, grid) if gptq else get(grid).quantize(own, importance)
                    values = get(grid).dequantize(rounded)
                    counts = torch.from_numpy(weights[name])[:, None]
                    found[name] = values, torch.from_numpy(own - values) @ ((inputs * counts).sum(dim=0) / counts.sum())
                    blocks.put(layer, name, values)
            blocks.advance(layer)
    return found


def divergences(
    engine: TorchEngine, made: Changes, chunks: Sequence[Ids], originals: Sequence[F32]
) -> tuple[float, float]:
    """KL without and with the biases."""
    modules = dict(engine.module.named_modules())
    own = [(name, modules[name.removesuffix(".weight")].weight.detach().numpy().copy()) for name in made]
    engine.replace((name, values) for name, (values, _) in made.items())
    plain = divergence(engine, chunks, originals)
    hooks = [
        modules[name.removesuffix(".weight")].register_forward_hook(_adding(bias)) for name, (_, bias) in made.items()
    ]
    try:
        return plain, divergence(engine, chunks, originals)
    finally:
        for hook in hooks:
            hook.remove()
        engine.replace(own)


def _adding(bias: torch.Tensor) -> Any:
    return lambda _module, _inputs, output: output + bias


def main() -> None:
    """Print the table, and put it into a page when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration-text", type=Path, required=True)
    parser.add_argument("--grids", default="IQ4_NL,int4-sym-b32")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    bars, host = Bars(), machine()
    checkpoint = dithered.cached() if options.dithered else resolve(options.model)
    engine, tokenizer = TorchEngine(checkpoint.root), load_tokenizer(checkpoint.root)
    chunks = from_file(options.text, tokenizer.encode, options.chunks, 256, bos=None).sequences
    originals = [engine.logits(ids) for ids in chunks]
    given = from_file(
        options.calibration_text, tokenizer.encode, rounding.SEQUENCES["good"], rounding.LENGTH, bos=tokenizer.bos_id
    ).sequences
    names = [tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"]
    with bars.step("token weights") as advance:
        weights = token_weights(engine.module, names, given, 0, advance)
    lines = ["| format | rounding | without biases | with |", "|---|---|---|---|"]
    for grid in options.grids.split(","):
        for gptq in (False, True):
            made = changes(checkpoint, engine, grid, given, weights, gptq=gptq)
            plain, corrected = divergences(engine, made, chunks, originals)
            lines.append(f"| {grid} | {'GPTQ' if gptq else 'importance'} | {plain:.4f} | {corrected:.4f} |")
            print(lines[-1], flush=True)
    if options.write:
        note = f"{checkpoint.name}, {options.chunks * 256} tokens; measured on {host.cpu}."
        replace(options.write, "bias-table", "\n".join([*lines, "", note]))


if __name__ == "__main__":
    main()
