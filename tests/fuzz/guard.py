"""What no input may do to this process: reach outside its folder, start something, take memory, take time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_GROWTH = 300 << 20
"""Bytes of resident memory that one input may add."""
_STARTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen",
    "urllib.Request", "webbrowser.open", "os.putenv", "os.kill",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "shutil.rmtree", "shutil.move", "shutil.copyfile",
)  # fmt: skip


class BreachError(BaseException):
    """An input did what none may do. Not an Exception: no handler of the code under test may take it."""


@dataclass
class Guard:
    """Watches the process through Python's audit events; hooks cannot be removed, so it has a switch."""

    folder: Path
    """The only place where files may be read or written."""
    armed: bool = False
    breach: str = ""
    highest: int = 0
    """Bytes of resident memory, at most, while an input was read."""
    _code: tuple[str, ...] = field(default_factory=lambda: _homes_of_code())

    def install(self) -> None:
        """Start listening; for the life of the process."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in _STARTS:
            self._stop(f"{event} {arguments!r:.200}")
        elif event == "open":
            self._opened(arguments[0], arguments[1], arguments[2])
        elif event in _CHANGES and not self._inside(arguments[0], arguments[-1]):
            self._stop(f"{event} {arguments!r:.200}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int) or self._inside(path):
            return
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or not os.fsdecode(path).startswith(self._code):
            self._stop(f"open {path!r:.200} {mode!r}")

    def _inside(self, path: Any, place: Any = -1) -> bool:
        """Whether a path lies in the folder; `place` may be an open folder's descriptor that it starts from."""
        try:
            start = Path(f"/proc/self/fd/{place}").resolve() if isinstance(place, int) and place >= 0 else Path()
            return (start / os.fsdecode(path)).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, TypeError, RuntimeError):
            return True  # no such path can be opened

    def _stop(self, what: str) -> None:
        self.breach = self.breach or what
        raise BreachError(what)

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Raise BreachError when the block breaks a bound; `seconds` of CPU time, which other processes do not eat."""

        def late(_number: int, _frame: Any) -> None:
            raise BreachError(f"took more than {seconds:g} s of CPU time")

        before, old = forget_peak(), signal.signal(signal.SIGPROF, late)
        self.armed, self.breach = True, ""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.armed = False
            signal.signal(signal.SIGPROF, old)
        if self.breach:  # was swallowed on its way
            raise BreachError(self.breach)
        self.highest = max(self.highest, peak())
        if (grown := peak() - before) > MAX_GROWTH:
            raise BreachError(f"took {grown >> 20} MiB of memory")


def _homes_of_code() -> tuple[str, ...]:
    """Where modules are: importing late is no breach."""
    package = Path(__file__).parents[2]
    ours = (str(package / "edgekit"), str(package / "targets"))
    return (*ours, sys.prefix, sys.base_prefix, "/proc/", "/dev/null/", "/usr/share/zoneinfo")


def forget_peak() -> int:
    """Let the peak of resident memory begin anew (proc(5), clear_refs); returns what is resident, in bytes.

    Neither what making the inputs took nor the memory of the process that started this one may hide an input's.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Highest resident memory of this process since :func:`forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_bytes()
    return int(status.split(b"VmHWM:", 1)[1].split(None, 1)[0]) << 10
