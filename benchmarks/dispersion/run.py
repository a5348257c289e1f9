"""Part A: train the twins and measure what survives. One arm and seed, or all that is missing.

    python -m benchmarks.dispersion.run --text FILE [--arm NAME --seed N] [--again] [--work FOLDER] [--out FOLDER]

Every model of a run is kept in OUT/ARM-seedN.json as soon as it is measured, and its weights in the work folder. What
is there of the same settings and text is not made again; a killed run goes on behind the last length that is kept in
the work folder. Several processes may run at once, each with its own arm and seed. With --again, twins that were
measured but whose weights are gone are trained once more and kept, for `benchmarks.dispersion.artefacts`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks._measure import machine
from benchmarks.dispersion.arms import ARMS, SEEDS, Arm, described
from benchmarks.dispersion.measure import Lab, Measured
from benchmarks.dispersion.text import Texts, load
from benchmarks.dispersion.twins import Run, Twin
from edgekit import locks
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engines.torch import TorchEngine
from edgekit.files import cache_dir
from edgekit.original import versions

OUT = Path(__file__).parents[1] / "results" / "dispersion"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave."""

    arm: Mapping[str, Any]
    seed: int
    text_sha256: str
    versions: Mapping[str, str]
    machine: str
    whole: bool = False
    minutes: float = 0.0
    """Of training and measuring, of all sessions."""
    models: tuple[Measured, ...] = ()


def path_of(out: Path, arm: str, seed: int) -> Path:
    """Where a run's record is."""
    return out / f"{arm}-seed{seed}.json"


def begun(path: Path, arm: Arm, seed: int, texts: Texts) -> Record:
    """The record so far; one of other settings or of another text begins anew."""
    known = versions()
    fresh = Record(
        arm=described(arm), seed=seed, text_sha256=texts.sha256, machine=machine().cpu,
        versions={name: known[name] for name in ("edgekit", "torch", "transformers") if name in known},
    )  # fmt: skip
    if not path.is_file():
        return fresh
    found = msgspec.json.decode(path.read_bytes(), type=Record)
    same = found.arm == msgspec.json.decode(msgspec.json.encode(fresh.arm)) and found.text_sha256 == texts.sha256
    return found if same else fresh


def keep(record: Record, path: Path) -> None:
    """Write the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1).replace(b",\n    ", b", ") + b"\n")
    part.rename(path)


def twins_of(work: Path) -> Path:
    """Where the twins are kept as ordinary checkpoints, for real artefacts: ARM-seedN-LENGTH-KIND."""
    return work / "twins"


def kept(twin: Twin, work: Path, stem: str) -> Path:
    """The twin as a checkpoint, which stays."""
    place = twins_of(work) / f"{stem}-{twin.length:g}-{twin.kind}"
    if not place.is_dir():
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        twin.module.save_pretrained(part)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(work / name, part)
        part.rename(place)
    return place


def _forget(work: Path, out: Path, stem: str) -> None:
    """Remove what other settings or another text may have left: weights, twins, measures of their files."""
    for state in (work / stem).glob("*.safetensors"):
        state.unlink()
    for twin in twins_of(work).glob(f"{stem}-*"):
        shutil.rmtree(twin)
    for made in out.glob(f"artefacts-{stem}-*.json"):
        made.unlink()


def run(arm: Arm, seed: int, texts: Texts, work: Path, out: Path) -> None:
    """One arm with one seed, unless it is there or being made."""
    path = path_of(out, arm.name, seed)
    record = begun(path, arm, seed, texts)
    if record.whole or (lock := _mine(work / path.stem)) is None:
        return
    have = {(model.length, model.kind) for model in record.models}
    if not have:
        _forget(work, out, path.stem)
    began = time.monotonic()
    for twin in _trained(arm, seed, texts, work, path.stem):
        place = kept(twin, work, path.stem)
        if (twin.length, twin.kind) in have:
            continue
        lab = Lab(open_checkpoint(place), TorchEngine(place), texts)
        model = lab.measured(twin.length, twin.kind, twin.steps, seed)
        spent, began = (time.monotonic() - began) / 60, time.monotonic()
        record = msgspec.structs.replace(record, models=(*record.models, model), minutes=record.minutes + spent)
        keep(record, path)
        kl = {damage.change: damage.kl for damage in model.damages}
        print(f"{path.stem} {model.length} {model.kind}: CE {model.ce:.4f}, KL {kl}", flush=True)
    keep(msgspec.structs.replace(record, whole=True), path)
    locks.release(lock)
    shutil.rmtree(work / path.stem)


def again(arm: Arm, seed: int, texts: Texts, work: Path, out: Path) -> None:
    """Train and keep what was measured but is not in the work folder, unless it is being made; nothing is measured."""
    path = path_of(out, arm.name, seed)
    if not begun(path, arm, seed, texts).whole:
        return
    if all((twins_of(work) / f"{path.stem}-{length:g}-decayed").is_dir() for length in arm.branches):
        return
    if (lock := _mine(work / path.stem)) is None:
        return
    for twin in _trained(arm, seed, texts, work, path.stem):
        kept(twin, work, path.stem)
    locks.release(lock)
    shutil.rmtree(work / path.stem)


def _mine(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    return locks.take(folder, wait=False)


def _trained(arm: Arm, seed: int, texts: Texts, work: Path, stem: str) -> Iterator[Twin]:
    began = time.monotonic()

    def tell(done: int, whole: int, parts: Mapping[str, float]) -> None:
        words = ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
        print(f"{stem}: step {done} of {whole}, {time.monotonic() - began:.0f} s, {words}", file=sys.stderr)

    return Run(arm, seed, texts, work / stem, tell).twins()


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--again", action="store_true", help="train what was measured once more, and keep it")
    parser.add_argument("--work", type=Path, default=cache_dir() / "dispersion-experiment")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = load(options.text, options.work)
    seeds = SEEDS if options.seed is None else (options.seed,)
    for name, arm in ARMS.items():
        for seed in seeds if options.arm in (None, name) else ():
            (again if options.again else run)(arm, seed, texts, options.work, options.out)


if __name__ == "__main__":
    main()
