"""Passages that two texts share, and how much of a text is in words that the other has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import contradictions
from edgekit.coherence.likeness import LEAST, WINDOW, known_tokens, shared_passages
from edgekit.errors import OptionError, TextError
from edgekit.options import Options

MANY = 1 << 20
ASKED = Options()


def words(count: int, seed: int = 0) -> list[str]:
    """Prose of a vocabulary of 300 words: two texts share all of their words and none of their passages."""
    random = np.random.default_rng(seed)
    return [f"word{number}" for number in random.integers(0, 300, count)]


def text(count: int, seed: int = 0) -> str:
    return " ".join(words(count, seed))


def refuse(folder: Path, judged: bytes, other: bytes, options: Options = ASKED) -> None:
    (folder / "judged.txt").write_bytes(judged)
    (folder / "other.txt").write_bytes(other)
    paths = {"text": folder / "judged.txt", "calibration_text": folder / "other.txt"}
    contradictions.refuse(Options(**{**vars(options), **paths}))


def test_no_words_share_nothing() -> None:
    assert shared_passages("", "", MANY) == 0
    assert shared_passages("a few words", "a few words", MANY) == 0
    assert shared_passages("... !!! \n" * 30, "... !!! \n" * 30, MANY) == 0


def test_other_text_in_the_same_words_shares_nothing() -> None:
    assert shared_passages(text(3000), text(3000, 1), MANY) == 0


def test_the_same_text_shares_all_however_it_is_set() -> None:
    own = text(2000)
    other = "Preface, of no importance.\n" + own.upper().replace(" ", ",\r\n  ")
    assert shared_passages(own, other, MANY) == 1


@settings(max_examples=30, deadline=None)
@given(quoted=st.integers(0, 500), seed=st.integers(0, 9))
def test_a_quotation_counts_as_long_as_it_is(quoted: int, seed: int) -> None:
    own = words(500, seed)
    other = words(900, seed + 20) + own[:quoted] + words(300, seed + 40)
    passages = 500 - WINDOW + 1
    assert shared_passages(" ".join(own), " ".join(other), MANY) == max(0, quoted - WINDOW + 1) / passages


def test_only_what_is_judged_counts() -> None:
    own = text(400) + " " + text(4000, 1)
    assert shared_passages(own, text(4000, 1), 400) == 0
    assert shared_passages(own, text(4000, 1), MANY) > 0.8


def test_writing_without_spaces_has_passages_too() -> None:
    random = np.random.default_rng(0)
    own, other = ("".join(chr(0x4E00 + n) for n in random.integers(0, 500, 200)) for _ in range(2))
    assert shared_passages(own, other, MANY) == 0
    assert shared_passages(own, other + "。\n" + own[50:150], MANY) == pytest.approx(85 / 185)


# --- as options ------------------------------------------------------------------------------------------------------


def test_texts_that_overlap_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\d+% of the passages of --text stand in --calibration-text"):
        refuse(tmp_path, text(3000).encode(), (text(2000, 1) + "\n" + text(3000)).encode())


def test_a_licence_in_both_is_not(tmp_path: Path) -> None:
    licence = text(40, 2)
    refuse(tmp_path, f"{licence} {text(3000)}".encode(), f"{licence} {text(3000, 1)}".encode())


def test_a_late_overlap_that_is_not_judged_is_not(tmp_path: Path) -> None:
    judged = f"{text(2100)} {text(3000, 1)}"
    refuse(tmp_path, judged.encode(), text(3000, 1).encode(), Options(sequences=16, length=128))
    with pytest.raises(OptionError, match="passages"):
        refuse(tmp_path, judged.encode(), text(3000, 1).encode(), Options(sequences=40, length=128))


def test_bytes_that_are_no_text_are_left_to_who_reads_them(tmp_path: Path) -> None:
    refuse(tmp_path, b"\xff\xfe\x00" * 500, b"\x80abc " * 500)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="--calibration-text"):
        contradictions.refuse(Options(calibration_text=tmp_path / "no.txt"))


def test_an_importance_matrix_without_calibration(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--imatrix and --no-calibration"):
        contradictions.refuse(Options(imatrix=tmp_path / "x.gguf", calibrate=False))


# --- of one kind -----------------------------------------------------------------------------------------------------


def test_too_little_text_says_nothing() -> None:
    short, long = np.zeros(LEAST - 1, np.int64), np.zeros(LEAST, np.int64)
    assert known_tokens([short], [long]) is None
    assert known_tokens([long], [short]) is None
    assert known_tokens([long], [long]) == 1


def test_the_share_of_tokens_that_are_known() -> None:
    own, other = np.arange(2000) % 100, np.arange(2000) % 50
    assert known_tokens([own[:1000], own[1000:]], [other]) == 0.5
    assert known_tokens([other], [own]) == 1
