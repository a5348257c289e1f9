"""An external power meter: a CSV file that another program is writing, or a command that prints watts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edgekit.devices.boards.base import Clock, Runner
from edgekit.devices.boards.energy import Point
from edgekit.devices.boards.reading import number, shown
from edgekit.errors import OptionError

_PIECE = 1 << 20
"""Bytes of new rows that are read at once; the rest comes with the next poll."""
_MAX_ROW = 4096
_MAX_WATTS = 100_000.0
_JUMP = 10.0
"""Seconds by which a row's time may disagree with its arrival before the meter's clock is held to have been set."""
_SECONDS = 1e11
"""Epoch times above this are milliseconds."""
_POWER = {"w": 1.0, "watt": 1.0, "watts": 1.0, "power": 1.0, "power_w": 1.0, "power(w)": 1.0, "p": 1.0, "mw": 1e-3,
          "power_mw": 1e-3, "power(mw)": 1e-3}  # fmt: skip
_TIME = {"t", "time", "timestamp", "time_s", "time(s)", "seconds", "s", "epoch", "unix", "datetime", "date"}
_PRINTED = re.compile(r"(?:[A-Za-z_ ]{0,32}[:=] ?)?([0-9]{1,7}(?:\.[0-9]{1,9})?) ?(W|mW|)")


@dataclass(frozen=True)
class MeterReading:
    """New readings since the last poll: seconds of our clock and watts; and what was wrong, in words."""

    rows: tuple[Point, ...]
    reasons: tuple[str, ...] = ()


class Meter(Protocol):
    """Watts at the wall, or wherever the user has put the meter: the whole board with its supply."""

    name: str

    def poll(self) -> MeterReading:
        """Readings that are new."""
        ...


def open_meter(spec: str, run: Runner, clock: Clock = time.monotonic) -> Meter:
    """A meter from `csv:FILE` or `cmd:PROGRAM ARGUMENT…`.

    A command is split into words as a shell would, and run without one, on this machine; it prints watts and ends.

    Raises:
        OptionError: neither form, no such file or no plain file, or no program named.
    """
    kind, _, rest = spec.partition(":")
    if kind == "csv" and rest:
        return CsvMeter(Path(rest), clock)
    if kind == "cmd" and rest.strip():
        try:
            command = shlex.split(rest)
        except ValueError as error:
            raise OptionError(f"the meter's command has an open quote ({shown(rest)})") from error
        return CommandMeter(command, run, clock)
    raise OptionError(f"the meter is '{shown(spec)}'", expected="csv:FILE or cmd:PROGRAM ARGUMENT…")


def spec_of(text: str) -> str:
    """What :func:`open_meter` takes, from what a person types: FILE.csv or a command; the long forms stay as they are.

    Raises:
        OptionError: there is no such program here.
    """
    kind = text.partition(":")[0]
    spec = text if kind in ("csv", "cmd") else f"csv:{text}" if text.endswith(".csv") else f"cmd:{text}"
    if spec.startswith("cmd:"):
        try:
            words = shlex.split(spec[4:])
        except ValueError:
            return spec  # opening it says what is wrong
        if words and shutil.which(words[0]) is None:
            raise OptionError(
                f"the meter's program '{shown(words[0])}' is not on this machine", expected="FILE.csv or a command",
                remedy="install it, or give its path",
            )  # fmt: skip
    return spec


class CommandMeter:
    """Runs a command for every reading; the reading's time is the middle of the run."""

    def __init__(self, command: Sequence[str], run: Runner, clock: Clock = time.monotonic) -> None:
        self.name = f"the command {shown(command[0])}"
        self._command, self._run, self._clock = tuple(command), run, clock

    def poll(self) -> MeterReading:
        """One reading, of the last line that says anything."""
        begin = self._clock()
        said = self._run(self._command)
        moment = (begin + self._clock()) / 2
        if said is None:
            return MeterReading((), (f"{self.name} fails",))
        last = next((line.strip() for line in reversed(said[-_MAX_ROW:].splitlines()) if line.strip()), "")
        found = _PRINTED.fullmatch(last[:200])
        scale = 1e-3 if found and found[2] == "mW" else 1.0
        watts = number(found[1], 0, _MAX_WATTS / scale) if found else None
        if watts is None:
            return MeterReading((), (f"{self.name} prints no watts",))
        return MeterReading(((moment, watts * scale),))


@dataclass(frozen=True)
class _Columns:
    """Where a row has its figures."""

    watts: int
    scale: float
    time: int | None


