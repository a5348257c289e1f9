"""The run card: one page that shows a training, pictures first, then figures and everything that was set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edgekit.report import curves
from edgekit.report.curves import DRAWN, Panel
from edgekit.report.pages import page
from edgekit.report.words import number
from edgekit.training.record import HeldOut, Point, Run

PARTS = {
    "distillation": "KL(parent ‖ model)",
    "cross_entropy": "Cross-entropy",
    "dispersion": "Dispersion loss",
}
"""Parts of the objective, as people call them."""
_NATS = "nats per token"

Rows = tuple[tuple[str, ...], ...]


def render(run: Run) -> str:
    """The page as HTML 5 text: no network, no scripts; equal runs give equal pages."""
    return page(
        "training.html.j2", run=run, panels=_panels(run), changes=_changes(run), counts=_counts(run),
        settings=settings(run), left_out=_left_out(run), grid=run.recipe.grid or "full precision",
        held_rows=_held_rows(run.held_out), block_rows=_block_rows(run), drawn=DRAWN,
        width=curves.WIDTH, height=curves.HEIGHT, left=curves.LEFT, right=curves.RIGHT, top=curves.TOP,
        bottom=curves.BOTTOM,
    )  # fmt: skip


def settings(run: Run) -> tuple[tuple[str, Rows], ...]:
    """Everything that was set: the recipe's tables, "" for its own keys, with key and value as a recipe file has them.

    A table that the recipe has not is one row that says so.
    """
    whole: dict[str, Any] = msgspec.to_builtins(run.recipe)
    tables = {key: value for key, value in whole.items() if isinstance(value, dict)}
    own = {key: value for key, value in whole.items() if key not in tables}
    all_tables = {"": own, **tables}
    return tuple(
        (name, tuple((key, _value(value)) for key, value in table.items())) for name, table in all_tables.items()
    )


def _value(value: object) -> str:
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) or "–"


def parts(run: Run) -> list[str]:
    """Parts of the loss that were computed at some step: those that are known first, in the order of :data:`PARTS`."""
    computed = {part for point in run.points for part in point.parts}
    return [part for part in PARTS if part in computed] + sorted(computed - set(PARTS))


def _panels(run: Run) -> list[Panel]:
    steps = max([0, *(point.step for point in run.points), *(held.step for held in run.held_out)])
    held = sorted(run.held_out, key=lambda each: each.step)
    panels = []
    if held:
        kl = [(each.step, each.divergence) for each in held if each.divergence is not None]
        entropy = [(each.step, each.cross_entropy) for each in held]
        if kl:
            panels.append(curves.curve("KL(parent ‖ model), held out", _NATS, kl, steps, ends=True))
        panels.append(curves.curve("Cross-entropy, held out", _NATS, entropy, steps, ends=True))
    if run.blocks:
        rows = [(block.layer, block.before, block.after) for block in run.blocks]
        panels.append(curves.bars("Errors of the blocks", "mean error of a token, relative to its size", rows))
    return panels + _of_steps(run, steps)


def _of_steps(run: Run, steps: int) -> list[Panel]:
    points = sorted(run.points, key=lambda point: point.step)
    if not points:
        return []
    computed = parts(run)
    panels = [_part(part, run, points, steps) for part in computed]
    if len(computed) != 1:
        loss = [(point.step, point.loss) for point in points]
        panels.append(curves.curve("Loss, training", "weighted sum of its parts", loss, steps))
    rate = [(0, 0.0), *((point.step, point.rate) for point in points)]
    return [*panels, curves.curve("Learning rates", "share of the full ones", rate, steps)]


def _part(part: str, run: Run, points: Sequence[Point], steps: int) -> Panel:
    series = [(point.step, point.parts[part]) for point in points if part in point.parts]
    unit = run.recipe.objective.loss if part == "dispersion" else _NATS
    weight = getattr(run.recipe.objective, part, None) if part in PARTS else None
    note = unit if weight is None else f"{unit}; weight {weight:g}"
    return curves.curve(f"{PARTS.get(part, part)}, training", note, series, steps)


def _changes(run: Run) -> Rows:
    """What is known from before and after the training."""
    rows: list[tuple[str, ...]] = []
    if run.held_out:
        first, last = run.held_out[0], run.held_out[-1]
        if first.divergence is not None and last.divergence is not None:
            before, after = number(first.divergence), number(last.divergence)
            rows.append(("KL(parent ‖ model), held out, nats per token", before, after))
        rows += [
            ("Cross-entropy, held out, nats per token", number(first.cross_entropy), number(last.cross_entropy)),
            ("Perplexity, held out", _perplexity(first), _perplexity(last)),
        ]
    if run.blocks:
        before, after = _mean(b.before for b in run.blocks), _mean(b.after for b in run.blocks)
        rows.append(("Error of a block, mean of all", before, after))
    return tuple(rows)


def _perplexity(held: HeldOut) -> str:
    return number(math.exp(held.cross_entropy)) if held.cross_entropy < 700 else "beyond e^700"


def _mean(values: Iterable[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return number(sum(value / len(finite) for value in finite)) if finite else "–"


def _counts(run: Run) -> Rows:
    rows = [
        ("Matrices on the grid", ", ".join(f"{count:,} in {grid}" for grid, count in sorted(run.grids.items())) or "–"),
        ("Blocks trained by themselves", f"{len(run.blocks):,}"),
        ("Optimizer steps of the whole model", f"{max((point.step for point in run.points), default=0):,}"),
    ]
    if run.points:
        last = run.points[-1]
        speed = f", {number(last.tokens / last.seconds)} a second" if last.seconds > 1e-6 else ""
        rows.append(("Tokens of these steps", f"{last.tokens:,}{speed}"))
        rows.append(("Time of these steps", duration(last.seconds)))
    averaged = f"the mean of {run.averaged:,}" if run.averaged > 1 else "the last"
    return (*rows, ("Weights that are the result", averaged), ("Time of the whole", duration(run.seconds)))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if not 0.1 <= seconds < 1e12:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _held_rows(held: Sequence[HeldOut]) -> Rows:
    kept = curves.spread(sorted(held, key=lambda each: each.step))
    return tuple((f"{each.step:,}", _divergence(each), number(each.cross_entropy)) for each in kept)


def _divergence(held: HeldOut) -> str:
    return "–" if held.divergence is None else number(held.divergence)


def _block_rows(run: Run) -> Rows:
    kept = curves.spread(run.blocks)
    return tuple((f"{block.layer:,}", number(block.before), number(block.after)) for block in kept)


def _left_out(run: Run) -> list[str]:
    recipe, points = run.recipe, len(run.points)
    found = {
        "Blocks were not trained by themselves.": not run.blocks,
        "The whole model was not trained end to end.": not run.points,
        "There is no grid: the model was trained in full precision.": not recipe.grid,
        "End to end, the weights' codes stayed: only the grid's steps and what is on no grid and no matrix (norms, "
        "biases) learned.": bool(run.points and recipe.end_to_end and recipe.end_to_end.train == "steps"),
        "Weights were not averaged: the result is those of the last step.": bool(run.points) and run.averaged <= 1,
        "Nothing was measured on held-out text.": not run.held_out,
        "There is no parent, so no KL divergence from one.": run.scratch is not None,
        f"The pictures draw at most {DRAWN} of a curve's points: the first, the last, and the lowest and highest of "
        f"each stretch of the {points:,} steps.": points > DRAWN,
    }
    possible = [part for part in PARTS if part != "distillation" or run.scratch is None]
    silent = [PARTS[part] for part in possible if run.points and part not in parts(run)]
    return [
        *(said for said, holds in found.items() if holds),
        *(f"{title} was not computed in training." for title in silent),
        "What another seed gives was not measured: this is one training, and no figure here has an interval.",
    ]
