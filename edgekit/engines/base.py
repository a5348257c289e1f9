"""What an engine is: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Ids = NDArray[np.int64]


class Engine(Protocol):
    """A loaded model. Not thread-safe; one sequence at a time."""

    name: str
    """"torch", "onnxruntime" or "llama.cpp"."""
    vocab_size: int
    max_context: int

    def logits(self, ids: Ids) -> F32:
        """Logits of a fresh sequence: ids (T,) → (T, vocab_size); row t predicts token t+1."""

    def start(self, ids: Ids) -> F32:
        """Forget everything, read the prompt ids (T,), return the logits (vocab_size,) after its last token."""

    def step(self, token: int) -> F32:
        """Append one token to the running sequence, return the logits (vocab_size,) after it."""

    def close(self) -> None:
        """Free the model's memory."""


@runtime_checkable
class Batching(Protocol):
    """An engine that reads its weights once for several sequences."""

    def logits_batch(self, sequences: Sequence[Ids]) -> list[F32]:
        """:meth:`Engine.logits` of each sequence."""


def greedy(engine: Engine, prompt: Ids, limit: int, stop: frozenset[int]) -> Iterator[int]:
    """Greedy continuation of `prompt` ids (T,), at most `limit` tokens; a token of `stop` is yielded and ends it."""
    yield from sample(engine, prompt, limit, stop, lambda row: int(row.argmax()))


def sample(engine: Engine, prompt: Ids, limit: int, stop: frozenset[int], pick: Callable[[F32], int]) -> Iterator[int]:
    """As :func:`greedy`, with `pick` choosing the next token from the logits (vocab_size,)."""
    row = engine.start(prompt)
    for index in range(limit):
        token = pick(row)
        yield token
        if token in stop:
            return
        if index + 1 < limit:
            row = engine.step(token)
