"""Training text: what is refused, that pieces make the ids of the whole, that nothing is read twice or out of order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.errors import (
    DownloadError,
    EdgekitError,
    InputNotFoundError,
    MissingDependencyError,
    OptionError,
    TextError,
    TokenizerError,
)
from edgekit.progress import Advance, Quiet
from edgekit.training import sources
from edgekit.training.corpus import Corpus, cutter, end_of_text, prepare

END = 0  # <|endoftext|> of the tokenizer below


@cache
def tokenizer(kind: str = "smollm") -> Tokenizer:
    with TemporaryDirectory() as folder:
        tiny_tokenizers.write(Path(folder), kind, 600)
        return load_tokenizer(Path(folder))


Make = Callable[..., Corpus]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def run(*names: str | Path, length: int = 8, **options: Any) -> Corpus:
        return prepare([str(name) for name in names], tokenizer(), length, tmp_path / "out", Quiet(), **options)

    return run


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("a.txt", None, InputNotFoundError, "a.txt is not there"),
        ("a.txt", b"", InputNotFoundError, "a.txt is empty"),
        ("a.txt", b"\xef\xbb\xbf", TextError, "only 0 tokens; expected at least 16"),
        ("a.txt", b"abc\xff\xfe" * 90, TextError, r"not UTF-8 \(byte 3\)"),
        ("a.txt", b"abc" * 90 + "ä".encode()[:1], TextError, r"not UTF-8 \(byte 270\)"),
        ("a.txt", b"text and then \0 a zero", TextError, "control characters, as binary files do"),
        ("a.bin", b"\x7fELF\x02\x01\x01" * 40, TextError, "control characters, as binary files do"),
        ("a.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n', TextError, "line 3 is not an object with a string"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', TextError, "line 2 is not an object with a string"),
        ("a.jsonl", b'["text"]\n', TextError, "line 1 is not an object with a string"),
        ("a.jsonl", b'{"text": "a"\n', TextError, "line 1 is not an object with a string"),
        ("a.jsonl", b'{"text": "\xff"}\n', TextError, "line 1 is not an object with a string"),
        ("a.jsonl", rb'{"text": "\ud800"}', TextError, "line 1 is not an object with a string"),
        ("a.jsonl", b"[" * 100_000, TextError, "line 1 is not an object with a string"),
        ("a.jsonl", b'{"text": ""}\n', TextError, "only 0 tokens"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, make: Make, name: str, data: bytes | None, error: type[EdgekitError], message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(error, match=message):
        make(path)
    assert not [left for left in tmp_path.rglob("*") if left.name.startswith(".")]


def test_the_byte_that_is_not_utf8_is_counted_over_all_blocks(tmp_path: Path, make: Make) -> None:
    """The first block ends within a character, and the fault is in the third."""
    data = b"x" + "ä".encode() * sources.BLOCK + b"\xff" + b"rest"
    with pytest.raises(TextError, match=rf"not UTF-8 \(byte {2 * sources.BLOCK + 1}\)"):
        make(written(tmp_path / "a.txt", data))


def test_a_line_without_end_is_refused(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 1000)
    with pytest.raises(TextError, match=r"line 2 is too long; expected at most 1000 bytes"):
        make(written(tmp_path / "a.jsonl", '{"text": "a"}\n' + json.dumps({"text": "x" * 1000})))


def test_a_folder_without_text_is_refused(tmp_path: Path, make: Make) -> None:
    written(tmp_path / "in" / "picture.png", b"\x89PNG")
    written(tmp_path / "in" / "empty.txt", b"")
    with pytest.raises(InputNotFoundError, match="has no training text; expected files with text"):
        make(tmp_path / "in")


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, make: Make) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputNotFoundError, match="is no file and no folder"):
        make(tmp_path / "pipe.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, make: Make) -> None:
    written(tmp_path / "a.txt", "text " * 99).chmod(0)
    with pytest.raises(TextError, match="cannot be read"):
        make(tmp_path / "a.txt")


@pytest.mark.parametrize("options", [{"length": 1}, {"held_out": -1}, {"most": 0}])
def test_numbers_that_are_too_small_are_refused(tmp_path: Path, make: Make, options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="cannot be trained on"):
        make(written(tmp_path / "a.txt", "text " * 99), **options)


def test_no_source_is_refused(make: Make) -> None:
    with pytest.raises(OptionError, match="no training text is given"):
        make()


def test_too_few_tokens_say_how_many_are_needed(tmp_path: Path, make: Make) -> None:
    path = written(tmp_path / "a.txt", "0" * 14)  # and the end of the text
    with pytest.raises(
        TextError, match=r"only 15 tokens; expected at least 16 \(one sequence to train on and one to h"
    ):
        make(path)
    assert make(path, held_out=0).sequences == 1
    with pytest.raises(TextError, match=r"expected at least 16 \(one sequence to train on, of 16 tokens each\)"):
        make(path, held_out=0, length=16)


def test_ids_beyond_the_embedding_are_refused_also_of_kept_tokens(tmp_path: Path, make: Make) -> None:
    path = written(tmp_path / "a.txt", "The kettle sings before the water boils. " * 9)
    largest = int(make(path).tokens.max())
    make(path, vocab_size=largest + 1)
    with pytest.raises(TokenizerError, match=f"id {largest}; expected ids below {largest}, the rows"):
        make(path, vocab_size=largest)


# --- what is read ----------------------------------------------------------------------------------------------------


def texts(corpus: Corpus) -> list[str]:
    """The documents of a corpus."""
    ids = corpus.tokens.tolist()
    ends = [place for place, token in enumerate(ids) if token == END]
    return [tokenizer().decode(ids[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)]


def test_documents_of_all_sources_follow_one_another(tmp_path: Path, make: Make) -> None:
    first = written(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree")
    lines = "\ufeff" + "\n".join(json.dumps({"text": text, "id": 5}) for text in ("four", "", "five\r\nsix"))
    second = written(tmp_path / "b.jsonl", lines)
    corpus = make(first, second, first, length=2)
    assert texts(corpus) == ["one\ntwo\nthree", "four", "five\r\nsix"]  # what is there twice is read once
    assert corpus.sources == ("a.txt", "b.jsonl")
    assert corpus.sha256 == hashlib.sha256((tmp_path / "out" / "tokens.bin").read_bytes()).hexdigest()
    assert not corpus.tokens.flags.writeable


def test_a_document_of_many_pieces_has_one_end(tmp_path: Path, make: Make) -> None:
    text = "The kettle sings. " * 20_000
    corpus = make(written(tmp_path / "a.txt", text), written(tmp_path / "b.jsonl", json.dumps({"text": text})))
    assert corpus.tokens.tolist() == 2 * [*tokenizer().encode(text), END]


def test_a_folder_is_read_in_order_and_not_left(tmp_path: Path, make: Make) -> None:
    written(tmp_path / "in" / "b.txt", "second")
    written(tmp_path / "in" / "a" / "z.md", "first")
    written(tmp_path / "in" / "c.jsonl", '{"text": "third"}')
    written(tmp_path / "in" / "c.py", "no")
    secret = written(tmp_path / "secret.txt", "secret")
    (tmp_path / "in" / "a" / "link.txt").symlink_to(secret)
    (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    corpus = make(tmp_path / "in", length=2)
    assert texts(corpus) == ["first", "second", "third"]
    assert corpus.sources == ("z.md", "b.txt", "c.jsonl")


def test_the_end_of_text_is_not_the_end_of_a_turn() -> None:
    found = {kind: end_of_text(tokenizer(kind)) for kind in ("smollm", "llama3", "sentencepiece")}
    named = {"smollm": "<|endoftext|>", "llama3": "<|end_of_text|>", "sentencepiece": "</s>"}
    assert found == {kind: tokenizer(kind).backend.token_to_id(text) for kind, text in named.items()}


def test_the_end_is_held_out(tmp_path: Path, make: Make) -> None:
    path = written(tmp_path / "a.txt", "0123456789" * 40)  # a token a digit
    corpus = make(path, length=4, held_out=3)
    assert (corpus.sequences, corpus.held_out) == (97, 3)
    assert corpus.sequence(1).dtype == np.int64
    bos = tokenizer().bos_id
    assert bos is not None
    assert [corpus.sequence(96)[0], *(ids[0] for ids in corpus.held())] == [bos] * 4
    assert tokenizer().decode(corpus.sequence(96)[1:].tolist()) == "456"
    assert [tokenizer().decode(ids[1:].tolist()) for ids in corpus.held()] == ["890", "234", "678"]
    plain = dataclasses.replace(corpus, bos=None)
    assert tokenizer().decode(plain.sequence(96).tolist()) == "4567"
    for number in (-1, 97):
        with pytest.raises(IndexError):
            corpus.sequence(number)
    assert make(path, length=16).held_out == 2  # a tenth of 25
    assert make(path, length=100).held_out == 1


def test_most_ends_the_reading(tmp_path: Path, make: Make) -> None:
    path = written(tmp_path / "a.txt", "0123456789" * 1000)
    corpus = make(path, length=8, held_out=3, most=81)
    assert (corpus.sequences, corpus.held_out, len(corpus.tokens)) == (11, 3, 14 * 8)
    assert make(path, length=8, held_out=3, most=10**9).sequences == 10_001 // 8 - 3


# --- kept tokens -----------------------------------------------------------------------------------------------------


class Steps(Quiet):
    """Remembers the steps and how far they came."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.shares: list[tuple[int, int]] = []

    def step(self, title: str) -> Any:
        """See Progress.step."""
        from contextlib import contextmanager

        @contextmanager
        def run() -> Iterator[Advance]:
            self.titles.append(title)
            yield lambda done, total: self.shares.append((done, total))

        return run()


