"""A tokenizer.json that takes all memory, panics or runs for ever: refused in one sentence before it runs."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.bundle.tokenizer_bounds import MAX_STEPS, excess
from edgekit.errors import TokenizerError

Json = dict[str, Any]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizers.write(tmp_path, "smollm", 300)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(data | values))


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder)
    sentence = caught.value.sentence()
    assert sentence.isprintable()
    assert all(word in sentence for word in words), sentence
    return sentence


def replace(content: str, **pattern: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key: str, steps: list[Json]) -> Json:
    return {"type": "Sequence", key: steps}


GROWING: dict[str, Json] = {
    "byte level after byte level": {"pre_tokenizer": sequence("pretokenizers", [BYTE_LEVEL] * 40)},
    "byte level without a type": {"pre_tokenizer": sequence("pretokenizers", [{"add_prefix_space": False}] * 40)},
    "doubling": {"normalizer": sequence("normalizers", [replace("aa", String="a")] * 30)},
    "nested doubling": {
        "normalizer": sequence("normalizers", [sequence("normalizers", [replace("aa", String="a")] * 6)] * 6)
    },
    "every place": {"normalizer": replace("x" * 1000, Regex="")},
    "an empty pattern": {"normalizer": replace("x" * 1000, String="")},
    "decoding": {"decoder": sequence("decoders", [replace("aa", String="a")] * 30)},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 100_000}},
    "a character map": {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 1000 + b"\0").decode(),
        }
    },
}


@pytest.mark.parametrize("kind", GROWING)
def test_steps_that_multiply_a_text(kind: str, folder: Path) -> None:
    change(folder, **GROWING[kind])
    refused(folder, "more than 256 times as long")


def test_the_measure_is_right_where_the_library_can_be_asked(folder: Path) -> None:
    """Eight byte levels are within the bound and really make 2⁸ of a byte: the bound is not far off."""
    change(folder, pre_tokenizer=sequence("pretokenizers", [{**BYTE_LEVEL, "use_regex": False}] * 8))
    pieces = load_tokenizer(folder).backend.pre_tokenizer.pre_tokenize_str("é")
    assert sum(len(text.encode()) for text, _ in pieces) > 2**7
    change(folder, pre_tokenizer=sequence("pretokenizers", [BYTE_LEVEL] * 9))
    refused(folder)


def test_too_many_steps(folder: Path) -> None:
    change(folder, normalizer=sequence("normalizers", [{"type": "NFC"}] * (MAX_STEPS + 1)))
    refused(folder, f"more than {MAX_STEPS} steps")


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_long_affix_of_every_piece(key: str, folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder, model=model | {key: "x" * 100_000})
    refused(folder, "more than 64")


@pytest.mark.parametrize("prefix", ["xyz", " ", "é", "a" * 30])
def test_prefix_that_merges_do_not_have(prefix: str, folder: Path) -> None:
    """The library cuts it off all the same, between the bytes of a character: the process was aborted."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder, model=model | {"continuing_subword_prefix": prefix})
    refused(folder, "merges whose second part")


def test_prefix_that_merges_have(folder: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "##b": 1, "ab": 2}, "merges": [["a", "##b"]]}
    change(folder, model=model | {"continuing_subword_prefix": "##"}, added_tokens=[], pre_tokenizer=None)
    assert load_tokenizer(folder).encode("ab") == [2]


def template(**values: Any) -> Json:
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"a": {"id": "a", "ids": [1], "tokens": ["a"]}},
        **values,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"single": [{"SpecialToken": {"id": "a", "type_id": 0}}] * 1000},
        {"special_tokens": {"a": {"id": "a", "ids": [1] * 1000, "tokens": ["a"] * 1000}}},
    ],
)
def test_template_that_adds_many_tokens(values: Json, folder: Path) -> None:
    change(folder, post_processor=template(**values))
    refused(folder, "more than 64")


@pytest.mark.parametrize(
    "change_to",
    [
        {"post_processor": template(special_tokens={})},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    ],
    ids=["a template without its token", "catastrophic backtracking"],
)
def test_panic_of_the_library_is_one_sentence(change_to: Json, folder: Path) -> None:
    """A Rust panic reaches Python as a PanicException, which is no Exception."""
    change(folder, **change_to)
    with pytest.raises(TokenizerError):
        load_tokenizer(folder).encode("a" * 40 + "b", add_special_tokens=True)


def test_deep_json() -> None:
    assert excess(b'{"normalizer":' * 100_000) == "is nested too deeply"


def test_padding_and_truncation_of_a_past_training_are_off(folder: Path) -> None:
    padding = {
        "strategy": {"Fixed": 1 << 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    change(folder, padding=padding)
    assert len(load_tokenizer(folder).encode("kettle")) < 10


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_honest_tokenizers_are_within_the_bounds(kind: str, tmp_path: Path) -> None:
    tiny_tokenizers.write(tmp_path, kind, 400)
    assert excess((tmp_path / "tokenizer.json").read_bytes()) is None
