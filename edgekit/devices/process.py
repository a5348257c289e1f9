"""A program and its pipes: streamed input, bounded output, a time limit, and a way to end it from another thread."""

from __future__ import annotations

import io
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, BinaryIO

from edgekit.errors import InterruptError

_PIECE = 1 << 16
_TICK = 0.1
_ERRORS = 1 << 16
"""Bytes of standard error that are kept: the first and the last half of them."""
HELD: BinaryIO = io.BytesIO()
"""As the source of :func:`converse`: standard input stays open and empty for as long as this process, and what it
talks to, live. A program on a leash (:func:`edgekit.devices.shell.leashed`) ends when it closes."""


@dataclass(frozen=True)
class Completed:
    """What became of a program."""

    code: int
    """Its exit code; 128 + number when a signal ended it."""
    out: bytes
    err: bytes
    cut: bool = False
    """It wrote more than was allowed and was ended; `out` is the beginning."""


class Cancel:
    """The user's Ctrl-C on its way to the threads that work for a device."""

    def __init__(self) -> None:
        self._event, self._shields = threading.Event(), 0

    def set(self) -> None:
        """Ask the work to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise InterruptError when the work shall stop and is not cleaning up."""
        if self._event.is_set() and not self._shields:
            raise InterruptError("interrupted", remedy="run the same command again")

    def wait(self, seconds: float) -> None:
        """Sleep; raises as :meth:`check`."""
        if self._shields:
            time.sleep(seconds)
        else:
            self._event.wait(seconds)
        self.check()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Inside, the work goes on: for cleaning up."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1


def converse(
    command: Sequence[str],
    *,
    source: BinaryIO | None,
    timeout: float,
    limit: int,
    cancel: Cancel,
    environment: Mapping[str, str] | None = None,
    sent: Callable[[int], None] | None = None,
) -> Completed:
    """Run a program in a session of its own: Ctrl-C and prompts at the terminal do not reach it.

    Args:
        command: program and arguments.
        source: its standard input; None: empty; HELD: open and silent until it ends.
        timeout: seconds since the last byte of `source` went out.
        limit: bytes of standard output, beyond which it is ended.
        cancel: asked about ten times a second.
        environment: instead of this process's.
        sent: called with the number of bytes of each piece of `source`.

    Raises:
        TimeoutError: it did not end in time, and was ended.
        FileNotFoundError: there is no such program.
        InterruptError: the user asked to stop; it was ended.
    """
    cancel.check()
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL if source is None else subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment, start_new_session=True, bufsize=0,
    ) as process:  # fmt: skip
        try:
            return _Exchange(process, source, limit, cancel, sent).ended(timeout)
        except BaseException:
            _kill(process, source)
            raise


def _kill(process: subprocess.Popen[bytes], source: BinaryIO | None) -> None:
    """End it and what it started: it leads a group of its own. macOS forbids signals to a group of zombies.

    What is on a leash has the leash in its group, which ends the rest when the input closes.
    """
    if source is HELD:
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Exchange:
    """The pipes of one process."""

    def __init__(
        self, process: subprocess.Popen[bytes], source: BinaryIO | None, limit: int, cancel: Cancel,
        sent: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self._process, self._source, self._limit, self._cancel, self._sent = process, source, limit, cancel, sent
        written = None if source is HELD else process.stdin
        self._out, self._err, self._waiting = bytearray(), _Ends(), b""
        self._moved = time.monotonic()
        self._selector = selectors.DefaultSelector()
        for pipe, event, serve in (
            (written, selectors.EVENT_WRITE, self._write), (process.stdout, selectors.EVENT_READ, self._read),
            (process.stderr, selectors.EVENT_READ, self._complain),
        ):  # fmt: skip
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, event, serve)

    def ended(self, timeout: float) -> Completed:
        with self._selector:
            while self._selector.get_map() and len(self._out) <= self._limit:
                self._pause(timeout)
                events = self._selector.select(_TICK)
                for key, _mask in events:
                    key.data(key.fileobj)
                if not events and self._process.poll() is not None:
                    break  # something that it left behind holds the pipes
        if cut := len(self._out) > self._limit:
            _kill(self._process, self._source)
        while self._process.poll() is None:
            self._pause(timeout)
            time.sleep(0.005)
        code = self._process.returncode
        return Completed(code if code >= 0 else 128 - code, bytes(self._out[: self._limit]), self._err.value(), cut)

    def _pause(self, timeout: float) -> None:
        self._cancel.check()
        if time.monotonic() - self._moved > timeout:
            raise TimeoutError

    def _write(self, pipe: IO[bytes]) -> None:
        try:
            if not self._waiting and self._source is not None:
                self._waiting = self._source.read(_PIECE)
            count = os.write(pipe.fileno(), self._waiting) if self._waiting else 0
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want more; its exit code says why
            self._source, count = None, 0
        self._waiting = self._waiting[count:]
        if not count:
            self._close(pipe)
            return
        self._moved = time.monotonic()
        if self._sent is not None:
            self._sent(count)

    def _read(self, pipe: IO[bytes]) -> None:
        if data := os.read(pipe.fileno(), _PIECE):
            self._out += data
        else:
            self._close(pipe)

    def _complain(self, pipe: IO[bytes]) -> None:
        if data := os.read(pipe.fileno(), _PIECE):
            self._err.add(data)
        else:
            self._close(pipe)

    def _close(self, pipe: IO[bytes]) -> None:
        self._selector.unregister(pipe)
        pipe.close()


class _Ends:
    """The beginning and the end of a text of any length."""

    def __init__(self) -> None:
        self._first, self._last = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        room = _ERRORS // 2 - len(self._first)
        self._first += data[: max(0, room)]
        self._last += data[max(0, room) :]
        del self._last[: -_ERRORS // 2]

    def value(self) -> bytes:
        return bytes(self._first + self._last)
