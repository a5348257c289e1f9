"""Reading strangers' answers: bounded, strict, and never shown as they came."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.devices.boards.base import Reader

MAX_TEXT = 1 << 16
"""Characters of an answer that are looked at."""
MAX_LINES = 2000
_SHOWN = 60
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?\Z")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Reading(Generic[T_co]):
    """A value, or None and why there is none."""

    value: T_co | None
    reason: str = ""


def shown(said: str, most: int = _SHOWN) -> str:
    """The start of what was said, fit for one line of a terminal: nothing unprintable, of a bounded length."""
    start = said[: 4 * most].strip()
    clean = "".join(c if c.isprintable() else "?" for c in start[:most])
    return clean + ("…" if len(start) > most else "")


def unknown(what: str, said: str | None) -> Reading[T]:
    """No value: `what` was asked, and this is what came back."""
    if said is None:
        return Reading(None, f"{what} gave no answer")
    return Reading(None, f"{what} says '{shown(said)}'" if said.strip() else f"{what} says nothing")


def lines(said: str) -> list[str]:
    """The first lines of a text, stripped, split at line feeds only."""
    return [line.strip() for line in said[:MAX_TEXT].split("\n", MAX_LINES)[:MAX_LINES]]


def number(said: str | None, low: float, high: float) -> float | None:
    """A plain decimal number from `low` to `high`; no exponent, no infinity, no digit of another script."""
    if said is None or len(said) > 64 or not _NUMBER.match(word := said.strip(" \t\r\n\0")):
        return None
    value = float(word)
    return value if low <= value <= high else None


def whole(said: str | None, low: int, high: int) -> int | None:
    """A plain whole number from `low` to `high`."""
    value = number(said, low, high)
    return int(value) if value is not None and value.is_integer() else None


def label(said: str | None) -> str | None:
    """A sensor's name as it can stand in a report: letters, digits and `_ . + -`, at most 40; else None."""
    word = (said or "")[:200].strip(" \t\r\n\0")
    return word if re.fullmatch(r"[A-Za-z0-9_.+-]{1,40}", word) else None


def words(said: str | None) -> str | None:
    """A short text as it can stand in a report, such as a model's name; None when empty."""
    clean = shown((said or "")[:MAX_TEXT].split("\n", 1)[0].rstrip("\0"), 120)
    return clean or None


def numbered(read: Reader, path: Callable[[int], str], *, most: int = 64, gaps: int = 3) -> Iterator[tuple[int, str]]:
    """Files that the kernel numbers from 0, with their text; ends after `gaps` numbers in a row without a file."""
    absent = 0
    for index in range(most):
        text = read(path(index))
        absent = absent + 1 if text is None else 0
        if text is not None:
            yield index, text
        elif absent >= gaps:
            return
