"""Running things one after the other, timing them, and watching the memory of a whole process tree."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import psutil

from benchmarks._result import Machine, Result, Row, markdown, save

SAMPLING = 0.05
"""Seconds between two looks at the memory of the tree."""
MIB = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """What one command took."""

    seconds: float
    peak_mib: float
    """Largest sum of the resident sets of the command and all its descendants."""
    cpu_seconds: float
    """User and system time of the command and of every descendant it waited for."""
    output: str
    """What it printed on standard output."""


def _tree_rss(root: psutil.Process) -> int:
    total = 0
    with suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


class _Sampler:
    """Looks at a process tree from a thread until it is told to stop."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING):
            self.peak = max(self.peak, _tree_rss(self._root))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end; it has no input.

    Memory is the larger of two figures: the sum of resident sets over the tree, sampled every 50 ms, and the kernel's
    high-water mark of the largest single process (`wait4`). The first counts processes that run at the same time
    together; the second misses no short peak, but is never below the size of the measuring process itself.

    Raises:
        SystemExit: the command failed; its last lines are quoted.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(environment or {})}
        )
        sampler = _Sampler(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        seconds = perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = max(sampler.stop(), used.ru_maxrss * 1024)
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            last = err.read().decode("utf8", "replace").strip()[-2000:]
            raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}:\n{last}")
        return Usage(seconds, peak / MIB, used.ru_utime + used.ru_stime, out.read().decode("utf8", "replace"))


def pairs(ours: Callable[[], T], peer: Callable[[], T], count: int, warmup: int) -> list[tuple[T, T]]:
    """(ours, peer) `count` times, after `warmup` pairs that are thrown away; who begins alternates."""
    made: list[tuple[T, T]] = []
    for index in range(warmup + count):
        if index % 2:
            second = peer()
            made.append((ours(), second))
        else:
            made.append((ours(), peer()))
        label = "warm-up" if index < warmup else f"pair {index - warmup + 1} of {count}"
        print(f"  {label} done", file=sys.stderr, flush=True)
    return made[warmup:]


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def machine() -> Machine:
    """Describe this machine; takes a second, in which it looks how busy it is."""
    return Machine(
        cpu=_cpu_name(), architecture=platform.machine(), physical_cores=psutil.cpu_count(logical=False) or 0,
        logical_cores=psutil.cpu_count() or 0, memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}", python=platform.python_version(),
        busy_percent=psutil.cpu_percent(interval=1.0),
    )  # fmt: skip


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; a package that is not installed is left out."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def parser(description: str | None, pairs_default: int, warmup: int = 1) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--pairs", type=positive, default=pairs_default, help="interleaved pairs")
    made.add_argument("--warmup", type=natural, default=warmup, help="pairs thrown away first")
    made.add_argument("--json", type=Path, help="write the raw figures to this file")
    return made


def natural(text: str) -> int:
    """An integer of 0 or more."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def positive(text: str) -> int:
    """An integer of 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


@dataclass(frozen=True)
class Session:
    """What is known before the first figure."""

    benchmark: str
    command: str
    """What to type to measure the same again."""
    machine: Machine
    started: str

    def finish(self, rows: Sequence[Row], versions: dict[str, str], method: str, json: Path | None) -> None:
        """Print the table and, if wanted, write the raw figures."""
        result = Result(
            benchmark=self.benchmark, command=self.command,
            started=self.started, machine=self.machine, versions=versions, method=method, rows=tuple(rows),
        )  # fmt: skip
        print(markdown(result))
        if json is not None:
            save(result, json)


def begin(benchmark: str, arguments: Sequence[str]) -> Session:
    """Look at the machine, and warn when it is not quiet."""
    here = machine()
    if here.busy_percent > 10:
        print(f"warning: other work uses {here.busy_percent:.0f} % of this machine's processors", file=sys.stderr)
    command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *_without_json(arguments)])
    return Session(benchmark, command, here, datetime.now(UTC).isoformat(timespec="seconds"))


def _without_json(arguments: Sequence[str]) -> list[str]:
    """Where the figures were written to does not matter to who repeats the run."""
    hidden = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    hidden.add_argument("--json")
    return hidden.parse_known_args(arguments)[1]
