"""The fake engine of the coherence tests: a bigram table, so that every expected figure can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.coherence.reference import Origin, Reference, seal

F32 = NDArray[np.float32]
Ids = NDArray[np.int64]

ORIGIN = Origin(
    model="bigram",
    model_sha256="a" * 64,
    seed=7,
    text="self-generated",
    text_sha256="b" * 64,
    versions={"edgekit": "0"},
)


def f32(values: Any) -> F32:
    return np.array(values, np.float32)


class Bigram:
    """The next token depends on the last one alone: row i of the table holds the logits after token i."""

    name = "bigram"

    def __init__(self, table: F32, max_context: int = 512) -> None:
        self.table, self.max_context = table.astype(np.float32), max_context
        self.vocab_size = len(table)
        self.asked: list[int] = []

    def logits(self, ids: Ids) -> F32:
        self.asked.append(len(ids))
        return np.take(self.table, ids, axis=0)

    def start(self, ids: Ids) -> F32:
        return self.step(int(ids[-1]))

    def step(self, token: int) -> F32:
        return np.asarray(self.table[token])

    def close(self) -> None:
        pass


def table(vocab_size: int, seed: int = 0, sharpness: float = 3.0) -> F32:
    """Logits (V, V) with structure: a few likely successors of each token and a long tail."""
    random = np.random.default_rng(seed)
    return (sharpness * random.standard_normal((vocab_size, vocab_size))).astype(np.float32)


def text(vocab_size: int, n: int = 6, length: int = 24, seed: int = 1) -> list[list[int]]:
    made: list[list[int]] = np.random.default_rng(seed).integers(0, vocab_size, (n, length)).tolist()
    return made


def sealed(engine: Bigram, n: int = 6, length: int = 24, k: int = 16, tokens: int = 40) -> Reference:
    prompts = [[i % engine.vocab_size] for i in range(5)]
    return seal(
        engine,
        text(engine.vocab_size, n, length),
        prompts,
        origin=ORIGIN,
        k=k,
        continuation_tokens=tokens,
        stop=frozenset({0}),
    )


def test_the_fake_engine_has_structure() -> None:
    """Its mean entropy is at most half of ln V, else tests of divergence would prove little."""
    logits = table(64).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert -(p * np.log(p)).sum(axis=1).mean() < 0.5 * np.log(64)