class CsvMeter:
    """Follows a CSV file from its present end. Rows: a time if there is one, and watts.

    With a header, the columns are found by name (`power`, `watts`, `W`, `mW`; `time`, `timestamp`, …); without one, the
    last column is watts and the first of several is the time. Times are seconds or milliseconds since anything, or
    ISO 8601; they are laid on our clock by the newest row that the first poll finds, and anew when the meter's clock
    jumps. Rows without a time count at their arrival.

    Raises:
        OptionError: the file is absent or no plain file.
    """

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self.name = f"the meter's file {shown(path.name)}"
        self._path, self._clock = path, clock
        self._handle = self._open()
        self._columns = self._head()
        self._place = os.fstat(self._handle).st_size
        self._skip = self._place > 0 and os.pread(self._handle, 1, self._place - 1) != b"\n"
        self._left = b""
        self._offset: float | None = None
        self._latest = float("-inf")

    def poll(self) -> MeterReading:
        """All rows that are whole and new."""
        reasons: list[str] = []
        try:
            data = self._more(reasons)
        except (OSError, OptionError):
            return MeterReading((), (f"{self.name} cannot be read any more",))
        *whole, self._left = (self._left + data).split(b"\n")
        if whole and self._skip:
            whole, self._skip = whole[1:], False
        if len(self._left) > _MAX_ROW:
            self._left, self._skip = b"", True
            reasons.append(f"{self.name} has a row without end")
        read = [row for line in whole if line.strip() and (row := self._row(line, reasons))]
        rows = []
        for point in self._placed(read, self._clock(), len(data) < _PIECE, reasons):
            if point[0] < self._latest:
                reasons.append(f"{self.name} has rows out of order")
                continue
            self._latest = point[0]
            rows.append(point)
        return MeterReading(tuple(rows), tuple(reasons))

    def close(self) -> None:
        """Give the file back."""
        os.close(self._handle)

    def _open(self) -> int:
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise OptionError(
                f"the meter's file {self._path} cannot be opened ({error.strerror})",
                remedy="start the program that writes it first",
            ) from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OptionError(f"the meter's file {self._path} is no plain file", expected="a CSV file")
        return handle

    def _head(self) -> _Columns | None:
        """The columns by the file's first row."""
        return _header(_cells(os.pread(self._handle, _MAX_ROW, 0).split(b"\n", 1)[0]))

    def _more(self, reasons: list[str]) -> bytes:
        """What has been written since; a file that was put in its place or cut is read from its beginning."""
        now, mine = self._path.stat(), os.fstat(self._handle)
        if (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino) or now.st_size < self._place:
            reasons.append(f"{self.name} was begun anew")
            fresh = self._open()
            os.close(self._handle)
            self._handle, self._place, self._left, self._skip = fresh, 0, b"", False
        if self._offset is None and now.st_size - self._place >= _PIECE:  # its time cannot be told before the end
            self._place, self._left, self._skip = now.st_size - _PIECE // 2, b"", True
            self._columns = self._head() or self._columns
        data = os.pread(self._handle, _PIECE, self._place)
        self._place += len(data)
        return data

    def _row(self, line: bytes, reasons: list[str]) -> tuple[float | None, float] | None:
        """Time of a row on the meter's clock, if it has one, and watts."""
        cells = _cells(line[:_MAX_ROW])
        if (header := _header(cells)) is not None:
            self._columns = header
            return None
        columns = self._columns or _Columns(len(cells) - 1, 1.0, 0 if len(cells) > 1 else None)
        wanted = max(columns.watts, columns.time or 0)
        watts = number(cells[columns.watts], 0, _MAX_WATTS / columns.scale) if wanted < len(cells) else None
        stamp = _stamp(cells[columns.time]) if watts is not None and columns.time is not None else None
        if watts is None or (stamp is None) != (columns.time is None):
            reasons.append(f"{self.name} has a row without watts or time")
            return None
        return stamp, watts * columns.scale

    def _placed(
        self, rows: list[tuple[float | None, float]], now: float, ended: bool, reasons: list[str]
    ) -> list[Point]:
        """Rows on our clock: the newest one of them has just arrived, if they reach the file's end."""
        if not ended:  # older ones say nothing about now, and without a place in time they say nothing at all
            return [
                (now if stamp is None else stamp + (self._offset or 0.0), watts)
                for stamp, watts in rows if stamp is None or self._offset is not None
            ]  # fmt: skip
        newest = next((stamp for stamp, _ in reversed(rows) if stamp is not None), None)
        if newest is not None and self._offset is not None and abs(newest + self._offset - now) > _JUMP:
            reasons.append(f"the clock of {self.name} jumped")
            self._offset = None
        if newest is not None and self._offset is None:
            self._offset = now - newest
        return [(now if stamp is None else stamp + (self._offset or 0.0), watts) for stamp, watts in rows]


def _cells(line: bytes) -> list[str]:
    text = line.decode("utf8", "replace").lstrip("\ufeff")
    mark = next((mark for mark in (";", "\t") if mark in text), ",")
    cells = [cell.strip().strip('"').strip() for cell in text.split(mark)]
    return [re.sub(r"^(-?[0-9]+),([0-9]+)$", r"\1.\2", cell) for cell in cells] if mark == ";" else cells


def _header(cells: list[str]) -> _Columns | None:
    """Columns by name; None when this is no header."""
    names = [re.sub(r"\s", "", cell.lower()).replace("[", "(").replace("]", ")") for cell in cells]
    watts = next((index for index, name in enumerate(names) if name in _POWER), None)
    if watts is None:
        return None
    when = next((index for index, name in enumerate(names) if name in _TIME), None)
    return _Columns(watts, _POWER[names[watts]], when)


def _stamp(cell: str) -> float | None:
    """Seconds of a row's time, since whatever the meter counts from."""
    value = number(cell, 0, 1e15)
    if value is not None:
        return value / 1000 if value > _SECONDS else value
    try:
        when = datetime.fromisoformat(cell[:40].replace("Z", "+00:00"))
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
