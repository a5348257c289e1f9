"""The sealed record of what the full-precision model says, small enough to ship with a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edgekit.coherence.distribution import F32, Ids, Positions, describe, draw_tail, top_tokens
from edgekit.coherence.engine_calls import Progress, checked_greedy, checked_logits, refuse_long
from edgekit.coherence.ragged import Lists, Ragged, ragged
from edgekit.coherence.scoring import MAX_ITEMS, Answers, ItemId, Questions, option_logp
from edgekit.engines.base import Engine
from edgekit.errors import OptionError

DEFAULT_K = 128
DEFAULT_DRAWS = 32
DEFAULT_CONTINUATION_TOKENS = 64
_TAIL_STREAM = 1
"""Third word of the generators' seeds: the evaluation text may be drawn with the first two alone."""

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
    items: Annotated[tuple[ItemId, ...], msgspec.Meta(max_length=MAX_ITEMS)] = ()
    """Id of every item; the arrays of the items are there when there is one."""
    items_sha256: Sha256 | None = None
    """Of the file of items."""
    options: Count = 0
    option_tokens: Count = 0


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
    answers: Answers | None = None
    """The items and what the model thinks of their options; None without items."""

    @property
    def stop(self) -> frozenset[int]:
        """Tokens that end a continuation."""
        return frozenset(self.meta.eot_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that judging needs room for in an engine's context."""
        prompts = int(self.prompts.lengths.max(initial=0)) + self.meta.token_limit if len(self.prompts) else 0
        options = int(self.answers.questions.options.lengths.max(initial=0)) if self.answers else 0
        return max(int(self.sequences.lengths.max()), prompts, options)

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
    questions: Questions | None = None,
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
        questions: items as :func:`edgekit.coherence.items.encode_items` gives them; none at all leaves accuracy and
            flips out.
        progress: called after every sequence, prompt and item.

    Raises:
        OptionError: a list is too short or too long, there is not one continuation for each prompt, an id is outside
            the vocabulary, or a number is out of range.
        ParityError: the engine returns NaN, infinity or a wrong shape.
    """
    _refuse_options(engine, sequences, prompts, k, draws, continuation_tokens, stop)
    _refuse_questions(engine, questions)
    if continuations is not None:
        _refuse_continuations(continuations, len(prompts), continuation_tokens, engine.vocab_size)
    own = prompts if continuations is None else ()
    done, k = len(sequences) + len(own), min(k, engine.vocab_size)
    total = done + (len(questions) if questions else 0)
    rows, made = [], list(continuations or ())
    for index, ids in enumerate(sequences):
        random = np.random.default_rng([origin.seed, index, _TAIL_STREAM])
        rows.append(_seal_sequence(engine, np.asarray(ids, np.int64), k, draws, random, index))
        _tell(progress, index + 1, total)
    for index, prompt in enumerate(own):
        made.append(checked_greedy(engine, np.asarray(prompt, np.int64), continuation_tokens, stop, index))
        _tell(progress, len(sequences) + index + 1, total)
    answers = _answer(engine, questions, lambda index: _tell(progress, done + index + 1, total))
    lists = ragged(sequences), ragged(prompts), ragged(made)
    positions = _join(rows)
    counts = _counts(*lists) | {"k": k, "draws": positions.drawn_ids.shape[1]}
    counts |= {"token_limit": continuation_tokens, "vocab_size": engine.vocab_size}
    counts |= _item_counts(answers)
    meta = Meta(origin=origin, eot_ids=tuple(sorted(map(int, stop))), **counts)
    return Reference(meta, lists[0], positions, *lists[1:], answers)


def _refuse_questions(engine: Engine, questions: Questions | None) -> None:
    if questions is not None:
        _refuse_ids(questions.options.ids.astype(np.int64), engine.vocab_size)
        refuse_long(engine, (questions.options.lengths - 1).tolist())


def _answer(engine: Engine, questions: Questions | None, answered: Callable[[int], None]) -> Answers | None:
    return Answers(questions, option_logp(engine, questions, answered)) if questions else None


def _item_counts(answers: Answers | None) -> dict[str, Any]:
    if answers is None:
        return {}
    asked = answers.questions
    tokens = len(asked.options.ids)
    return {"items": asked.names, "items_sha256": asked.sha256, "options": len(asked.options), "option_tokens": tokens}


def _seal_sequence(engine: Engine, ids: Ids, k: int, draws: int, random: np.random.Generator, index: int) -> Positions:
    logits: F32 = checked_logits(engine, ids[:-1], f"sequence {index}")
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