def test_the_same_text_is_tokenized_once(tmp_path: Path) -> None:
    path, steps = written(tmp_path / "a.txt", "The kettle sings. " * 200), Steps()

    def run(kind: str = "smollm", **options: Any) -> Corpus:
        return prepare([str(path)], tokenizer(kind), 8, tmp_path / "out", steps, **options)

    first = run()
    again = run(held_out=2)
    assert steps.titles == ["text: tokenize a.txt (0.0 MB)"]
    assert steps.shares[-1] == (100, 100)
    assert (again.sha256, len(again.tokens)) == (first.sha256, len(first.tokens))
    path.write_text("The kettle sang. " * 200)
    assert run().sha256 != first.sha256, "another text of the same name"
    run("gpt2")
    run("gpt2", most=100)
    assert len(steps.titles) == 4


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "other"])
def test_damaged_tokens_are_made_anew(tmp_path: Path, make: Make, name: str, damage: str) -> None:
    path = written(tmp_path / "a.txt", "The kettle sings. " * 200)
    first, kept = make(path), tmp_path / "out" / name
    data = kept.read_bytes()
    kept.unlink()
    if damage != "gone":
        kept.write_bytes({"cut": data[:-5], "changed": b"#" + data[1:], "other": b'{"schema_version": 2}'}[damage])
    assert make(path).sha256 == first.sha256
    assert kept.read_bytes() == data


