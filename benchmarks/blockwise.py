"""Block-wise training on a grid against nearest rounding: KL divergence of fake-quantized weights in torch.

    python -m benchmarks.blockwise [MODEL | --dithered] --text FILE --calibration-text FILE [--grid int3-sym-b32]
        [--iterations 48] [--sequences 64] [--chunks 6]

Only the linear layers are quantized. Importance is measured on the first 16 sequences of the calibration text, blocks
are trained on the first --sequences × 256 tokens of it; judged on --chunks × 256 tokens of --text.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks.rounding import divergence
from edgekit import rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.source import resolve
from edgekit.coherence.text import from_file
from edgekit.dispersion.blockwise import Settings, train_block
from edgekit.engines.torch import TorchEngine
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize.blocks import Blocks

_IMPORTANCE = 16


def main() -> None:
    """Train, measure and print."""
    options, begin = _options(), time.process_time()
    checkpoint, host = dithered.cached() if options.dithered else resolve(options.model), machine()
    tokenizer, engine = load_tokenizer(checkpoint.root), TorchEngine(checkpoint.root)
    chunks = from_file(options.text, tokenizer.encode, options.chunks, 256, bos=None).sequences
    originals = [engine.logits(ids) for ids in chunks]
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    given = from_file(
        options.calibration_text, tokenizer.encode, options.sequences, rounding.LENGTH, bos=tokenizer.bos_id
    ).sequences
    squares = engine.input_squares(list(tensors), given[:_IMPORTANCE], lambda *_: None)
    start = {name: get(options.grid).quantize(checkpoint.read(t), squares[name]) for name, t in tensors.items()}
    own = [(name, checkpoint.read(tensor)) for name, tensor in tensors.items()]
    engine.replace((name, get(options.grid).dequantize(matrix)) for name, matrix in start.items())
    print(f"{options.grid}, nearest with importance: {divergence(engine, chunks, originals):.4f} nats", flush=True)
    engine.replace(own)
    blocks, twins = (Blocks(engine.module, checkpoint.spec, given) for _ in range(2))
    found: dict[str, Quantized] = {}
    for layer in range(checkpoint.spec.layers):
        mine = {name: start[name] for name, tensor in tensors.items() if tensor.layer == layer}
        made = train_block(
            blocks, twins, layer, mine, lambda name: checkpoint.read(tensors[name]), Settings(options.iterations)
        )
        found.update(made.matrices)
        print(f"block {layer + 1}: relative error {made.before:.4f} → {made.after:.4f}", flush=True)
    engine.replace((name, get(options.grid).dequantize(matrix)) for name, matrix in found.items())
    print(
        f"{options.grid}, block-wise: {divergence(engine, chunks, originals):.4f} nats; {checkpoint.name}, "
        f"{options.chunks * 256} tokens, {time.process_time() - begin:.0f} s of processor time on {host.cpu}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration-text", type=Path, required=True)
    parser.add_argument("--grid", default="int3-sym-b32")
    parser.add_argument("--iterations", type=int, default=48)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
