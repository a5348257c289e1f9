"""Part B's records as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.dispersion.continued import GRIDS, Arm, Row, arms


def records(folder: Path) -> list[Arm]:
    """All arms that were measured, in the protocol's order."""
    places = [folder / f"continued-{name}.json" for name in arms(1)]
    return [msgspec.json.decode(path.read_bytes(), type=Arm) for path in places if path.is_file()]


def table(found: Sequence[Arm]) -> str:
    """Two tables: arms in full precision that are rounded afterwards, and all ways to each number of bits."""
    free = [arm for arm in found if len(arm.rows) > 1]
    ways = [f"{way}-{bits}" for bits in GRIDS for way in ("nearest", "gptq")]
    first = [
        "arm",
        "CE",
        "KL from the published model",
        *ways,
        "seq-rep-4",
        "at 3 bits by GPTQ",
        "cosine, middle, last",
    ]
    lines = [_row(first), "|---" * len(first) + "|"]
    for arm in free:
        rows = _by_change(arm)
        whole, middle = rows["none"], arm.mean_cosine[len(arm.mean_cosine) // 2]
        cells = [f"`{arm.name}`", f"{whole.ce:.3f}", f"{whole.kl_parent:.3f}"]
        cells += [f"{rows[way].kl_own:.4f}" for way in ways]
        cells += [f"{whole.seq_rep_4:.2f}", f"{rows['gptq-3'].seq_rep_4:.2f}"]
        lines.append(_row([*cells, f"{middle:.2f}, {arm.mean_cosine[-1]:.2f}"]))
    second = ["bits", "how", "KL from the published model", "CE", "seq-rep-4"]
    lines += ["", _row(second), "|---" * len(second) + "|"]
    for bits in GRIDS:
        for name, row in _ways_to(bits, found):
            lines.append(_row([str(bits), name, f"{row.kl_parent:.3f}", f"{row.ce:.3f}", f"{row.seq_rep_4:.2f}"]))
    return "\n".join(lines)


def _ways_to(bits: int, found: Sequence[Arm]) -> list[tuple[str, Row]]:
    made = []
    for arm in found:
        rows = _by_change(arm)
        for way in ("nearest", "gptq"):
            made += [(f"`{arm.name}`, {way}", row) for row in [rows.get(f"{way}-{bits}")] if row is not None]
        if arm.name.endswith(f"-{bits}"):
            made.append((f"`{arm.name}`", rows["none"]))
    return made


def _by_change(arm: Arm) -> Mapping[str, Row]:
    return {row.change: row for row in arm.rows}


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
