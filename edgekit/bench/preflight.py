"""Before a measurement: is this the board that the bundle was built for, and is it fit to be measured now?"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit import targets
from edgekit.bench.probe import Probed
from edgekit.bundle.manifest import Manifest
from edgekit.devices.boards import throttle
from edgekit.devices.boards.base import Board, Sample
from edgekit.devices.process import Cancel
from edgekit.errors import DeviceError, EdgekitError, WrongBoardError
from edgekit.progress import Advance, Progress
from edgekit.targets import Target

Level = Literal["wrong", "unfit", "disturb", "note"]
"""wrong: another board; unfit: it cannot be used as it is; disturb: the measurement is invalid; note: to be known."""
BUSY_CORES = 0.25
"""More than this at work for others disturbs a measurement. An assumption of this project: a quarter of one core."""
_HONEST = 0.99
"""A clock within 1 % of the named one is that one."""
_UNPACKED = 4
"""Bytes on disk per byte of wheels, with what pip needs meanwhile; numpy's and onnxruntime's unpack to 3.3 times."""
_LOOK_S = 5.0
"""Between two looks at a board that has to cool down."""


@dataclass(frozen=True)
class Finding:
    """One answer of the preflight, in words that make a sentence: found, expected, remedy."""

    level: Level
    about: str
    found: str
    expected: str = ""
    remedy: str = ""

    def words(self) -> str:
        """For a report."""
        return self.found + (f"; expected {self.expected}" if self.expected else "")


@dataclass(frozen=True)
class Needs:
    """What a bundle asks of a board beyond its target."""

    disk_mib: int = 0
    ram_mib: float = 0.0
    """Predicted for the smallest of its formats."""
    python: str = ""
    """Version that its wheels are for; empty: none is needed."""


def needs_of(manifest: Manifest, target: Target, *, there: bool = False) -> Needs:
    """What a bundle needs.

    Args:
        manifest: of the bundle.
        target: that it was built for.
        there: whether the same bundle is on the board already.
    """
    listed = {**manifest.files, **manifest.reports}
    wheels = sum(entry.size for path, entry in listed.items() if path.startswith("runtime/wheels/"))
    disk = 0 if there else sum(entry.size for entry in listed.values()) + _UNPACKED * wheels
    ram = [
        figure.value for name, figure in manifest.predicted.items() if name.endswith(".ram") and figure.unit == "MiB"
    ]
    return Needs(
        disk_mib=(disk >> 20) + target.deploy.min_free_mib, ram_mib=min(ram, default=0.0),
        python=target.runtime.python if wheels else "",
    )  # fmt: skip


def check(target: Target, probed: Probed, needs: Needs | None = None) -> tuple[Finding, ...]:
    """Everything about a board that was probed, the worst first; without `needs` only what the target says."""
    found = [*_cpu(target, probed), *_system(target, probed), *_state(target, probed)]
    if needs is not None:
        found += _room(target, probed, needs)
    return tuple(sorted(found, key=lambda finding: ("wrong", "unfit", "disturb", "note").index(finding.level)))


def refuse(findings: Sequence[Finding], title: str) -> None:
    """Stop before anything is sent to a board that is the wrong one or cannot be used.

    Raises:
        WrongBoardError: CPU, system or memory are not what the bundle was built for.
        DeviceError: it is the right one, and lacks disk or tools.
    """
    for finding in findings:
        if finding.level in ("wrong", "unfit"):
            kind: type[EdgekitError] = WrongBoardError if finding.level == "wrong" else DeviceError
            raise kind(f"{title}: {finding.found}", expected=finding.expected, remedy=finding.remedy)


def summary(findings: Sequence[Finding]) -> dict[str, str]:
    """For the record of a measurement: what it is about → what was found; the level goes before it."""
    return {finding.about: f"{finding.level}: {finding.words()}" for finding in reversed(findings)}


def recognised(probed: Probed) -> tuple[str, ...]:
    """Names of the shipped targets that name this board's model or CPU and are not refused; the best first."""
    found = []
    for name in targets.names():
        target = targets.load(name)
        named = bool(target.probe.model_match) and target.probe.model_match in probed.model
        if (named or target.probe.cpu_parts) and not any(f.level == "wrong" for f in check(target, probed)):
            found.append((not named, name))
    return tuple(name for _, name in sorted(found))


# --- what is asked ---------------------------------------------------------------------------------------------------

_OTHER_BUNDLE = "build the bundle for this board: edgekit build --target …; `edgekit devices probe` says which it is"


def _cpu(target: Target, probed: Probed) -> Iterator[Finding]:
    arch = target.soc.arch
    if arch not in ("any", probed.machine):
        yield Finding(
            "wrong", "machine", f"the machine is {probed.machine}", f"{arch}, as {target.name} is", _OTHER_BUNDLE
        )
        return
    parts = [part for part in target.probe.cpu_parts if part not in probed.cpu_parts]
    if parts:
        shown = ", ".join(probed.cpu_parts) or "unknown"
        cores = {cluster.part: cluster.core for cluster in target.soc.clusters}
        expected = ", ".join(f"{part} ({cores[part]})" if part in cores else part for part in target.probe.cpu_parts)
        yield Finding("wrong", "CPU", f"the CPU part is {shown}", f"{expected}, as {target.name} has", _OTHER_BUNDLE)
    lacks = [name for name in target.probe.require_features if name not in probed.features]
    if lacks:
        yield Finding(
            "wrong", "CPU features", f"the CPU lacks {', '.join(lacks)}", f"what {target.name} has", _OTHER_BUNDLE
        )
    if target.probe.model_match and target.probe.model_match not in probed.model:
        shown = f"'{probed.model}'" if probed.model else "nothing"
        yield Finding("disturb", "model", f"the board calls itself {shown}", f"'{target.probe.model_match}' in it")


