"""Part A's tables and pictures, from the records alone.

python -m benchmarks.dispersion.analyse [--results FOLDER] [--write docs/experiments/dispersion.md]
[--pictures docs/pictures]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from benchmarks.coherence_table import replace
from benchmarks.dispersion import bent, continued_table, file_effects, pairs
from benchmarks.dispersion.arms import ARMS
from benchmarks.dispersion.decide import JUDGED, decisions
from benchmarks.dispersion.effects import BASE, CHANGES, Effect, effect, fitted, points, table
from benchmarks.dispersion.measure import Damage, Measured
from benchmarks.dispersion.run import OUT, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "ce": "#333333", "spread-0.5": "#1f77b4", "spread-2": "#d62728", "decorrelation": "#9467bd", "ce-fast": "#ff7f0e",
    "spread-0.5-long": "#17becf",
}  # fmt: skip
_DRAWN = ("nearest-4", "gptq-4", "nearest-3", "gptq-3", "nearest-2", "noise-3", "nearest-corrected-3", "skipped-0.5")


def records(folder: Path) -> list[Record]:
    """All runs that are whole."""
    places = [path for arm in ARMS for path in sorted(folder.glob(f"{arm}-seed*.json"))]
    found = [msgspec.json.decode(path.read_bytes(), type=Record) for path in places]
    return [record for record in found if record.whole]


def names(found: Sequence[Record]) -> list[str]:
    """Arms that there are, each also with LAWA."""
    there = [arm for arm in ARMS if any(record.arm["name"] == arm for record in found)]
    return [name for arm in there for name in (arm, f"{arm}+lawa")][1:]


def effects(found: Sequence[Record]) -> dict[tuple[str, str], Effect]:
    """Every effect that can be told."""
    made = ((name, change, effect(found, name, change)) for name in names(found) for change in CHANGES)
    return {(name, change): each for name, change, each in made if each is not None}


def models(found: Sequence[Record]) -> str:
    """Means over seeds of every arm and length."""
    lines = [
        "| arm | units | rate | seeds | CE | nearest 4, 3, 2 bits, KL in 10⁻³ nats | GPTQ | cosine of the last layer "
        "| ρ | kurtosis of weights | of states | weights' RMS | seq-rep-4, at 3 bits by GPTQ |",
        "|---" * 13 + "|",
    ]  # fmt: skip
    for arm in ARMS:
        mine = [model for record in found if record.arm["name"] == arm for model in record.models]
        for length, kind in sorted({(model.length, model.kind) for model in mine}):
            same = [model for model in mine if (model.length, model.kind) == (length, kind)]
            title = f"| `{arm}` | {length:g} | {'LAWA' if kind == 'averaged' else 'to zero'} | {len(same)} "
            lines.append(title + _means(same))
    return "\n".join(lines)


def _means(same: Sequence[Measured]) -> str:
    """The rest of a row: means over models that differ in their seeds."""

    def mean(value: Callable[[Measured], float]) -> float:
        return float(np.mean([value(model) for model in same]))

    def after(change: str) -> list[Damage]:
        return [damage for model in same for damage in model.damages if damage.change == change]

    def kl(way: str) -> str:
        return ", ".join(f"{1000 * np.mean([d.kl for d in after(f'{way}-{bits}')]):.3g}" for bits in (4, 3, 2))

    repeats = float(np.mean([d.seq_rep_4 for d in after("gptq-3") if d.seq_rep_4 is not None]))
    cells = (
        f"{mean(lambda m: m.ce):.3f}", kl("nearest"), kl("gptq"), f"{mean(lambda m: m.mean_cosine[-1]):.3f}",
        f"{mean(lambda m: m.spearman or 0):.2f}", f"{mean(lambda m: m.weight_kurtosis):.2f}",
        f"{mean(lambda m: m.activation_kurtosis[-1]):.2f}", f"{mean(lambda m: m.weight_norm):.4f}",
        f"{mean(lambda m: m.seq_rep_4):.2f}, {repeats:.2f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def draw(found: Sequence[Record], made: Mapping[tuple[str, str], Effect], folder: Path) -> None:
    """Two pictures: damage over cross-entropy, and effects with their intervals."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "edgekit"
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(15, 4.6))
    for panel, change in zip(panels, ("nearest-4", "nearest-3", "gptq-3"), strict=True):
        _damages(panel, found, change)
    figure.tight_layout()
    figure.savefig(folder / "dispersion-damage.svg", metadata={"Date": None})
    plt.close(figure)
    shown = [name for name in names(found) if any(arm == name for arm, _ in made)]
    figure, panel = plt.subplots(figsize=(9, 0.9 + 0.42 * len(_DRAWN) * max(1, len(shown) / 3)))
    _forest(panel, made, shown)
    figure.tight_layout()
    figure.savefig(folder / "dispersion-effects.svg", metadata={"Date": None})
    plt.close(figure)


