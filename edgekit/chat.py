"""A prompt in, streamed text out, on any engine. Runs on the board."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from edgekit.bundle.tokenizer import Tokenizer
from edgekit.engines.base import F32, Engine, sample
from edgekit.errors import BadWeightsError, OptionError, TokenizerError
from edgekit.sampling import draw


def generate_text(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    system: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Text that the model answers to `prompt`, in pieces of whole characters, until the end of its turn.

    With a chat template the prompt is one user message; without one the text is continued as it stands. Everything is
    checked before this returns; the engine runs as the iterator is read. At most `max_tokens` tokens are made, fewer
    when the engine's context is full.

    Args:
        engine: a loaded model with `tokenizer`'s vocabulary.
        tokenizer: from :func:`edgekit.bundle.tokenizer.load_tokenizer`.
        prompt: what the user says.
        system: system message, only for models with a chat template.
        max_tokens: limit of new tokens.
        temperature: 0 takes the most probable token.
        top_p: nucleus: only the most probable tokens that together reach this probability are drawn from.
        seed: of the draws; equal seeds give equal text.

    Raises:
        OptionError: an option is out of range, or the prompt is empty or does not fit the engine's context.
        TokenizerError: the template refuses the prompt, or tokenizer and model do not belong together.
        BadWeightsError: while reading, the engine returns logits that are not numbers.
    """
    pick = picker(temperature=temperature, top_p=top_p, seed=seed)
    if max_tokens < 1:
        raise OptionError(f"max_tokens is {max_tokens}", expected="at least 1", remedy="give a positive number")
    ids = prompt_ids(tokenizer, prompt, system=system)
    _check_fit(engine, ids)
    limit = min(max_tokens, engine.max_context - len(ids))
    stop = tokenizer.stop_ids
    tokens = sample(engine, np.asarray(ids, dtype=np.int64), limit, stop, pick)
    return tokenizer.stream(token for token in tokens if token not in stop)


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, system: str | None = None) -> list[int]:
    """Ids of one user turn, through the chat template when there is one.

    Raises:
        OptionError: a system message is given to a model without a chat template.
        TokenizerError: the template is broken or refuses the messages.
    """
    if tokenizer.template is None:
        if system is not None:
            raise OptionError(
                "the model has no chat template for a system message", remedy="leave the system message out"
            )
        return tokenizer.encode(prompt, add_special_tokens=True)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return tokenizer.chat_ids([*messages, {"role": "user", "content": prompt}])


def picker(*, temperature: float, top_p: float, seed: int) -> Callable[[F32], int]:
    """A function from logits (vocab_size,) to the next token.

    The largest with temperature 0, else :func:`edgekit.sampling.draw` with numpy's PCG64 seeded by `seed`.

    Raises:
        OptionError: temperature below 0, top_p outside (0, 1], negative seed, or not a number.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise OptionError(f"temperature is {temperature}", expected="0 or more", remedy="0 is the most probable token")
    if not 0 < top_p <= 1:
        raise OptionError(f"top_p is {top_p}", expected="more than 0 and at most 1", remedy="1 leaves it out")
    if seed < 0:
        raise OptionError(f"the seed is {seed}", expected="0 or more", remedy="give a whole number")
    draws = np.random.default_rng(seed)

    def pick(row: F32) -> int:
        if not np.isfinite(row.max()):
            raise BadWeightsError("the engine returned logits that are not numbers", remedy="build the bundle again")
        return int(row.argmax()) if temperature == 0 else draw(row, draws, temperature, top_p)

    return pick


def _check_fit(engine: Engine, ids: list[int]) -> None:
    if not ids:
        raise OptionError("the prompt is empty", expected="some text", remedy="say something to the model")
    if len(ids) >= engine.max_context:
        raise OptionError(
            f"the prompt is {len(ids)} tokens long",
            expected=f"fewer than the {engine.max_context} tokens of the engine's context",
            remedy="shorten the prompt or load the model with a longer context",
        )
    if (largest := max(ids)) >= engine.vocab_size:
        raise TokenizerError(
            f"the prompt has the token id {largest} but the model knows {engine.vocab_size} tokens",
            remedy="use the tokenizer that belongs to the model",
        )
