"""QEMU's monitor (QMP): the switch of a whole board.

Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, BinaryIO, cast

from edgekit.errors import EmulatorError

_PATIENCE = 60.0
"""Seconds for one answer."""


def options(path: Path) -> list[str]:
    """QEMU's options for a monitor at the socket `path`."""
    return ["-qmp", f"unix:{path},server=on,wait=off"]


def reset(path: Path) -> None:
    """Start the machine behind the socket anew, as when its power was off: nothing in it is told before.

    Raises:
        EmulatorError: QEMU does not answer, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX) as line, line.makefile("rwb") as made:
            stream = cast("BinaryIO", made)
            line.settimeout(_PATIENCE)
            line.connect(str(path))
            stream.readline()  # its greeting
            _ask(stream, "qmp_capabilities")
            # A restart of its own ends the machine; this one shall not.
            _ask(stream, "set-action", reboot="reset")
            _ask(stream, "system_reset")
            _ask(stream, "set-action", reboot="shutdown")
    except (OSError, ValueError) as error:
        raise EmulatorError(f"the emulated machine cannot be switched ({error})") from error


def _ask(stream: BinaryIO, command: str, **arguments: Any) -> None:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while line := stream.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"it refuses {command}: {answer['error']!a:.200}")
        if "return" in answer:
            return
    raise ValueError("it closed the line")
