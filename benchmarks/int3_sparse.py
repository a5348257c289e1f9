"""Skipping columns against not skipping: `python -m benchmarks.int3_sparse`.

edgekit's `SparseMatMul3Bits` against its own `MatMul3Bits` on the same weights and one row of activations, of which a
share is above the threshold; the others are silent, and their columns are not read. With --bundle and --dense, two
bundles of one model built with and without `--active`, also how fast each decodes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks._decoders import Setup, Side
from benchmarks._decoding import artefact
from benchmarks._measure import begin, pairs, parser, positive, versions
from benchmarks._result import Limit, Row
from benchmarks.decode_speed import PROMPT
from benchmarks.int3 import SHAPES, WEIGHTS, graph, operators, our_matrix, runner, sparse_matrix
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.threebit import library

SHARES = (0.8, 0.6, 0.4, 0.2)
"""Of the inputs that fire."""
LEAST = 1.0
TOKENS, CONTEXT = 96, 512
"""Different activations of a shape, and tokens that are decoded; room for a text."""
METHOD = (
    "10**9 weights a second, those that are skipped included, so that a ratio is one of times: normal activations, of "
    "which the largest fire; everything else as in benchmarks.int3. Bytes not read: of codes and scales, counted."
)


def row(shape: tuple[int, int], share: float, threads: int, custom: Path, count: int, warmup: int) -> Row:
    """Measure one shape and share."""
    weights = shape[0] * shape[1]
    nodes = max(2, min(64, WEIGHTS // weights))
    # Tokens differ in what fires: with the same columns in every run, the others would leave the caches to them.
    x = list(np.random.default_rng(1).standard_normal((TOKENS, 1, shape[1])).astype(np.float32))
    threshold = float(np.quantile(np.abs(x), 1 - share))
    dense = our_matrix(shape, 32)
    stored = sparse_matrix(dense, shape)
    ours = graph(shape, library.SPARSE, library.DOMAIN, stored, 3, 32, nodes, threshold=threshold)
    theirs = graph(shape, library.OPERATOR, library.DOMAIN, dense, 3, 32, nodes)
    work = nodes * weights
    found = pairs(runner(ours, custom, x, threads, work), runner(theirs, custom, x, threads, work), count, warmup)
    silent = float((np.abs(x) < threshold).mean()) * stored["B"].nbytes / sum(each.nbytes for each in stored.values())
    return Row(
        title=f"1 x {shape[1]} by {shape[0]} x {shape[1]}, {share:.0%} of the inputs fire, {threads} thread"
        + "s" * (threads > 1),
        peer="MatMul3Bits, which reads all", unit="G/s", ours=tuple(own for own, _ in found),
        peers=tuple(other for _, other in found), limit=Limit(measure="ratio_at_least", value=LEAST),
        notes=(f"{silent:.0%} of the bytes are not read",),
    )  # fmt: skip


def decoding(active: Path, dense: Path, threads: int, count: int, warmup: int) -> Row:
    """Measure two bundles."""
    sides = [Setup(artefact(bundle, "onnx"), threads, CONTEXT, TOKENS) for bundle in (active, dense)]
    ids = load_tokenizer(dense / "tokenizer").encode(PROMPT)
    with Side("edgekit-onnx", sides[0]) as left, Side("edgekit-onnx", sides[1]) as right:
        found = pairs(lambda: left.run(ids), lambda: right.run(ids), count, warmup)
    return Row(
        title=f"decode, {active.name}, {threads} thread" + "s" * (threads > 1), peer=dense.name, unit="tokens/s",
        ours=tuple(own.tokens_per_second for own, _ in found),
        peers=tuple(other.tokens_per_second for _, other in found),
        limit=Limit(measure="ratio_at_least", value=LEAST), notes=(f"{TOKENS} tokens after {len(ids)}",),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=5)
    options.add_argument("--threads", type=positive, default=1)
    options.add_argument("--bundle", type=Path, action="append", default=[], help="built with --active")
    options.add_argument("--dense", type=Path, help="the same built without")
    chosen = options.parse_args(arguments)
    if bool(chosen.bundle) != bool(chosen.dense):
        options.error("--bundle and --dense go together")
    custom = operators()
    session = begin("int3_sparse", arguments)
    made = [
        row(shape, share, chosen.threads, custom, chosen.pairs, chosen.warmup) for shape in SHAPES for share in SHARES
    ]
    made += [decoding(each, chosen.dense, chosen.threads, chosen.pairs, chosen.warmup) for each in chosen.bundle]
    notes = f" Kernel: {library.kernels(custom)[0]}."
    session.finish(made, versions("edgekit", "onnxruntime"), METHOD + notes, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
