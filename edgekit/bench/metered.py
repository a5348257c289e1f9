"""A power meter on this machine for a board that is far away: its readings go to the board as a CSV file there.

The measurement there follows the file as it would follow any meter's, so its energies lie between its own times. A
reading is about half a second old when it is seen there; its distance from the others is the meter's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from edgekit.devices.base import Device, UnreachableError
from edgekit.devices.boards.base import Clock
from edgekit.devices.boards.meter import Meter
from edgekit.devices.shell import said, script
from edgekit.errors import EdgekitError, InterruptError
from edgekit.progress import Progress

FILE = "meter.csv"
HEADER = "t,w\n"
HZ = 4.0
_AGAIN_S = 2.0
"""Between two tries while the connection is lost, or the board refuses."""
_TRIES = 5
"""Times that the board may refuse the readings before sending is given up."""
_LEAVE_S = 10.0
_YEARS = 1e9
"""Seconds without a reading after which sending ends; it ends with the measurement."""
_APPEND = """\
[ -s "$1" ] || printf 't,w\\n' >"$1"
exec cat >>"$1"
"""


@contextmanager
def fed(device: Device, path: str, meter: Meter | None, progress: Progress, *, hz: float = HZ) -> Iterator[None]:
    """Send a meter's readings to the file `path` on a board while the block runs; without a meter nothing is done.

    Args:
        device: the board.
        path: of the file, whose folder is there.
        meter: on this machine.
        progress: told, once each, what is wrong with the meter.
        hz: how often it is asked.
    """
    if meter is None:
        yield
        return
    stop = threading.Event()
    worker = threading.Thread(
        target=_send, args=(device, path, Rows(meter, stop, progress.note, hz), stop), name="edgekit-feed", daemon=True
    )
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join(_LEAVE_S)


def _send(device: Device, path: str, rows: Rows, stop: threading.Event) -> None:
    """Until it is stopped; a lost connection is waited for, and what was not sent meanwhile is lost."""
    tries = 0
    while not stop.is_set():
        try:
            done = device.feed(script(_APPEND, path), cast("BinaryIO", rows), timeout=_YEARS, sent=lambda _: None)
            if stop.is_set():
                return
            tries += 1
            rows.say(f"power meter: {device.title} does not take its readings ({said(done)})")
            if tries == _TRIES:
                rows.say(f"power meter: given up after {_TRIES} tries")
                return
            stop.wait(_AGAIN_S)
            rows.begin_anew()
        except UnreachableError:
            stop.wait(_AGAIN_S)
            rows.begin_anew()
        except InterruptError:
            return
        except EdgekitError as error:
            rows.say(error.sentence())
            return


class Rows:
    """A meter's readings as lines of a file, as they come; ends when it is told to stop.

    Args:
        meter: asked about `hz` times a second.
        stop: ends it.
        say: hears what is wrong, each thing once.
        hz: see above.
        clock: of the meter's readings.
    """

    def __init__(
        self, meter: Meter, stop: threading.Event, say: Callable[[str], None], hz: float = HZ,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._meter, self._stop, self._say, self._period, self._clock = meter, stop, say, 1 / hz, clock
        self._due, self._left, self._said = clock(), b"", set[str]()

    def say(self, line: str) -> None:
        """Pass on what was not said before."""
        if line not in self._said and len(self._said) < 20:
            self._said.add(line)
            self._say(line)

    def begin_anew(self) -> None:
        """Another connection: what is there of a line is ended and spoiled."""
        self._left = b"?\n"  # so that half a number is none

    def read(self, size: int = -1) -> bytes:
        """The next rows, at least one; nothing at the end."""
        while not self._left and not self._stop.is_set():
            if self._stop.wait(max(0.0, self._due - self._clock())):
                break
            self._due = max(self._due + self._period, self._clock())
            reading = self._meter.poll()
            for reason in reading.reasons:
                self.say(f"power meter: {reason}")
            self._left = b"".join(b"%.4f,%.6g\n" % row for row in reading.rows)
        count = len(self._left) if size < 0 else size
        piece, self._left = self._left[:count], self._left[count:]
        return piece
