"""How fast this machine reads memory in order: what bounds decoding.

Every thread takes the maximum of its own part of a buffer that no cache holds, with numpy: `np.maximum.reduce` over
int32 has vector code on x86 and Arm, computes less than any memory delivers, and lets the other threads run. The
figures are bytes of the buffer over seconds, 1 GB being 10**9 bytes. Only reading is measured: STREAM and `mbw` copy,
and count what they read and write, or one of the two.

It reads no slower than a loop in C that sums 64-bit words (`python -m benchmarks.read_bandwidth`, in turns). numpy
asks for huge pages, as the loop does; the pages of a mapped model file are small.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

_CACHES = 8
"""Times the largest cache: of a buffer read again and again, at most an eighth can come from it."""
_LEAST = 4
"""Times the largest cache, below which the figure would be the cache's."""
_USUAL = 256 << 20
_MOST = 2 << 30
_BRIEF, _BRIEF_MOST, _BRIEF_S = 64 << 20, 512 << 20, 0.7
"""Bytes at least and at most, and seconds after which no pass begins: the last one takes the rest of a second."""
_PASS_S, _TIMES = 0.03, 4
"""Seconds that a pass should take, because waking a thread takes up to a millisecond; readings of a pass at most."""
_SHARE = 4
"""One part in this many of the free memory is taken."""
_CACHE_FILES = "/sys/devices/system/cpu/cpu{}/cache/index{}/size"
_UNKNOWN_CACHE = 8 << 20
_UNITS = {"K": 10, "M": 20, "G": 30}


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read bandwidth with one number of threads; 10**9 bytes per second."""

    threads: int
    gbps: float
    """Median of the runs."""
    low: float
    high: float
    """Slowest and fastest run."""
    runs: int
    variation: float
    """Standard deviation over mean of the runs."""
    buffer_mib: int


class BandwidthResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every number of threads that was asked for; empty with a reason when there is not enough free memory."""

    points: tuple[Bandwidth, ...] = ()
    reason: str = ""


def read_bandwidth(
    threads: Sequence[int],
    *,
    runs: int = 7,
    buffer_bytes: int | None = None,
    free_bytes: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> BandwidthResult:
    """Measure reading with each number of threads.

    Args:
        threads: numbers of threads, each 1 or more.
        runs: passes over the buffer that count, after one that does not.
        buffer_bytes: size; None: eight times the largest cache, at least 256 MiB, at most a quarter of what is free.
        free_bytes: free memory; None: asked.
        seconds: no pass begins when so much time has gone by; a number of threads without one that counts is left out.
        clock: seconds.
    """
    begin = clock()
    size, reason = (buffer_bytes, "") if buffer_bytes else _size(free_bytes, _USUAL, _CACHES, _MOST)
    if not size:
        return BandwidthResult(reason=reason)
    buffer = np.empty(max(size // 4, max(threads)), np.int32)
    buffer[:] = 1  # pages that were never written are all the same one, which the cache holds

    def late() -> bool:
        return seconds is not None and clock() - begin >= seconds

    points = (_measure(buffer, count, runs, clock, late) for count in threads)
    found = tuple(point for point in points if point is not None)
    return BandwidthResult(points=found, reason="" if found else f"memory is too slow for a test of {seconds:g} s")


def brief(
    threads: Sequence[int], *, free_bytes: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> BandwidthResult:
    """In about a second, before a measurement: three passes over a smaller buffer, four times the largest cache.

    A quarter of what is read may come from the cache, so this is no substitute for :func:`read_bandwidth`.
    """
    size, reason = _size(free_bytes, _BRIEF, _LEAST, _BRIEF_MOST)
    if not size:
        return BandwidthResult(reason=reason)
    return read_bandwidth(threads, runs=3, buffer_bytes=size, seconds=_BRIEF_S, clock=clock)


def largest_cache(read: Callable[[str], str | None] | None = None) -> int:
    """Bytes of the largest cache that the kernel describes of the first cores; a guess of 8 MiB where it is silent.

    Args:
        read: text of a file, None when absent; None: of this machine.
    """
    read = read or _read
    sizes = [_bytes(read(_CACHE_FILES.format(cpu, index))) for cpu in range(16) for index in range(5)]
    return max(sizes) or _UNKNOWN_CACHE


def _size(free_bytes: int | None, least: int, caches: int, most: int) -> tuple[int, str]:
    """Bytes of the buffer, `least` to `most` and so many times the largest cache; 0 with a reason."""
    import psutil

    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    cache = largest_cache()
    size = min(max(least, caches * cache), most, free // _SHARE)
    if most < _LEAST * cache:
        return 0, f"the caches are too large ({cache >> 20} MiB) for a test with {most >> 20} MiB"
    if size < _LEAST * cache:
        need = _LEAST * cache * _SHARE
        return 0, f"{free >> 20} MiB of memory are free; the test needs {need >> 20} MiB to be slower than the caches"
    return size, ""


def _measure(
    buffer: NDArray[np.int32], threads: int, runs: int, clock: Callable[[], float], late: Callable[[], bool]
) -> Bandwidth | None:
    """None when it was late before a pass that counts."""
    parts, rates, times = np.array_split(buffer, threads), list[float](), 1
    while len(rates) <= runs and not late():
        seconds = max(_pass(parts, times, clock), 1e-9)
        rates.append(times * buffer.nbytes / seconds / 1e9)
        if len(rates) == 1:
            times = min(max(math.ceil(_PASS_S / seconds), 1), _TIMES)
    if not (rates := rates[1:]):
        return None
    mean = statistics.fmean(rates)
    return Bandwidth(
        threads=threads,
        gbps=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        runs=len(rates),
        variation=statistics.stdev(rates) / mean if len(rates) > 1 else 0.0,
        buffer_mib=buffer.nbytes >> 20,
    )


def _pass(parts: Sequence[NDArray[np.int32]], times: int, clock: Callable[[], float]) -> float:
    """Seconds from the start of the first thread, all being ready, to the end of the last one, each reading `times`."""
    ready = threading.Barrier(len(parts))
    begins, ends = [0.0] * len(parts), [0.0] * len(parts)

    def work(index: int) -> None:
        ready.wait()
        begins[index] = clock()
        for _ in range(times):
            np.maximum.reduce(parts[index])
        ends[index] = clock()

    workers = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(parts))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(ends) - min(begins)


def _read(path: str) -> str | None:
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            return file.read(64)
    except OSError:
        return None


def _bytes(said: str | None) -> int:
    """Bytes of "512K"; 0 when it says no size."""
    text = (said or "").strip()
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS or len(number) > 9:
        return 0
    return int(number) << _UNITS[unit]
