"""The tokenizer as GGUF metadata: hostile files are refused, and what llama.cpp cannot say is not said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
from gguf import TokenType
from tiny import Tiny

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.tokenizer_fit import refuse_misfit
from edgekit.errors import TokenizerError
from edgekit.export.gguf_vocab import GgufVocab, caveat, normal_form, read_vocab

SIZE = 640


def folder(path: Path, kind: str, size: int = SIZE) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tiny_tokenizers.write(path, kind, size)
    return path


def changed(path: Path, change: Callable[[Any], object], name: str = "tokenizer.json") -> Path:
    """Apply `change` to a JSON file of the folder."""
    data = json.loads((path / name).read_text())
    change(data)
    (path / name).write_text(json.dumps(data))
    return path


def vocab(kind: str, path: Path, rows: int = SIZE) -> GgufVocab:
    return read_vocab(folder(path, kind), rows)


# -- refusals


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer.json"):
        read_vocab(tmp_path, SIZE)


@pytest.mark.parametrize("kind", ["smollm", "llama3", "sentencepiece"])
def test_ids_beyond_the_embedding(kind: str, tmp_path: Path) -> None:
    made = folder(tmp_path, kind)
    assert len(read_vocab(made, SIZE).tokens) == SIZE
    with pytest.raises(TokenizerError, match="token ids up to 639 but the embedding has 639 rows"):
        read_vocab(made, SIZE - 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xff", b'{"a":' * 50_000, b"not json"])
def test_garbage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_vocab(tmp_path, SIZE)


def put(key: str, value: object) -> Callable[[Any], object]:
    return lambda data: data["model"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        put("vocab", {"a": "one"}), put("vocab", [["a", 0.5]]), put("vocab", 7), put("merges", [7]), put("merges", 7),
        lambda data: data.update(added_tokens=[7]), lambda data: data.update(added_tokens=[{"content": "x"}]),
        lambda data: data.update(pre_tokenizer=7), lambda data: data.update(pre_tokenizer={"type": "Sequence"}),
        lambda data: data.update(post_processor=[1]), lambda data: data.update(model=[]),
        lambda data: data.update(model={"type": "BPE"}), lambda data: data.update(normalizer="NFC"),
    ],
)  # fmt: skip
def test_fields_of_wrong_types(change: Callable[[Any], object], tmp_path: Path) -> None:
    changed(folder(tmp_path, "smollm"), change)
    changed(tmp_path, lambda config: config.pop("add_bos_token"), "tokenizer_config.json")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_vocab(tmp_path, SIZE)


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_models_that_are_no_bpe(kind: str, tmp_path: Path) -> None:
    changed(folder(tmp_path, "smollm"), put("type", kind))
    with pytest.raises(TokenizerError, match=f"{kind} model; expected BPE"):
        read_vocab(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pre: pre["pretokenizers"][0].update(individual_digits=False), "Digits.groups"),
        (lambda pre: pre["pretokenizers"][1].update(add_prefix_space=True), r"ByteLevel.regex.space"),
        (lambda pre: pre["pretokenizers"].reverse(), "ByteLevel.regex → Digits"),
        (lambda pre: pre["pretokenizers"].append({"type": "Whitespace"}), "Whitespace"),
    ],
)
def test_splits_that_llama_cpp_has_no_name_for(change: Callable[[Any], object], words: str, tmp_path: Path) -> None:
    """Near misses: one option differs, and the ids of some text with it."""
    changed(folder(tmp_path, "smollm"), lambda data: change(data["pre_tokenizer"]))
    with pytest.raises(TokenizerError, match=rf"no name for here \(.*{words}.*--format onnx only"):
        read_vocab(tmp_path, SIZE)


@pytest.mark.parametrize(
    "change", [{"behavior": "Removed"}, {"invert": True}, {"pattern": {"Regex": r"\p{N}{1,2}"}}], ids=str
)
def test_regular_expression_that_is_used_otherwise(change: dict[str, Any], tmp_path: Path) -> None:
    changed(folder(tmp_path, "llama3"), lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(change))
    with pytest.raises(TokenizerError, match="no name for here"):
        read_vocab(tmp_path, SIZE)


def test_text_that_is_changed_before_it_is_split(tmp_path: Path) -> None:
    changed(folder(tmp_path, "qwen2-nfc"), lambda data: data.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(TokenizerError, match="normalizer Lowercase"):
        read_vocab(tmp_path, SIZE)


def test_normal_form_is_allowed_and_told(tmp_path: Path) -> None:
    assert vocab("qwen2-nfc", tmp_path / "nfc").pre == "qwen2"
    assert normal_form(tmp_path / "nfc") == "NFC"
    assert "NFC" in caveat(tmp_path / "nfc")
    vocab("gpt2", tmp_path / "plain")
    assert normal_form(tmp_path / "plain") is None
    assert caveat(tmp_path / "plain") == ""


def test_space_in_front_of_the_first_piece_only(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="prepend_scheme 'first'"):
        vocab("sentencepiece-first", tmp_path)


# -- the checkpoint as a whole, for either format


def test_misfit_is_found_before_anything_is_quantized(model: Path) -> None:
    tiny_tokenizers.write(model, "smollm", 400)
    with pytest.raises(TokenizerError, match="token ids up to 399 but the embedding has 384 rows"):
        refuse_misfit(open_checkpoint(model))
    (model / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="has no tokenizer.json"):
        refuse_misfit(open_checkpoint(model))


def test_embedding_with_spare_rows_fits(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", Tiny(vocab=416))
    tiny_tokenizers.write(model, "smollm", 400)
    refuse_misfit(open_checkpoint(model))
    found = read_vocab(model, 416)
    assert found.tokens[400:] == tuple(f"[PAD{index}]" for index in range(400, 416))
    assert set(found.types[400:]) == {TokenType.UNUSED}


# -- what is written


@pytest.mark.parametrize(
    ("kind", "model", "pre"),
    [
        ("smollm", "gpt2", "smollm"), ("gpt2", "gpt2", "gpt-2"), ("qwen2", "gpt2", "qwen2"),
        ("llama3", "gpt2", "llama-bpe"), ("sentencepiece", "llama", "default"),
    ],
)  # fmt: skip
def test_kinds(kind: str, model: str, pre: str, tmp_path: Path) -> None:
    found = vocab(kind, tmp_path)
    assert (found.model, found.pre) == (model, pre)
    assert len(found.tokens) == len(found.types) == SIZE
    assert len(set(found.tokens)) == SIZE, "llama.cpp refuses a token twice"
    assert bool(found.merges) != bool(found.scores)


def test_rule_for_whole_words_is_part_of_the_name(tmp_path: Path) -> None:
    """llama.cpp takes a known word without merging under one name, and merges it under the other."""
    changed(folder(tmp_path, "llama3"), put("ignore_merges", False))
    assert read_vocab(tmp_path, SIZE).pre == "smaug-bpe"
    changed(folder(tmp_path / "b", "smollm"), put("ignore_merges", True))
    with pytest.raises(TokenizerError, match="no name for here"):
        read_vocab(tmp_path / "b", SIZE)


@pytest.mark.parametrize(
    ("kind", "special"),
    [
        ("smollm", {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>"}),
        ("llama3", {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}),
        ("sentencepiece", {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    ],
)
def test_special_tokens(kind: str, special: dict[str, str], tmp_path: Path) -> None:
    found = vocab(kind, tmp_path)
    assert {name: found.tokens[index] for name, index in found.special.items()} == special
    assert all(found.types[index] == TokenType.CONTROL for index in found.special.values())


def test_special_tokens_from_the_generation_config(tmp_path: Path) -> None:
    made = changed(folder(tmp_path, "smollm"), lambda c: c.pop("eos_token"), "tokenizer_config.json")
    (made / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert read_vocab(made, SIZE).special["eos"] == 2


@pytest.mark.parametrize(
    ("kind", "adds"), [("smollm", False), ("gpt2", False), ("llama3", True), ("sentencepiece", True)]
)
def test_begin_of_text(kind: str, adds: bool, tmp_path: Path) -> None:
    assert vocab(kind, tmp_path).add_bos is adds


@pytest.mark.parametrize("told", [True, False, None])
def test_configuration_outranks_the_post_processor(told: bool | None, tmp_path: Path) -> None:
    changed(folder(tmp_path, "llama3"), lambda c: c.update(add_bos_token=told), "tokenizer_config.json")
    assert read_vocab(tmp_path, SIZE).add_bos is (told is not False), "null says nothing"


def test_bytes_and_scores_of_sentencepiece(tmp_path: Path) -> None:
    found = vocab("sentencepiece", tmp_path)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert kinds["<0x0A>"] == TokenType.BYTE
    assert kinds["a"] == TokenType.NORMAL
    assert sum(kind == TokenType.BYTE for kind in found.types) == 256
    assert found.add_space_prefix
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    order = list(dict.fromkeys("".join(merge) for merge in data["model"]["merges"]))
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert sorted(order, key=lambda piece: -scores[piece]) == order, "an earlier merge has the higher score"
    assert max(scores[token] for token in found.tokens if token not in order) < min(scores[piece] for piece in order)


def test_merges_in_either_notation(tmp_path: Path) -> None:
    made = folder(tmp_path, "gpt2")
    pairs = read_vocab(made, SIZE).merges
    changed(made, lambda data: data["model"].update(merges=[" ".join(merge) for merge in data["model"]["merges"]]))
    assert read_vocab(made, SIZE).merges == pairs


def test_chat_template_from_either_place(tmp_path: Path) -> None:
    assert vocab("smollm", tmp_path).chat_template == tiny_tokenizers.CHATML
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert read_vocab(tmp_path, SIZE).chat_template == "{{ messages[0].content }}"
