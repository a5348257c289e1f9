"""Which option of an item a model prefers: log-probabilities, accuracy, and flips against the full-precision model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec
import numpy as np

from edgekit.coherence.distribution import F32, F64, I32, Ids, chunks
from edgekit.coherence.engine_calls import checked_batch
from edgekit.coherence.intervals import paired_difference, wilson
from edgekit.coherence.ragged import Ragged
from edgekit.engines.base import Engine

MAX_OPTIONS = 8
MAX_ITEMS = 1024
ItemId = Annotated[str, msgspec.Meta(pattern="^[a-z]{1,16}-[0-9]{1,6}$")]
_LOWEST = -1e30
"""A log-probability below this is rounded up to it, so that sums stay finite in float32."""


@dataclass(frozen=True, eq=False)
class Questions:
    """n items with o options in all, as token ids: an engine needs no tokenizer to answer them."""

    names: tuple[str, ...]
    """Id of each item; what stands before its "-" is the category."""
    sha256: str
    """Of the file of items."""
    options: Ragged
    """o whole sequences, context included, item by item."""
    divisors: I32
    """(o,): what an option's log-probability is divided by: its UTF-8 bytes in a cloze, 1 for a whole sentence."""
    counts: I32
    """(n,): options of each item."""
    starts: I32
    """(n,): index of the first token that is scored."""
    right: I32
    """(n,): place of the right option within its item."""

    def __len__(self) -> int:
        return len(self.names)

    def slices(self) -> list[slice]:
        """Which options belong to each item."""
        ends = [0, *np.cumsum(self.counts, dtype=np.int64).tolist()]
        return [slice(first, last) for first, last in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the full-precision model thinks of every option."""

    questions: Questions
    logp: F32
    """(o,): summed log-probability of each option's scored tokens, nats."""


class CategoryScores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts of one category."""

    name: str
    items: int
    right_reference: int
    right_engine: int
    lost: int
    """Right in the reference, wrong in the engine."""
    gained: int
    """Wrong in the reference, right in the engine."""
    flips: int
    """Items whose chosen option changed, from one wrong option to another included."""


class Flip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item whose chosen option changed; places count from 0."""

    item: ItemId
    right: int
    reference: int
    engine: int


class ItemScores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Accuracy and flips on the items; shares from 0 to 1, intervals of 95 %."""

    items: int
    items_sha256: str
    chance: float
    """Accuracy of guessing."""
    right_reference: int
    right_engine: int
    accuracy_reference: float
    accuracy_engine: float
    accuracy_difference: float
    """Engine minus reference; below 0 is worse."""
    accuracy_difference_low: float
    """See :func:`edgekit.coherence.intervals.paired_difference`."""
    accuracy_difference_high: float
    flips: int
    flip_share: float
    flip_low: float
    """See :func:`edgekit.coherence.intervals.wilson`."""
    flip_high: float
    lost: int
    gained: int
    categories: tuple[CategoryScores, ...]
    flipped: tuple[Flip, ...]


def option_logp(engine: Engine, questions: Questions, answered: Callable[[int], None] | None = None) -> F32:
    """Summed log-probability (o,) in nats of every option's scored tokens; `answered` is told each item's index.

    Options that differ in their last token alone share one call of the engine.

    Raises:
        ParityError: NaN, infinity or a wrong shape; names the item and the position.
    """
    lists, sums = questions.options.lists(), np.empty(len(questions.options), np.float64)
    asked = [_prefixes(lists[where]) for where in questions.slices()]
    names = [f"item {name}" for name in questions.names]
    calls = [(ids, name) for prefixes, name in zip(asked, names, strict=True) for ids in prefixes.values()]
    answers = checked_batch(engine, calls)
    for index, where in enumerate(questions.slices()):
        first = int(questions.starts[index])
        rows = {key: next(answers)[first - 1 :] for key in asked[index]}
        normalizers = {key: _normalizers(logits) for key, logits in rows.items()}
        for option in range(where.start, where.stop):
            key = lists[option][:-1].tobytes()
            sums[option] = _sum(rows[key], normalizers[key], lists[option][first:])
        if answered:
            answered(index)
    return np.maximum(sums, _LOWEST).astype(np.float32)


def _prefixes(options: Sequence[Ids]) -> dict[bytes, Ids]:
    """What an engine must read to judge the options; each once."""
    return {ids[:-1].tobytes(): ids[:-1] for ids in options}


def _normalizers(logits: F32) -> F64:
    """Logarithm of the summed exponentials of each row of logits (T, V)."""
    largest = logits.max(axis=1)
    found = np.empty(len(logits), np.float64)
    for where in chunks(len(logits), logits.shape[1]):
        shifted = np.exp(logits[where] - largest[where, None])  # float32 is exact to 1e-7 of a sum near 1
        found[where] = np.log(shifted.sum(axis=1, dtype=np.float64)) + largest[where]
    return found


def _sum(logits: F32, normalizers: F64, ids: Ids) -> float:
    """Log-probability of `ids` (T,) by logits (T, V), row t predicting id t."""
    chosen = np.take_along_axis(logits, ids[:, None], axis=1)[:, 0].astype(np.float64)
    return min(0.0, float((chosen - normalizers).sum()))


def choices(questions: Questions, logp: F32) -> list[int]:
    """The place of each item's preferred option; of equal ones the first.

    A cloze compares log-probability per UTF-8 byte of the option (`acc_norm` of lm-evaluation-harness, which counts
    characters: the same in ASCII), so that a longer option is not worse for being longer. A pair compares the sums of
    whole sentences, as minimal pairs are judged in BLiMP (Warstadt et al. 2020, arXiv:1912.00582).
    """
    scores = logp.astype(np.float64) / questions.divisors
    return [int(scores[where].argmax()) for where in questions.slices()]


def compare(answers: Answers, logp: F32) -> ItemScores:
    """Accuracy and flips of the engine that gave `logp` (o,) against the full-precision model's answers.

    A flip is a changed answer, right or wrong (A. Dutta et al., "Accuracy is not all you need", 2024,
    arXiv:2407.09141). At least one item.
    """
    asked = answers.questions
    theirs, ours = choices(asked, answers.logp), choices(asked, logp)
    triples = list(zip(asked.right.tolist(), theirs, ours, strict=True))
    groups = [name.partition("-")[0] for name in asked.names]
    categories = [
        _count(group, [triple for triple, own in zip(triples, groups, strict=True) if own == group])
        for group in dict.fromkeys(groups)
    ]
    total, n = _count("", triples), len(asked)
    both = total.right_reference - total.lost
    low, high = paired_difference(both, total.gained, total.lost, n - both - total.gained - total.lost)
    flip_low, flip_high = wilson(total.flips, n)
    return ItemScores(
        items=n, items_sha256=asked.sha256, chance=float((1 / asked.counts).mean()),
        right_reference=total.right_reference, right_engine=total.right_engine,
        accuracy_reference=total.right_reference / n, accuracy_engine=total.right_engine / n,
        accuracy_difference=(total.right_engine - total.right_reference) / n,
        accuracy_difference_low=low, accuracy_difference_high=high,
        flips=total.flips, flip_share=total.flips / n, flip_low=flip_low, flip_high=flip_high,
        lost=total.lost, gained=total.gained, categories=tuple(categories),
        flipped=tuple(
            Flip(item=name, right=right, reference=a, engine=b)
            for name, (right, a, b) in zip(asked.names, triples, strict=True) if a != b
        ),
    )  # fmt: skip


def _count(name: str, triples: Sequence[tuple[int, int, int]]) -> CategoryScores:
    """Counts of (right, reference's, engine's) options."""
    return CategoryScores(
        name=name,
        items=len(triples),
        right_reference=sum(right == a for right, a, _ in triples),
        right_engine=sum(right == b for right, _, b in triples),
        lost=sum(right == a != b for right, a, b in triples),
        gained=sum(right == b != a for right, a, b in triples),
        flips=sum(a != b for _, a, b in triples),
    )
