"""The questions themselves, and how they become token ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.coherence.items import CATEGORIES, Item, boundary, encode_items, fixed_items, fixed_sha256

ITEMS = fixed_items()
KINDS = ("smollm", "gpt2", "llama3", "sentencepiece")


@pytest.fixture(scope="module")
def tokenizers_(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        tiny_tokenizers.write(folder, kind, 420)
        made[kind] = load_tokenizer(folder)
    return made


# --- the data --------------------------------------------------------------------------------------------------------


def test_categories_are_balanced() -> None:
    assert len(ITEMS) >= 240
    counts = Counter(item.category for item in ITEMS)
    assert set(counts) == set(CATEGORIES)
    assert max(counts.values()) - min(counts.values()) <= 5


def test_both_kinds_are_there() -> None:
    kinds = Counter(item.kind for item in ITEMS)
    assert min(kinds["cloze"], kinds["pair"]) >= 50


def test_ids_are_unique() -> None:
    assert len({item.id for item in ITEMS}) == len(ITEMS)


def test_no_item_is_there_twice() -> None:
    assert len({(item.context, frozenset(item.options)) for item in ITEMS}) == len(ITEMS)
    contexts = [item.context for item in ITEMS if item.context]
    assert len(set(contexts)) == len(contexts)


def test_every_item_has_one_right_place_and_different_options() -> None:
    for item in ITEMS:
        assert item.right < len(item.options)
        assert len(set(item.options)) == len(item.options), item.id


def test_pairs_are_minimal() -> None:
    """Two sentences that begin with the same word: a model without a first token cannot be asked about that word."""
    for item in (item for item in ITEMS if item.kind == "pair"):
        assert len(item.options) == 2, item.id
        assert len({option.split()[0] for option in item.options}) == 1, item.id


def test_texts_are_plain_ascii_in_one_line() -> None:
    for item in ITEMS:
        for text in (item.context, *item.options):
            assert text.isascii(), item.id
            assert text.isprintable(), item.id
            assert text == text.strip(), item.id


def test_the_place_of_the_right_option_says_nothing() -> None:
    for options in (2, 3):
        places = Counter(item.right for item in ITEMS if len(item.options) == options)
        assert set(places) == set(range(options))
        assert max(places.values()) <= 1.2 * min(places.values())


def test_the_right_option_is_not_the_longer_one() -> None:
    """Two-sided sign test of the right option's length against the mean of the wrong ones."""
    signs = Counter(np.sign(_length_excess(item)) for item in ITEMS)
    n, k = signs[1] + signs[-1], min(signs[1], signs[-1])
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert p > 0.1, signs


def _length_excess(item: Item) -> float:
    wrong = [len(option) for place, option in enumerate(item.options) if place != item.right]
    return len(item.options[item.right]) - float(np.mean(wrong))


@pytest.mark.parametrize("pick", [min, max])
def test_choosing_by_length_is_guessing(pick: Callable[..., str]) -> None:
    chance = float(np.mean([1 / len(item.options) for item in ITEMS]))
    right = [item.options.index(pick(item.options, key=len)) == item.right for item in ITEMS]
    assert abs(float(np.mean(right)) - chance) < 0.06


