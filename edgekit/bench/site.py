"""The machine this runs on, and one run on it: what makes it the same run after a reboot, and where its time began."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from edgekit.bench.journal import Journal
from edgekit.bench.result import Window
from edgekit.bench.sensors import Sensors
from edgekit.machine import cores

T = TypeVar("T")
_LONGEST_BREAK = 30 * 86_400.0
"""Seconds; a calendar that moved further was set, as on a board without a clock of its own."""
PACKAGES = ("edgekit", "llama-cpp-python", "onnxruntime", "numpy", "tokenizers")


def machine_facts() -> dict[str, str]:
    """What this machine is, in words."""
    import psutil

    return {
        "machine": platform.machine(), "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(_read("/proc/cpuinfo")) or platform.processor() or "unknown", "cores": str(cores()),
        "ram_mib": str(psutil.virtual_memory().total >> 20), "python": platform.python_version(),
    }  # fmt: skip


def cpu_name(cpuinfo: str) -> str:
    """The model of the first processor; on Arm the implementer and part of each kind, as the kernel spells them."""
    rows = [
        (key.strip().lower(), value.strip()) for key, _, value in (row.partition(":") for row in cpuinfo.splitlines())
    ]
    names = [value for key, value in rows if key == "model name" and value]
    if names:
        return names[0][:200]
    parts = dict.fromkeys(value for key, value in rows if key == "cpu part")
    return f"CPU part {', '.join(parts)}"[:200] if parts else ""


def versions() -> dict[str, str]:
    """Installed versions of what a figure depends on."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine_key(facts: dict[str, str], found: dict[str, str], kind: str) -> str:
    """SHA-256 of what tells this machine from others and does not change with a reboot."""
    same = {key: facts[key] for key in ("machine", "cpu", "cores", "python")}
    # The kernel keeps a little more or less memory for itself from one boot to the next.
    same["ram"] = str(round(int(facts["ram_mib"]) / 256))
    same["id"] = _read("/etc/machine-id").strip()[:64]
    return hashlib.sha256(msgspec.json.encode([same, found, kind], order="sorted")).hexdigest()


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as stream:
            return stream.read(1 << 20).decode("utf8", "replace")
    except OSError:
        return ""


def allowed_cpus() -> tuple[int, ...]:
    """CPUs this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


class _Dated(Struct, frozen=True):
    window: Window


@dataclass
class Run:
    """The time of a run that may have been interrupted, and its journal."""

    journal: Journal
    begun: float
    """Monotonic clock at which this part began."""
    before: float
    """Seconds of the run's time until then."""
    _noted: bool = field(default=False)

    def sensors(self, plain: Sensors) -> Sensors:
        """The same sensors, with times of the run."""
        return replace(plain, offset=self.before - self.begun)

    def now(self) -> float:
        """Seconds since the run began."""
        return self.before + time.monotonic() - self.begun

    @property
    def parts(self) -> int:
        """How often the run was taken up, the first time included."""
        return max(1, sum(key.startswith("part/") for key in self.journal.keys()))  # noqa: SIM118

    def once(self, key: str, type_: type[T], measure: Callable[[], T]) -> T:
        """What an earlier part measured under `key`, or what `measure` does now."""
        found = self.journal.get(key, type_)
        if found is not None:
            return found
        if not self._noted:
            self.journal.put(f"part/{self.parts if len(self.journal) else 0}", self.before)
            self._noted = True
        value = measure()
        self.journal.put(key, value)
        return value


def take_up(journal: Journal) -> Run:
    """Begin or continue the run of a journal. Its time goes on by the calendar clock, and never backwards."""
    elapsed, ends = (datetime.now(UTC) - journal.started).total_seconds(), [0.0]
    for key in journal.keys():  # noqa: SIM118
        with suppress(Exception):
            ends.append(msgspec.json.decode(journal.raw(key), type=_Dated).window.end)
    known = elapsed if 0 < elapsed < _LONGEST_BREAK else 0.0
    return Run(journal, time.monotonic(), max(known, *ends) if len(journal) else 0.0)
