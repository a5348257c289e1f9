"""Facts of the machine that several places need."""

from __future__ import annotations

import ctypes
import mmap
import os


def cores() -> int:
    """Physical cores this process may use, at least 1: more threads than that make decoding slower, not faster."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps what large tensors leave behind, gigabytes after a long stage."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl and macOS have none
    if trim is not None:
        trim(0)


def require_room(mib: int) -> None:
    """Refuse to go on unless `mib` MiB of address space are free: OpenBLAS, loaded with less, tries again for ever.

    Nothing is written to what is asked for, so it costs no memory.

    Raises:
        OSError: there is less (ENOMEM).
    """
    mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
