"""The items that an artefact answers otherwise than the original, in words for a person to read."""

from __future__ import annotations

from edgekit.coherence.items import Item, fixed_items, fixed_sha256
from edgekit.coherence.scoring import Flip, ItemScores
from edgekit.report.model import FlippedItem

SHOWN = 12
"""Items of one artefact that a report shows; a machine finds all of them in the scores."""


def flipped_items(scores: ItemScores | None) -> tuple[FlippedItem, ...]:
    """At most SHOWN flips in words: answers lost first, then one wrong answer for another, then answers gained.

    Empty where the scores are of another set of items than the installed one: their texts are not known here.
    """
    if scores is None or scores.items_sha256 != fixed_sha256():
        return ()
    known = {item.id: item for item in fixed_items()}
    flips = sorted((flip for flip in scores.flipped if flip.item in known), key=_weight)
    return tuple(_in_words(known[flip.item], flip) for flip in flips[:SHOWN])


def _weight(flip: Flip) -> int:
    return 0 if flip.reference == flip.right else 2 if flip.engine == flip.right else 1


def _in_words(item: Item, flip: Flip) -> FlippedItem:
    return FlippedItem(
        id=item.id,
        question=item.context,
        right=item.options[flip.right],
        original=item.options[flip.reference],
        artefact=item.options[flip.engine],
    )
