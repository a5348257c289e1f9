"""One measurement on a board that is far away, from the lock to its return."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from edgekit.bench import lock as locks
from edgekit.bench.follow import LAUNCHER, Follower, failure
from edgekit.bench.metered import FILE as METER_FILE
from edgekit.bench.metered import fed
from edgekit.bench.patience import Patience, patiently
from edgekit.bench.probe import Probed
from edgekit.bench.result import MAX_BYTES
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import identity
from edgekit.bundle.paths import plain
from edgekit.devices import rooted
from edgekit.devices.base import Device
from edgekit.devices.boards.meter import Meter
from edgekit.devices.home import Home, forget_others
from edgekit.devices.process import HELD
from edgekit.devices.shell import SHORT, handle_parts, is_handle, leashed, script
from edgekit.errors import DeviceError, EdgekitError
from edgekit.progress import Progress

T = TypeVar("T")
INSTALLER = "install.sh"
_INSTALL_S = 3600
_LEAVING_S = 30.0
"""Seconds that a lost connection is waited for when only cleaning up is left."""
_RESTARTS = 3
"""Times that a board may start anew during one measurement."""

_READY = """\
mkdir -p -- "$1/journal" && cd -- "$1" && rm -f -- ended log bench.json log.handle &&
    printf 't,w\\n' >meter.csv
