"""A measurement that runs on a board by itself: how it is launched there, and how it is looked at from here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgekit.bundle.paths import plain
from edgekit.devices.base import Device
from edgekit.devices.sections import SAY, sections
from edgekit.devices.shell import IDENTITY, SHORT, handle_parts, script
from edgekit.errors import DeviceError, EdgekitError, InterruptError, OutOfMemoryError
from edgekit.progress import Progress

State = Literal["runs", "ended", "restarted"]
LAUNCHER = """\
import os, signal, sys
folder, *command = sys.argv[1:]
def text(path):
    try:
        with open(path) as stream:
            return stream.read()
    except OSError:
        return ""
def kills():
    found = [line.split()[1] for line in text("/proc/vmstat").splitlines() if line.startswith("oom_kill ")]
    return int(found[0]) if found else 0
os.sync()
before = kills()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if not child:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("500")
    except OSError:
        pass
    os.execv(command[0], command)
_, status, usage = os.wait4(child, 0)
os.sync()
with open(folder + "/.ended", "w") as stream:
    stream.write("%d %d %d" % (os.waitstatus_to_exitcode(status), usage.ru_maxrss, kills() - before))
os.replace(folder + "/.ended", folder + "/ended")
"""
"""Run by the board's Python with a folder and a command. Beside the command's exit code it knows what a shell does not:
the most memory it held, and whether the kernel killed for lack of memory meanwhile. The command volunteers to be the
one that the kernel kills, so that the ssh server stays. SIGTERM goes to both and ends the command alone: whoever stops
them waits as long as the command cleans up.

The disk is brought up to date before the command, so that a power cut takes nothing of what was sent and installed and
writing it does not disturb a measurement; and after it, so that no end is told whose result could still be lost."""

_PIECE = 16384
_BEHIND = 4 * _PIECE
_LOOK = f"""\
{SAY}
{IDENTITY}
echo begin:
echo "$boot" | say boot 64
if [ "$(began "$2")" = "$3" ]; then echo yes; else echo no; fi | say alive 8
cat -- "$1/ended" 2>/dev/null | say ended 64
size=$( (wc -c <"$1/log") 2>/dev/null | tr -d ' ')
take=$((${{size:-0}} - $4 + 1)) # not what is written from now on: the next look begins behind what this one told
[ "$take" -le {_PIECE} ] || take={_PIECE}
{{
    [ "$take" -le 0 ] || tail -c "+$4" -- "$1/log" | head -c "$take"
    echo .
}} | say log {_PIECE + 2}
echo "${{size:-0}}" | say size 32
echo end:
"""
_ENDED = re.compile(r"(-?[0-9]{1,4}) ([0-9]{1,12}) (-?[0-9]{1,9})")
_KILLED = -9
_STOPPED = (-15, InterruptError.exit_code)
"""Of what got a SIGTERM."""
_OURS = {kind.exit_code: kind for kind in EdgekitError.__subclasses__()}


@dataclass
class Follower:
    """Looks at a launched measurement, and passes on what it says."""

    device: Device
    folder: str
    handle: str
    progress: Progress
    lines: list[str] = field(default_factory=list)
    """The last that it said, cleaned."""
    ended: tuple[int, int, int] | None = None
    """Exit code, most memory in KiB, kills by the kernel for lack of memory."""
    _offset: int = 1
    _begun: str = ""
    """The beginning of a line whose end is not written yet."""

    def look(self) -> State:
        """One round trip.

        Raises:
            DeviceError: it was ended from outside, or the board answers something else.
        """
        process, began, boot = handle_parts(self.handle)
        command = script(_LOOK, self.folder, process, began, str(self._offset))
        found = parse(self.device.run(command, timeout=SHORT).out, self.device.title)
        self._pass_on(found)
        if found.ended is not None:
            self.ended = found.ended
            return "ended" if found.size < self._offset else "runs"  # until all that it said is heard
        if found.boot != boot:
            return "restarted"
        if not found.alive:
            raise self._outside()
        return "runs"

    @property
    def code(self) -> int:
        """Exit code of what has ended."""
        return self.ended[0] if self.ended else 1

    def judge(self, ram_mib: int | None) -> None:
        """Whether it ended well.

        Raises:
            OutOfMemoryError: the kernel killed it.
            EdgekitError: what it said.
        """
        code, rss_kib, kills = self.ended or (1, 0, 0)
        if code == _KILLED and kills > 0:
            of = f" of {ram_mib} MiB" if ram_mib else ""
            held = f"at {rss_kib >> 10} MiB{of}"
            raise OutOfMemoryError(
                f"the kernel of {self.device.title} ended the measurement for lack of memory, {held}",
                remedy="take fewer bits, a smaller model or a board with more memory",
            )
        if code in _STOPPED:
            raise self._outside()
        if code:
            raise failure(code, self.lines, self.device.title)

    def _outside(self) -> DeviceError:
        words = f"the measurement on {self.device.title} was ended from outside"
        return DeviceError(words, remedy="run the same command again")

    def _pass_on(self, found: Look) -> None:
        lines = [*found.log, found.rest]
        lines[0] = self._begun + lines[0]
        self._offset = min(self._offset + _PIECE, found.size + 1)
        whole = found.ended is not None and found.size < self._offset
        self._begun = "" if whole else lines.pop()[:_PIECE]
        for line in filter(None, (plain(line.strip(), 300) for line in lines)):
            self.progress.note(f"{self.device.title}: {line}")
            self.lines.append(line)
        del self.lines[:-20]
        if found.size - self._offset > _BEHIND:  # what it says is worth following, not reading whole
            self._offset = found.size - _PIECE


@dataclass(frozen=True)
class Look:
    """What one look brings."""

    boot: str
    alive: bool
    ended: tuple[int, int, int] | None
    log: tuple[str, ...]
    """Whole lines."""
    rest: str
    """What follows them: a line without its end."""
    size: int
    """Of the whole log, bytes."""


def parse(data: bytes, title: str) -> Look:
    """Read what the script of a look printed.

    Raises:
        DeviceError: it is something else.
    """
    found = sections(data, ("boot", "alive", "ended", "log", "size"), title)
    boot, alive, ended, size = (" ".join(found[name]).strip() for name in ("boot", "alive", "ended", "size"))
    match = _ENDED.fullmatch(ended)
    if alive not in ("yes", "no") or (ended and not match) or not re.fullmatch(r"[0-9]{0,15}", size):
        raise DeviceError(f"{title} does not say how the measurement is", remedy="log in and look by hand")
    numbers = (int(match[1]), int(match[2]), int(match[3])) if match else None
    *log, rest = found["log"] or ["."]
    return Look(boot, alive == "yes", numbers, tuple(log), rest.removesuffix("."), int(size or 0))


def failure(code: int, lines: Sequence[str], title: str) -> EdgekitError:
    """The error of a program of ours that ended with `code` on a device and said `lines`."""
    told = next((line for line in reversed(lines) if line.startswith("edgekit: ")), "")
    said = plain(told.removeprefix("edgekit: ") or next(iter(reversed(lines)), "") or "it said nothing", 500)
    kind = _OURS.get(code) if told else None
    if kind is None:
        return DeviceError(f"{title}: a program of ours ended with {code} ({said})", remedy="report it with its output")
    return kind(f"{title}: {said}")
