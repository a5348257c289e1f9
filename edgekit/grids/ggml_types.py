"""The GGUF tensor types edgekit writes: the one table of their ids and sizes (source: `ggml.h`, `ggml-common.h`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """One tensor type of a GGUF file."""

    name: str
    id: int
    """Number of the type in a GGUF header."""
    block: int
    """Weights in one block; a row is a whole number of blocks."""
    block_bytes: int
    nominal_bits: int
    """Bits of one code, without scales."""

    @property
    def bits(self) -> float:
        """Bits per weight in the file, scales included."""
        return 8 * self.block_bytes / self.block


TYPES: dict[str, GgmlType] = {
    kind.name: kind
    for kind in (
        GgmlType("F32", 0, 1, 4, 32),
        GgmlType("F16", 1, 1, 2, 16),
        GgmlType("BF16", 30, 1, 2, 16),
        GgmlType("Q8_0", 8, 32, 34, 8),
        GgmlType("Q6_K", 14, 256, 210, 6),
        GgmlType("Q5_K", 13, 256, 176, 5),
        GgmlType("Q5_1", 7, 32, 24, 5),
        GgmlType("Q5_0", 6, 32, 22, 5),
        GgmlType("Q4_K", 12, 256, 144, 4),
        GgmlType("Q4_1", 3, 32, 20, 4),
        GgmlType("Q4_0", 2, 32, 18, 4),
        GgmlType("IQ4_NL", 20, 32, 18, 4),
        GgmlType("Q3_K", 11, 256, 110, 3),
        GgmlType("IQ3_S", 21, 256, 110, 3),
        GgmlType("IQ3_XXS", 18, 256, 98, 3),
        GgmlType("Q2_0", 42, 64, 18, 2),
    )
}
"""By name, most bits first."""


def type_of_id(number: int) -> GgmlType | None:
    """The type with that number in a GGUF header; None when edgekit does not know it."""
    return next((kind for kind in TYPES.values() if kind.id == number), None)
