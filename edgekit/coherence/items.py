"""Questions of our own with one right answer each, and their options as token ids."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from typing import Annotated, Literal

import msgspec
import numpy as np

from edgekit.bundle.tokenizer import Tokenizer
from edgekit.coherence.ragged import ragged
from edgekit.coherence.scoring import MAX_OPTIONS, ItemId, Questions

CATEGORIES = ("facts", "agreement", "arithmetic", "reasoning", "instructions")
INSTRUCTIONS = "instructions"
"""Category whose contexts go through the chat template where the model has one."""

_Option = Annotated[str, msgspec.Meta(min_length=1)]


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question."""

    id: ItemId
    """Category and number, as in "facts-01"."""
    context: str = ""
    """What a cloze's options continue; "" where the options are whole sentences."""
    options: Annotated[tuple[_Option, ...], msgspec.Meta(min_length=2, max_length=MAX_OPTIONS)]
    right: Annotated[int, msgspec.Meta(ge=0)]
    """Place of the right option, counted from 0."""

    @property
    def category(self) -> str:
        """One of CATEGORIES."""
        return self.id.partition("-")[0]

    @property
    def kind(self) -> Literal["cloze", "pair"]:
        """A cloze's options continue its context; a pair is two whole sentences of which one is right."""
        return "cloze" if self.context else "pair"


def _packaged() -> bytes:
    return resources.files("edgekit.coherence").joinpath("items.toml").read_bytes()


def fixed_items() -> tuple[Item, ...]:
    """The items that a reference seals, category by category."""
    found = msgspec.convert(tomllib.loads(_packaged().decode("utf8")), dict[str, tuple[Item, ...]])
    return tuple(item for name in CATEGORIES for item in found[name])


def fixed_sha256() -> str:
    """Of the file that holds the items: references with the same one asked the same."""
    return hashlib.sha256(_packaged()).hexdigest()


def encode_items(items: Sequence[Item], tokenizer: Tokenizer, *, limit: int) -> Questions:
    """What an engine is asked, in the ids of `tokenizer`.

    An item is left out when one of its options takes more than `limit` tokens, or when the tokenizer gives two of its
    options the same ids (a vocabulary that does not know the words).

    Raises:
        TokenizerError: the chat template is broken.
    """
    opening = _opening(tokenizer)
    kept: list[tuple[Item, int, list[list[int]]]] = []
    for item in items:
        context, wholes = _encode(item, tokenizer, opening)
        start = boundary(context, wholes)
        if len(set(map(tuple, wholes))) == len(wholes) and all(start < len(ids) <= limit for ids in wholes):
            kept.append((item, start, wholes))
    return Questions(
        names=tuple(item.id for item, _, _ in kept),
        sha256=fixed_sha256(),
        options=ragged([ids for _, _, wholes in kept for ids in wholes]),
        divisors=np.array([_divisor(item, text) for item, _, _ in kept for text in item.options], np.int32),
        counts=np.array([len(item.options) for item, _, _ in kept], np.int32),
        starts=np.array([start for _, start, _ in kept], np.int32),
        right=np.array([item.right for item, _, _ in kept], np.int32),
    )


def _divisor(item: Item, option: str) -> int:
    return len(option.encode()) if item.kind == "cloze" else 1


def _encode(item: Item, tokenizer: Tokenizer, opening: list[int]) -> tuple[list[int], list[list[int]]]:
    """Ids of the context and of each option behind it."""
    text, joint = item.context, " " if item.context else ""
    if item.category == INSTRUCTIONS and tokenizer.template is not None:
        text, joint, opening = tokenizer.chat_text([{"role": "user", "content": item.context}]), "", []
    elif item.category == INSTRUCTIONS:
        text = f"Instruction: {item.context}\nResponse:"

    def ids(whole: str) -> list[int]:
        return opening + (tokenizer.encode(whole) if whole else [])

    return ids(text), [ids(text + joint + option) for option in item.options]


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text, as <s>; most models without one were trained without one."""
    plain, full = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    places = (i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    return full[: next(places, 0)]


def boundary(context: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """Index of the first token that is scored, the same for all options of an item.

    As in lm-evaluation-harness (`_encode_pair`), context and option are encoded as one text, and the ids of the
    context alone say where the option begins. Where the tokenizer merges across that place, the two disagree, and the
    option begins with the first token that is not the context's in every option: then all options are scored behind
    the same ids. At least 1, since nothing predicts the very first token.
    """
    shared = min(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, ids, strict=False))) for ids in wholes
    )
    return max(1, min(shared, *(len(ids) - 1 for ids in wholes)))