def _system(target: Target, probed: Probed) -> Iterator[Finding]:
    if target.toolchain is not None and _older(probed.glibc, target.toolchain.glibc_max):
        yield Finding(
            "wrong", "glibc", f"the C library is {'glibc ' + probed.glibc if probed.glibc else 'not glibc'}",
            f"glibc {target.toolchain.glibc_max} or newer", "update the board's system, or build for its own",
        )  # fmt: skip
    if probed.missing:
        yield Finding("unfit", "tools", f"these programs are missing: {', '.join(probed.missing)}", "coreutils")
    wanted, version = target.probe.os_id, target.probe.os_min_version
    if wanted and probed.os_id not in wanted:
        yield Finding("note", "system", f"the system is {probed.os_title or 'unknown'}", " or ".join(wanted))
    elif version and _older(probed.os_version, version):
        yield Finding("note", "system", f"the system is {probed.os_title or probed.os_version}", f"{version} or newer")


def _state(target: Target, probed: Probed) -> Iterator[Finding]:
    if probed.busy is not None and probed.busy > BUSY_CORES:
        yield Finding(
            "disturb", "load", f"{probed.busy:.2f} cores are at work for others", f"at most {BUSY_CORES:g}",
            "stop what runs there",
        )  # fmt: skip
    governor = target.thermal.governor
    if governor and probed.governors and probed.governors != (governor,):
        yield Finding("disturb", "governor", f"the governor is {', '.join(probed.governors)}", governor)
    least = target.probe.clock_min_mhz
    if probed.clock_mhz is not None and probed.clock_mhz < _HONEST * least:
        yield Finding("disturb", "clock", f"the clock goes up to {probed.clock_mhz:.0f} MHz", f"{least} MHz")


def _room(target: Target, probed: Probed, needs: Needs) -> Iterator[Finding]:
    usable = (probed.ram_mib or 0) * target.memory.usable_fraction
    if probed.ram_mib and needs.ram_mib > usable:
        yield Finding(
            "wrong", "RAM", f"{usable:.0f} of its {probed.ram_mib} MiB RAM are usable", f"{needs.ram_mib:.0f} MiB",
            "take fewer bits, a smaller model or a board with more memory",
        )  # fmt: skip
    if probed.free_mib is not None and probed.free_mib < needs.disk_mib:
        yield Finding(
            "unfit", "disk", f"{probed.free_mib} MiB of its disk are free", f"{needs.disk_mib} MiB",
            "free some space there; `edgekit devices clean` removes what edgekit has left",
        )  # fmt: skip
    if needs.python and needs.python not in probed.pythons:
        there = f"Python {', '.join(probed.pythons)}" if probed.pythons else "no Python"
        yield Finding(
            "wrong", "Python", f"it has {there}", f"Python {needs.python}",
            f"install it there, or build with [runtime] python of {target.name} set to the board's",
        )  # fmt: skip


def _older(version: str, least: str) -> bool:
    """Whether a dotted version is known to be lower; an unknown one is."""
    return _numbers(version) < _numbers(least)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]{1,6}", version)[:4]]


# --- the board's sensors ---------------------------------------------------------------------------------------------


def settle(board: Board, target: Target, progress: Progress, cancel: Cancel) -> tuple[Finding, ...]:
    """Wait until the board is cool enough to begin, for at most `thermal.cooldown_max_s`, and look at its throttling.

    Returns:
        What disturbs a measurement that begins now.
    """
    sample, limit = board.sample(), target.thermal.start_below_c
    if limit is not None and _hot(sample, limit):
        with progress.step(f"cooling down to {limit:g} °C") as advance:
            sample = _cooled(board, sample, limit, target.thermal.cooldown_max_s, advance, cancel)
    found = []
    if limit is not None and _hot(sample, limit):
        waited = f"after {target.thermal.cooldown_max_s:g} s of waiting"
        found.append(Finding("disturb", "heat", f"{sample.temp_c:.1f} °C {waited}", f"below {limit:g} °C at the start"))
    if now := throttle.now(sample.throttled or 0):
        found.append(Finding("disturb", "throttling", f"the firmware says {', '.join(now)}", "none of it"))
    if earlier := throttle.since_boot((sample.throttled or 0) & target.thermal.sticky_mask):
        found.append(Finding("note", "throttled earlier", f"since the board started: {', '.join(earlier)}"))
    return tuple(found)


def _hot(sample: Sample, limit: float) -> bool:
    return sample.temp_c is not None and sample.temp_c >= limit


def _cooled(board: Board, sample: Sample, limit: float, most_s: float, advance: Advance, cancel: Cancel) -> Sample:
    begin = time.monotonic()
    while _hot(sample, limit) and (waited := time.monotonic() - begin) < most_s:
        advance(int(waited), int(most_s))
        cancel.wait(min(_LOOK_S, most_s - waited))
        sample = board.sample()
    return sample
