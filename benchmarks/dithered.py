"""The demo model "off its grid": a copy that no 4-bit format finds flattering.

    python -m benchmarks.dithered OUT

The demo's weights come from a Q4_1 file and lie on that grid, so a 4-bit asymmetric block-32 format would reproduce
them almost exactly. In the copy every linear weight is moved by uniform noise of up to 0.45 Q4_1 steps of its own block
(seed 0). It is a model of its own: what is built from it is judged against its own full-precision logits. The embedding
stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.demo import demo_checkpoint, packaged_gguf
from edgekit.checkpoint.writing import Slot, ordered, write_safetensors
from edgekit.errors import OutputExistsError
from edgekit.export.gguf import checkpoint_rows
from edgekit.files import cache_dir, whole_folder
from edgekit.grids import get

SHARE = 0.45
"""Of a Q4_1 step: a weight stays nearest to the level that it came from."""


def steps(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Hugging Face name → Q4_1 step of each weight (rows, columns), for every linear layer of the demo's file."""
    stored = {tensor.name: tensor for tensor in GGUFReader(packaged_gguf()).tensors}
    found = {}
    for tensor in checkpoint.spec.tensors:
        if tensor.rule.kind != "linear" or stored[tensor.gguf].tensor_type.name != "Q4_1":
            continue
        shape = (tensor.shape[0], tensor.shape[1])
        fields = get("Q4_1").unpack({"data": stored[tensor.gguf].data}, shape).fields
        scales = np.repeat(fields["scales"].astype(np.float32), 32, axis=1)
        found[tensor.hf] = checkpoint_rows(scales, tensor.rule.rows, checkpoint.spec)
    return found


def dithered(out: Path, *, seed: int = 0, force: bool = False) -> Checkpoint:
    """Write the copy as a Hugging Face folder (float32) and open it."""
    demo = demo_checkpoint()
    sizes = steps(demo)
    by_name = {tensor.hf: tensor for tensor in demo.spec.tensors}
    slots = ordered(Slot(name, "F32", tensor.stored_shape) for name, tensor in by_name.items())

    def values() -> Iterator[NDArray[np.float32]]:
        for slot in slots:
            weights = demo.read(by_name[slot.name])
            if slot.name in sizes:
                noise = np.random.default_rng([seed, *slot.name.encode()]).uniform(-SHARE, SHARE, weights.shape)
                weights = weights + noise.astype(np.float32) * sizes[slot.name]
            yield weights

    with whole_folder(out, force=force) as folder:
        for path in [demo.root / "config.json", *demo.tokenizer_files()]:
            shutil.copyfile(path, folder / path.name)
        write_safetensors(folder / "model.safetensors", slots, values())
    return open_checkpoint(
        out, name="smollm2-135m-dithered", source="the demo model, dithered (benchmarks/dithered.py)"
    )


def cached() -> Checkpoint:
    """The copy in the cache, written the first time."""
    out = cache_dir() / "benchmarks" / "smollm2-135m-dithered"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OutputExistsError):  # another process was faster
            return dithered(out)
    return open_checkpoint(
        out, name="smollm2-135m-dithered", source="the demo model, dithered (benchmarks/dithered.py)"
    )


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    print(dithered(arguments.output, seed=arguments.seed, force=arguments.force).root)


if __name__ == "__main__":
    main()
