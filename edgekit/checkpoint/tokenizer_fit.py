"""Do the tokenizer and the embedding of a checkpoint belong together?"""

from __future__ import annotations

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import TokenizerError


def refuse_misfit(checkpoint: Checkpoint) -> None:
    """Raise TokenizerError when there is no readable tokenizer, or when it has token ids that the embedding has not.

    The other way round is common and harmless: embeddings are often padded to a round number of rows.
    """
    ids = load_tokenizer(checkpoint.root).backend.get_vocab(with_added_tokens=True).values()
    highest, rows = max(ids, default=-1), checkpoint.spec.vocab_size
    if highest >= rows:
        raise TokenizerError(
            f"the tokenizer has token ids up to {highest} but the embedding has {rows} rows",
            expected="no id beyond the embedding",
            remedy="use the tokenizer that belongs to this checkpoint",
        )
