"""At equal bytes, who stays closest to the original: ours and the field's recipes, same model, same tokens, one run.

    python -m benchmarks.quality --text FILE [MODEL | --dithered] [--calibration-text FILE] [--efforts good,best]
        [--sizes gguf:105.5,gguf:92.5,gguf:80,onnx:114,onnx:90] [--bits 4] [--chunks 24] [--bos] [--json FILE]
        [--write PAGE] [--picture FILE.svg] [--summary PAGE] [--auto-round ITERATIONS]

Judged is the artefact on disk in its own engine (int8 activations included) against the model's own full-precision
logits: mean KL divergence in nats over --chunks × 256 tokens of --text, with a 95 % interval from resampling the
chunks. Sizes are MB (10⁶ bytes) of the whole file; ours are built with --size, with --bits instead one build of each
container that --sizes names, without a sensitivity map (which takes long with a large vocabulary). Neither side has
seen the text. The importance matrix that llama-quantize gets is measured on as many tokens of the calibration text as
`best` rounds on, and auto-round (`pip install auto-round`) has the same. "made in" is the wall time of the command: for
ours with all checks, less what the cache already held. With --json each row is kept as soon as it is measured, and what
the file already holds of the same model and texts is not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import replace as replaced
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import get_args

import msgspec
import numpy as np

from benchmarks import dithered
from benchmarks._measure import machine
from benchmarks._peers import Peer, PeerError, auto_round_peers, gguf_peers, onnx_peers
from benchmarks._rated import Entry, Subject, begun, draw, keep, rate, summary, table
from benchmarks.coherence_table import replace
from edgekit import api, rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.coherence.text import from_file
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.errors import EdgekitError
from edgekit.files import sha256
from edgekit.options import Budget, Container, Effort, Options
from edgekit.original import calibrate, make_texts
from edgekit.progress import Bars

SIZES = "gguf:105.5,gguf:92.5,gguf:80,onnx:114,onnx:90"
CHUNK = 256


class Originals(Sequence[F32]):
    """The original's logits, on disk: in memory they would be larger than the model."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> F32:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        found: F32 = np.load(self._folder / f"{index}.npy", mmap_mode="r", allow_pickle=False)
        return found


def originals(checkpoint: Checkpoint, chunks: Sequence[Ids], folder: Path) -> Originals:
    """What the full-precision model says of every chunk, (T, vocabulary) each."""
    folder.mkdir()
    with closing(TorchEngine(checkpoint.root)) as engine:
        for index, ids in enumerate(chunks):
            np.save(folder / f"{index}.npy", engine.logits(ids))
    return Originals(folder, len(chunks))


def ours(checkpoint: Checkpoint, options: argparse.Namespace, bars: Bars) -> Iterator[Peer]:
    """Builds under each size, or of so many bits, with each effort."""
    wanted: list[tuple[Container, str, Options]] = [
        (kind, f"--size {megabytes}MB", Options(budget=Budget("size", float(megabytes) * 1e6)))
        for kind, megabytes in options.sizes
    ]
    if options.bits:
        kinds = dict.fromkeys(kind for kind, _ in options.sizes)
        wanted = [(kind, f"--bits {options.bits}", Options(bits=options.bits)) for kind in kinds]
    for effort in options.efforts:
        for kind, words, asked in wanted:
            made = replaced(
                asked, formats=(kind,), asked=True, effort=effort, calibration_text=options.calibration_text
            )

            def make(out: Path, made: Options = made, kind: Container = kind) -> Path:
                built = api.build(
                    checkpoint.root, target=options.target, output=out / "bundle", progress=bars, options=made
                )
                return built.bundle / kind / f"model.{kind}"

            yield Peer(f"edgekit {effort} {words}", kind, make)


def sizes(given: str) -> list[tuple[Container, str]]:
    """Container and MB, as asked.

    Raises:
        ValueError: one is not CONTAINER:MB.
    """
    found: list[tuple[Container, str]] = []
    for size in filter(None, given.split(",")):
        kind, megabytes = size.split(":")
        float(megabytes)
        found.append((get_args(Container)[get_args(Container).index(kind)], megabytes))
    return found


def efforts(given: str) -> list[Effort]:
    """As asked.

    Raises:
        ValueError: one is unknown.
    """
    known: tuple[Effort, ...] = get_args(Effort)
    return [known[known.index(name)] for name in given.split(",")]


