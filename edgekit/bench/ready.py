"""Making the machine that a measurement runs on ready for it: checked, locked for others, cooled down."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from edgekit.bench.lock import VARIABLE, locked_here
from edgekit.bench.preflight import check, refuse, settle, summary
from edgekit.bench.probe import probe
from edgekit.devices.boards.base import Board
from edgekit.devices.home import home_in, prepare
from edgekit.devices.local import local
from edgekit.progress import Progress
from edgekit.targets import Target


@contextmanager
def ready(target: Target, board: Board | None, progress: Progress) -> Iterator[dict[str, str]]:
    """The preflight on this machine; others are kept out while the block runs.

    Args:
        target: whose board this machine has to be.
        board: its sensors, to wait until it is cool; None: none.
        progress: told of a wait and of a stale lock.

    Yields:
        What was found, for the record of the measurement.

    Raises:
        WrongBoardError, DeviceError: see :func:`edgekit.bench.preflight.refuse` and :func:`edgekit.bench.lock.take`.
    """
    device = local()
    probed = probe(device, target.deploy.remote_dir)
    findings = check(target, probed)
    refuse(findings, device.title)
    with ExitStack() as held:
        if not os.environ.get(VARIABLE):
            home = home_in(probed.place)
            prepare(device, home)
            held.enter_context(locked_here(device, home, progress))
        if board is not None:
            findings += settle(board, target, progress, device.cancel)
        yield summary(findings)