def _damages(panel: Axes, found: Sequence[Record], change: str) -> None:
    for arm, colour in _COLOURS.items():
        for kind, filled in (("decayed", True), ("averaged", False)):
            mine = points(found, arm, kind, change)
            if not mine:
                continue
            x, y = [p.ce.mean() for p in mine], [p.kl.mean() for p in mine]
            label = arm if filled else f"{arm}, LAWA"
            panel.scatter(x, y, s=26, color=colour if filled else "none", edgecolors=colour, label=label)
            if arm == BASE and filled:
                line = fitted(mine, np.arange(len(mine[0].ce)))
                ends = np.array([min(x), max(x)])
                panel.plot(ends, np.exp([line(float(end)) for end in ends]), color=colour, linewidth=1)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_title(change)
    panel.set_xlabel("cross-entropy in full precision, nats per token")
    panel.set_ylabel("KL divergence, nats")
    panel.grid(visible=True, which="both", alpha=0.25)
    panel.legend(fontsize=7)


def _forest(panel: Axes, made: Mapping[tuple[str, str], Effect], shown: Sequence[str]) -> None:
    height = len(shown) + 1
    for row, change in enumerate(_DRAWN):
        for place, name in enumerate(shown):
            if (one := made.get((name, change))) is None:
                continue
            y = row * height + place
            arm, _, averaged = name.partition("+")
            bars = [[one.ratio - one.low], [one.high - one.ratio]]
            panel.errorbar(
                [one.ratio], [y], xerr=bars, color=_COLOURS[arm], marker="o", capsize=2,
                markerfacecolor="none" if averaged else _COLOURS[arm], label=name if row == 0 else None,
            )  # fmt: skip
    panel.axvline(1.0, color="#333333", linewidth=1)
    panel.axvline(0.9, color="#333333", linewidth=0.7, linestyle=":")
    panel.set_yticks([row * height + (len(shown) - 1) / 2 for row in range(len(_DRAWN))], _DRAWN)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.set_xlabel("damage as a share of a plain model's of equal cross-entropy; left of 1 survives better")
    panel.grid(visible=True, axis="x", which="both", alpha=0.25)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def main() -> None:
    """Print the tables, and write them and the pictures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=OUT)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    found = records(options.results)
    if not any(record.arm["name"] == BASE for record in found):
        raise SystemExit(f"{options.results} has no whole run of the arm {BASE}")
    made = effects(found)
    few = [change for change in CHANGES if not change.startswith("skipped") and change[-1] in "43"]
    rest = [change for change in CHANGES if change not in few]
    text = "\n\n".join(table(made, names(found), part) for part in (few, rest))
    left = sum({one.arm: one.outside for one in made.values()}.values())
    text += f"\n\n{len(found)} runs; {left} models lie outside the range of `{BASE}` and are left out."
    decided = decisions(made, [name for name in names(found) if name in ARMS and ARMS[name].objective.dispersion > 0])
    again = bent.table(found, names(found), (*JUDGED, "noise-4", "noise-3", "skipped-0.3", "skipped-0.5"))
    print(text, decided, again, pairs.table(found), models(found), sep="\n\n")
    if options.write:
        replace(options.write, "decisions", decided)
        replace(options.write, "effects", text)
        replace(options.write, "bent", again)
        replace(options.write, "pairs", pairs.table(found))
        replace(options.write, "models", models(found))
        if arms := continued_table.records(options.results):
            replace(options.write, "continued", continued_table.table(arms))
        if real := file_effects.twins(options.results):
            replace(options.write, "files", file_effects.table(real))
    if options.pictures:
        draw(found, made, options.pictures)


if __name__ == "__main__":
    main()
