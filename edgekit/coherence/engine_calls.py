"""Asking an engine, and refusing answers that are not logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from edgekit.coherence.distribution import F32, Ids
from edgekit.engines.base import Batching, Engine, sample
from edgekit.errors import OptionError, ParityError

_BATCH = 1 << 26
"""Logits of a batch: 256 MiB."""
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all); a step is one sequence or one prompt."""


def checked_logits(engine: Engine, ids: Ids, what: str) -> F32:
    """Logits (T, V) of `ids` (T,); `what` names them in an error, as "sequence 3".

    Raises:
        ParityError: wrong shape, or NaN or infinity; names the position, counted from 0.
    """
    return _checked(engine, engine.logits(ids), ids, what)


def checked_batch(engine: Engine, sequences: Sequence[tuple[Ids, str]]) -> Iterator[F32]:
    """:func:`checked_logits` of each (ids, what); an engine that can reads its weights once for several."""
    if not isinstance(engine, Batching):
        for ids, what in sequences:
            yield checked_logits(engine, ids, what)
        return
    longest = max((len(ids) for ids, _ in sequences), default=1)
    size = max(1, _BATCH // (longest * engine.vocab_size))
    for begin in range(0, len(sequences), size):
        group = sequences[begin : begin + size]
        for (ids, what), logits in zip(group, engine.logits_batch([ids for ids, _ in group]), strict=True):
            yield _checked(engine, logits, ids, what)


def _checked(engine: Engine, logits: F32, ids: Ids, what: str) -> F32:
    logits = np.asarray(logits, np.float32)
    if logits.shape != (len(ids), engine.vocab_size):
        raise ParityError(
            f"{engine.name} returned logits of shape {logits.shape} for {what}",
            expected=f"({len(ids)}, {engine.vocab_size})",
        )
    bad = ~_finite_rows(logits)
    if bad.any():
        raise _not_finite(engine, what, int(bad.argmax()))
    return logits


def checked_greedy(engine: Engine, prompt: Ids, limit: int, stop: frozenset[int], index: int) -> list[int]:
    """The greedy continuation of `prompt` ids (T,), at most `limit` tokens, ending with a token of `stop` if one comes.

    Raises:
        ParityError: wrong shape, or NaN or infinity; names the prompt and the generated position, counted from 0.
    """
    made: list[int] = []

    def pick(row: F32) -> int:
        row = np.asarray(row, np.float32)
        if row.shape != (engine.vocab_size,):
            raise ParityError(
                f"{engine.name} returned logits of shape {row.shape} for prompt {index}",
                expected=f"({engine.vocab_size},)",
            )
        if not _finite_rows(row[None])[0]:
            raise _not_finite(engine, f"prompt {index}", len(made))
        return int(row.argmax())

    for token in sample(engine, prompt, limit, stop, pick):
        made.append(token)  # noqa: PERF402 — pick reads the length while the loop runs
    return made


def refuse_long(engine: Engine, lengths: Iterable[int]) -> None:
    """Raise OptionError when a sequence does not fit into the engine's context."""
    longest = max(lengths, default=0)
    if longest > engine.max_context:
        raise OptionError(
            f"a sequence of {longest} tokens does not fit into the context of {engine.name}",
            expected=f"at most {engine.max_context} tokens",
            remedy="use shorter sequences or prompts, or load the engine with a longer context",
        )


def _finite_rows(logits: F32) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are finite; the extremes of a row tell, without a copy of its size."""
    with np.errstate(invalid="ignore"):
        finite: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.isfinite(logits.max(axis=1)) & np.isfinite(
            logits.min(axis=1)
        )
    return finite


def _not_finite(engine: Engine, what: str, position: int) -> ParityError:
    return ParityError(
        f"{engine.name} returned NaN or infinity among its logits at {what}, position {position}",
        expected="finite logits",
        remedy="the artefact or the engine's build is broken: run edgekit verify on it",
    )
