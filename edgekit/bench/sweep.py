"""Threads × CPUs: what to try, and what to take. Prefill and decode are judged apart: they want different numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from edgekit.bench.result import Quantity, SweepPoint
from edgekit.targets import Target

_ALL_UP_TO = 4
"""Up to so many CPUs every number of threads is tried, beyond it powers of two and all."""


@dataclass(frozen=True)
class Choice:
    """Threads and CPUs of an engine."""

    prefill: int
    decode: int
    affinity: tuple[int, ...] = ()
    """Empty: not pinned."""


def first_guess(target: Target, form: Literal["gguf", "onnx"], cores: int) -> Choice:
    """What the target file says, as far as this machine has it.

    Args:
        target: whose `runtime` is read.
        form: onnxruntime has one number of threads for both phases, and is not pinned.
        cores: physical cores this process may use; stands for 0.
    """

    def bounded(count: int) -> int:
        return min(count or cores, cores)

    if form == "onnx":
        threads = bounded(target.runtime.onnx.threads)
        return Choice(threads, threads)
    wanted = target.runtime.gguf.threads
    return Choice(bounded(wanted.prefill), bounded(wanted.decode), target.runtime.gguf.affinity)


def cpu_sets(target: Target, allowed: Iterable[int]) -> list[tuple[int, ...]]:
    """Not pinned; the target's own choice; each cluster of a processor that has several.

    Args:
        target: clusters are listed in the order of their CPU numbers.
        allowed: CPUs this process may use; a set with any other is left out.
    """
    ends = list(accumulate((cluster.count for cluster in target.soc.clusters), initial=0))
    clusters = [tuple(range(begin, end)) for begin, end in pairwise(ends)]
    wanted = [target.runtime.gguf.affinity, *(clusters if len(clusters) > 1 else [])]
    here = set(allowed)
    kept = [tuple(sorted(cpus)) for cpus in wanted if cpus and set(cpus) <= here]
    return list(dict.fromkeys([(), *kept]))


def thread_counts(cpus: int) -> list[int]:
    """Numbers of threads to try on so many CPUs."""
    if cpus <= _ALL_UP_TO:
        return list(range(1, cpus + 1))
    powers = [1 << bit for bit in range(cpus.bit_length()) if 1 << bit < cpus]
    return [*powers, cpus]


def points(target: Target, allowed: Sequence[int], cores: int) -> list[tuple[int, tuple[int, ...]]]:
    """(threads, CPUs) to try, fewest threads first; CPUs empty: not pinned."""
    return [
        (threads, cpus) for cpus in cpu_sets(target, allowed) for threads in thread_counts(len(cpus) or max(1, cores))
    ]


def choose(form: Literal["gguf", "onnx"], guess: Choice, tried: Sequence[SweepPoint]) -> Choice:
    """The fastest, where it is faster than the guess beyond doubt: its interval lies above the other's.

    Decode chooses the CPUs, as a process has one set of them, and prefill its threads on those; in onnxruntime decode
    chooses everything.
    """
    decode = _better([(p.threads, p.affinity, p.decode.quantity) for p in tried], (guess.decode, guess.affinity))
    if form == "onnx":
        return Choice(decode[0], decode[0], decode[1])
    same = [(p.threads, p.affinity, p.prefill.quantity) for p in tried if p.affinity == decode[1]]
    return Choice(_better(same, (guess.prefill, decode[1]))[0], *decode)


def _better(
    tried: Sequence[tuple[int, tuple[int, ...], Quantity]], guess: tuple[int, tuple[int, ...]]
) -> tuple[int, tuple[int, ...]]:
    if not tried:
        return guess
    threads, cpus, best = max(tried, key=lambda point: point[2].value)
    ours = next((quantity for *where, quantity in tried if tuple(where) == guess), None)
    if ours is not None and best.low <= ours.high:
        return guess
    return threads, cpus
