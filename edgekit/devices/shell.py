"""A device made of one thing: a way to run a program there. The rest is done by small POSIX shell scripts.

No value is ever part of a script's text: scripts are constants and get values as arguments.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit.bundle.paths import plain
from edgekit.devices import upload
from edgekit.devices.base import LIMIT, Kind
from edgekit.devices.process import Cancel, Completed
from edgekit.errors import DeviceError
from edgekit.files import whole_file
from edgekit.progress import Advance

SHORT = 60.0
"""Seconds that a script of ours may take."""
_HANDLE = re.compile(r"([1-9][0-9]{0,9})\.([0-9]{1,20})\.([0-9a-f-]{1,36})", re.ASCII)

IDENTITY = """\
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) || boot=-
began() { # process number → when it began, in clock ticks; nothing when it is dead
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    set -- ${stat##*) }
    [ "$1" = Z ] || [ "$1" = X ] || echo "${20}"
}
"""
"""Shell functions that tell a process from another one with the same number."""
_START = f"""\
{IDENTITY}
log=$1
shift
if command -v setsid >/dev/null 2>&1; then
    setsid nohup "$@" </dev/null >>"$log" 2>&1 &
else
    nohup "$@" </dev/null >>"$log" 2>&1 &
fi
began=$(began $!)
handle=$!.${{began:-0}}.$boot
echo "$handle" >"$log.handle"
echo "$handle"
"""
_ALIVE = f"""\
{IDENTITY}
if [ "$boot" = "$3" ] && [ "$(began "$1")" = "$2" ]; then echo yes; else echo no; fi
"""
_STOP = f"""\
{IDENTITY}
[ "$boot" = "$3" ] && [ "$(began "$1")" = "$2" ] || exit 0
kill -s TERM -- "-$1" 2>/dev/null || kill -TERM "$1" 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    [ "$(began "$1")" = "$2" ] || break
    sleep 0.2 2>/dev/null || sleep 1
done
kill -s KILL -- "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || true
"""
_LEASHED = """\
exec 3<&0 </dev/null
if command -v setsid >/dev/null 2>&1; then
    setsid "$@" 3<&- &
else
    "$@" 3<&- &
fi
child=$!
finish() { # the command and all it started
    kill -s TERM -- "-$child" 2>/dev/null || kill -s TERM "$child" 2>/dev/null
}
(
    while read -r _ <&3; do :; done
    finish
    sleep 2
    kill -s KILL -- "-$child" 2>/dev/null || kill -s KILL "$child" 2>/dev/null
) >/dev/null 2>&1 </dev/null &
leash=$!
trap finish HUP INT TERM
exec 3<&-
wait "$child"
code=$?
kill "$leash" 2>/dev/null
exit "$code"
"""
"""Runs a command that ends when standard input does: that is the connection, which closes with who holds it."""


class Transport(Protocol):
    """A way to run a program on a device."""

    def converse(
        self, command: Sequence[str], *, source: BinaryIO | None, timeout: float, limit: int,
        sent: Callable[[int], None] | None,
    ) -> Completed:  # fmt: skip
        """See :func:`edgekit.devices.process.converse`; raises UnreachableError instead of TimeoutError."""

    def close(self) -> None:
        """Give back the connection."""


def script(text: str, *arguments: str) -> list[str]:
    """The command that runs a constant shell script with arguments."""
    return ["sh", "-c", text, "edgekit", *arguments]


def leashed(command: Sequence[str]) -> list[str]:
    """The command that runs `command` and ends it, with all it started, when standard input closes.

    Give it :data:`edgekit.devices.process.HELD` as input: then it dies with the connection.
    """
    return script(_LEASHED, *command)


@dataclass(frozen=True)
class ShellDevice:
    """See :class:`edgekit.devices.base.Device`."""

    url: str
    title: str
    kind: Kind
    transport: Transport
    cancel: Cancel = field(default_factory=Cancel)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        input: bytes = b"",  # noqa: A002
        limit: int = LIMIT,
    ) -> Completed:
        """See Device.run."""
        source = io.BytesIO(input) if input else None
        return self.transport.converse(command, source=source, timeout=timeout, limit=limit, sent=None)

    def feed(
        self, command: Sequence[str], source: BinaryIO, *, timeout: float, sent: Callable[[int], None]
    ) -> Completed:
        """See Device.feed."""
        return self.transport.converse(command, source=source, timeout=timeout, limit=LIMIT, sent=sent)

    def read(self, path: str, limit: int = LIMIT) -> bytes | None:
        """See Device.read."""
        done = self.run(["head", "-c", str(limit), "--", path], timeout=SHORT, limit=limit)
        return None if done.code else done.out

    def push(self, folder: Path, place: str, progress: Advance | None = None) -> None:
        """See Device.push."""
        upload.push(self, folder, place, progress)

    def fetch(self, path: str, to: Path, limit: int) -> None:
        """See Device.fetch."""
        done = self.run(["cat", "--", path], timeout=10 * SHORT, limit=limit)
        if done.cut:
            raise DeviceError(f"'{plain(path)}' on {self.title} is larger than {limit >> 20} MiB")
        if done.code:
            raise DeviceError(f"'{plain(path)}' on {self.title} cannot be read ({said(done)})")
        with whole_file(to, force=True) as fresh:
            fresh.write_bytes(done.out)

    def start(self, command: Sequence[str], log: str) -> str:
        """See Device.start."""
        done = self.run(script(_START, log, *command), timeout=SHORT)
        handle = done.out.decode("ascii", "replace").strip()
        if done.code or not _HANDLE.fullmatch(handle):
            raise DeviceError(f"{self.title} cannot start a program ({said(done)})")
        return handle

    def alive(self, handle: str) -> bool:
        """See Device.alive."""
        done = self.run(script(_ALIVE, *handle_parts(handle)), timeout=SHORT)
        answer = done.out.strip()
        if answer not in (b"yes", b"no"):
            raise DeviceError(f"{self.title} does not say whether a program still runs ({said(done)})")
        return answer == b"yes"

    def stop(self, handle: str) -> None:
        """See Device.stop."""
        self.run(script(_STOP, *handle_parts(handle)), timeout=SHORT)

    def close(self) -> None:
        """See Device.close."""
        self.transport.close()


def handle_parts(handle: str) -> tuple[str, str, str]:
    """Process number, when it began (clock ticks), boot id.

    Raises:
        DeviceError: it is not what Device.start returns.
    """
    match = _HANDLE.fullmatch(handle)
    if match is None:
        raise DeviceError(f"'{plain(handle)}' names no program on a device")
    return match[1], match[2], match[3]


def is_handle(text: str) -> bool:
    """Whether it has the form of what Device.start returns."""
    return _HANDLE.fullmatch(text) is not None


def said(done: Completed, most: int = 300) -> str:
    """The last line that a program wrote, fit for a sentence; otherwise its exit code."""
    for data in (done.err, done.out):
        lines = data[-4096:].decode("utf8", "replace").strip().splitlines()
        if lines:
            return plain(lines[-1].strip(), most)
    return f"exit code {done.code}"
