"""Part A's twins as real files, run by llama.cpp and onnxruntime.

    python -m benchmarks.dispersion.artefacts --text FILE [--work FOLDER] [--out FOLDER]

Takes every twin of the main arms that `benchmarks.dispersion.run` left in the work folder (where they are gone, `run
--again` trains them once more); what was measured lies in OUT/artefacts-TWIN.json and is not made again.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.dispersion.arms import LENGTH, MAIN, SEEDS
from benchmarks.dispersion.run import OUT, path_of, twins_of
from benchmarks.dispersion.text import JUDGED, written
from edgekit.dispersion.survival import Survival
from edgekit.files import cache_dir, sha256
from edgekit.original import versions

FORMATS = ("gguf:F16", "gguf:Q4_0", "gguf:Q4_K", "gguf:Q3_K", "gguf:IQ3_XXS", "onnx:int4-sym-b32")
"""F16 shows what the engine itself costs."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One format of one twin."""

    format: str
    engine: str
    kl: float
    """Mean over held-out tokens against its own full precision in torch, nats."""
    nbytes: int


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """One twin."""

    arm: str
    seed: int
    length: float
    text_sha256: str
    model_sha256: str
    versions: Mapping[str, str]
    ce: float
    """In full precision, on the text that the files are judged on: nats per token."""
    made: tuple[Made, ...]


def main() -> None:
    """Measure what is missing; exit code 1 where a twin could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=cache_dir() / "dispersion-experiment")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory(prefix="twins-") as scratch:
        known, held = written(options.text, Path(scratch))
        twins = list(_twins(options.work, options.out))
        if not twins:
            raise SystemExit(f"{options.work} has no twins: benchmarks.dispersion.run --again trains and keeps them")
        for arm, seed, place in twins:
            path = options.out / f"artefacts-{place.name}.json"
            if not path.is_file():
                try:
                    keep(path, _twin(arm, seed, place, options.text, *measured(place, held, known)))
                except subprocess.CalledProcessError as error:
                    failed.append(f"{place.name}: edgekit survive ended with {error.returncode}")
    if failed:
        raise SystemExit("\n".join(failed))


def _twins(work: Path, out: Path) -> Iterator[tuple[str, int, Path]]:
    for arm in MAIN:
        for seed in SEEDS:
            for place in sorted(twins_of(work).glob(f"{path_of(out, arm, seed).stem}-*-decayed")):
                yield arm, seed, place


def _twin(arm: str, seed: int, place: Path, text: Path, ce: float, made: tuple[Made, ...]) -> Twin:
    known = versions()
    return Twin(
        arm=arm, seed=seed, length=float(place.name.split("-")[-2]), text_sha256=sha256(text),
        model_sha256=sha256(place / "model.safetensors"), ce=ce, made=made,
        versions={name: known[name] for name in ("edgekit", "llama-cpp-python", "onnxruntime") if name in known},
    )  # fmt: skip


def measured(place: Path, held: Path, known: Path) -> tuple[float, tuple[Made, ...]]:
    """The twin's own cross-entropy, and what `edgekit survive` measures of its files.

    A process each: an engine's crash costs one twin.
    """
    page = held.with_name("survival.json")
    command = [sys.executable, "-m", "edgekit", "survive", str(place), "--grids", ",".join(FORMATS), "--no-cache"]
    words = ["--text", str(held), "--calibration-text", str(known)]
    size = ["--sequences", str(JUDGED), "--length", str(LENGTH)]
    subprocess.run([*command, *words, *size, "--json", str(page), "--force"], check=True)
    (survival,) = msgspec.json.decode(page.read_bytes(), type=list[Survival])
    return math.log(survival.points[0].coherence.ppl_reference), tuple(
        Made(format=point.grid, engine=point.engine, kl=point.coherence.kl_mean, nbytes=point.nbytes or 0)
        for point in survival.points
    )


def keep(path: Path, twin: Twin) -> None:
    """Write what was measured."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(twin), indent=1) + b"\n")
    part.rename(path)
    print(path.name, {made.format: made.kl for made in twin.made}, flush=True)


if __name__ == "__main__":
    main()
