"""What every board answers, and the two callables through which it is asked.

A board is asked only through a :data:`Reader` and a :data:`Runner`, so the same adapter works on the machine itself,
over ssh and on recorded answers. Whatever they return is a stranger's: nothing of it is believed before it has the form
that is expected, and nothing of it is shown before :func:`edgekit.devices.boards.reading.shown` has cleaned it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

Reader = Callable[[str], str | None]
"""Text of a file on the board, None when it is absent or cannot be read."""
Runner = Callable[[Sequence[str]], str | None]
"""What a command on the board prints, None when it is not there or fails."""
Clock = Callable[[], float]
"""Seconds that never jump: time.monotonic, or the fake of a test."""
Scope = Literal["", "soc", "board", "wall"]
"""What a power figure covers; figures of different scopes are never compared or added."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the sensors said once. A figure that is None was not measured; `missing` says why."""

    t: float
    """Seconds of the sampler's clock; the middle of the power reading."""
    took_s: float = 0.0
    """Seconds until all had answered."""
    full: bool = True
    """All sensors were asked; otherwise power alone."""
    temp_c: float | None = None
    """Hottest sensor of the chip."""
    clock_mhz: float | None = None
    """Fastest core."""
    power_w: float | None = None
    """Of the scope that :attr:`BoardFacts.power_scope` names."""
    wall_estimate_w: float | None = None
    """Computed from the rails with the target's formula: an estimate, never a measurement, never part of an energy."""
    energy_j: float | None = None
    """Where the board has an energy counter: joules since this adapter read it first."""
    rails_w: dict[str, float] = {}
    supply_v: float | None = None
    """At the board's input."""
    throttled: int | None = None
    """Raspberry Pi: bits of `vcgencmd get_throttled`."""
    cooling: int | None = None
    """Linux: steps by which the kernel holds the CPU's clock down for heat; 0 is none."""
    events: dict[str, int] = {}
    """Jetson: over-current and under-voltage events since boot, by counter."""
    missing: tuple[str, ...] = ()
    """What was asked and gave no figure, in words."""


class BoardFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a board says it is and how it is set. None is unknown; `notes` says what a reader has to know."""

    adapter: str
    """Which adapter asked: raspberry_pi, jetson or linux_arm."""
    model: str | None = None
    """Of the device tree."""
    firmware: str | None = None
    """Raspberry Pi: bootloader and VideoCore firmware. Jetson: L4T."""
    governor: str | None = None
    """cpufreq governor; several are joined by a comma."""
    jetpack: str | None = None
    power_mode: str | None = None
    """Jetson: of `nvpmodel -q`."""
    clocks_pinned: bool | None = None
    """Jetson: `jetson_clocks` holds CPU and GPU at their highest clock."""
    power_sensor: str | None = None
    """Who measures power; None: nobody, and no figure stands for it."""
    power_scope: Scope = ""
    power_rails: tuple[str, ...] = ()
    """Rails that are added up."""
    supply_v: float | None = None
    throttled: int | None = None
    read_gbps: Annotated[dict[int, float], Meta(max_length=64)] | None = None
    """Threads → 10⁹ bytes per second read in order, by a short test before the measurement."""
    read_gbps_reason: str = ""
    """Why `read_gbps` is None; empty also where it was never asked for."""
    changed: Annotated[dict[str, str], Meta(max_length=16)] = {}
    """Settings that were changed as root for the measurement and set back after it, "before → then"."""
    notes: tuple[str, ...] = ()


class Board(Protocol):
    """The sensors of one board. No method raises for what the board says: unknown is None with a reason."""

    name: str

    def facts(self) -> BoardFacts:
        """What the board is and how it is set; may take a second, so not during a measurement."""
        ...

    def sample(self, *, full: bool = True) -> Sample:
        """Ask the sensors once; not `full`: only what power needs."""
        ...

    def disturbance(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """What spoiled a measurement beside which `samples` (first before it, last after it) were taken, in words."""
        ...
