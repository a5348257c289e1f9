from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_coherence_engine import Bigram, f32, table

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.coherence.text import engine_sampler, fixed_prompts, from_file, self_generated, starts
from edgekit.errors import OptionError, ParityError, TextError
from edgekit.files import sha256
from edgekit.options import Options
from edgekit.original import make_texts
from edgekit.progress import Quiet
from edgekit.sampling import draw

V = 64


def encode(text: str) -> list[int]:
    return [ord(c) % V for c in text]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="there is no text file"):
        from_file(tmp_path / "no.txt", encode, 1, 2)
    with pytest.raises(TextError, match="there is no text file"):
        from_file(tmp_path, encode, 1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc\xff\xfe", r"not UTF-8 \(byte 3\)"),
        (b"text and then \0 a zero", "control characters, as binary files do"),
        (b"\x7fELF\x02\x01\x01" * 40, "control characters, as binary files do"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(TextError, match=message):
        from_file(path, encode, 1, 2)


@pytest.mark.parametrize("given", ["text", "calibration_text"])
def test_a_short_file_is_told_before_the_model_writes_the_other_text(given: str, sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("too short")

    def engine() -> Any:
        raise AssertionError("the model was asked to write")

    options = Options(text=path) if given == "text" else Options(calibration_text=path)
    with pytest.raises(TextError, match="tokens"):
        make_texts(engine, load_tokenizer(sound), options, Quiet())


def test_a_form_feed_and_a_stray_escape_make_no_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"one page\r\n\x0c\tanother page \x1b" + b" of text" * 40)
    assert len(from_file(path, encode, 4, 5).sequences) == 4


def test_a_short_file_says_how_many_tokens_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" * 19)
    with pytest.raises(TextError, match=r"only 19 tokens; expected at least 20 \(4 sequences of 5\)"):
        from_file(path, encode, 4, 5)
    assert len(from_file(path, encode, 4, 5, bos=1).sequences) == 4


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.coherence.text.MAX_TEXT_BYTES", 10)
    path = tmp_path / "text.txt"
    path.write_text("x" * 11)
    with pytest.raises(TextError, match="11 bytes; expected at most 10"):
        from_file(path, encode, 1, 2)


@pytest.mark.parametrize(("n", "length"), [(0, 5), (1, 1)])
def test_no_sequences_are_refused(tmp_path: Path, n: int, length: int) -> None:
    with pytest.raises(OptionError):
        from_file(tmp_path / "text.txt", encode, n, length)


def test_a_text_is_cut_in_order(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    found = from_file(path, encode, 3, 3)
    assert [ids.tolist() for ids in found.sequences] == [encode("abc"), encode("def"), encode("ghi")]
    assert (found.kind, found.sha256) == ("file", sha256(path))
    with_bos = from_file(path, encode, 3, 3, bos=1)
    assert [ids.tolist() for ids in with_bos.sequences] == [[1, *encode("ab")], [1, *encode("cd")], [1, *encode("ef")]]


def test_generated_text_is_reproducible_and_follows_the_seed() -> None:
    engine = Bigram(table(V))
    begin = starts(3, 1, encode)
    first, again, other = (self_generated(engine_sampler(engine), begin, 20, seed, V) for seed in (5, 5, 6))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.kind == "self-generated"
    assert [(len(ids), ids[0]) for ids in first.sequences] == [(20, 1)] * 3
    assert first.sequences[0].tolist() != first.sequences[1].tolist()


def test_a_sequence_does_not_depend_on_how_many_are_made() -> None:
    sampler = engine_sampler(Bigram(table(V)))
    one, three = (self_generated(sampler, starts(n, 1, encode), 20, 5, V) for n in (1, 3))
    assert one.sequences[0].tolist() == three.sequences[0].tolist()


def test_without_a_bos_token_the_openers_are_used_in_turn() -> None:
    begin = starts(20, None, encode)
    assert len(begin) == 20
    assert len({tuple(ids) for ids in begin}) > 4
    assert begin[0].tolist() == encode("The")


def test_sampling_follows_the_distribution() -> None:
    random = np.random.default_rng(0)
    logits = np.log(f32([0.5, 0.3, 0.2]))
    counts = np.bincount([draw(logits, random) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)
    counts = np.bincount([draw(logits, random, top_p=0.6) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.625, 0.375, 0.0], atol=0.03)
    assert {draw(logits, random, top_p=1e-9) for _ in range(50)} == {0}
    assert {draw(logits, random, temperature=1e-3) for _ in range(50)} == {0}
    assert {draw(1e5 * logits, random, temperature=1e-306) for _ in range(50)} == {0}


def test_what_has_no_probability_is_never_drawn() -> None:
    class Highest:
        """Its product with a sum rounds up to the sum."""

        def random(self, n: int) -> np.ndarray:
            return np.full(n, np.nextafter(1.0, 0.0))

    logits = f32([0.0, 0.0, -1e5])
    assert draw(logits, Highest()) == 1  # type: ignore[arg-type]
    assert draw(logits, Highest(), top_p=0.5) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        engine_sampler(Bigram(table(V)), **options)


def test_a_sequence_must_fit_the_context_and_leave_room() -> None:
    sampler = engine_sampler(Bigram(table(V), max_context=10))
    with pytest.raises(OptionError, match="context"):
        self_generated(sampler, starts(1, 1, encode), 11, 0, V)
    for begin, length in (([], 5), ([np.array([1, 2])], 2), ([np.empty(0, np.int64)], 5)):
        with pytest.raises(OptionError, match="cannot be generated"):
            self_generated(sampler, begin, length, 0, V)


def test_an_engine_that_returns_nan_is_refused() -> None:
    with pytest.raises(ParityError, match="position 1"):
        self_generated(engine_sampler(Bigram(np.full((V, V), np.nan, np.float32))), starts(1, 1, encode), 9, 0, V)


@pytest.mark.parametrize("made", [[1, 2], [2, 2, 2], [1, 2, V], [1, 2, -1]])
def test_a_sampler_that_breaks_its_promise_is_refused(made: list[int]) -> None:
    with pytest.raises(ParityError, match="sampled sequence 0"):
        self_generated(lambda begin, length, seed: [np.array(made)], starts(1, 1, encode), 3, 0, V)


def test_fixed_prompts_are_chat_and_cloze() -> None:
    prompts = fixed_prompts()
    assert len(prompts) >= 12
    assert {prompt.kind for prompt in prompts} == {"chat", "cloze"}
    assert len({prompt.text for prompt in prompts}) == len(prompts)
