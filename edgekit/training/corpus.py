"""Packed training text: documents as token ids, one behind the other in one file, cut into sequences of one length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.tokenizer import Tokenizer
from edgekit.errors import OptionError, TextError, TokenizerError
from edgekit.files import output_errors, whole_file
from edgekit.hashes import remembered_sha256
from edgekit.progress import Advance, Progress
from edgekit.training.sources import Document, Source, checksum, documents, find

TOKENS, RECORD = "tokens.bin", "tokens.json"
PIECE = 1 << 16
"""Characters that the tokenizer gets at once, at most."""
_BATCH = 1 << 21
"""Characters of the pieces that are tokenized side by side."""
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
"""What packed text was joined with where the end-of-sequence token of a chat model has become the end of a turn."""
_UINT32 = np.dtype("<u4")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids, cut into sequences of `length`; what is left at the end is not used."""

    tokens: NDArray[np.uint32]
    """All ids, shape (n,); a read-only memory map. Each document is followed by the end-of-text token."""
    length: int
    """Tokens of a sequence."""
    held_out: int
    """Sequences at the end that are never trained on."""
    sources: tuple[str, ...]
    """File names without folders; of the hub its name."""
    sha256: str
    """Of the ids as little-endian uint32."""
    bos: int | None = None
    """What every sequence begins with, in place of its last token: what a model with such a token always gets."""

    @property
    def sequences(self) -> int:
        """Number of sequences that are trained on."""
        return len(self.tokens) // self.length - self.held_out

    def sequence(self, number: int) -> NDArray[np.int64]:
        """Ids of a sequence of the training part, shape (length,).

        Raises:
            IndexError: there is no such sequence.
        """
        if not 0 <= number < self.sequences:
            raise IndexError(f"sequence {number} of {self.sequences}")
        return self._at(number)

    def held(self) -> list[NDArray[np.int64]]:
        """The sequences that are held out, each of shape (length,)."""
        return [self._at(self.sequences + number) for number in range(self.held_out)]

    def order(self, index: int, seed: int) -> int:
        """Number of the sequence that is read as the `index`-th of the whole training.

        Every epoch reads every sequence once, in an order that depends on `seed` (≥ 0) and the epoch alone: a training
        that goes on at an index reads what it would have read without the break.
        """
        epoch, place = divmod(index, self.sequences)
        return int(_permutation(self.sequences, epoch, seed)[place])

    def _at(self, number: int) -> NDArray[np.int64]:
        begin = number * self.length
        if self.bos is None:
            return self.tokens[begin : begin + self.length].astype(np.int64)
        return np.concatenate([[self.bos], self.tokens[begin : begin + self.length - 1]]).astype(np.int64)


