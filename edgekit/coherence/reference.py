"""The sealed record of what the full-precision model says, small enough to ship with a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edgekit.coherence.distribution import F32, I32, Ids, Positions, describe, draw_tail, top_tokens
from edgekit.coherence.engine_calls import Progress, checked_greedy, checked_logits, refuse_long
from edgekit.engines.base import Engine
from edgekit.errors import OptionError

DEFAULT_K = 128
DEFAULT_DRAWS = 32
DEFAULT_CONTINUATION_TOKENS = 64
_TAIL_STREAM = 1
"""Third word of the generators' seeds: the evaluation text may be drawn with the first two alone."""

Lists = Sequence[Sequence[int] | Ids]
"""Token ids, list by list."""
Name = Annotated[str, msgspec.Meta(max_length=256)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a reference comes from."""

    model: Name
    model_sha256: Sha256
    """Of the checkpoint's weights, as the build counts it."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    text: Literal["self-generated", "file"]
    text_sha256: Sha256
    """Of the file's bytes, or of the generated token ids; see :class:`edgekit.coherence.text.EvalText`."""
    versions: Annotated[dict[Name, Name], msgspec.Meta(max_length=64)]
    """Package → version that made it."""


class Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything of a reference but its arrays, whose shapes follow from the counts here."""

    schema_version: Literal[1] = 1
    origin: Origin
    vocab_size: Annotated[int, msgspec.Meta(ge=2, le=1 << 24)]
    eot_ids: Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
    """Tokens that end a continuation, ascending."""
    k: Positive
    """Most probable tokens kept per position."""
    draws: Count
    """Tokens drawn per position from the others; 0 when k is the whole vocabulary."""
    token_limit: Positive
    """Longest continuation in tokens."""
    sequences: Positive
    sequence_tokens: Positive
    prompts: Count
    prompt_tokens: Count
    continuation_tokens: Count


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of token ids of different lengths, in two arrays."""

    ids: I32
    """All lists one after the other."""
    lengths: I32

    def __len__(self) -> int:
        return len(self.lengths)

    def lists(self) -> list[Ids]:
        """Each list as its own array."""
        wide = self.ids.astype(np.int64)
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return [wide[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


def ragged(lists: Lists) -> Ragged:
    """Pack lists of ids that fit in int32."""
    flat = [np.asarray(ids, np.int32) for ids in lists]
    return Ragged(np.concatenate([np.empty(0, np.int32), *flat]), np.array([len(ids) for ids in flat], np.int32))


@dataclass(frozen=True, eq=False)
class Reference:
    """What the full-precision model says; saved and loaded by :mod:`edgekit.coherence.container`."""

    meta: Meta
    sequences: Ragged
    """The evaluation text, each sequence of at least two tokens."""
    positions: Positions
    """One row per predicted token: all of sequence 0 but its first, then those of sequence 1, …"""
    prompts: Ragged
    continuations: Ragged
    """Greedy continuations of the prompts, an ending token included."""

    @property
    def stop(self) -> frozenset[int]:
        """Tokens that end a continuation."""
        return frozenset(self.meta.eot_ids)

    def sequence_rows(self) -> list[slice]:
        """Which rows of `positions` belong to each sequence."""
        ends = [0, *np.cumsum(self.sequences.lengths - 1, dtype=np.int64).tolist()]
        return [slice(first, last) for first, last in pairwise(ends)]


def seal(
    engine: Engine,
    sequences: Lists,
    prompts: Lists,
    *,
    origin: Origin,
    k: int = DEFAULT_K,
    draws: int = DEFAULT_DRAWS,
    continuation_tokens: int = DEFAULT_CONTINUATION_TOKENS,
    stop: frozenset[int] = frozenset(),
    continuations: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Record what `engine`, the full-precision model, says. Holds one sequence's logits at a time.

    Args:
        engine: the full-precision model.
        sequences: at least one list of at least two token ids.
        prompts: lists of at least one token id; none at all leaves the generation metrics out.
        origin: where model and text come from.
        k: most probable tokens kept per position; the vocabulary's size when that is smaller.
        draws: tokens drawn per position from all others, by the seed of `origin`; 0 leaves mean KL a lower bound.
        continuation_tokens: longest greedy continuation.
        stop: end-of-text token ids.
        continuations: the engine's greedy continuation of each prompt where it was made elsewhere (many at once);
            None: made here, one prompt after the other.
        progress: called after every sequence and prompt.

    Raises:
        OptionError: a list is too short or too long, there is not one continuation for each prompt, an id is outside
            the vocabulary, or a number is out of range.
        ParityError: the engine returns NaN, infinity or a wrong shape.
    """
    _refuse_options(engine, sequences, prompts, k, draws, continuation_tokens, stop)
    if continuations is not None:
        _refuse_continuations(continuations, len(prompts), continuation_tokens, engine.vocab_size)
    own = prompts if continuations is None else ()
    total, k = len(sequences) + len(own), min(k, engine.vocab_size)
    rows, made = [], list(continuations or ())
    for index, ids in enumerate(sequences):
        random = np.random.default_rng([origin.seed, index, _TAIL_STREAM])
        rows.append(_seal_sequence(engine, np.asarray(ids, np.int64), k, draws, random, index))
        _tell(progress, index + 1, total)
    for index, prompt in enumerate(own):
        made.append(checked_greedy(engine, np.asarray(prompt, np.int64), continuation_tokens, stop, index))
        _tell(progress, len(sequences) + index + 1, total)
    lists = ragged(sequences), ragged(prompts), ragged(made)
    positions = _join(rows)
    counts = _counts(*lists) | {"k": k, "draws": positions.drawn_ids.shape[1]}
    counts |= {"token_limit": continuation_tokens, "vocab_size": engine.vocab_size}
    meta = Meta(origin=origin, eot_ids=tuple(sorted(map(int, stop))), **counts)
    return Reference(meta, lists[0], positions, *lists[1:])


def _seal_sequence(engine: Engine, ids: Ids, k: int, draws: int, random: np.random.Generator, index: int) -> Positions:
    logits: F32 = checked_logits(engine, ids[:-1], index)
    top_ids = top_tokens(logits, k)
    return describe(logits, ids[1:], top_ids, draw_tail(logits, top_ids, draws, random))


def _join(rows: Sequence[Positions]) -> Positions:
    return Positions(*(np.concatenate([getattr(row, field.name) for row in rows]) for field in fields(Positions)))


def _counts(sequences: Ragged, prompts: Ragged, continuations: Ragged) -> dict[str, Any]:
    return {
        "sequences": len(sequences),
        "sequence_tokens": len(sequences.ids),
        "prompts": len(prompts),
        "prompt_tokens": len(prompts.ids),
        "continuation_tokens": len(continuations.ids),
    }


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress:
        progress(done, total)


def _refuse_options(
    engine: Engine,
    sequences: Lists,
    prompts: Lists,
    k: int,
    draws: int,
    continuation_tokens: int,
    stop: frozenset[int],
) -> None:
    smallest: Mapping[str, tuple[int, int]] = {
        "number of evaluation sequences": (len(sequences), 1),
        "shortest evaluation sequence": (min(map(len, sequences), default=2), 2),
        "shortest prompt": (min(map(len, prompts), default=1), 1),
        "number of tokens kept per position (k)": (k, 1),
        "number of tokens drawn per position (draws)": (draws, 0),
        "number of continuation tokens": (continuation_tokens, 1),
    }
    for what, (found, least) in smallest.items():
        if found < least:
            raise OptionError(f"the {what} is {found}", expected=f"at least {least}")
    for ids in (*sequences, *prompts, sorted(stop)):
        _refuse_ids(ids, engine.vocab_size)
    refuse_long(engine, [len(ids) - 1 for ids in sequences] + [len(ids) + continuation_tokens for ids in prompts])


def _refuse_continuations(made: Sequence[Sequence[int]], prompts: int, limit: int, vocab_size: int) -> None:
    if len(made) != prompts:
        raise OptionError(f"{len(made)} continuations for {prompts} prompts", expected="one for each")
    for ids in made:
        if not 1 <= len(ids) <= limit:
            raise OptionError(f"a continuation has {len(ids)} tokens", expected=f"1 to {limit}")
        _refuse_ids(ids, vocab_size)


def _refuse_ids(ids: Sequence[int] | Ids, vocab_size: int) -> None:
    outside = [int(i) for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise OptionError(
            f"token id {outside[0]} is outside the vocabulary of {vocab_size}",
            remedy="use the tokenizer of the same checkpoint",
        )
