"""Code of compilers' and C libraries' own that may hold what the target lacks: library_code.toml, found in a file."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.crossbuild.elf import Code, Symbols
from edgekit.crossbuild.isa import Found

_FAR = 64
"""Words within which other scalable vectors show that a piece does not stand `alone`."""


class Piece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of library_code.toml, which explains the keys."""

    name: str
    features: tuple[str, ...]
    words: tuple[str, ...] = ()
    alone: bool = False
    functions: tuple[str, ...] = ()
    reason: str
    source: str


@cache
def pieces() -> tuple[Piece, ...]:
    """All entries."""
    text = resources.files("edgekit.crossbuild").joinpath("library_code.toml").read_text(encoding="utf8")
    return msgspec.convert(tomllib.loads(text), dict[str, tuple[Piece, ...]])["code"]


def kept_functions() -> tuple[str, ...]:
    """Functions that are known by name only: a program with libc inside must keep these names when it is stripped.

    `ld --retain-symbols-file` with these lines keeps them and no others.
    """
    return tuple(name for piece in pieces() for name in piece.functions)


def excused(code: Code, found: Found, symbols: Symbols) -> dict[str, NDArray[np.bool_]]:
    """For each name of an entry, which of the instructions `found` in `code` it covers."""
    features = np.array([instruction.feature for instruction in found.instructions] or [""])[found.which]
    covered: dict[str, NDArray[np.bool_]] = {}
    for piece in pieces():
        fits = np.isin(features, piece.features)
        if not fits.any():
            continue
        here = fits & (_named(piece, code, found, symbols) if piece.functions else _spelt(piece, code, found))
        if piece.alone:
            here &= ~_beside_others(found, features, here)
        if here.any():
            covered[piece.name] = covered.get(piece.name, np.zeros(len(here), bool)) | here
    return covered


def _named(piece: Piece, code: Code, found: Found, symbols: Symbols) -> NDArray[np.bool_]:
    addresses = code.address + 4 * found.at
    inside = np.zeros(len(addresses), bool)
    for name in piece.functions:
        for start, end in symbols.spans(name):
            inside |= (addresses >= start) & (addresses < end)
    return inside


def _spelt(piece: Piece, code: Code, found: Found) -> NDArray[np.bool_]:
    """Which instructions are a part of the sequence; each is tried as every word of it."""
    masks, values = zip(*map(_mask_and_value, piece.words), strict=True)
    mask, value = np.array(masks, np.uint32), np.array(values, np.uint32)
    part = np.zeros(len(found.at), bool)
    for offset in range(len(mask)):
        start = found.at - offset
        whole = (start >= 0) & (start + len(mask) <= len(code.words))
        places = np.flatnonzero(whole)
        if len(places):
            rows = code.words[start[places, None] + np.arange(len(mask))]
            part[places] |= ((rows & mask) == value).all(axis=1)
    return part


def _mask_and_value(word: str) -> tuple[int, int]:
    if word == "?":
        return 0, 0
    value, _, mask = word.partition("/")
    return int(mask or "FFFFFFFF", 16), int(value, 16)


def _beside_others(found: Found, features: NDArray[np.str_], here: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which instructions have another that uses scalable vectors, and is not `here` itself, within _FAR words."""
    others = found.at[np.char.startswith(features, "sve") & ~here]
    if not len(others):
        return np.zeros(len(here), bool)
    after = np.searchsorted(others, found.at - _FAR)
    return (after < len(others)) & (others[np.minimum(after, len(others) - 1)] <= found.at + _FAR)
