"""Row chunks over a few threads; numpy and ggml let go of the interpreter while they compute."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each_chunk(count: int, step: int, work: Callable[[slice], None]) -> None:
    """Call `work` on consecutive slices of 0..count, `step` long.

    The slices do not depend on the number of threads, so results that depend only on their slice do not either.
    The first exception of a chunk is raised here.
    """
    chunks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    workers = min(threads(), len(chunks))
    if workers < 2:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, chunks):
            pass
