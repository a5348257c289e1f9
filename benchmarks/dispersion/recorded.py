"""The curves that `edgekit survive --demo` shows, from twins of `benchmarks.dispersion.run`.

    python -m benchmarks.dispersion.recorded --text FILE [--work FOLDER] [--seed 1] [--length 1]

Writes edgekit/dispersion/twins.json.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

import msgspec

import edgekit
from benchmarks._measure import machine
from benchmarks.dispersion.arms import LENGTH
from benchmarks.dispersion.run import twins_of
from benchmarks.dispersion.text import JUDGED, written
from edgekit import api
from edgekit.dispersion.recorded import Recorded
from edgekit.dispersion.survival import Survival
from edgekit.files import cache_dir, sha256
from edgekit.options import Options
from edgekit.original import versions
from edgekit.progress import Bars

NAMES = {
    "ce": "dense twin (cross-entropy alone)",
    "spread-0.5": "dispersed twin (angular spread, weight 0.5)",
    "spread-2": "dispersed twin (angular spread, weight 2)",
}
_TO = Path(edgekit.__file__).parent / "dispersion" / "twins.json"
_WORDS = (
    "Models of 3.4 million parameters, trained from the same weights on the same text in the same order, each compared "
    "with its own full precision on text that was held out."
)


def curve(place: Path, name: str, held: Path, known: Path) -> Survival:
    """One twin's, under a name that says what it is."""
    options = Options(text=held, calibration_text=known, sequences=JUDGED, length=LENGTH, cache=False)
    found = api.survive(place, noise=True, options=options, progress=Bars())
    return msgspec.structs.replace(found, model=name, reference="itself")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=cache_dir() / "dispersion-experiment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--length", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twins-") as scratch:
        known, held = written(options.text, Path(scratch))
        curves = [
            curve(twins_of(options.work) / f"{arm}-seed{options.seed}-{options.length:g}-decayed", name, held, known)
            for arm, name in NAMES.items()
        ]
    seed, length = options.seed, f"{options.length:g}"
    known_versions = versions()
    record = Recorded(
        date=datetime.date.today().isoformat(), machine=machine().cpu, words=_WORDS, curves=tuple(curves),
        trained_by=f"python -m benchmarks.dispersion.run --text FILE --seed {seed}",
        made_by=f"python -m benchmarks.dispersion.recorded --text FILE --seed {seed} --length {length}",
        text_sha256=sha256(options.text), versions={name: known_versions[name] for name in ("torch", "transformers")},
    )  # fmt: skip
    fresh = _TO.with_name(f"{_TO.name}.part")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    fresh.rename(_TO)


if __name__ == "__main__":
    main()
