"""A machine's files and commands as a board wants them: text, or None for every kind of failure."""

from __future__ import annotations

import os
from collections.abc import Sequence

from edgekit.devices.base import Device
from edgekit.devices.boards.base import Reader, Runner
from edgekit.devices.process import Cancel, converse
from edgekit.errors import DeviceError

_LIMIT = 1 << 16
"""Bytes of one answer that are looked at; the longest known one has 4 KB."""


def access(device: Device, timeout: float = 5.0) -> tuple[Reader, Runner]:
    """Through a device, which may be far away: every file and command is one exchange.

    Args:
        device: where the board is.
        timeout: seconds after which a command counts as failed.
    """

    def read(path: str) -> str | None:
        try:
            data = device.read(path, _LIMIT)
        except (DeviceError, OSError):
            return None
        return None if data is None else _text(data)

    def run(command: Sequence[str]) -> str | None:
        try:
            done = device.run(command, timeout=timeout, limit=_LIMIT)
        except (DeviceError, OSError):
            return None
        return None if done.code else _text(done.out)

    return read, run


def here(timeout: float = 5.0) -> tuple[Reader, Runner]:
    """Of this machine, for sampling: files are opened directly, so that a sensor of the kernel costs microseconds.

    Args:
        timeout: seconds after which a command is ended and counts as failed.
    """
    environment = {**os.environ, "LC_ALL": "C"}

    def read(path: str) -> str | None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _text(os.read(handle, _LIMIT))
        except OSError:
            return None
        finally:
            os.close(handle)

    def run(command: Sequence[str]) -> str | None:
        try:
            done = converse(
                command, source=None, timeout=timeout, limit=_LIMIT, cancel=Cancel(), environment=environment
            )
        except OSError:
            return None
        return None if done.code else _text(done.out)

    return read, run


def _text(data: bytes) -> str:
    return data[:_LIMIT].decode("utf8", "replace")
