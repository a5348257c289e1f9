"""Every kind of tokenizer gives the original's ids in llama.cpp and as shipped, or the build stops and says where."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
from tiny import Tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

from edgekit.bundle.golden import CHATS, CORPUS, Golden, read_golden
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engines.llamacpp import LlamaCppEngine
from edgekit.errors import ParityError, TokenizerError
from edgekit.export import gguf, gguf_vocab, parity
from edgekit.export.gguf_vocab import GgufVocab
from edgekit.quantize.plan import full_precision_plan

pytestmark = pytest.mark.integration

KINDS = ("smollm", "gpt2", "qwen2", "qwen2-nfc", "llama3", "sentencepiece")
SIZE = 640
Compare = Callable[[Path], Golden]


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Compare]:
    """Writes a GGUF file of the folder's model, and compares its tokenizer and the shipped one with the original."""
    opened: list[LlamaCppEngine] = []

    def run(folder: Path) -> Golden:
        checkpoint = open_checkpoint(folder)
        path, shipped = tmp_path / "model.gguf", tmp_path / "shipped"
        gguf.write_gguf(checkpoint, full_precision_plan(checkpoint.spec, "gguf"), path)
        opened.append(LlamaCppEngine(path, context=64))
        shipped.mkdir()
        for file in checkpoint.tokenizer_files():
            (shipped / file.name).write_bytes(file.read_bytes())
        return parity.check_tokenizer(folder, shipped, {"llama.cpp": opened[-1].tokenize})

    yield run
    for engine in opened:
        engine.close()


def model(tmp_path: Path, kind: str) -> Path:
    return tiny.make(tmp_path / "model", Tiny(tokenizer=kind, vocab=SIZE))


def change(folder: Path, file: str, edit: Callable[[Any], object]) -> None:
    data = json.loads((folder / file).read_text())
    edit(data)
    (folder / file).write_text(json.dumps(data))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_original(kind: str, compare: Compare, tmp_path: Path) -> None:
    golden = compare(model(tmp_path, kind))
    assert [entry.text for entry in golden.texts] == list(CORPUS)
    assert len(golden.chats) == len(CHATS)
    used = {index for entry in golden.texts for index in entry.ids}
    assert len(used) > 300, "the corpus reaches most of the vocabulary"
    assert read_golden(tmp_path / "shipped") == golden, "the bundle carries what was compared"


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizer"])
@pytest.mark.parametrize("kind", ["smollm", "llama3", "sentencepiece"])
def test_rules_are_those_of_the_file_whatever_class_is_named(
    kind: str, name: str, compare: Compare, tmp_path: Path
) -> None:
    """transformers 5 would split by the rules of the class; what the model was trained with is in tokenizer.json."""
    folder = model(tmp_path, kind)
    change(folder, "tokenizer_config.json", lambda config: config.update(tokenizer_class=name))
    compare(folder)


@pytest.mark.parametrize("whole_words", [True, False])
def test_word_that_no_merge_makes(whole_words: bool, compare: Compare, tmp_path: Path) -> None:
    """Llama 3 takes a word that is a token without asking the merges; others cannot reach it."""
    folder = model(tmp_path, "llama3")
    word = "Ġkettle"

    def unreachable(data: Any) -> None:
        assert word in data["model"]["vocab"]
        data["model"]["merges"] = [pair for pair in data["model"]["merges"] if "".join(pair) != word]
        data["model"]["ignore_merges"] = whole_words

    change(folder, "tokenizer.json", unreachable)
    golden = compare(folder)
    place = load_tokenizer(tmp_path / "shipped").backend.token_to_id(word)
    ids = next(entry.ids for entry in golden.texts if entry.text == "the kettle sings")
    assert (place in ids) is whole_words


def test_sentencepiece_ids_in_any_order(compare: Compare, tmp_path: Path) -> None:
    """What is merged first is said by the merges, not by the ids."""
    folder = model(tmp_path, "sentencepiece")

    def shuffle(data: Any) -> None:
        vocab = data["model"]["vocab"]
        pieces = [token for token, index in vocab.items() if index >= 3 + 256]
        places = [vocab[token] for token in pieces]
        random.Random(3).shuffle(places)
        vocab.update(zip(pieces, places, strict=True))

    change(folder, "tokenizer.json", shuffle)
    compare(folder)


def test_embedding_with_spare_rows(compare: Compare, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", Tiny(vocab=672))
    tiny_tokenizers.write(folder, "smollm", SIZE)
    compare(folder)


@pytest.mark.parametrize("kind", ["sentencepiece-first"])
def test_what_llama_cpp_cannot_do_is_refused_and_works_in_onnx(kind: str, compare: Compare, tmp_path: Path) -> None:
    folder = model(tmp_path, kind)
    with pytest.raises(TokenizerError, match="--format onnx only"):
        compare(folder)
    assert parity.check_tokenizer(folder, folder, {}).texts, "without llama.cpp there is nothing to refuse"


# -- negative controls


def altered(monkeypatch: pytest.MonkeyPatch, edit: Callable[[GgufVocab], GgufVocab]) -> None:
    read = gguf_vocab.read_vocab
    monkeypatch.setattr(gguf, "read_vocab", lambda root, rows: edit(read(root, rows)))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("gpt2", "smollm"), ("gpt2", "qwen2"), ("llama3", "gpt-2"), ("llama3", "qwen2"), ("smollm", "llama-bpe")],
)
def test_wrong_pre_tokenizer_is_caught(
    kind: str, wrong: str, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is named. (Where no token spans two digits, names that differ in digits alone give the same ids.)"""
    altered(monkeypatch, lambda vocab: dataclasses.replace(vocab, pre=wrong))
    told = r"tokenizer of llama\.cpp gives id \d+ at position \d+ of '.+'; expected id \d+"
    with pytest.raises(ParityError, match=told):
        compare(model(tmp_path, kind))


def test_lost_merge_is_caught(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, lambda vocab: dataclasses.replace(vocab, merges=vocab.merges[:5] + vocab.merges[6:]))
    with pytest.raises(ParityError, match=r"tokenizer of llama\.cpp gives"):
        compare(model(tmp_path, "smollm"))


def test_wrong_scores_are_caught(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, lambda vocab: dataclasses.replace(vocab, scores=tuple(-score for score in vocab.scores)))
    with pytest.raises(ParityError, match=r"tokenizer of llama\.cpp gives"):
        compare(model(tmp_path, "sentencepiece"))


def test_lost_space_prefix_is_caught(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, lambda vocab: dataclasses.replace(vocab, add_space_prefix=False))
    with pytest.raises(ParityError, match=r"tokenizer of llama\.cpp gives"):
        compare(model(tmp_path, "sentencepiece"))


def test_special_token_made_ordinary_is_caught(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(monkeypatch, lambda vocab: dataclasses.replace(vocab, types=(1,) * len(vocab.types)))
    with pytest.raises(ParityError, match=r"tokenizer of llama\.cpp gives .*im_start"):
        compare(model(tmp_path, "smollm"))


def test_other_shipped_tokenizer_is_caught(tmp_path: Path) -> None:
    folder, other = model(tmp_path, "smollm"), tmp_path / "other"
    other.mkdir()
    tiny_tokenizers.write(other, "gpt2", SIZE)
    with pytest.raises(ParityError, match="the shipped tokenizer gives"):
        parity.check_tokenizer(folder, other, {})


def test_tokenizer_that_transformers_cannot_load(tmp_path: Path) -> None:
    folder = model(tmp_path, "smollm")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError):
        parity.check_tokenizer(folder, folder, {})
