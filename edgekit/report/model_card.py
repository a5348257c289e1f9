"""The README.md of a trained model: what was done to it, in Hugging Face's form of a model card."""

from __future__ import annotations

import json
import re
import unicodedata

from edgekit.report.words import clean
from edgekit.training.record import Run

_PARTS = {"distillation": "KL(parent ‖ model)", "cross_entropy": "cross-entropy", "dispersion": "dispersion loss"}

_SOURCES = 20
"""Of the text that are named."""


def model_card(run: Run, title: str) -> str:
    """Markdown with YAML front matter. Names come from strangers: none can end a line or begin markup.

    Args:
        run: the training; every number is its.
        title: of the model.
    """
    return "\n".join(
        [
            *_front(run),
            f"# {plain(title)}",
            "",
            *_origin(run),
            "",
            "## What was done",
            "",
            *(f"* {line}" for line in _done(run)),
            "",
            "## What came of it",
            "",
            *_measured(run),
            "",
            "## How to use it",
            "",
            "    edgekit build FOLDER --target rpi5",
            "",
            *_codes(run),
            "Everything that was set, and the curves of the training, are in edgekit/run.html and edgekit/run.json.",
            "",
        ]
    )


def _origin(run: Run) -> list[str]:
    """What was trained, and whose the licence is."""
    grids = ", ".join(f"{count} matrices on {plain(name)}" for name, count in sorted(run.grids.items()))
    how = f"so that it survives few bits: {grids}." if grids else "in full precision."
    if run.parent is not None:
        parent = f"{plain(run.parent.name)} (SHA-256 of its weights {run.parent.sha256})"
        return [f"{parent}, trained by edgekit {how}", "The licence is the parent's."]
    if (first := run.scratch) is None:
        return [f"Trained by edgekit {how}"]
    return [
        f"{plain(first.architecture)}, {first.parameters:,} parameters, configuration {plain(first.name)}: trained by "
        f"edgekit from scratch, random initialisation seed {first.seed} (SHA-256 of the first weights {first.sha256}), "
        f"{how}",
        "There is no parent: the licence is for whoever trained it to say.",
    ]


def plain(text: str) -> str:
    """A stranger's text as plain words of one line of Markdown: no markup, no links, no turned direction."""
    line = " ".join("".join(c for c in clean(text) if unicodedata.category(c) != "Cf").split())[:200]
    return re.sub(r"([\\`*_{}\[\]()<>#+|!~$&:@-]|(?<=www)\.)", r"\\\1", line, flags=re.IGNORECASE)


def _front(run: Run) -> list[str]:
    parent = run.parent.name if run.parent else ""
    known = re.fullmatch(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", parent, flags=re.IGNORECASE | re.ASCII)
    base = [f"base_model: {json.dumps(parent)}"] if known else []
    return [
        "---",
        "library_name: transformers",
        *base,
        "tags:",
        "- edgekit",
        *(["- quantization-aware"] if run.grids else []),
        "---",
        "",
    ]


def _done(run: Run) -> list[str]:
    recipe, text = run.recipe, run.text
    shown = [plain(source) for source in text.sources[:_SOURCES]]
    if len(text.sources) > _SOURCES:
        shown.append(f"and {len(text.sources) - _SOURCES} more")
    sources = ", ".join(shown)
    lines = [
        f"Settings: {f'recipe {plain(run.name)}, ' if run.name else ''}seed {recipe.seed}.",
        f"Text: {sources}; {text.tokens:,} tokens in sequences of {recipe.length}, the last {text.held_out:,} of them "
        f"never trained on (SHA-256 of the ids {text.sha256}).",
    ]
    if run.blocks and recipe.blockwise:
        lines.append(
            f"{len(run.blocks)} blocks, each by itself against its full-precision twin: {recipe.blockwise.iterations} "
            f"iterations of {recipe.blockwise.batch} sequences out of {recipe.blockwise.sequences}."
        )
    return [*lines, *_whole(run), f"{run.seconds / 60:.1f} minutes on {plain(run.machine)}, {run.devices} processes."]


def _whole(run: Run) -> list[str]:
    """The training of the whole model."""
    end, objective = run.recipe.end_to_end, run.recipe.objective
    if not run.points or end is None:
        return []
    weighed = [(getattr(objective, part), words) for part, words in _PARTS.items()]
    parts = " + ".join(f"{weight:g} · {words}" for weight, words in weighed if weight)
    what = "matrices on a grid, norms and biases" if run.grids else "all weights"
    if end.train == "steps":
        what = "scales, where the format stores each as a float of its own, norms and biases"
    tokens = run.points[-1].tokens
    lines = [f"The whole model ({what}): {len(run.points):,} steps, {tokens:,} tokens, minimizing {parts}."]
    if objective.dispersion:
        loss, layers = plain(objective.loss), plain(objective.layers)
        lines.append(f"Dispersion: {loss}, temperature {objective.temperature:g}, layers {layers}.")
    if run.averaged > 1:
        lines.append(f"The weights are an average of {run.averaged} ({end.average}).")
    return lines


def _measured(run: Run) -> list[str]:
    if not run.held_out:
        return ["Nothing was measured."]
    first, last = run.held_out[0], run.held_out[-1]
    before = "rounded to nearest" if run.grids else "random weights" if run.scratch else "before"
    rows = [f"| cross-entropy | {first.cross_entropy:.4f} | {last.cross_entropy:.4f} |"]
    if first.divergence is not None and last.divergence is not None:
        rows.insert(0, f"| KL divergence from the parent | {first.divergence:.4f} | {last.divergence:.4f} |")
    return [
        f"On {run.text.held_out:,} held-out tokens of the same source as the training text, nats per token:",
        "",
        f"| | {before} | trained |",
        "|---|---|---|",
        *rows,
    ]


def _codes(run: Run) -> list[str]:
    if not run.grids:
        return []
    return [
        "The weights are values of their number format, in float32: 16 bits do not hold them. Codes and scales lie in "
        "edgekit/codes.safetensors, and edgekit exports them bit for bit where a plan has the same format.",
        "",
    ]  # fmt: skip
