"""Telling a person what is going on and how far it is; quiet when nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int, int], None]
"""Called with (done, in all)."""


class Progress(Protocol):
    """Where long work reports itself."""

    def step(self, title: str) -> AbstractContextManager[Advance]:
        """A stage with a title; the value it yields moves its bar. A stage that never calls it shows a spinner."""

    def note(self, line: str) -> None:
        """Say one line that is no stage."""


class Stopwatch:
    """Wraps a Progress and remembers how long each step took, in seconds."""

    def __init__(self, inner: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = inner

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""
        begin = time.monotonic()
        with self._inner.step(title) as advance:
            yield advance
        self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - begin

    def note(self, line: str) -> None:
        """See Progress.note."""
        self._inner.note(line)


class Quiet:
    """Shows nothing."""

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""
        yield lambda _done, _total: None

    def note(self, line: str) -> None:
        """See Progress.note."""


class Bars:
    """Rich progress bars on standard error; plain lines when that is not a terminal."""

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        if not console.is_terminal:
            console.print(f"{title} …", highlight=False)
            begin = time.monotonic()
            yield lambda _done, _total: None
            console.print(f"{title}: {time.monotonic() - begin:.1f} s", highlight=False)
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        with RichProgress(*columns, console=console) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
            done = bars.tasks[0].total or 1
            bars.update(task, completed=done, total=done)

    def note(self, line: str) -> None:
        """See Progress.note."""
        from rich.console import Console

        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def counter(advance: Advance, total: int) -> Callable[[object], None]:
    """A callback that advances by one each time it is called, whatever it is called with."""
    done = 0

    def tick(_: object = None) -> None:
        nonlocal done
        done += 1
        advance(min(done, total), total)

    return tick
