"""The same work on several devices at once; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.devices.base import Device, open_device
from edgekit.devices.process import Cancel
from edgekit.errors import EdgekitError
from edgekit.progress import Advance, Progress

T = TypeVar("T")
_MOST = 64
"""Devices at once."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one device: a value, or the error."""

    name: str
    value: T | None = None
    error: EdgekitError | None = None


class Named:
    """A Progress whose lines begin with a name; instead of bars, which would overwrite each other, a line a tenth."""

    def __init__(self, inner: Progress, name: str) -> None:
        self._inner, self._name = inner, name

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""
        told = 0
        self.note(f"{title} …")

        def advance(done: int, total: int) -> None:
            nonlocal told
            tenth = 10 * done // total if total else 0
            if tenth > told:
                told = tenth
                self.note(f"{title}: {10 * tenth} %")

        yield advance

    def note(self, line: str) -> None:
        """See Progress.note."""
        self._inner.note(line if line.startswith(self._name) else f"{self._name}: {line}")


def on_all(
    names: Sequence[str],
    work: Callable[[Device, Progress], T],
    progress: Progress,
    opened: Callable[[str, Cancel], Device] = lambda name, cancel: open_device(name, cancel=cancel),
) -> tuple[Outcome[T], ...]:
    """Do `work` on every device, all at the same time.

    Args:
        names: of the inventory, or URLs; each once.
        work: gets the open device, which is closed afterwards, and where to tell about it.
        progress: with several devices every line carries the device's name.
        opened: opens a device.

    Returns:
        One outcome per device, in the order of `names`; an EdgekitError is an outcome.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all devices are left clean.
        Exception: what no EdgekitError is, when all have ended.
    """
    unique = list(dict.fromkeys(names))
    cancels = [Cancel() for _ in unique]

    def one(name: str, cancel: Cancel) -> Outcome[T]:
        told = progress if len(unique) == 1 else Named(progress, name)
        try:
            device = opened(name, cancel)
            try:
                return Outcome(name, work(device, told))
            finally:
                device.close()
        except EdgekitError as error:
            return Outcome(name, error=error)

    with ThreadPoolExecutor(max_workers=min(_MOST, max(1, len(unique)))) as pool:
        futures = [pool.submit(one, name, cancel) for name, cancel in zip(unique, cancels, strict=True)]
        _wait(futures, cancels)
    return tuple(future.result() for future in futures)


def _wait(futures: Sequence[Future[Outcome[T]]], cancels: Sequence[Cancel]) -> None:
    """In the main thread, where Ctrl-C arrives; the others then stop and clean up."""
    try:
        wait(futures)
    except KeyboardInterrupt:
        for cancel in cancels:
            cancel.set()
        wait(futures)
        raise
