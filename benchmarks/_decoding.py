"""What the benchmarks of decoding share: their options, a built bundle's artefacts, and the loop over its formats."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks._measure import begin, pairs, parser, positive, versions
from benchmarks._result import Limit, Row
from edgekit.machine import cores

T = TypeVar("T")
BUNDLE = Path("dist/smollm2-135m.rpi5")
FILES = {"gguf": "gguf/model.gguf", "onnx": "onnx/model.onnx"}


def options_of(description: str | None) -> argparse.ArgumentParser:
    """Which bundle, and how much is decoded."""
    made = parser(description, pairs_default=9)
    made.add_argument("--bundle", type=Path, default=BUNDLE, help="a built bundle")
    made.add_argument("--format", choices=tuple(FILES), action="append", help="default: both")
    made.add_argument("--tokens", type=positive, default=128, help="tokens to generate in a run")
    made.add_argument("--threads", type=positive, default=cores(), help="of either side; default: physical cores")
    made.add_argument("--context", type=positive, default=2048, help="size of the key-value cache in tokens")
    return made


def artefact(bundle: Path, container: str) -> Path:
    """The file of a format."""
    return bundle / FILES[container]


def wanted(options: argparse.ArgumentParser, chosen: argparse.Namespace) -> tuple[str, ...]:
    """The formats to measure.

    Raises:
        SystemExit: the bundle lacks one.
    """
    found = tuple(chosen.format or FILES)
    for container in found:
        if not artefact(chosen.bundle, container).is_file():
            options.error(f"{artefact(chosen.bundle, container)} is missing: `make demo` builds it")
    return found


def compared(
    title: str, peer: str, ours: Callable[[], T], theirs: Callable[[], T], speed: Callable[[T], float],
    chosen: argparse.Namespace, least: float, notes: Callable[[T, T], tuple[str, ...]],
) -> Row:  # fmt: skip
    """Measure two sides in turns.

    Args:
        title: of the row.
        peer: the other side's name.
        ours: measures our side once.
        theirs: measures the other side once.
        speed: tokens/s of a measurement.
        chosen: options.
        least: ratio of the speeds that is asked for.
        notes: of the last pair.
    """
    print(f"{title}: {peer}", file=sys.stderr)
    found = pairs(ours, theirs, chosen.pairs, chosen.warmup)
    return Row(
        title=title, peer=peer, unit="tokens/s", ours=tuple(speed(one) for one, _ in found),
        peers=tuple(speed(two) for _, two in found), limit=Limit(measure="ratio_at_least", value=least),
        notes=notes(*found[-1]),
    )  # fmt: skip


def report(
    name: str, arguments: Sequence[str], containers: Sequence[str], measure: Callable[[str], Row], method: str,
    packages: Sequence[str], json: Path | None,
) -> None:  # fmt: skip
    """Measure every format, then print and write."""
    session = begin(name, arguments)
    rows = [measure(container) for container in containers]
    session.finish(rows, versions(*packages), method, json)
