"""Numbers and strangers' text as people read them, the same way in the HTML report and in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from edgekit.coherence.scoring import ItemScores
from edgekit.report.model import Runtime

NOT_MEASURED = "not measured"
TEXT_LIMIT = 4000
"""Characters of one string that are shown; a model decides how long its samples and names are."""

_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def shown(value: float | None, text: str) -> str:
    """`text`, or words where the number is missing (None) or not finite."""
    if value is None:
        return NOT_MEASURED
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return text


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, scientific below 0.0001 and from a million on."""
    if value is None or not math.isfinite(value):
        return shown(value, "")
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-4 <= size < 1e6:
        return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.{digits - 1}e}")
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def percent(value: float | None) -> str:
    """A share from 0 to 1; one that falls short of all or exceeds nothing never reads 100 % or 0 %."""
    if value is None or not math.isfinite(value):
        return shown(value, "")
    if 0.9999 < value < 1:
        return "> 99.99 %"
    if 0 < value < 0.0001:
        return "< 0.01 %"
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"


_WAYS = {"trained": "training", "learned": "learned rounding", "GPTQ": "GPTQ", "own": "the format's own quantizer"}


def chosen_by(codes: Mapping[str, float]) -> str:
    """Who chose the codes of how much of the weights."""
    return ", ".join(f"{_WAYS.get(way, way)} {percent(share)}" for way, share in codes.items()) or "not recorded"


def rise(value: float | None) -> str:
    """Difference of two shares, as the gates write it."""
    return shown(value, "" if value is None else f"{value:+.3f}")


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval, or why there is none."""
    if low is None or high is None:
        return "none (one sequence)"
    return f"{number(low)} to {number(high)}"


def points(low: float, high: float) -> str:
    """An interval of a difference of two shares, in percentage points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def answers(found: ItemScores) -> str:
    """Accuracy and flips in one sentence; the interval is that of the difference, in questions."""
    n, low, high = found.items, found.accuracy_difference_low, found.accuracy_difference_high
    difference = f"{found.right_engine - found.right_reference:+,}"
    cause = "a loss beyond chance" if high < 0 else "a gain beyond chance" if low > 0 else "chance can explain it"
    return (
        f"Answers {found.right_engine:,} of {n:,} questions right, the original {found.right_reference:,} (difference "
        f"{difference}, 95 % interval {round(n * low):+,} to {round(n * high):+,}: {cause}); "
        f"changes its mind on {found.flips:,} ({percent(found.flip_share)})."
    )


def mebibytes(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.1f} MiB"


def millions(count: int) -> str:
    """Parameters."""
    return f"{count / 1e6:,.1f} million" if count >= 1e5 else f"{count:,}"


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text` without control characters, cut after `limit` characters with a word on what is left out."""
    kept = _UNSHOWABLE.sub("\ufffd", text[:limit])
    return kept if len(text) <= limit else f"{kept}… [{len(text) - limit:,} characters left out]"


def common_length(first: str, second: str) -> int:
    """Characters that two texts begin with in common, back to the last word that is whole in both."""
    pairs = zip(first, second, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    if same == len(first) == len(second):
        return same
    while 0 < same < max(len(first), len(second)) and not (first + " ")[same - 1].isspace():
        same -= 1
    return same


def runtime(found: Runtime) -> str:
    """What the bundle carries to run on its board, in one sentence."""
    what = f"{found.compiled}, " if found.compiled else ""
    started = "started on an emulated CPU of the target" if found.started == "started" else found.started
    return (
        f"{what}{found.wheels} wheels for Python {found.python}, {found.bytes / 1e6:.1f} MB, "
        f"glibc {found.glibc} or newer; {started}"
    )
