"""Talking to the process that measures, and saying in words how it ended when it did not end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, TypeVar

import msgspec

from edgekit import errors
from edgekit.bench.child import LESS_MEMORY, Advanced, Open, Opened, Reply, Request, Told
from edgekit.bench.memory import kills, resident
from edgekit.errors import DeviceError, EdgekitError, OutOfMemoryError

T = TypeVar("T")
Tell = Callable[[int, int], None]
_MAX_LINE = 16 << 20


class Worker(Protocol):
    """Something that answers requests about one model."""

    def ask(self, request: Request, type_: type[T], tell: Tell | None = None) -> T:
        """The answer to a request; `tell` hears how far it is.

        Raises:
            EdgekitError: the request failed.
            EngineDied: the process ended before it answered.
        """

    def close(self) -> None:
        """Free the model."""


Start = Callable[[], Worker]
"""A fresh process."""


class EngineDied(Exception):  # noqa: N818 — what is wrong is in `error`
    """The measuring process ended before it answered."""

    def __init__(self, error: EdgekitError, resident_mib: float | None) -> None:
        super().__init__(error.sentence())
        self.error = error
        self.resident_mib = resident_mib  # at most; None when the kernel's figure is not the process's own


class Process:
    """A worker in a process of its own."""

    def __init__(self, command: tuple[str, ...] = ()) -> None:
        self._killed_before, self._inherited = kills(), resident().peak_mib or 0.0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — lives as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            command or _child(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Request, type_: type[T], tell: Tell | None = None) -> T:
        """See Worker.ask.

        Raises:
            EngineDied: the process ended before it answered.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("both are pipes")
        with suppress(BrokenPipeError):  # the missing answer tells
            stdin.write(msgspec.json.encode(request) + b"\n")
            stdin.flush()
        while line := stdout.readline(_MAX_LINE):
            if not line.endswith(b"\n"):
                break
            reply = _decoded(line, Reply)
            if isinstance(reply, Advanced):
                if tell:
                    tell(reply.done, reply.total)
            elif isinstance(reply, Told):
                raise _told(reply)
            else:
                answer: T = _decoded(bytes(reply.value), type_)
                return answer
        raise self._death()

    def close(self) -> None:
        """End the process, whatever it does."""
        process = self._process
        if process.returncode is None and process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _death(self) -> EngineDied:
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        # The kernel counts what this process held when it started the other one; beyond that it is the other's own.
        counted = usage.ru_maxrss / 1024
        reached = counted if counted > self._inherited + 1 else None
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        last = self._errors.read().decode("utf8", "replace").strip().splitlines() or ["no reason given"]
        held = f"it held less than {counted:.0f} MiB" if reached is None else f"it held {reached:.0f} MiB at most"
        return EngineDied(death(code, last[-1], held, _more(self._killed_before, kills())), reached)


def _child() -> tuple[str, ...]:
    """Never from the current folder, and as isolated as this process is."""
    return (sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "edgekit.bench.child")


def _decoded(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DeviceError(f"the measuring process answers what it was not asked ({error})") from error


def _more(before: int | None, after: int | None) -> bool | None:
    return None if before is None or after is None else after > before


def _told(reply: Told) -> EdgekitError:
    """The same error on this side of the pipe."""
    kind = getattr(errors, reply.error, None)
    if not (isinstance(kind, type) and issubclass(kind, EdgekitError)):
        kind = EdgekitError
    error: EdgekitError = kind(reply.found, expected=reply.expected, remedy=reply.remedy)
    return error


def death(code: int, last: str, held: str, kernel_killed: bool | None) -> EdgekitError:
    """How a process ended, in words.

    Args:
        code: its exit code; minus the signal's number when a signal ended it.
        last: the last line it wrote on standard error.
        held: how much memory it held, in words.
        kernel_killed: whether the kernel killed a process for want of memory meanwhile; None: it does not say.
    """
    if code == -signal.SIGKILL and kernel_killed is not False:
        who = "the kernel killed the engine for want of memory" if kernel_killed else "the engine was killed (SIGKILL)"
        likely = "" if kernel_killed else ", most likely by the kernel for want of memory"
        return OutOfMemoryError(f"{who}{likely}: {held}", remedy=LESS_MEMORY)
    if code == -signal.SIGKILL:
        return DeviceError(f"the engine was killed (SIGKILL), not for want of memory: {held}", remedy="run again")
    if code == -signal.SIGILL:
        return DeviceError(
            f"the engine was ended by an instruction that this CPU does not have (SIGILL): {held}",
            remedy="build the bundle for this board's CPU",
        )
    if code < 0:
        return DeviceError(f"the engine crashed ({_signal(-code)}): {held}; it last said: {last}")
    return DeviceError(f"the measuring process ended with code {code}: {last}")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Lazy:
    """A worker with a loaded model, started when it is first asked: a run that is taken up may not need it."""

    def __init__(self, start: Start, request: Open) -> None:
        self._start, self._request = start, request
        self._worker: Worker | None = None

    def __enter__(self) -> Lazy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Opened:
        """Start and load."""
        self._worker = self._start()
        return self._worker.ask(self._request, Opened)

    def ask(self, request: Request, type_: type[T], tell: Tell | None = None) -> T:
        """See Worker.ask."""
        if self._worker is None:
            self.open()
        worker = self._worker
        if worker is None:
            raise AssertionError("it was opened")
        return worker.ask(request, type_, tell)

    def close(self) -> None:
        """See Worker.close."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