"""
_FORGET = f"""\
{rooted.SET_BACK}
case $1 in /*/runs/?*) rm -rf -- "$1" ;; esac
root=$3
set_back "$2" >/dev/null
"""
_PRUNE = """\
cd -- "$1" || exit 0
for old in "$2"-????????????; do
    [ "$old" = "$3" ] || [ ! -d "$old" ] || rm -rf -- "$old"
done
"""


@dataclass
class Visit:
    """One measurement on one board, from the lock to its return."""

    device: Device
    bundle: Bundle
    home: Home
    arguments: tuple[str, ...]
    progress: Progress
    patience: Patience
    lock: locks.Lock
    probed: Probed
    meter: Meter | None = None
    against: Bundle | None = None
    handle: str = ""

    @property
    def run(self) -> str:
        """The folder of this measurement: the same one when the same is asked again."""
        other = (f"against {identity(self.against.manifest)}",) if self.against else ()
        key = "\0".join((identity(self.bundle.manifest), *self.arguments, *(("meter",) if self.meter else ()), *other))
        return self.home.run(hashlib.sha256(key.encode()).hexdigest()[:16])

    @property
    def place(self) -> str:
        """Of the bundle."""
        return self.home.bundle(self.bundle.root.name)

    def measured(self) -> bytes:
        """The JSON of the finished measurement."""
        self._send(self.bundle, self.place, "sending")
        if self.against:
            name = self.against.root.name
            self._patiently(lambda: forget_others(self.device, self.home, name))
            self._send(self.against, self.home.against(name), "sending the other bundle")
        with self.progress.step(f"{self.device.title}: installing"):
            installed = self._patiently(self._install)
        command = self._command(installed)
        self._patiently(lambda: self._begin(command))
        with fed(self.device, f"{self.run}/{METER_FILE}", self.meter, self.progress):
            self._followed(command)
        return self._patiently(self._fetch)

    def _send(self, bundle: Bundle, place: str, title: str) -> None:
        with self.progress.step(f"{self.device.title}: {title}") as advance:

            def tell(done: int, total: int) -> None:
                advance(done, total)
                self.lock.tick()

            self._patiently(lambda: self.device.push(bundle.root, place, tell))

    def _followed(self, command: Sequence[str]) -> None:
        """Until it has ended, through some restarts of the board."""
        title, restarts = self.device.title, 0
        while self._follow() == "restarted":
            restarts += 1
            if restarts > _RESTARTS:
                raise DeviceError(f"{title} started anew {restarts} times", remedy="check its power supply")
            self.progress.note(f"{title}: the board started anew; the measurement goes on where it was")
            self._patiently(lambda: self._begin(command))

    def leave(self) -> None:
        """End what runs there, forget the measurement and give the lock back."""
        brief = replace(self.patience, lost_s=min(_LEAVING_S, self.patience.lost_s))
        with self.device.cancel.shielded():
            try:
                patiently(self.device, self.progress, brief, self._clear)
            except EdgekitError as error:
                self.progress.note(
                    f"{self.device.title} could not be left clean ({error.found}): edgekit devices clean --force"
                )

    def _clear(self) -> None:
        if self.handle:
            self.device.stop(self.handle)
        done = self.device.run(script(_FORGET, self.run, self.home.restore, rooted.ROOT), timeout=SHORT)
        if done.code:
            self.progress.note(rooted.not_back(self.device, done).sentence())
        self.lock.give_back()

    def _install(self) -> str:
        """Install the bundle's own runtime; returns the folder it is in."""
        self.lock.renew(_INSTALL_S)
        words = ["env", f"EDGEKIT_HOME={self.home.installed}", *_pairs(self.home), "sh", f"{self.place}/{INSTALLER}"]
        done = self.device.feed(leashed(words), HELD, timeout=_INSTALL_S, sent=lambda _: None)
        if done.code:
            raise failure(done.code, done.err.decode("utf8", "replace").splitlines(), self.device.title)
        told = self.device.run([*words, "--place"], timeout=SHORT).out.decode("utf8", "replace").strip()
        name = told.removeprefix(f"{self.home.installed}/")
        if name == told or "/" in name or not name.isprintable() or name in ("", ".", ".."):
            raise DeviceError(f"{self.device.title} installs into '{plain(told, 100)}'", expected=self.home.installed)
        self.device.run(script(_PRUNE, self.home.installed, self.bundle.root.name, name), timeout=10 * SHORT)
        self.lock.renew()
        return told

    def _command(self, installed: str) -> list[str]:
        python, run = f"{installed}/venv/bin/python", self.run
        return [
            "env", *_pairs(self.home), f"{locks.VARIABLE}={self.lock.token}",
            python, "-I", "-S", "-c", LAUNCHER, run, python, "-I", "-m", "edgekit", "bench", self.place,
            "--device", "local", "--json", f"{run}/bench.json", "--journal", f"{run}/journal",
            *(("--emulated",) if self.device.kind == "emulated" else ()),
            *(("--meter", f"csv:{run}/{METER_FILE}") if self.meter else ()),
            *(("--against", self.home.against(self.against.root.name)) if self.against else ()), *self.arguments,
        ]  # fmt: skip

    def _begin(self, command: Sequence[str]) -> None:
        """Start the measurement, or find the one whose start, or end, was not heard of while the connection was cut."""
        if not self.handle:
            found = (self.device.read(f"{self.run}/log.handle", 100) or b"").decode("ascii", "replace").strip()
            ended = f"{self.run}/ended"
            if is_handle(found) and (self.device.alive(found) or self.device.read(ended, 1) is not None):
                self.handle = found
        if not self.handle:
            if self.device.run(script(_READY, self.run), timeout=SHORT).code:
                raise DeviceError(f"'{self.run}' on {self.device.title} cannot be written", remedy="free some space")
            self.handle = self.device.start(command, f"{self.run}/log")
        self.lock.hand_over(self.handle)

    def _follow(self) -> str:
        """Until it has ended ("ended") or the board has another boot id ("restarted")."""
        follower, wait = Follower(self.device, self.run, self.handle, self.progress), self.patience.first_s
        while (state := self._patiently(follower.look)) == "runs":
            self.device.cancel.wait(wait)
            wait = min(wait * 1.5, self.patience.longest_s)
        if state == "restarted":
            self.handle = ""
            return state
        if follower.code and self._patiently(lambda: self.device.read(f"{self.run}/bench.json", 1)) is None:
            follower.judge(self.probed.ram_mib)
        return state

    def _fetch(self) -> bytes:
        """What was measured; the result of a measurement in which an engine failed says so itself."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            to = Path(folder) / "bench.json"
            self.device.fetch(f"{self.run}/bench.json", to, MAX_BYTES)
            return to.read_bytes()

    def _patiently(self, work: Callable[[], T]) -> T:
        """See :func:`patiently`; the lock is taken again when the connection is back."""

        def back() -> None:
            self.lock = self._relocked()

        return patiently(self.device, self.progress, self.patience, work, back)

    def _relocked(self) -> locks.Lock:
        """The lock once more: a restart of the board took it away, and a living lease of ours is only renewed."""
        runs = self.handle and self.device.alive(self.handle)
        process = int(handle_parts(self.handle)[0]) if runs else 0
        return locks.take(self.device, self.home, self.progress, token=self.lock.token, process=process)


def _pairs(home: Home) -> list[str]:
    return [f"{name}={value}" for name, value in home.environment.items()]
