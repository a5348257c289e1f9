"""The card of a trained model: odd runs and hostile names first."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from edgekit.report.model_card import model_card
from edgekit.training.recipe import Blockwise, EndToEnd, Objective, Recipe
from edgekit.training.record import Block, HeldOut, Model, Point, Run, Text

PARENT = Model(name="org/parent", sha256="ab" * 32)
RUN = Run(
    parent=PARENT,
    recipe=Recipe(
        grid="int3-sym-b32", seed=7, blockwise=Blockwise(),
        objective=Objective(dispersion=0.25, loss="orthogonalization"),
        end_to_end=EndToEnd(steps=2, average="lawa"),
    ),
    name="int3", text=Text(sources=("corpus.txt",), sha256="cd" * 32, tokens=123456, held_out=4096),
    grids={"int3-sym-b32": 14}, blocks=(Block(layer=0, before=0.2, after=0.1),),
    points=(Point(step=1, tokens=1024, seconds=2.0, rate=1.0, loss=0.5, parts={"distillation": 0.5}),),
    held_out=(
        HeldOut(step=0, divergence=0.75, cross_entropy=3.5),
        HeldOut(step=1, divergence=0.25, cross_entropy=3.25),
    ),
    seconds=90.0, versions={}, machine="a machine", devices=1, averaged=3,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "a\n---\nlicense: mit\n", "# t\n\n<script>", "![x](http://example.org/x)", "`; rm`", "|a|b|", "\x1b[31m",
        "http://example.org", "www.example.org", "a@example.org", "\u202eabc",
    ],
)  # fmt: skip
def test_a_hostile_name_stays_a_name(name: str) -> None:
    parent = msgspec.structs.replace(PARENT, name=name)
    text = msgspec.structs.replace(RUN.text, sources=(name,))
    card = model_card(msgspec.structs.replace(RUN, parent=parent, text=text, name=name, machine=name), name)
    usual = model_card(RUN, "title").splitlines()
    front = [line for line in usual if not line.startswith("base_model")]
    assert card.splitlines()[: front.index("")] == front[: front.index("")]
    assert len(card.splitlines()) == len(front)
    assert not re.search(r"(?<!\\)[<`]|(?<!\\)!\[|[^\\]://|www\.|[^\\]@|\u202e", card)


@pytest.mark.parametrize("name", ["../parent", "./parent", "/models/parent", "parent", "ö/parent", "a/b/c"])
def test_a_path_is_no_model_of_the_hub(name: str) -> None:
    assert "base_model" not in model_card(changed_parent(name), "child")


def changed_parent(name: str) -> Run:
    return msgspec.structs.replace(RUN, parent=msgspec.structs.replace(PARENT, name=name))


def test_many_sources() -> None:
    text = msgspec.structs.replace(RUN.text, sources=tuple(f"{i}.txt" for i in range(1000)))
    assert "19.txt, and 980 more;" in model_card(msgspec.structs.replace(RUN, text=text), "child")


def test_what_it_says() -> None:
    card = model_card(RUN, "child")
    for said in ('base_model: "org/parent"', "# child", "ab" * 32, "14 matrices on int3\\-sym\\-b32", "corpus.txt",
                 "123,456 tokens", "the last 4,096", "seed 7", "48 iterations of 4 sequences out of 64",
                 "1 · KL(parent ‖ model) + 0.25 · dispersion loss", "orthogonalization", "an average of 3 (lawa)",
                 "| KL divergence from the parent | 0.7500 | 0.2500 |", "1.5 minutes",
                 "edgekit/codes.safetensors"):  # fmt: skip
        assert said in card, said


@pytest.mark.parametrize(
    "odd",
    [
        {"blocks": ()}, {"points": ()}, {"held_out": ()}, {"averaged": 1}, {"name": ""}, {"grids": {}},
        {"recipe": Recipe(end_to_end=EndToEnd(steps=1)), "grids": {}, "blocks": ()},
    ],
)  # fmt: skip
def test_what_was_not_done_is_not_told(odd: dict[str, Any]) -> None:
    card = model_card(msgspec.structs.replace(RUN, **odd), "child")
    assert ("codes.safetensors" in card) == ("grids" not in odd)
    assert ("full-precision twin" in card) == ("blocks" not in odd)
    assert ("The whole model" in card) == ("points" not in odd)
    assert ("| KL divergence" in card) == ("held_out" not in odd)
    assert "None" not in card
