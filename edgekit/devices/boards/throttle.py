"""The bits of `vcgencmd get_throttled` in words.

https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: bits 0 to 3 are now, 16 to 19 the same since
the board started; the latter stay until it is switched off.
"""

from __future__ import annotations

_NAMES = {0: "under-voltage", 1: "ARM clock capped", 2: "throttled", 3: "soft temperature limit reached"}
_STICKY = 16
NOW = 0xF
SINCE_BOOT = 0xF0000


def now(bits: int) -> tuple[str, ...]:
    """What is the case at this moment."""
    return tuple(name for bit, name in _NAMES.items() if bits >> bit & 1)


def since_boot(bits: int) -> tuple[str, ...]:
    """What has been the case since the board started."""
    return now(bits >> _STICKY)


def fresh(before: int, after: int, mask: int = SINCE_BOOT) -> tuple[str, ...]:
    """What happened between two readings of which the first did not have it yet; only bits of `mask` count."""
    return since_boot(after & ~before & mask)


def restarted(before: int, after: int) -> bool:
    """Whether a bit that only a restart clears was cleared."""
    return bool(before & ~after & SINCE_BOOT)
