"""The machine that edgekit runs on, as a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.devices.base import UnreachableError
from edgekit.devices.process import Cancel, Completed, converse
from edgekit.devices.shell import ShellDevice


@dataclass(frozen=True)
class LocalTransport:
    """Runs programs here."""

    cancel: Cancel

    def converse(
        self, command: Sequence[str], *, source: BinaryIO | None, timeout: float, limit: int,
        sent: Callable[[int], None] | None,
    ) -> Completed:  # fmt: skip
        """See Transport.converse; a missing program ends with 127, as a shell says it."""
        try:
            return converse(command, source=source, timeout=timeout, limit=limit, cancel=self.cancel, sent=sent)
        except FileNotFoundError:
            return Completed(127, b"", f"{command[0]}: not found\n".encode())
        except PermissionError:
            return Completed(126, b"", f"{command[0]}: permission denied\n".encode())
        except TimeoutError as error:
            raise UnreachableError(f"`{Path(command[0]).name}` did not end within {timeout:g} s") from error

    def close(self) -> None:
        """Nothing is held."""


def local(cancel: Cancel | None = None) -> ShellDevice:
    """The machine that edgekit runs on."""
    cancel = cancel or Cancel()
    return ShellDevice("local", "this machine", "local", LocalTransport(cancel), cancel)
