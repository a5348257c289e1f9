"""At equal bytes, who stays closest to the original: ours and the field's recipes, same model, same tokens, one run.

    python -m benchmarks.quality --text FILE [MODEL | --dithered] [--calibration-text FILE] [--effort good]
        [--sizes gguf:105.5,gguf:92.5,gguf:80,onnx:114,onnx:90] [--chunks 24] [--json FILE] [--write PAGE]

Judged is the artefact on disk in its own engine (int8 activations included) against the model's own full-precision
logits: mean KL divergence in nats over --chunks × 256 tokens of --text, with a 95 % interval from resampling the
chunks. Sizes are MB (10⁶ bytes) of the whole file; ours are built with --size. Neither side has seen the text. The
importance matrix that llama-quantize gets is measured on as many tokens of the calibration text as ours is rounded on.
"made in" is the wall time of the command: for ours with all checks, less what the cache already held.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks._peers import PeerError, gguf_peers, onnx_peers
from benchmarks._result import Machine
from benchmarks.coherence_table import replace
from edgekit import api, rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import from_file
from edgekit.engines.base import Ids
from edgekit.engines.opening import open_engine
from edgekit.engines.torch import TorchEngine
from edgekit.options import Budget, Container, Options
from edgekit.original import calibrate, make_texts
from edgekit.progress import Bars

SIZES = "gguf:105.5,gguf:92.5,gguf:80,onnx:114,onnx:90"
CHUNK = 256
_RESAMPLES = 2000


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One artefact."""

    name: str
    container: Container
    megabytes: float
    kl: float
    low: float
    high: float
    same_top: float
    seconds: float


class Quality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run."""

    model: str
    tokens: int
    effort: str
    machine: Machine
    entries: list[Entry]


def nbytes(path: Path) -> int:
    """Of an artefact: the file and, for ONNX, its external data."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def measure(
    name: str, container: Container, path: Path, chunks: Sequence[Ids], originals: Sequence[F32], seconds: float
) -> Entry:
    """KL and same-top of an artefact in its engine."""
    kls: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    with closing(open_engine(container, path, context=CHUNK)) as engine:
        for ids, original in zip(chunks, originals, strict=True):
            found = engine.logits(ids)
            kls.append(kl_full(original, found))
            same.append(original.argmax(axis=1) == found.argmax(axis=1))
    means = np.array([kl.mean() for kl in kls])
    drawn = np.random.default_rng(0).integers(len(means), size=(_RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
    return Entry(
        name=name, container=container, megabytes=nbytes(path) / 1e6, kl=float(means.mean()), low=float(low),
        high=float(high), same_top=float(np.concatenate(same).mean()), seconds=seconds,
    )  # fmt: skip


def ours(
    checkpoint: Checkpoint, container: Container, megabytes: float, options: argparse.Namespace, out: Path, bars: Bars
) -> tuple[Path, float]:
    """Build under the size; the artefact and the seconds that the build took, its checks included."""
    begin = perf_counter()
    built = api.build(
        checkpoint.root, target=options.target, output=out, progress=bars,
        options=Options(
            formats=(container,), asked=True, effort=options.effort, budget=Budget("size", megabytes * 1e6),
            calibration_text=options.calibration_text,
        ),
    )  # fmt: skip
    return built.bundle / container / f"model.{container}", perf_counter() - begin


def entries(checkpoint: Checkpoint, options: argparse.Namespace, scratch: Path, bars: Bars) -> Iterator[Entry]:
    """Ours at each size, then the peers of the containers that were asked for."""
    tokenizer = load_tokenizer(checkpoint.root)
    chunks = list(from_file(options.text, tokenizer.encode, options.chunks, CHUNK, bos=None).sequences)
    with closing(TorchEngine(checkpoint.root)) as engine:
        originals = [engine.logits(ids) for ids in chunks]
        made = Options(
            text=options.text, calibration_text=options.calibration_text, formats=("gguf",),
            sequences=rounding.SEQUENCES, length=rounding.LENGTH,
        )  # fmt: skip
        importance = calibrate(engine, checkpoint, make_texts(lambda: engine, tokenizer, made, bars), bars)
    sizes = [size.split(":") for size in options.sizes.split(",") if size]
    for index, (kind, megabytes) in enumerate(sizes):
        container: Container = "onnx" if kind == "onnx" else "gguf"
        path, seconds = ours(checkpoint, container, float(megabytes), options, scratch / f"ours{index}", bars)
        yield measure(f"edgekit --size {megabytes}MB", container, path, chunks, originals, seconds)
    kinds = {kind for kind, _ in sizes} if not options.no_peers else set()
    peers = [*(gguf_peers(checkpoint, importance or {}, scratch) if "gguf" in kinds else ())]
    peers += [*(onnx_peers(checkpoint, scratch) if "onnx" in kinds else ())]
    for index, peer in enumerate(peers):
        out = scratch / f"peer{index}"
        out.mkdir()
        with bars.step(peer.name):
            begin = perf_counter()
            try:
                path = peer.make(out)
            except PeerError as error:  # the others are compared all the same
                print(f"{peer.container} {peer.name}: {error}", flush=True)
                continue
            yield measure(peer.name, peer.container, path, chunks, originals, perf_counter() - begin)


def table(found: Quality) -> str:
    """Markdown, each container's artefacts by size."""
    lines = ["| artefact | MB | KL, nats | 95 % interval | same top | made in |", "|---|---|---|---|---|---|"]
    for entry in sorted(found.entries, key=lambda entry: (entry.container, -entry.megabytes)):
        bold = "**" if entry.name.startswith("edgekit") else ""
        cells = (
            f"{bold}{entry.container.upper()} {entry.name}{bold}", f"{entry.megabytes:.1f}",
            f"{bold}{entry.kl:.3f}{bold}", f"{entry.low:.3f}–{entry.high:.3f}", f"{entry.same_top:.3f}",
            f"{entry.seconds:.0f} s",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    host = found.machine
    return "\n".join([*lines, "", f"{found.model}, {found.tokens} tokens, --effort {found.effort}; measured on "
                      f"{host.cpu}, {host.physical_cores} cores."])  # fmt: skip


def main() -> None:
    """Measure, print the table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration-text", type=Path)
    parser.add_argument("--effort", default="good", choices=["fast", "good", "best"])
    parser.add_argument("--target", default="rpi5")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    bars, host = Bars(), machine()
    checkpoint = dithered.cached() if options.dithered else resolve(options.model)
    found: list[Entry] = []
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        for entry in entries(checkpoint, options, Path(scratch), bars):
            print(f"{entry.container} {entry.name}: {entry.megabytes:.1f} MB, KL {entry.kl:.4f}", flush=True)
            found.append(entry)
    result = Quality(
        model=checkpoint.name, tokens=options.chunks * CHUNK, effort=options.effort, machine=host, entries=found
    )
    print(table(result))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if options.write:
        replace(options.write, "quality-table", table(result))


if __name__ == "__main__":
    main()
