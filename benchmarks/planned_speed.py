"""Decode speed of a planned GGUF file against a uniform one: `python -m benchmarks.planned_speed PLANNED UNIFORM`.

A plan mixes formats; the engine must not pay for the mixing. No uniform file has just the bytes of a planned one, so
what is compared is bytes of weights read per second, tokens/s × the bytes of the file: on small machines decoding is
bound by memory. Formats that a machine computes slowly show here; those of a target's file are fast on *its* machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks._decoders import Run, Setup, Side
from benchmarks._decoding import compared, options_of, report
from benchmarks._result import Row
from benchmarks.decode_speed import PROMPT
from edgekit.bundle.tokenizer import load_tokenizer

LIMIT = 0.95
METHOD = (
    "Greedy decoding in edgekit's llama.cpp engine; same prompt, number of tokens, threads and context on both sides. "
    "The clock starts after the first token. Speeds are multiplied by the bytes of the file."
)


def measure(planned: Path, uniform: Path, ids: Sequence[int], chosen: argparse.Namespace) -> Row:
    """Compare the two files."""
    sizes = {path: path.stat().st_size for path in (planned, uniform)}
    sides = [Setup(path, chosen.threads, chosen.context, chosen.tokens) for path in (planned, uniform)]

    def notes(_last: tuple[Run, Path], _other: tuple[Run, Path]) -> tuple[str, ...]:
        both = " and ".join(f"{size / 1e6:.1f} MB" for size in sizes.values())
        return (f"{both}; {chosen.tokens} tokens after {len(ids)}, {chosen.threads} threads",)

    with Side("edgekit-gguf", sides[0]) as left, Side("edgekit-gguf", sides[1]) as right:
        row = compared(
            "planned file, decode", f"{uniform.name}, uniform", lambda: (left.run(ids), planned),
            lambda: (right.run(ids), uniform), lambda one: one[0].tokens_per_second * sizes[one[1]] / 1e9, chosen,
            LIMIT, notes,
        )  # fmt: skip
    return msgspec.structs.replace(row, unit="GB/s of weights")


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = options_of(__doc__)
    options.add_argument("planned", type=Path)
    options.add_argument("uniform", type=Path)
    options.add_argument("--prompt", default=PROMPT, help="text to continue")
    chosen = options.parse_args(arguments)
    if chosen.tokens < 2:
        options.error("--tokens must be at least 2, because the first one is not timed")
    for path in (chosen.planned, chosen.uniform):
        if not path.is_file():
            options.error(f"{path} is missing")
    ids = load_tokenizer(chosen.bundle / "tokenizer").encode(chosen.prompt)
    report(
        "planned_speed", arguments, ["gguf"], lambda _: measure(chosen.planned, chosen.uniform, ids, chosen), METHOD,
        ("edgekit", "llama-cpp-python", "numpy"), chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
