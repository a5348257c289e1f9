"""The read bandwidth test: sizes, counting and reasons. Nothing here measures time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edgekit.bench.bandwidth import brief, largest_cache, read_bandwidth

MIB = 1 << 20


class Passes:
    """A clock of which every pass of every thread takes the next of some durations."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self._seconds, self._lock, self._begun = seconds, threading.Lock(), threading.local()

    def __call__(self) -> float:
        with self._lock:
            if getattr(self._begun, "yes", False):
                return next(self._seconds)
            self._begun.yes = True
            return 0.0


def test_bytes_over_seconds_and_the_first_pass_does_not_count() -> None:
    clock = Passes(iter([9.0, 0.004, 0.001, 0.002]))
    (point,) = read_bandwidth([1], runs=3, buffer_bytes=4 * MIB, clock=clock).points
    assert point.gbps == pytest.approx(4 * MIB / 0.002 / 1e9)
    assert point.low == pytest.approx(4 * MIB / 0.004 / 1e9)
    assert point.high == pytest.approx(4 * MIB / 0.001 / 1e9)
    assert (point.threads, point.runs, point.buffer_mib) == (1, 3, 4)
    assert point.variation == pytest.approx(0.65, abs=0.01)


def test_a_pass_ends_with_its_slowest_thread() -> None:
    clock = Passes(iter([1.0, 2.0, 4.0, 8.0]))
    (point,) = read_bandwidth([2], runs=1, buffer_bytes=MIB, clock=clock).points
    assert point.gbps == pytest.approx(MIB / 8.0 / 1e9)


def test_a_pass_that_would_be_over_at_once_reads_several_times() -> None:
    """Waking a thread takes up to a millisecond, which would count."""
    clock = Passes(iter([0.01, 0.02, 0.04, 0.08]))
    (point,) = read_bandwidth([1], runs=3, buffer_bytes=MIB, clock=clock).points
    assert point.gbps == pytest.approx(3 * MIB / 0.04 / 1e9)


def test_every_number_of_threads_is_measured() -> None:
    result = read_bandwidth([1, 2, 3], runs=2, buffer_bytes=MIB)
    assert [point.threads for point in result.points] == [1, 2, 3]
    assert all(0 < point.low <= point.gbps <= point.high for point in result.points)
    assert result.reason == ""


def test_too_little_memory_to_leave_the_caches_is_said() -> None:
    result = read_bandwidth([1], free_bytes=4 * MIB)
    assert result.points == ()
    assert result.reason.startswith("4 MiB of memory are free")


@pytest.mark.parametrize(
    ("said", "cache"),
    [
        ({0: "32K\n", 2: "512K\n", 3: "2048K\n"}, 2 * MIB),
        ({3: "32M"}, 32 * MIB),
        ({}, 8 * MIB),
        ({0: "K", 1: "-5K", 2: "12", 3: "٣K"}, 8 * MIB),
        ({0: "9" * 40 + "G"}, 8 * MIB),
    ],
)
def test_the_largest_cache(said: dict[int, str], cache: int) -> None:
    base = "/sys/devices/system/cpu/cpu0/cache/index{}/size"
    files = {base.format(index): text for index, text in said.items()}
    assert largest_cache(files.get) == cache


def test_a_short_test_ends_in_time_and_leaves_out_what_it_has_no_pass_of() -> None:
    ticks = Passes(iter(range(1000)))  # one second a look
    result = read_bandwidth([1, 2], runs=3, buffer_bytes=MIB, seconds=4, clock=ticks)
    assert [point.threads for point in result.points] == [1]
    assert 1 <= result.points[0].runs < 3


def test_memory_that_is_too_slow_for_a_short_test_has_a_reason() -> None:
    result = read_bandwidth([1], runs=3, buffer_bytes=MIB, seconds=0)
    assert result.points == ()
    assert "too slow" in result.reason


def test_a_short_test_of_too_little_memory() -> None:
    assert "are free" in brief([1], free_bytes=MIB).reason


def test_a_short_test_of_this_machine() -> None:
    result = brief([1])
    assert bool(result.points) != bool(result.reason)
