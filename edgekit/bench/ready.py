"""Making the machine that a measurement runs on ready for it: checked, locked for others, set, cooled down."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import msgspec

from edgekit.bench import bandwidth, site, sweep
from edgekit.bench.bandwidth import BandwidthResult
from edgekit.bench.lock import VARIABLE, locked_here
from edgekit.bench.preflight import Finding, check, refuse, settle, summary
from edgekit.bench.probe import probe
from edgekit.devices import rooted
from edgekit.devices.boards.base import Board, BoardFacts
from edgekit.devices.home import home_in, prepare
from edgekit.devices.local import local
from edgekit.devices.rooted import Wanted
from edgekit.progress import Progress
from edgekit.targets import Target

_NOT_EMULATED = "an emulated board reads the memory of the machine that emulates it"


@dataclass(frozen=True)
class Prepared:
    """What was found before a measurement, and what was changed for it."""

    findings: tuple[Finding, ...] = ()
    changed: dict[str, str] = field(default_factory=dict)
    """Setting → "before → now"; set back afterwards."""
    read: BandwidthResult = field(default_factory=BandwidthResult)
    """The memory's read bandwidth."""

    @property
    def preflight(self) -> dict[str, str]:
        """For the record of the measurement."""
        settings = {f"set {name}": f"note: {change}, set back afterwards" for name, change in self.changed.items()}
        return {**summary(self.findings), **settings}

    def onto(self, facts: BoardFacts | None) -> BoardFacts | None:
        """The board's facts with those that were found here."""
        if facts is None:
            return None
        return msgspec.structs.replace(
            facts, changed=self.changed, read_gbps_reason=self.read.reason,
            read_gbps={point.threads: point.gbps for point in self.read.points} or None,
        )  # fmt: skip


@contextmanager
def ready(
    target: Target, board: Board | None, progress: Progress, *, wanted: Wanted | None = None, emulated: bool = False,
    against: Target | None = None,
) -> Iterator[Prepared]:  # fmt: skip
    """The preflight on this machine; others are kept out, and what was changed is set back, while the block runs.

    Nothing of ours may run beside it, no sampler either: the load of the machine is part of what is asked.

    Args:
        target: whose board this machine has to be.
        board: its sensors, to wait until it is cool; None: none.
        progress: told of a wait and of a stale lock.
        wanted: settings that need root.
        emulated: this machine is an emulated board.
        against: of the other bundle, when two are measured in turns; this machine has to be its board too.

    Raises:
        WrongBoardError, DeviceError: see :func:`edgekit.bench.preflight.refuse`, :func:`edgekit.bench.lock.take` and
            :func:`edgekit.devices.rooted.settings`.
    """
    device = local()
    probed = probe(device, target.deploy.remote_dir)
    findings = check(target, probed)
    refuse(findings, device.title)
    if against is not None:
        refuse(check(against, probed), f"{device.title}, for the bundle of --against")
    home = home_in(probed.place)
    with ExitStack() as held:
        if not os.environ.get(VARIABLE):
            prepare(device, home)
            held.enter_context(locked_here(device, home, progress))
        changed = held.enter_context(rooted.settings(device, home.restore, wanted or Wanted(), progress))
        if changed:  # what is found is what is measured: with the settings of the measurement
            findings = check(_expecting(target, wanted), probe(device, target.deploy.remote_dir))
        if board is not None:
            findings += settle(board, target, progress, device.cancel)
        yield Prepared(findings, changed, _read(sweep.thread_counts(len(site.allowed_cpus())), emulated, progress))


def _expecting(target: Target, wanted: Wanted | None) -> Target:
    """The target with the governor that was asked for instead of its own."""
    if wanted is None or not wanted.governor:
        return target
    thermal = msgspec.structs.replace(target.thermal, governor=wanted.governor)
    return msgspec.structs.replace(target, thermal=thermal)


def _read(threads: Sequence[int], emulated: bool, progress: Progress) -> BandwidthResult:
    if emulated:
        return BandwidthResult(reason=_NOT_EMULATED)
    with progress.step("memory's read bandwidth"):
        return bandwidth.brief(threads)
