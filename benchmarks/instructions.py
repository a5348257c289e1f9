"""Instructions per token on an emulated board, by build of llama.cpp: `python -m benchmarks.instructions`.

Emulated, deterministic, and the same on every machine: it tells regressions of code, never a board's speed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks._measure import begin, parser, versions
from benchmarks._result import Limit, Row
from benchmarks.build_time import export
from edgekit.checkpoint.source import resolve
from edgekit.emulator.board import qemu_cpu
from edgekit.emulator.counting import FEW, LONG, MANY, SHORT, PerToken, per_token
from edgekit.errors import EdgekitError
from edgekit.progress import Bars
from edgekit.targets import Target, load

LIMIT = 40.0
"""Million instructions per decoded token of SmolLM2-135M in Q4_0 on a Cortex-A76."""
RATIO = 1.1
"""What the first build may need of another's instructions."""
NOISE = 1e-4
"""Two counts of the same thing may differ by this, relative: addresses are random."""
GENERIC = "arm64-generic"
LINEAR = "Q4_0"
METHOD = (
    "Emulated: instructions that QEMU executes, one thread, empty environment, all builds on the same emulated CPU. "
    f"A decoded token is the difference of runs with {MANY} and {FEW} tokens, a token of the prompt that of prompts of "
    f"{LONG} and {SHORT}, over the difference in tokens."
)


def builds(target_name: str) -> dict[str, Path]:
    """llama-bench as edgekit builds it: zig and gcc for the target, and zig for any 64-bit ARM CPU."""
    from edgekit.crossbuild.native import build_native

    wanted = {"zig": (target_name, "zig"), "gcc": (target_name, "gcc"), "generic": (GENERIC, "zig")}
    return {
        name: build_native(load(target), toolchain=toolchain, progress=Bars()).folder / "bin" / "llama-bench"
        for name, (target, toolchain) in wanted.items()
    }


def measure(binaries: Mapping[str, Path], model: Path, target: Target, times: int) -> dict[str, list[PerToken]]:
    """Counts of each build, `times` times."""
    found: dict[str, list[PerToken]] = {}
    for name, path in binaries.items():
        found[name] = [per_token(path, model, target) for _ in range(times)]
        last = found[name][-1]
        print(f"  {name}: {last.decode / 1e6:.2f} M decode, {last.prefill / 1e6:.2f} M prefill", file=sys.stderr)
    return found


def rows(found: Mapping[str, Sequence[PerToken]], model: str, cpu: str) -> list[Row]:
    """The first build against the limit and against each of the others; alone, against itself."""
    first, *others = found
    made = []
    for phase in ("decode", "prefill"):
        for other in others or [first]:
            ours, peers = ([getattr(count, phase) / 1e6 for count in found[name]] for name in (first, other))
            limit = Limit(measure="ratio_at_most", value=RATIO)
            if phase == "decode" and other == (others or [first])[0]:
                limit = Limit(measure="ours_below", value=LIMIT)
            made.append(
                Row(
                    title=f"{phase}, {model}, {cpu}, {first} build", peer=f"{other} build", unit="M instructions",
                    ours=tuple(ours), peers=tuple(peers), limit=limit,
                )
            )  # fmt: skip
    return made


def repeats(found: Mapping[str, Sequence[PerToken]]) -> bool:
    """Whether every count was the same each time, but for :data:`NOISE`."""
    return all(
        max(figures) - min(figures) <= NOISE * min(figures)
        for counts in found.values()
        for figures in ([count.decode for count in counts], [count.prefill for count in counts])
    )


def named_path(text: str) -> tuple[str, Path]:
    """NAME=PATH of a file that is there."""
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=PATH of a file")
    return name, Path(path).resolve()


def main(arguments: Sequence[str]) -> None:
    """Measure and print; fails when a count does not repeat."""
    options = parser(__doc__, pairs_default=2, warmup=0)
    options.add_argument("--target", default="rpi5", help="whose CPU")
    options.add_argument("--model", type=Path, help=f"GGUF file; default: the demo with linear layers in {LINEAR}")
    options.add_argument(
        "--binary", type=named_path, action="append", metavar="NAME=PATH",
        help="a llama-bench for arm64; the first is judged; default: zig, gcc and generic, built when needed",
    )  # fmt: skip
    chosen = options.parse_args(arguments)
    try:
        target = load(chosen.target)
        cpu = qemu_cpu(target)
        binaries = dict(chosen.binary or ()) or builds(chosen.target)
        session = begin("instructions", arguments)
        with ExitStack() as stack:
            model, title = chosen.model, chosen.model.name if chosen.model else f"SmolLM2-135M {LINEAR}"
            if model is None:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-benchmark-"))
                export(resolve(None).root, "gguf", LINEAR, Path(scratch, "model"))
                model = Path(scratch, "model", "gguf", "model.gguf")
            found = measure(binaries, model, target, chosen.pairs)
    except EdgekitError as error:
        raise SystemExit(f"edgekit: {error}") from error
    session.finish(rows(found, title, cpu), versions("edgekit", "llama-cpp-python"), METHOD, chosen.json)
    if not repeats(found):
        raise SystemExit("the counts do not repeat: another program may have changed a file meanwhile")


if __name__ == "__main__":
    main(sys.argv[1:])
