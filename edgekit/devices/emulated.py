"""An emulated board of a target as a device: behind ssh like a real one, but its figures are no latencies."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgekit import targets
from edgekit.devices.base import Address
from edgekit.devices.process import Cancel
from edgekit.devices.shell import ShellDevice
from edgekit.devices.ssh import SshTransport, ssh

if TYPE_CHECKING:
    from edgekit.emulator.board import Board

_CONNECT_S = 60
"""A login shell starts slowly there."""


def emulated_device(name: str, *, cancel: Cancel | None = None) -> ShellDevice:
    """Start the board of a target and reach it; it ends when the device is closed, or when this process ends.

    Raises:
        UnknownTargetError: no such target.
        EmulatorError: a part is missing, or it does not come up.
    """
    from edgekit.emulator.board import emulated
    from edgekit.progress import Bars

    target = targets.load(name)
    with ExitStack() as stack:
        board = stack.enter_context(emulated(target, progress=Bars()))
        device = device_of(board, cancel=cancel)
        if isinstance(device.transport, SshTransport):
            device.transport.held.push(stack.pop_all())
    return device


def device_of(board: Board, *, cancel: Cancel | None = None) -> ShellDevice:
    """A running emulated board as a device, for those who also set its sensors; closing it leaves the board running."""
    options = (
        "-F", "/dev/null", "-i", str(board.key), "-o", f"UserKnownHostsFile={board.known_hosts}",
        "-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes",
    )  # fmt: skip
    host, user = board.host.rpartition("@")[2], board.user
    url = f"emulated:{board.target.name}"
    return ssh(
        Address("ssh", host, user, board.port), url=url, title=url, cancel=cancel or Cancel(), kind="emulated",
        options=options, connect_s=_CONNECT_S,
    )  # fmt: skip