def peers(checkpoint: Checkpoint, options: argparse.Namespace, scratch: Path, bars: Bars) -> Iterator[Peer]:
    """The others, of the containers that were asked for."""
    kinds = {kind for kind, _ in options.sizes}
    if "gguf" in kinds:
        yield from gguf_peers(checkpoint, lambda: _importance(checkpoint, options, bars), scratch)
        if options.auto_round:
            yield from auto_round_peers(checkpoint, options.calibration_text, scratch, options.auto_round)
    if "onnx" in kinds:
        yield from onnx_peers(checkpoint, scratch)


def _importance(checkpoint: Checkpoint, options: argparse.Namespace, bars: Bars) -> Mapping[str, F32]:
    tokenizer = load_tokenizer(checkpoint.root)
    made = Options(
        text=options.calibration_text, calibration_text=options.calibration_text, formats=("gguf",),
        sequences=rounding.SEQUENCES["best"], length=rounding.LENGTH,
    )  # fmt: skip
    with closing(TorchEngine(checkpoint.root)) as engine:
        return calibrate(engine, checkpoint, make_texts(lambda: engine, tokenizer, made, bars), bars) or {}


def measured(
    makers: Iterable[Peer], chunks: Sequence[Ids], said: Originals, have: Set[tuple[str, str]], bars: Bars
) -> Iterator[Entry]:
    """One row after the other; rows that are there already are not made."""
    for maker in makers:
        if (maker.container, maker.name) in have:
            continue
        with tempfile.TemporaryDirectory(prefix="quality-") as folder, bars.step(maker.name):
            begin = perf_counter()
            try:
                path = maker.make(Path(folder))
                made = perf_counter() - begin
                yield rate(maker.name, maker.container, path, chunks, said, made)
            except (PeerError, EdgekitError) as error:  # the others are compared all the same
                print(f"{maker.container} {maker.name}: {error}", flush=True)


def main() -> None:
    """Measure, print the table, and keep it where asked."""
    options = _options()
    bars, host = Bars(), machine()
    checkpoint = dithered.cached() if options.dithered else resolve(options.model)
    tokenizer = load_tokenizer(checkpoint.root)
    bos = tokenizer.bos_id if options.bos else None
    chunks = from_file(options.text, tokenizer.encode, options.chunks, CHUNK, bos=bos).sequences
    result = begun(options.json, _subject(checkpoint, options), host)
    have = {(entry.container, entry.name) for entry in result.entries}
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        scratch = Path(folder)
        said = originals(checkpoint, chunks, scratch / "original")
        makers = [ours(checkpoint, options, bars)]
        if not options.no_peers:
            makers.append(peers(checkpoint, options, scratch, bars))
        wanted = (maker for maker in chain(*makers) if options.only in maker.name)
        for entry in measured(wanted, chunks, said, have, bars):
            print(f"{entry.container} {entry.name}: {entry.megabytes:.1f} MB, KL {entry.kl:.4f}", flush=True)
            result = msgspec.structs.replace(result, entries=(*result.entries, entry))
            if options.json:
                keep(result, options.json)
    print(table(result))
    if options.picture and result.entries:
        draw(result, options.picture)
    if options.write:
        replace(options.write, "quality-table", table(result))
    if options.summary:
        replace(options.summary, "quality-summary", summary(result))


def _subject(checkpoint: Checkpoint, options: argparse.Namespace) -> Subject:
    calibration = options.calibration_text
    return Subject(
        model=checkpoint.name, model_sha256=checkpoint.sha256, target=options.target, tokens=options.chunks * CHUNK,
        text_sha256=sha256(options.text), calibration_sha256=sha256(calibration) if calibration else None,
        bos=options.bos,
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration-text", type=Path)
    parser.add_argument("--efforts", type=efforts, default=["good"])
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--sizes", type=sizes, default=sizes(SIZES))
    parser.add_argument("--bits", type=int)
    parser.add_argument("--bos", action="store_true", help="begin each chunk as the model expects a text to begin")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their names")
    parser.add_argument("--auto-round", type=int, default=0, metavar="ITERATIONS")
    return parser.parse_args()


if __name__ == "__main__":
    main()
