"""The page of a training: odd runs and hostile names first, then what it draws and says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from test_model_card import PARENT, RUN

from edgekit.report.training import render
from edgekit.training.recipe import EndToEnd, Recipe
from edgekit.training.record import Block, HeldOut, Point, Run


def points(count: int, **values: float) -> tuple[Point, ...]:
    parts = values or {"distillation": 0.5}
    return tuple(
        Point(
            step=i + 1,
            tokens=1024 * (i + 1),
            seconds=2.0 * i,
            rate=0.5,
            loss=sum(parts.values()) / (i + 1),
            parts=parts,
        )
        for i in range(count)
    )


def changed(**values: Any) -> Run:
    return msgspec.structs.replace(RUN, **values)


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


class Tags(HTMLParser):
    """Checks that everything that is opened is closed."""

    EMPTY = ("meta", "line", "rect", "circle", "polyline", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    "odd",
    [
        {"blocks": ()}, {"points": ()}, {"points": (), "blocks": (), "held_out": ()}, {"held_out": RUN.held_out[:1]},
        {"points": points(5000)}, {"points": points(3, distillation=1e-12, dispersion=-0.4)},
        {"points": points(2, distillation=1e30)}, {"blocks": (Block(layer=0, before=0.0, after=0.0),)},
        {"recipe": Recipe(end_to_end=EndToEnd(steps=1)), "grids": {}}, {"seconds": 0.0, "versions": {}},
        {"held_out": tuple(HeldOut(step=0, divergence=0.0, cross_entropy=0.0) for _ in range(3))},
    ],
)  # fmt: skip
def test_odd_runs(odd: dict[str, Any]) -> None:
    page = render(changed(**odd))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "nan" not in page.lower().replace("finance", "")
    pictures(page)
    assert len(page) < 300_000


def test_hostile_names_stay_text() -> None:
    name = "</title><script>alert(1)</script>\x1b[31m"
    parent, text = msgspec.structs.replace(PARENT, name=name), msgspec.structs.replace(RUN.text, sources=(name,))
    page = render(changed(parent=parent, text=text, name=name, machine=name, versions={name: name}))
    assert "<script" not in page
    assert "\x1b" not in page


def test_every_step_of_a_long_training_is_drawn() -> None:
    """A page cuts off long strings: the points of a curve must not be one."""
    page = render(changed(points=points(400)))
    drawn = [line.get("points", "").split() for picture in pictures(page) for line in picture.iter("polyline")]
    assert sorted(map(len, drawn))[-2:] == [400, 401]  # the rates begin at 0
    assert all(re.fullmatch(r"[\d.]+,[\d.]+", place) for line in drawn for place in line)


def test_everything_that_was_set_is_told() -> None:
    page = render(RUN)
    for part in (RUN.recipe, RUN.recipe.objective, RUN.recipe.blockwise, RUN.recipe.end_to_end):
        for key in msgspec.structs.asdict(part) if part is not None else ():
            assert key in page, key
    for said in (PARENT.sha256, RUN.text.sha256, "corpus.txt", "0.750", "0.250", "a machine"):
        assert said in page, said


def test_equal_runs_give_equal_pages() -> None:
    assert render(RUN) == render(changed())
