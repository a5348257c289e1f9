"""The golden corpus: a tokenizer that differs anywhere is caught and the text is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle.golden import CHATS, CORPUS, check_golden, first_difference, golden_ids, read_golden, write_golden
from edgekit.errors import BundleError, ParityError


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"texts": 1}', b"[" * 100_000, b"\xff", b'{"texts":[{"text":"a","ids":[-1]}]}']
)
def test_spoilt_golden_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "golden.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"golden\.json"):
        read_golden(tmp_path)


def test_missing_golden_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"golden\.json"):
        read_golden(tmp_path)


def test_first_differing_text_and_position_are_named() -> None:
    with pytest.raises(ParityError, match=r"GGUF gives id 9 at position 1 of 'b\\n'.*expected id 4"):
        first_difference([[1], [3, 4], [5]], [[1], [3, 9], [6]], "GGUF", ["a", "b\n", "c"])


def test_one_id_too_few_or_too_many_is_a_difference() -> None:
    with pytest.raises(ParityError, match="end after 1 ids at position 1"):
        first_difference([[1, 2]], [[1]], "x", ["a"])
    with pytest.raises(ParityError, match="gives id 2 at position 1"):
        first_difference([[1]], [[1, 2]], "x", ["a"])
    with pytest.raises(ParityError, match="1 texts"):
        first_difference([[1], [2]], [[1]], "x", ["a", "b"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.replace("\r\n", "\n"),
        lambda t: t.rstrip(" "),
        lambda t: t.lstrip(" "),
        lambda t: t.replace("  ", " "),
        lambda t: t.replace("\u200d", ""),
        lambda t: t.replace("\u0301", ""),
        lambda t: t.replace("\u00a0", " "),
        lambda t: t.replace("\x00", ""),
        lambda t: t.replace("<|im_end|>", ""),
        lambda t: t.lower(),
        lambda t: t.replace("\t", "    "),
        lambda t: t[:255],
        lambda t: __import__("unicodedata").normalize("NFC", t),
        lambda t: __import__("unicodedata").normalize("NFKC", t),
    ],
)
def test_corpus_catches_common_faults(spoil) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ParityError):
        first_difference(golden_ids(encode), golden_ids(lambda text: encode(spoil(text))), "spoilt")


def test_corpus_is_valid_and_without_repeats() -> None:
    assert len(CORPUS) == len(set(CORPUS)) >= 60
    assert "" in CORPUS
    first_difference(golden_ids(encode), golden_ids(encode), "same")


def test_golden_file_round_trip(tmp_path: Path) -> None:
    def chat(messages: object) -> list[int]:
        return encode(repr([dict(m) for m in messages]))  # type: ignore[attr-defined]

    written = write_golden(tmp_path, encode, chat)
    data = (tmp_path / "golden.json").read_bytes()
    golden = read_golden(tmp_path)
    assert golden == written
    assert len(golden.chats) == len(CHATS)
    check_golden(golden, "same", encode, chat)
    with pytest.raises(ParityError, match=r"chat template.*12 times 12"):
        check_golden(golden, "other", encode, lambda messages: [0, *chat(messages)])
    write_golden(tmp_path, encode, chat)
    assert (tmp_path / "golden.json").read_bytes() == data
