"""Whether two models can be compared: what is sealed of one is asked of the other."""

from __future__ import annotations

from edgekit.bundle.golden import golden_ids
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence.reference import Reference
from edgekit.errors import OptionError


def refuse_others(checkpoint: Checkpoint, parent: Checkpoint) -> None:
    """The same ids must mean the same, and as many logits must come out.

    Raises:
        OptionError: they do not.
    """
    sides = [golden_ids(load_tokenizer(one.root).encode) for one in (checkpoint, parent)]
    if sides[0] != sides[1] or checkpoint.spec.vocab_size != parent.spec.vocab_size:
        raise OptionError(
            f"{checkpoint.name} and {parent.name} do not have the same tokenizer and vocabulary "
            f"({checkpoint.spec.vocab_size} and {parent.spec.vocab_size} logits)",
            expected="a model and what it was trained from",
            remedy="leave --against out: each is compared with itself",
        )


def refuse_long(checkpoint: Checkpoint, answers: Reference) -> None:
    """What was sealed of a parent must fit into the model's context as well.

    Raises:
        OptionError: it does not.
    """
    prompts = (len(ids) + answers.meta.token_limit for ids in answers.prompts.lists())
    longest = max(answers.longest, *prompts)
    if longest > checkpoint.spec.context_length:
        raise OptionError(
            f"{checkpoint.name} has a context of {checkpoint.spec.context_length} tokens, and the reference's prompts "
            f"and their continuations take {longest}",
            expected="a model that can read what its parent read",
            remedy="leave --against out",
        )
