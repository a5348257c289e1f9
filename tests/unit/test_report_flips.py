"""The flips that a person reads: which ones, in which order, with which words."""

from __future__ import annotations

from test_report_model import scores

from edgekit.coherence.items import fixed_items
from edgekit.coherence.scoring import Flip
from edgekit.report.flips import SHOWN, flipped_items


def test_other_items_than_the_installed_ones_have_no_words() -> None:
    assert flipped_items(scores(items_sha256="0" * 64)) == ()
    assert flipped_items(None) == ()


def test_lost_answers_come_first_and_gained_ones_last() -> None:
    shown = flipped_items(scores())
    assert [item.id for item in shown] == ["reasoning-01", "facts-05", "facts-02"]
    known = {item.id: item for item in fixed_items()}
    for item in shown:
        assert item.question == known[item.id].context
        assert item.right == known[item.id].options[known[item.id].right]
        assert {item.original, item.artefact} <= set(known[item.id].options)
    assert shown[0].original == shown[0].right != shown[0].artefact


def test_a_long_list_is_cut() -> None:
    flips = tuple(Flip(item=item.id, right=item.right, reference=0, engine=1) for item in fixed_items())
    assert len(flipped_items(scores(flipped=flips))) == SHOWN < len(flips)
