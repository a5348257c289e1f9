"""Energy from readings of power, or of an energy counter. Where the readings do not carry it there is no figure."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Sequence

import msgspec

from edgekit.devices.boards.base import Scope

Point = tuple[float, float]
"""Seconds, and watts or joules."""
_LEAST = 2
"""Readings inside the interval."""
_REACH = 2.0
"""Reading intervals for which a reading stands beyond the first and the last one."""
_GAP = 5.0
"""Reading intervals without a reading after which nothing is known of the time between."""
_ALWAYS = 0.5
"""Seconds that are never a gap, however fast the readings."""


class Energy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Energy of one interval; `joules` is None where it was not measured, and `reason` says why."""

    joules: float | None
    scope: Scope = ""
    readings: int = 0
    """Inside the interval."""
    reason: str = ""


def of_power(points: Sequence[Point], begin: float, end: float, scope: Scope) -> Energy:
    """Joules from `begin` to `end` by the trapezoid rule over readings of watts, in the order of their times.

    At both ends the power is interpolated between the neighbouring readings; beyond the first and the last one it is
    theirs for as long as two readings are apart (median), no longer.
    """
    if fault := _fault(points, begin, end):
        return Energy(joules=None, scope=scope, readings=len(_inside(points, begin, end)), reason=fault)
    inside = _inside(points, begin, end)
    line = [(begin, _at(points, begin)), *inside, (end, _at(points, end))]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(line))
    return Energy(joules=area, scope=scope, readings=len(inside))


def of_counter(points: Sequence[Point], begin: float, end: float, scope: Scope) -> Energy:
    """Joules from `begin` to `end` by a counter of joules, interpolated between its readings."""
    inside = _inside(points, begin, end)
    if fault := _fault(points, begin, end):
        return Energy(joules=None, scope=scope, readings=len(inside), reason=fault)
    return Energy(joules=_at(points, end) - _at(points, begin), scope=scope, readings=len(inside))


def _inside(points: Sequence[Point], begin: float, end: float) -> Sequence[Point]:
    return points[bisect.bisect_left(points, begin, key=_time) : bisect.bisect_right(points, end, key=_time)]


def _fault(points: Sequence[Point], begin: float, end: float) -> str:
    if not points:
        return "no power was measured"
    inside = _inside(points, begin, end)
    if len(inside) < _LEAST:
        return f"{len(inside)} power readings in {max(0.0, end - begin):.3g} s: too few for an energy"
    apart = statistics.median(b[0] - a[0] for a, b in itertools.pairwise(inside))
    reach, longest = max(_REACH * apart, _ALWAYS), max(_GAP * apart, _ALWAYS)
    if begin < points[0][0] - reach or end > points[-1][0] + reach:
        return "power was not measured from the beginning to the end"
    low = max(bisect.bisect_left(points, begin, key=_time) - 1, 0)
    high = bisect.bisect_right(points, end, key=_time) + 1
    gap = max(b[0] - a[0] for a, b in itertools.pairwise(points[low:high]))
    return f"power was not measured for {gap:.1f} s of it" if gap > longest else ""


def _at(points: Sequence[Point], t: float) -> float:
    """The value at `t`, on the line between its neighbours, or the nearest one beyond the ends."""
    place = bisect.bisect_left(points, t, key=_time)
    if place == 0 or place == len(points):
        return points[min(place, len(points) - 1)][1]
    (t0, v0), (t1, v1) = points[place - 1], points[place]
    return v1 if t1 <= t0 else v0 + (v1 - v0) * (t - t0) / (t1 - t0)


def _time(point: Point) -> float:
    return point[0]
