"""A connection that is lost is waited for, ever less often, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from edgekit.devices.base import Device, UnreachableError
from edgekit.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a lost connection is waited for, and how often the board is looked at; seconds."""

    lost_s: float = 900.0
    first_s: float = 1.0
    """Before the second try, and between the first two looks."""
    longest_s: float = 15.0
    """Looking costs the board a few ms of CPU time, which a measurement may feel."""


def patiently(
    device: Device,
    progress: Progress,
    patience: Patience,
    work: Callable[[], T],
    back: Callable[[], None] | None = None,
) -> T:
    """Do `work`, and do it again while the connection is lost, ever less often; before that, once it is back, `back`.

    Raises:
        UnreachableError: it was lost for too long.
    """
    lost, wait = 0.0, patience.first_s
    while True:
        again = time.monotonic()
        try:
            if lost and back is not None:
                back()
                again = time.monotonic()
            return work()
        except UnreachableError as error:
            now = time.monotonic()
            if lost and back is not None and now - again > patience.lost_s:  # it was back for long: another cut
                lost, wait = 0.0, patience.first_s
            if not lost:
                progress.note(f"{error.found}; trying again")
            lost = lost or now
            if now - lost > patience.lost_s:
                raise
        device.cancel.wait(wait)
        wait = min(2 * wait, patience.longest_s)