def test_broken_off_tokenizing_leaves_the_old_tokens(tmp_path: Path, make: Make) -> None:
    good = written(tmp_path / "a.txt", "The kettle sings. " * 200)
    bad = written(tmp_path / "b.txt", "The kettle sings. " * 200_000 + "\0")
    first = make(good)
    with pytest.raises(TextError, match="control characters"):
        make(bad)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokens.bin", "tokens.json"]
    assert make(good).sha256 == first.sha256


# --- order -----------------------------------------------------------------------------------------------------------


def plain_corpus(sequences: int) -> Corpus:
    return Corpus(np.zeros(sequences * 4 + 3, np.uint32), 4, 0, (), "")


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_each_epoch_reads_every_sequence_once(count: int, epoch: int, seed: int) -> None:
    corpus = plain_corpus(count)
    read = [corpus.order(epoch * count + place, seed) for place in range(count)]
    assert sorted(read) == list(range(count))


def test_epochs_and_seeds_differ_and_a_resumed_run_reads_on() -> None:
    read = [plain_corpus(50).order(index, 7) for index in range(200)]
    epochs = [read[begin : begin + 50] for begin in range(0, 200, 50)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [plain_corpus(50).order(index, 8) for index in range(50)] != epochs[0]
    assert [plain_corpus(50).order(index, 7) for index in reversed(range(120, 200))][::-1] == read[120:]


# --- pieces ----------------------------------------------------------------------------------------------------------

WORDS = [word for sentence in tiny_tokenizers.SENTENCES for word in sentence.split()]
SPACES = [" ", " ", " ", "\n", "\n\n", "  ", "\t", " \n ", "\r\n", ". "]
TEXTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), min_size=1, max_size=60)


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
@settings(max_examples=60)
@given(parts=TEXTS, size=st.integers(40, 300), block=st.integers(1, 100))
def test_pieces_have_the_ids_of_the_whole(kind: str, parts: list[tuple[str, str]], size: int, block: int) -> None:
    """Wherever a piece has a place that is known to be harmless: a single space before a word."""
    text = "".join(word + space for word, space in parts)
    text += " The end of it"
    harmless = [match.start() for match in re.finditer(r"(?<=\S) (?=[^\W\d_])", text)]
    gaps = np.diff([0, *harmless, len(text)])
    size = max(size, 2 * int(gaps.max()) + 2)
    cut = cutter(tokenizer(kind), size)
    pieces = list(cut(text[at : at + block] for at in range(0, len(text), block)))
    assert all(0 < len(piece) <= size for piece, _ in pieces)
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    encode = tokenizer(kind).encode
    assert [token for piece, _ in pieces for token in encode(piece)] == encode(text)


