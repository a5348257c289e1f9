"""What `edgekit bench` measures against llama-bench and a bare onnxruntime loop: `python -m benchmarks.bench_overhead`.

The same artefact, threads and number of tokens on both sides, in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks._bare import Bare
from benchmarks._decoding import artefact, compared, options_of, report, wanted
from benchmarks._result import Row
from edgekit.bench.child import Generate, Open, Opened
from edgekit.bench.latency import Generating
from edgekit.bench.worker import Process

LIMIT = 0.97
METHOD = (
    "Tokens generated one by one from an empty context, without sampling, fed random tokens: what llama-bench calls "
    "tg. Ours is the measuring process of `edgekit bench`. Both sides are processes that stay loaded (llama-bench, "
    "where it is given, is started anew for every run and warms up by itself); only one works at a time."
)
Speed = Callable[[], float]
"""Measures once: tokens/s."""


@dataclass(frozen=True)
class Setup:
    """What both sides share."""

    bundle: Path
    threads: int
    tokens: int
    context: int
    llama_bench: Path | None

    def model(self, container: str) -> Path:
        """The artefact."""
        return artefact(self.bundle, container)


@contextmanager
def ours(container: str, setup: Setup) -> Iterator[Speed]:
    """The measuring process of edgekit bench."""
    request = Open(
        format=container, path=str(setup.model(container)), tokenizer=str(setup.bundle / "tokenizer"),
        threads=setup.threads, prefill_threads=setup.threads, context=setup.context,
    )  # fmt: skip
    with Process() as worker:
        worker.ask(request, Opened)

        def speed() -> float:
            run = worker.ask(Generate(tokens=setup.tokens), Generating)
            return setup.tokens / (run.end - run.begin)

        yield speed


def llama_bench(program: Path, setup: Setup) -> float:
    """Tokens/s of one run of the program.

    Raises:
        SystemExit: it fails, or says something else than expected.
    """
    options = {"-m": setup.model("gguf"), "-p": 0, "-n": setup.tokens, "-r": 1, "-t": setup.threads, "-o": "json"}
    command = [str(program), *(str(part) for pair in options.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    try:
        return float(json.loads(done.stdout)[0]["avg_ts"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SystemExit(f"{program} did not print what was expected: {done.stdout[:200]}") from error


@contextmanager
def peer(container: str, setup: Setup) -> Iterator[tuple[str, Speed]]:
    """The other side and its name."""
    if container == "gguf" and (program := setup.llama_bench) is not None:
        yield "`llama-bench`", lambda: llama_bench(program, setup)
        return
    name = "llama-bench's loop in `llama_cpp`'s C interface" if container == "gguf" else "bare `onnxruntime` loop"
    with Bare(container, setup.model(container), setup.threads, setup.tokens, setup.context) as bare:
        yield name, bare


def measure(container: str, setup: Setup, chosen: argparse.Namespace) -> Row:
    """Compare one format's two sides."""
    with ours(container, setup) as left, peer(container, setup) as (name, right):
        return compared(
            f"{container.upper()} decode as measured", name, left, right, float, chosen, LIMIT,
            lambda *_: (f"{setup.tokens} tokens from an empty context, {setup.threads} threads",),
        )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = options_of(__doc__)
    options.add_argument("--llama-bench", type=Path, help="the program; default: its loop through the C interface")
    chosen = options.parse_args(arguments)
    if chosen.tokens > chosen.context:
        options.error("--tokens do not fit into --context")
    setup = Setup(chosen.bundle, chosen.threads, chosen.tokens, chosen.context, chosen.llama_bench)
    report(
        "bench_overhead", arguments, wanted(options, chosen), lambda container: measure(container, setup, chosen),
        METHOD, ("edgekit", "llama-cpp-python", "onnxruntime", "numpy"), chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
