"""Lists of token ids of different lengths in two flat arrays, as a reference file stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.coherence.distribution import I32, Ids

Lists = Sequence[Sequence[int] | Ids]
"""Token ids, list by list."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of token ids of different lengths, in two arrays."""

    ids: I32
    """All lists one after the other."""
    lengths: I32

    def __len__(self) -> int:
        return len(self.lengths)

    def lists(self) -> list[Ids]:
        """Each list as its own array."""
        wide = self.ids.astype(np.int64)
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return [wide[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


def ragged(lists: Lists) -> Ragged:
    """Pack lists of ids that fit in int32."""
    flat = [np.asarray(ids, np.int32) for ids in lists]
    return Ragged(np.concatenate([np.empty(0, np.int32), *flat]), np.array([len(ids) for ids in flat], np.int32))
