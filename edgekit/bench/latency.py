"""How long an engine takes to read a prompt, to generate, to answer end to end. Single measurements, no statistics.

What is counted is what llama-bench counts (llama.cpp, tools/llama-bench): pp is one prompt read at once into an empty
context, tg is tokens generated one by one from an empty context, without sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from msgspec import Struct

from edgekit.bundle.tokenizer import Tokenizer
from edgekit.chat import generate_text
from edgekit.engines.base import F32, Engine, Ids
from edgekit.errors import OptionError

Clock = Callable[[], float]
TEMPERATURE, TOP_P = 0.8, 0.95
"""Of the answers end to end: common settings, so that sampling costs what it costs a user."""
QUESTION = "Tell a long story about a small robot that lives in a lighthouse by the sea."
_SEED = 0


class Reading(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt; times in seconds of the monotonic clock, which all processes of a machine share."""

    begin: float
    encode: float
    """Seconds of tokenising."""
    prefill: float
    """Seconds of the engine."""
    choose: float
    """Seconds of choosing the first token."""
    end: float


class Generating(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens one by one."""

    begin: float
    end: float
    tokens: tuple[float, ...]
    """Seconds of each."""


class Talking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer."""

    begin: float
    first_text: float
    """Seconds to the first piece of text."""
    end: float
    prompt_tokens: int
    tokens: tuple[float, ...]
    """Seconds between one token and the next, so one fewer than new tokens."""


def read_prompt(
    engine: Engine, encode: Callable[[str], Sequence[int]], text: str, tokens: int, *, clock: Clock = time.monotonic
) -> Reading:
    """Tokenise `text`, read its first `tokens` tokens into an empty context, choose the next.

    Raises:
        OptionError: the text has fewer tokens.
    """
    begin = clock()
    ids = encode(text)
    encoded = clock()
    if len(ids) < tokens:
        raise OptionError(f"the prompt has {len(ids)} tokens", expected=f"at least {tokens}")
    prompt = np.asarray(ids[:tokens], dtype=np.int64)
    ready = clock()
    row = engine.start(prompt)
    read = clock()
    _ = int(row.argmax())
    end = clock()
    return Reading(begin=begin, encode=encoded - begin, prefill=read - ready, choose=end - read, end=end)


def generate(engine: Engine, tokens: int, *, clock: Clock = time.monotonic) -> Generating:
    """Generate from an empty context: `tokens` steps, each fed a token of a fixed random list."""
    fed = np.random.default_rng(_SEED).integers(engine.vocab_size, size=tokens, dtype=np.int64)
    taken, begin = [], clock()
    before = begin
    for index, token in enumerate(fed.tolist()):
        if index:
            engine.step(token)
        else:
            engine.start(fed[:1])
        after = clock()
        taken.append(after - before)
        before = after
    return Generating(begin=begin, end=before, tokens=tuple(taken))


def talk(engine: Engine, tokenizer: Tokenizer, tokens: int, *, clock: Clock = time.monotonic) -> Talking:
    """Answer a fixed question with `tokens` tokens through everything a user goes through (:mod:`edgekit.chat`).

    The end of the model's turn does not end it, so that every answer has the same length; the context may.
    """
    endless, watched = replace(tokenizer, stop_ids=frozenset()), _Watched(engine, clock)
    begin = clock()
    pieces = generate_text(
        watched, endless, QUESTION, max_tokens=tokens, temperature=TEMPERATURE, top_p=TOP_P, seed=_SEED
    )
    first: float | None = None
    for _ in pieces:
        first = first or clock()
    end = clock()
    stamps = watched.stamps
    gaps = tuple(later - earlier for earlier, later in pairwise(stamps))
    return Talking(
        begin=begin, first_text=(first or end) - begin, end=end, prompt_tokens=watched.prompt_tokens, tokens=gaps
    )


class _Watched:
    """An engine that notes when the logits of each token were there."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.name, self.vocab_size, self.max_context = engine.name, engine.vocab_size, engine.max_context
        self.stamps: list[float] = []
        self.prompt_tokens = 0
        self._engine, self._clock = engine, clock

    def logits(self, ids: Ids) -> F32:
        return self._engine.logits(ids)

    def start(self, ids: Ids) -> F32:
        self.prompt_tokens = len(ids)
        row = self._engine.start(ids)
        self.stamps.append(self._clock())
        return row

    def step(self, token: int) -> F32:
        row = self._engine.step(token)
        self.stamps.append(self._clock())
        return row

    def close(self) -> None:
        """The engine stays open: it belongs to who opened it."""
