"""Does the artefact still speak sense here? Asked of the sealed reference, and of what it said where it was built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from edgekit.bench.plan import Protocol
from edgekit.bench.result import AgainstHost
from edgekit.coherence.engine_calls import Progress, checked_greedy
from edgekit.coherence.generation import compare_continuations
from edgekit.coherence.metrics import Coherence, evaluate
from edgekit.coherence.ragged import Ragged, ragged
from edgekit.coherence.reference import Reference
from edgekit.engines.base import Engine

Decoder = Callable[[Sequence[int]], str]
_CUT = "\ufffd"
"""What stands for a character whose last bytes are not there yet."""


class Asked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a reference is used."""

    sequences: int
    sequence_tokens: int
    prompts: int
    continuation_tokens: int
    items: bool


class Judged(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine said."""

    begin: float
    end: float
    coherence: Coherence
    whole: bool
    """Whether all of the reference was used, its questions aside."""
    against_host: AgainstHost | None
    texts: tuple[str, ...]


def asked(chosen: Protocol) -> Asked:
    """What a protocol asks."""
    return msgspec.convert(chosen, Asked, from_attributes=True)


def shortened(reference: Reference, want: Asked) -> Reference:
    """The first tokens of the first sequences and prompts. What a model says of a token depends on no later one."""
    sequences = [ids[: want.sequence_tokens] for ids in reference.sequences.lists()[: want.sequences or 1]]
    kept = [
        np.arange(rows.start, rows.start + len(ids) - 1)
        for ids, rows in zip(sequences, reference.sequence_rows(), strict=False)
    ]
    prompts = reference.prompts.lists()[: want.prompts]
    limit = min(want.continuation_tokens, reference.meta.token_limit)
    made = [ids[:limit] for ids in reference.continuations.lists()[: want.prompts]]
    lists = ragged(sequences), ragged(prompts), ragged(made)
    meta = msgspec.structs.replace(reference.meta, token_limit=limit, **_counts(*lists))
    positions = reference.positions.rows(np.concatenate(kept))  # type: ignore[arg-type]
    answers = reference.answers if want.items else None
    return Reference(meta, lists[0], positions, lists[1], lists[2], answers)


def _counts(sequences: Ragged, prompts: Ragged, made: Ragged) -> dict[str, int]:
    return {
        "sequences": len(sequences), "sequence_tokens": len(sequences.ids), "prompts": len(prompts),
        "prompt_tokens": len(prompts.ids), "continuation_tokens": len(made.ids),
    }  # fmt: skip


def judged(
    engine: Engine,
    reference: Reference,
    want: Asked,
    decode: Decoder,
    host: Sequence[str],
    clock: Callable[[], float],
    progress: Progress | None = None,
    *,
    host_ids: Sequence[Sequence[int]] = (),
) -> Judged:
    """Ask `engine` what the protocol wants.

    Args:
        engine: with a context of at least `reference.longest` tokens.
        reference: the whole of it.
        want: how much of it is used.
        decode: ids to text, special tokens left out.
        host: texts of the same artefact's greedy continuations of the first prompts, from where it was built; only
            looked at without `host_ids`.
        clock: seconds.
        progress: called after every sequence, prompt and item.
        host_ids: token ids of those continuations, which a bundle seals.

    Raises:
        ParityError: vocabularies differ, or the engine returns NaN, infinity or a wrong shape.
    """
    begin, part = clock(), shortened(reference, want)
    total = len(part.sequences) + len(part.prompts) + (len(part.answers.questions) if part.answers else 0)
    done = 0

    def advance(*_: int) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    coherence = evaluate(engine, part, progress=advance, generate=False)
    limit, made = part.meta.token_limit, []
    for index, prompt in enumerate(part.prompts.lists()):
        made.append(checked_greedy(engine, prompt, limit, part.stop, index))
        advance()
    if made:
        theirs = [ids.tolist() for ids in part.continuations.lists()]
        generation = compare_continuations(theirs, made, part.stop, limit)
        coherence = msgspec.structs.replace(coherence, generation=generation)
    return Judged(
        begin=begin, end=clock(), coherence=coherence, whole=len(part.positions.next_logp) == _positions(reference),
        against_host=against_host_ids(made, host_ids) or against_host(made, host, decode),
        texts=tuple(decode(ids) for ids in made),
    )  # fmt: skip


def _positions(reference: Reference) -> int:
    return len(reference.positions.next_logp)


def against_host(made: Sequence[Sequence[int]], host: Sequence[str], decode: Decoder) -> AgainstHost | None:
    """Token by token: the first token after which the text made here is no beginning of the host's text.

    For bundles that do not seal the host's tokens, whose report has its text: two token lists with one text count as
    the same. A continuation that ends here earlier than on the host, before its limit, parts at its end.

    Returns:
        None when there is nothing to compare.
    """
    pairs = list(zip(made, host, strict=False))
    if not pairs:
        return None
    parted = tuple(_parted(ids, text, decode) for ids, text in pairs)
    return AgainstHost(
        prompts=len(pairs), first_divergent_token=parted, compared_tokens=tuple(len(ids) for ids, _ in pairs),
        identical_share=sum(index is None for index in parted) / len(pairs),
    )  # fmt: skip


def against_host_ids(made: Sequence[Sequence[int]], host: Sequence[Sequence[int]]) -> AgainstHost | None:
    """Token by token: the first one that is another than the host's, which may have gone on for longer.

    Returns:
        None when there is nothing to compare.
    """
    pairs = list(zip(made, host, strict=False))
    if not pairs:
        return None
    parted = tuple(
        next((i for i, token in enumerate(ids) if i >= len(theirs) or token != theirs[i]), None)
        for ids, theirs in pairs
    )
    return AgainstHost(
        prompts=len(pairs), first_divergent_token=parted, compared_tokens=tuple(len(ids) for ids, _ in pairs),
        identical_share=sum(index is None for index in parted) / len(pairs),
    )  # fmt: skip


def _parted(ids: Sequence[int], text: str, decode: Decoder) -> int | None:
    for index in range(len(ids)):
        if not text.startswith(decode(ids[: index + 1]).rstrip(_CUT)):
            return index
    return None
