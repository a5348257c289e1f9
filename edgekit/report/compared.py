"""Original, plain and trained side by side: what a training gave an artefact, in words and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.coherence.metrics import Coherence
from edgekit.report.model import Artefact, Training
from edgekit.report.words import NOT_MEASURED, number, percent

Show = Callable[[Coherence], str]


@dataclass(frozen=True)
class Line:
    """One figure of all three."""

    title: str
    original: str
    plain: str
    """Of the same plan's artefact without training."""
    trained: str


def _habit(name: str) -> tuple[Show, Show]:
    def original(found: Coherence) -> str:
        return NOT_MEASURED if found.generation is None else percent(getattr(found.generation.reference, name))

    def engine(found: Coherence) -> str:
        return NOT_MEASURED if found.generation is None else percent(getattr(found.generation.engine, name))

    return original, engine


def _accuracy(name: str) -> Show:
    return lambda found: NOT_MEASURED if found.items is None else percent(getattr(found.items, name))


_FIGURES: tuple[tuple[str, Show, Show], ...] = (
    ("Mean KL divergence, nats", lambda _: "0", lambda c: number(c.kl_mean)),
    ("99.9 % KL divergence, nats", lambda _: "0", lambda c: number(c.kl_p999)),
    ("Same top token", lambda _: "100 %", lambda c: percent(c.same_top)),
    ("Perplexity", lambda c: number(c.ppl_reference, 4), lambda c: number(c.ppl_engine, 4)),
    ("Perplexity ratio", lambda _: "1", lambda c: number(c.ppl_ratio, 4)),
    ("Accuracy on the questions", _accuracy("accuracy_reference"), _accuracy("accuracy_engine")),
    ("seq-rep-4", *_habit("seq_rep_4")),
    ("Loop rate", *_habit("loop_rate")),
)
"""Title, the original's figure, an artefact's."""


def lines(artefact: Artefact) -> list[Line]:
    """The rows of an artefact's table; none where nothing was trained."""
    if (found := artefact.dispersed) is None:
        return []
    own = artefact.coherence
    return [Line(title, first(own), show(found.plain), show(own)) for title, first, show in _FIGURES]


def sentence(found: Training) -> str:
    """What was trained, on what, and how the training itself judged it."""
    grids = ", ".join(f"{count} matrices on {name}" for name, count in found.grids.items()) or "in full precision"
    first, last = number(found.held_out_kl_first), number(found.held_out_kl_last)
    return (
        f"by the recipe {found.recipe} in {found.minutes:.1f} minutes on a text of {found.text_tokens:,} tokens "
        f"(sha256 {found.text_sha256[:12]}), {grids}; on {found.held_out_tokens:,} of its tokens that were held out, "
        f"in PyTorch, KL divergence from the original {first} → {last} nats"
    )
