"""Time and memory of a 4-bit export from 135M to 3B parameters: `python -m benchmarks.scale`.

The checkpoints are random and Llama-shaped; weights do not change what an export costs. The peers' memory at 3B
exceeds what many machines have: there is no peer for it unless `--peers-up-to 3b` is given.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._converter import converter
from benchmarks._measure import begin, parser, versions
from benchmarks._random_llama import SHAPES, Shape, write
from benchmarks._result import Limit, Row
from benchmarks.build_time import METHOD, PEERS, Made, convert_and_quantize, export, genai

FLAT = 1.1
"""Peak memory of 32 layers over that of 4."""


def one_size(shape: Shape, container: str, scratch: Path, with_peer: bool) -> list[Row]:
    """Time and peak memory at one size."""
    model = write(shape, scratch / "model")
    ours = export(model, container, "Q4_0" if container == "gguf" else "", scratch / "ours")
    shutil.rmtree(scratch / "ours")
    theirs: Made | None = None
    peer = "none: it needs more memory than many machines have"
    if with_peer:
        peer, out = PEERS[container], scratch / "peer"
        gguf = container == "gguf"
        theirs = convert_and_quantize(converter(), model, "Q4_0", "Q8_0", out) if gguf else genai(model, out)
        shutil.rmtree(out)
    shutil.rmtree(model)
    note = f"{shape.spec.parameters / 1e9:.2f}B parameters ({shape.like}'s shape)"
    title = f"{container.upper()} {shape.name}"
    seconds, memory = (theirs.seconds, theirs.peak_mib) if theirs else (None, None)
    return [
        _row(f"{title}, time", peer, "s", ours.seconds, seconds, 1.5, note),
        _row(f"{title}, peak memory", peer, "MiB", ours.peak_mib, memory, 1.0, note),
    ]


def flatness(container: str, scratch: Path) -> Row:
    """Peak memory with many layers over that with few, at the width of the 1B shape."""
    found: list[Made] = []
    for layers in (4, 32):
        model = write(dataclasses.replace(SHAPES["1b"], layers=layers), scratch / "model")
        found.append(export(model, container, "", scratch / "ours"))
        shutil.rmtree(scratch / "ours")
        shutil.rmtree(model)
    few, many = found
    title = f"{container.upper()}, peak memory of 32 layers"
    return _row(title, "edgekit with 4 layers", "MiB", many.peak_mib, few.peak_mib, FLAT, "width of the 1B shape")


def _row(title: str, peer: str, unit: str, ours: float, theirs: float | None, limit: float, note: str) -> Row:
    if theirs is None:
        return Row(title=title, peer=peer, unit=unit, ours=(ours,), notes=(note,))
    bound = Limit(measure="ratio_at_most", value=limit)
    return Row(title=title, peer=peer, unit=unit, ours=(ours,), peers=(theirs,), limit=bound, notes=(note,))


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=1)
    options.add_argument("--size", choices=tuple(SHAPES), action="append", help="default: all")
    options.add_argument("--peers-up-to", choices=("none", *SHAPES), default="1b", help="largest size with a peer")
    options.add_argument("--format", choices=("gguf", "onnx"), action="append", help="default: both")
    chosen = options.parse_args(arguments)
    order = list(SHAPES)
    last = -1 if chosen.peers_up_to == "none" else order.index(chosen.peers_up_to)
    session = begin("scale", arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as folder:
        for container in chosen.format or ("gguf", "onnx"):
            for name in chosen.size or order:
                print(f"{container} {name}", file=sys.stderr)
                rows += one_size(SHAPES[name], container, Path(folder), order.index(name) <= last)
            rows.append(flatness(container, Path(folder)))
    names = ("edgekit", "torch", "transformers", "llama-cpp-python", "onnxruntime-genai", "onnxruntime", "gguf")
    session.finish(rows, versions(*names), METHOD, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
