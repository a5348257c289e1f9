"""Does the artefact say what the original says? Every check names what differs; a failure stops the build."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle.golden import Golden, check_golden, write_golden
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.coherence.distribution import kl_full
from edgekit.engines.base import Engine, Ids
from edgekit.errors import ParityError, TokenizerError
from edgekit.export.gguf_vocab import normal_form

if TYPE_CHECKING:  # torch takes a second and 180 MiB: only who has a model open needs it
    from edgekit.engines.torch import TorchEngine

FULL_PRECISION_LIMIT = 1e-4
ACTIVATION_LIMIT = 0.015
"""Nats. int8 activations alone cost 0.004 on SmolLM2-135M; three times that and more is a fault, not rounding."""

Logits = Sequence[F32]
Encode = Callable[[str], list[int]]


def _original(root: Path) -> Any:
    """The tokenizer in transformers, the authority, with the rules that tokenizer.json states.

    AutoTokenizer would be wrong here: transformers 5 replaces the rules of a file whose configuration names
    LlamaTokenizer by those of that class, and so gives other ids than the model was trained with
    (transformers issue 45488).

    Raises:
        TokenizerError: transformers cannot load it.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would remark on the other class
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(root), local_files_only=True)
    except Exception as error:
        raise TokenizerError(
            f"transformers cannot load the tokenizer in {root} ({str(error).splitlines()[0][:200]})",
            remedy="save the tokenizer again with save_pretrained",
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def check_tokenizer(root: Path, shipped: Path, sides: dict[str, Encode]) -> Golden:
    """Compare token ids in transformers with those of the shipped tokenizer and of each engine that brings its own.

    An engine's own tokenizer is given text in the Unicode normal form that the tokenizer would bring it to, since
    llama.cpp has none; :func:`edgekit.export.gguf_vocab.caveat` tells the user.

    Args:
        root: the checkpoint.
        shipped: the bundle's tokenizer folder; golden.json is written there.
        sides: name → encode, special tokens recognised and none added.

    Returns:
        The golden corpus with the ids of transformers.

    Raises:
        ParityError: names the text and the first position that differs.
        TokenizerError: transformers cannot load the tokenizer.
    """
    original, ours = _original(root), load_tokenizer(shipped)

    def chat_ids(messages: Sequence[dict[str, str]]) -> list[int]:
        text = original.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(original.encode(text, add_special_tokens=False))

    expected = write_golden(
        shipped, lambda text: list(original.encode(text, add_special_tokens=False)),
        # A template that shows the date would give other ids tomorrow.
        chat_ids if ours.template is not None and "strftime_now" not in ours.template else None,
    )  # fmt: skip
    check_golden(expected, "the shipped tokenizer", ours.encode, ours.chat_ids)
    form = normal_form(shipped)
    for name, own in sides.items():

        def encode(text: str, own: Encode = own) -> list[int]:
            return own(unicodedata.normalize(form, text) if form else text)

        check_golden(expected, name, encode, lambda messages, encode=encode: encode(ours.chat_text(messages)))  # type: ignore[misc]
    return expected


def all_logits(engine: Engine, sequences: Iterable[Ids]) -> list[F32]:
    """Logits (T, V) of each sequence."""
    return [engine.logits(ids) for ids in sequences]


def mean_kl(original: Logits, other: Logits, sequences: Sequence[Ids], limit: float, what: str) -> float:
    """Mean exact KL divergence, nats, over all positions; `limit` is the largest allowed.

    Raises:
        ParityError: it is larger or not a number; names the token where the two differ most.
    """
    divergences = [
        kl_full(p, q) if p.shape == q.shape else np.array([np.inf]) for p, q in zip(original, other, strict=True)
    ]
    mean = float(np.concatenate(divergences).mean())
    if np.isfinite(mean) and mean <= limit:
        return max(mean, 0.0)
    worst = [float(np.nanmax(kl)) for kl in divergences]
    sequence = int(np.argmax(worst))
    position = int(np.argmax(divergences[sequence]))
    token = int(sequences[sequence][position])
    raise ParityError(
        f"{what}: KL divergence {mean:.2g} nats, worst {worst[sequence]:.2g} at sequence {sequence}, "
        f"position {position} (token {token})",
        expected=f"at most {limit:g}",
        remedy="the export is wrong, report this with the model's config.json",
    )


def dequantized_logits(
    torch_engine: TorchEngine, checkpoint: Checkpoint, weights: Iterable[tuple[str, F32]], sequences: Sequence[Ids]
) -> list[F32]:
    """What torch says when it computes in float32 with an artefact's weights; the original weights are put back."""
    changed: list[str] = []
    transposed = {tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.transposed}

    def noted() -> Iterable[tuple[str, F32]]:
        for name, array in weights:
            changed.append(name)
            yield name, array.T if name in transposed else array

    try:
        torch_engine.replace(noted())
        return all_logits(torch_engine, sequences)
    finally:
        wanted = set(changed)
        originals = ((t.hf, checkpoint.read(t)) for t in checkpoint.spec.tensors if t.hf in wanted)
        torch_engine.replace((name, array.T if name in transposed else array) for name, array in originals)