@pytest.mark.parametrize("kind", ["smollm", "gpt2", "qwen2", "llama3"])
def test_text_without_single_spaces_is_cut_at_lines(kind: str) -> None:
    text = "".join(f"{word}\n" for word in ("kettle", "sings;", "水开了,可以泡茶。", "x=1") * 50)
    pieces = [piece for piece, _ in cutter(tokenizer(kind), 100)([text])]
    assert len(pieces) > 5
    assert [token for piece in pieces for token in tokenizer(kind).encode(piece)] == tokenizer(kind).encode(text)


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200), size=st.integers(1, 50))
@settings(max_examples=40)
def test_no_text_is_lost_or_endless(kind: str, text: str, size: int) -> None:
    pieces = [piece for piece, _ in cutter(tokenizer(kind), size)([text])]
    assert all(0 < len(piece) <= size for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


# --- the hub, with a package of our own in the place of datasets -----------------------------------------------------


def fake(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any], version: str = "4.1.0") -> None:
    module = ModuleType("datasets")
    module.__dict__.update(load_dataset=load, __version__=version)
    monkeypatch.setitem(sys.modules, "datasets", module)


def raising(error: BaseException) -> Callable[..., Any]:
    def load(*_: Any, **__: Any) -> Any:
        raise error

    return load


@pytest.mark.parametrize(
    "name", ["hub:", "hub:owner", "hub:../../etc", "hub:a/b/c/d", "hub:a/b:", "hub:a b/c", "hub:a/b:train:x", "hub:/a"]
)
def test_what_names_no_data_set_is_refused(make: Make, name: str) -> None:
    with pytest.raises(OptionError, match="names no data set"):
        make(name)


def test_without_the_package_its_install_command_is_said(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"datasets is not installed.*pip install 'datasets>=4'"):
        make("hub:owner/name")
    with pytest.raises(MissingDependencyError, match=r"pyarrow is not installed.*pip install 'datasets>=4'"):
        make(written(tmp_path / "a.parquet", "PAR1"))


def test_a_version_that_runs_a_data_sets_code_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, raising(AssertionError("called")), "3.6.0")
    with pytest.raises(MissingDependencyError, match=r"version 3.6.0; expected datasets>=4"):
        make("hub:owner/name")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("Dataset 'owner/name' doesn't exist"), InputNotFoundError),
        (ValueError('Bad split: nope. Available splits: ["train"]'), InputNotFoundError),
        (ConnectionError("no route"), DownloadError),
        (RuntimeError("client closed"), DownloadError),
    ],
)
def test_what_the_hub_refuses_is_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[EdgekitError]
) -> None:
    fake(monkeypatch, raising(error))
    with pytest.raises(told, match=f"hub:owner/name cannot be read.*{re.escape(str(error)[:12])}"):
        make("hub:owner/name")


@pytest.mark.parametrize("row", [{"content": "x"}, {"text": None}, {"text": b"x"}])
def test_a_data_set_without_text_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]) -> None:
    fake(monkeypatch, lambda *_, **__: [{"text": "good"}, row])
    with pytest.raises(TextError, match=r'hub:owner/name row 2 has no string in its column "text"'):
        make("hub:owner/name")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:owner/na-me.x", ("owner/na-me.x", None, "train")),
        ("hub:owner/name/en.1", ("owner/name", "en.1", "train")),
        ("hub:owner/name:test", ("owner/name", None, "test")),
        ("hub:owner/name/en:test", ("owner/name", "en", "test")),
    ],
)
def test_a_data_set_is_streamed_no_further_than_needed(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str, str | None, str]
) -> None:
    seen = SimpleNamespace(rows=0, call=None)

    def endless() -> Iterator[dict[str, str]]:
        while True:
            seen.rows += 1
            yield {"text": "0123456789" * 1000}

    def load(repo: str, config: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        seen.call = (repo, config, split)
        assert streaming
        return endless()

    fake(monkeypatch, load)
    corpus = make(name, most=20_000)
    assert seen.call == expected
    assert seen.rows < 1000
    assert (corpus.sequences, corpus.sources) == (2500, (name,))