@lru_cache(maxsize=1)
def _permutation(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


class _Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the ids depend on."""

    tokenizer: str
    """SHA-256 of its tokenizer.json as the library writes it."""
    end: int | None
    """Id of the end-of-text token."""
    sources: tuple[tuple[str, str], ...]
    """Name and SHA-256 of each; the hub tells no checksum."""
    limit: int | None
    """Tokens after which reading stopped."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of tokens.json."""

    schema_version: Literal[1] = 1
    key: _Key
    tokens: int
    largest: int
    """Largest id; 0 without any."""
    sha256: str


def prepare(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    folder: Path,
    progress: Progress,
    *,
    held_out: int = 16,
    most: int | None = None,
    vocab_size: int | None = None,
) -> Corpus:
    """Tokenize the sources into `folder`/tokens.bin, or take what an earlier call with the same ones left there.

    Text is read, tokenized and written in a stream, in memory that does not depend on its size. As in transformers, the
    text of a special token becomes that token. What a data set of the hub holds is not looked at again once it is
    tokenized.

    Args:
        sources: see :func:`edgekit.training.sources.find`.
        tokenizer: of the model.
        length: tokens of a sequence.
        folder: for tokens.bin and tokens.json; made when it is not there.
        progress: shows how far tokenizing is.
        held_out: sequences at the end that are not trained on; of a small text fewer: a tenth of all, at least one.
        most: tokens to train on, at most, rounded up to whole sequences; those held out come on top. None: all.
        vocab_size: rows of the model's embedding; None: not checked.

    Raises:
        OptionError: no source, or a number that is too small.
        InputNotFoundError, TextError, MissingDependencyError, DownloadError: see :mod:`edgekit.training.sources`.
        TextError: fewer tokens than a sequence to train on and one to hold out.
        TokenizerError: a token id is not below `vocab_size`.
        OutputError: the folder cannot be written.
    """
    if length < 2 or held_out < 0 or (most is not None and most < 1):
        raise OptionError(
            f"{most} tokens in sequences of {length} with {held_out} held out cannot be trained on",
            expected="at least one token, sequences of at least two, and none or more held out",
        )
    found = _once(find(sources), progress)
    limit = None if most is None else (-(-most // length) + held_out) * length
    key = _key(found, tokenizer, limit)
    record = _kept(folder, key) or _tokenize(found, tokenizer, folder, key, progress)
    _refuse_foreign(record, vocab_size)
    held = _held(record, length, held_out)
    tokens = np.memmap(folder / TOKENS, _UINT32, mode="r")
    return Corpus(tokens, length, held, tuple(source.name for source in found), record.sha256, tokenizer.bos_id)


def _once(found: Sequence[Source], progress: Progress) -> list[Source]:
    """Each file once: what is there twice would be trained on and held out."""
    kept: dict[str, Source] = {}
    for source in found:
        key = checksum(source) or source.name
        if key in kept:
            progress.note(f"{source.name} is the same text as {kept[key].name}: it is read once")
        else:
            kept[key] = source
    return list(kept.values())


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """Id of the token that packed documents are joined with: end of text, or else the end-of-sequence token, if any."""
    known = (tokenizer.backend.token_to_id(text) for text in _END_OF_TEXT)
    return next((int(token) for token in known if token is not None), tokenizer.eos_id)


# --- kept ids --------------------------------------------------------------------------------------------------------


def _key(found: Sequence[Source], tokenizer: Tokenizer, limit: int | None) -> _Key:
    return _Key(
        tokenizer=hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest(),
        end=end_of_text(tokenizer),
        sources=tuple((source.name, checksum(source)) for source in found),
        limit=limit,
    )


def _kept(folder: Path, key: _Key) -> _Record | None:
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=_Record)
        whole = record.key == key and remembered_sha256(folder / TOKENS) == record.sha256
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # made anew, then
    return record if whole else None


def _refuse_foreign(record: _Record, vocab_size: int | None) -> None:
    if vocab_size is not None and record.largest >= vocab_size:
        raise TokenizerError(
            f"the tokenizer turns the training text into id {record.largest}",
            expected=f"ids below {vocab_size}, the rows of the embedding",
            remedy="use the tokenizer that belongs to the model",
        )


def _held(record: _Record, length: int, held_out: int) -> int:
    """Sequences that are held out: as many as asked for, but of a text that has ended at most a tenth, at least one."""
    total = record.tokens // length
    held = held_out if record.tokens == record.key.limit else min(held_out, max(1, total // 10))
    if total <= held:
        what = "one sequence to train on" + (" and one to hold out" if held else "")
        raise TextError(
            f"the training text has only {record.tokens} tokens",
            expected=f"at least {(held + 1) * length} ({what}, of {length} tokens each)",
            remedy="give more text, or shorter sequences",
        )
    return held


# --- tokenizing ------------------------------------------------------------------------------------------------------


def _tokenize(found: list[Source], tokenizer: Tokenizer, folder: Path, key: _Key, progress: Progress) -> _Record:
    digest, count, largest, done = hashlib.sha256(), 0, 0, 0
    with progress.step(_title(found)) as advance, whole_file(folder / TOKENS, force=True) as fresh:
        show = _share(advance, found, key.limit)
        with fresh.open("wb") as out:
            for ids, read in _ids(found, tokenizer, key.end):
                part = ids if key.limit is None else ids[: key.limit - count]
                digest.update(part.tobytes())
                out.write(part.tobytes())
                count, largest, done = count + len(part), max(largest, int(part.max(initial=0))), done + read
                show(done, count)
                if count == key.limit:
                    break
    record = _Record(key=key, tokens=count, largest=largest, sha256=digest.hexdigest())
    with output_errors(folder / RECORD), whole_file(folder / RECORD, force=True) as fresh:
        fresh.write_bytes(msgspec.json.encode(record) + b"\n")
    return record


def _nbytes(found: Sequence[Source]) -> int | None:
    sizes = [source.nbytes for source in found]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _title(found: Sequence[Source]) -> str:
    name = found[0].name if len(found) == 1 else f"{len(found)} files"
    nbytes = _nbytes(found)
    return f"text: tokenize {name}" + ("" if nbytes is None else f" ({nbytes / 1e6:.1f} MB)")


def _share(advance: Advance, found: Sequence[Source], limit: int | None) -> Callable[[int, int], None]:
    """Shows per cent: of the bytes or of the tokens, whichever comes to its end first."""
    nbytes = _nbytes(found)

    def show(done: int, tokens: int) -> None:
        shares = [done / nbytes] if nbytes else []
        shares += [tokens / limit] if limit else []
        if shares:
            advance(min(100, int(100 * max(shares))), 100)

    return show


def _ids(found: Iterable[Source], tokenizer: Tokenizer, end: int | None) -> Iterator[tuple[NDArray[np.uint32], int]]:
    """Ids of all documents in pieces, each with the bytes that were read for it."""
    cut = cutter(tokenizer)
    done = 0

    def read(nbytes: int) -> None:
        nonlocal done
        done += nbytes

    pieces = (piece for source in found for document in documents(source, read) for piece in cut(document))
    for batch in _batches(pieces):
        ids: list[int] = []
        for encoded, (_, last) in zip(_encode(tokenizer, [text for text, _ in batch]), batch, strict=True):
            ids += encoded
            if last and end is not None:
                ids.append(end)
        yield np.array(ids, _UINT32), done
        done = 0


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0]) + 64  # for the piece itself: a million empty ones are no small batch
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    try:
        return [made.ids for made in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]
    except Exception:  # the library raises nothing else; `encode` turns it into a sentence
        return [tokenizer.encode(text) for text in texts]


# --- cutting ---------------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"(?<=\S) (?=[^\W\d_])")
"""A single space before a letter. What is tokenized in words begins a new one there, and no token spans two words."""
_LINES = re.compile(r"(?<=\S)\n(?=[^\W\d_])")
_SPACES = re.compile(r"\s(?=\S)")
_LEFT = ("The kettle sings", "it, too;", "in 1984", "“quoted”", "水", "end.")
_RIGHT = ("before the water boils", "Kettles", "cafés", "été", "s", "Чайник поёт")

Cut = Callable[[Document], Iterator[tuple[str, bool]]]
"""Document → its pieces, each with whether it is the last."""


@dataclass(frozen=True)
class _Seam:
    """Where a text may be cut, and what becomes of the white space there."""

    pattern: re.Pattern[str]
    side: Literal["left", "right", "none"]
    """The piece that keeps it; none: the tokenizer itself puts a space before whatever it is given."""

    def exact(self, tokenizer: Tokenizer, space: str) -> bool:
        """Whether the tokenizer makes the same of pieces as of the whole, on a few examples."""
        before, after = (space if self.side == side else "" for side in ("left", "right"))
        return all(
            tokenizer.encode(left + space + right) == tokenizer.encode(left + before) + tokenizer.encode(after + right)
            for left in _LEFT
            for right in _RIGHT
        )

    def last(self, text: str, begin: int, stop: int) -> tuple[int, int] | None:
        """End of one piece and beginning of the next at the last seam of text[begin:stop]; the piece is not empty."""
        for start in (max(begin + 1, stop - 1024), begin + 1):
            *_, found = [None, *self.pattern.finditer(text, start, stop)]
            if found is not None:
                at, behind = found.span()
                return {"left": (behind, behind), "right": (at, at), "none": (at, behind)}[self.side]
        return None


def cutter(tokenizer: Tokenizer, size: int = PIECE) -> Cut:
    """Cuts documents into pieces of at most `size` characters whose ids, joined, are those of the whole document.

    The places are those where the tokenizer was found to make the same of both: between two words or, failing that, two
    lines. Where a piece has none (a text without spaces, or a tokenizer whose tokens span words) it is cut at other
    white space or anywhere, and the token there may differ.
    """
    tried = ((_Seam(_WORDS, "right"), " "), (_Seam(_WORDS, "none"), " "), (_Seam(_LINES, "left"), "\n"))
    seams = [*(seam for seam, space in tried if seam.exact(tokenizer, space)), _Seam(_SPACES, "right")]

    def cut(document: Document) -> Iterator[tuple[str, bool]]:
        rest = ""
        for block in document:
            rest, begin = rest + block, 0
            while len(rest) - begin > size:
                stop = begin + size
                end, after = next(filter(None, (seam.last(rest, begin, stop) for seam in seams)), (stop, stop))
                yield rest[begin:end], False
                begin = after
            rest = rest[begin:]
        if rest:
            yield rest, True

    return cut
