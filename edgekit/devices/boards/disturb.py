"""What samples say against a measurement, whatever the board."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.devices.boards.base import Sample
from edgekit.targets import Target

_HONEST = 0.99
"""A clock is multiplied from a crystal and read with an error: 1 % below the named one is not below it."""


def common(target: Target, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Too hot, held down for heat, or never at the clock that the target asks for."""
    return tuple(filter(None, (_heat(target, samples), _cooling(samples), _clock(target, samples))))


def _heat(target: Target, samples: Sequence[Sample]) -> str:
    limit = target.thermal.throttle_c
    highest = max((sample.temp_c for sample in samples if sample.temp_c is not None), default=None)
    if limit is None or highest is None or highest < limit:
        return ""
    return f"{highest:.1f} °C reached; throttling begins at {limit:g} °C"


def _cooling(samples: Sequence[Sample]) -> str:
    steps = max((sample.cooling for sample in samples if sample.cooling is not None), default=0)
    return f"the kernel held the CPU's clock down for heat (by up to {steps} steps)" if steps else ""


def _clock(target: Target, samples: Sequence[Sample]) -> str:
    least = target.probe.clock_min_mhz
    highest = max((sample.clock_mhz for sample in samples if sample.clock_mhz is not None), default=None)
    if not least or highest is None or highest >= _HONEST * least:
        return ""
    return f"the clock never rose above {highest:.0f} MHz; the target says {least} MHz"
