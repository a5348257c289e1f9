"""Decode speed of edgekit's engines against the raw peers on the same files: `python -m benchmarks.decode_speed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks._decoders import Kind, Run, Setup, Side
from benchmarks._decoding import artefact, compared, options_of, report, wanted
from benchmarks._result import Row, first_difference
from edgekit.bundle.tokenizer import load_tokenizer

LIMIT = 0.95
PROMPT = "Here is a long story about a small robot that lived in a lighthouse by the sea. Once upon a time"
PEERS: dict[str, tuple[Kind, Kind]] = {
    "gguf": ("edgekit-gguf", "llama_cpp.Llama"),
    "onnx": ("edgekit-onnx", "onnxruntime_genai"),
}
METHOD = (
    "Greedy decoding; same file, prompt, number of tokens, threads and context on both sides. The clock starts after "
    "the first token, so prefill is excluded. Each side is a process that stays loaded, and only one of them works at "
    "a time."
)


def agreement(ours: Run, peer: Run) -> str:
    """Whether both sides said the same, in words."""
    place = first_difference(ours.tokens, peer.tokens)
    if place is None:
        return f"both sides generate the same {len(ours.tokens)} tokens"
    return f"the first different token is number {place + 1} of {len(ours.tokens)}"


def measure(container: str, ids: Sequence[int], chosen: argparse.Namespace) -> Row:
    """Compare one format's two sides."""
    own, peer = PEERS[container]
    setup = Setup(artefact(chosen.bundle, container), chosen.threads, chosen.context, chosen.tokens)

    def notes(last: Run, other: Run) -> tuple[str, ...]:
        return agreement(last, other), f"{setup.tokens} tokens after {len(ids)}, {setup.threads} threads"

    with Side(own, setup) as left, Side(peer, setup) as right:
        return compared(
            f"{container.upper()} decode", f"`{peer}`", lambda: left.run(ids), lambda: right.run(ids),
            lambda one: one.tokens_per_second, chosen, LIMIT, notes,
        )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = options_of(__doc__)
    options.add_argument("--prompt", default=PROMPT, help="text to continue")
    chosen = options.parse_args(arguments)
    if chosen.tokens < 2:
        options.error("--tokens must be at least 2, because the first one is not timed")
    containers = wanted(options, chosen)
    ids = load_tokenizer(chosen.bundle / "tokenizer").encode(chosen.prompt)
    report(
        "decode_speed", arguments, containers, lambda container: measure(container, ids, chosen), METHOD,
        ("edgekit", "llama-cpp-python", "onnxruntime", "onnxruntime-genai", "numpy"), chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