def test_options_of_an_item_are_of_similar_length() -> None:
    for item in ITEMS:
        lengths = sorted(map(len, item.options))
        assert lengths[-1] - lengths[0] <= max(5, lengths[0] // 4), item.id


def test_an_item_with_one_option_or_a_negative_place_is_refused() -> None:
    for wrong in ({"options": ["a"]}, {"right": -1}, {"options": ["a", ""]}, {"id": "Facts 1"}, {"more": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"id": "facts-01", "options": ["a", "b"], "right": 0} | wrong, Item)


# --- where an option begins ------------------------------------------------------------------------------------------


def test_without_a_merge_an_option_begins_behind_the_context() -> None:
    assert boundary([1, 2, 3], [[1, 2, 3, 4], [1, 2, 3, 5, 6]]) == 3


def test_a_merge_across_the_boundary_counts_as_part_of_every_option() -> None:
    """Token 9 spells the context's last token and the option's first: behind [1, 2] both options are whole."""
    assert boundary([1, 2, 3], [[1, 2, 9], [1, 2, 3, 4]]) == 2


def test_an_option_keeps_a_token_even_if_it_is_swallowed_whole() -> None:
    assert boundary([1, 2, 3], [[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert boundary([], [[5, 6], [7, 8]]) == 1


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.text("abo 3.,é\n", min_size=1, max_size=12),
    st.lists(st.text("abo 3.,é\n", min_size=1, max_size=8), min_size=2, max_size=4, unique=True),
)
def test_all_options_are_scored_behind_the_same_text(
    tokenizers_: dict[str, Tokenizer], kind: str, context: str, options: list[str]
) -> None:
    encode = tokenizers_[kind].encode
    before, wholes = encode(context), [encode(context + option) for option in options]
    start = boundary(before, wholes)
    assert start >= 1
    assert all(len(ids) > start or len(ids) == 1 for ids in wholes)
    if start > 1:
        assert all(ids[:start] == before[:start] for ids in wholes)
    if all(ids[: len(before)] == before and len(ids) > len(before) for ids in wholes):
        assert start == len(before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_can_be_read_in_its_ids(tokenizers_: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers_[kind]
    questions = encode_items(ITEMS, tokenizer, limit=512)
    assert questions.names == tuple(item.id for item in ITEMS)
    assert questions.sha256 == fixed_sha256()
    lists, known = questions.options.lists(), {item.id: item for item in ITEMS}
    for name, where, start in zip(questions.names, questions.slices(), questions.starts, strict=True):
        item = known[name]
        for option, ids in zip(item.options, lists[where], strict=True):
            assert tokenizer.decode(ids.tolist()).endswith(option)
            said = tokenizer.decode(ids[start:].tolist())
            assert item.kind == "pair" or said.strip() == option, name


def test_instructions_go_through_the_chat_template(tokenizers_: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_["smollm"]
    item = Item(id="instructions-01", context="Say yes.", options=("Yes", "No"), right=0)
    questions = encode_items([item], tokenizer, limit=512)
    text = tokenizer.decode(questions.options.lists()[0].tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\nYes"
    plain = encode_items([item], untemplated(tokenizer), limit=512)
    assert tokenizer.decode(plain.options.lists()[0].tolist()) == "Instruction: Say yes.\nResponse: Yes"


def untemplated(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without a chat template."""
    return Tokenizer(tokenizer.backend, None, tokenizer.special, tokenizer.stop_ids)


def test_a_beginning_that_the_tokenizer_asks_for_is_there(tokenizers_: dict[str, Tokenizer]) -> None:
    item = Item(id="facts-01", context="The cat", options=("sits", "runs"), right=0)
    for kind, opening in (("llama3", "<|begin_of_text|>"), ("sentencepiece", "<s>"), ("smollm", "")):
        tokenizer = tokenizers_[kind]
        ids = encode_items([item], tokenizer, limit=512).options.lists()[0].tolist()
        first = tokenizer.decode(ids, skip_special_tokens=False)
        assert first.startswith(opening or "The cat")
        assert first.count(opening or "The cat") == 1


def test_clozes_are_measured_by_bytes_and_pairs_by_the_whole(tokenizers_: dict[str, Tokenizer]) -> None:
    items = [
        Item(id="facts-01", context="The cat", options=("sits", "jumps"), right=0),
        Item(id="agreement-01", options=("The cat sits.", "The cat sit."), right=0),
    ]
    questions = encode_items(items, tokenizers_["gpt2"], limit=512)
    assert questions.divisors.tolist() == [4, 5, 1, 1]
    assert questions.counts.tolist() == [2, 2]


def test_what_does_not_fit_or_cannot_be_told_apart_is_left_out(
    tokenizers_: dict[str, Tokenizer], tmp_path: Path
) -> None:
    long = Item(id="facts-01", context="word " * 50, options=("a", "b"), right=0)
    short = Item(id="facts-02", context="The cat", options=("a", "b"), right=0)
    assert encode_items([long, short], tokenizers_["gpt2"], limit=20).names == ("facts-02",)
    assert len(encode_items([long], tokenizers_["gpt2"], limit=20)) == 0
    same = Item(id="facts-03", context="", options=("The cat", "The cat"), right=0)
    assert len(encode_items([same], tokenizers_["gpt2"], limit=20)) == 0
