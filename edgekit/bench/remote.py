"""A bundle on a board that is far away: asked, sent, installed, measured there, and the result brought back.

The measurement runs detached from the connection and keeps a journal: a cut cable is waited for, after a restart of the
board it goes on where it was, and Ctrl-C leaves the board as it was but for what makes the next time faster.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from edgekit.bench import lock as locks
from edgekit.bench.fleet import Outcome, on_all
from edgekit.bench.follow import LAUNCHER, Follower, failure
from edgekit.bench.metered import FILE as METER_FILE
from edgekit.bench.metered import fed
from edgekit.bench.preflight import Needs, check, needs_of, refuse
from edgekit.bench.probe import Probed, probe
from edgekit.bench.result import MAX_BYTES, BenchResult, from_json
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import MANIFEST, identity
from edgekit.bundle.manifest import MAX_BYTES as MAX_MANIFEST
from edgekit.bundle.paths import plain
from edgekit.devices import rooted
from edgekit.devices.base import Device, UnreachableError
from edgekit.devices.boards.meter import Meter
from edgekit.devices.home import Home, forget_others, home_in, prepare
from edgekit.devices.process import HELD
from edgekit.devices.shell import SHORT, handle_parts, is_handle, leashed, script
from edgekit.errors import BundleError, DeviceError, EdgekitError
from edgekit.progress import Progress
from edgekit.targets import Target

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


@dataclass(frozen=True)
class Patience:
    """How long a lost connection is waited for, and how often the board is looked at; seconds."""

    lost_s: float = 900.0
    first_s: float = 1.0
    """Before the second try, and between the first two looks."""
    longest_s: float = 15.0
    """Looking costs the board a few ms of CPU time, which a measurement may feel."""


@dataclass(frozen=True)
class Against:
    """The other bundle, opened with its checksums, when two are measured in turns. Its engines are not used."""

    bundle: Bundle
    target: Target


def bench_on(
    device: Device, bundle: Bundle, target: Target, arguments: Sequence[str], *, decode: Callable[[bytes], T],
    progress: Progress, patience: Patience | None = None, meter: Meter | None = None, against: Against | None = None,
) -> T:  # fmt: skip
    """Measure a bundle on a board.

    Args:
        device: the board.
        bundle: opened with its checksums, so a changed byte is refused before anything is sent.
        target: whose board it has to be.
        arguments: further ones of `edgekit bench` there, such as --protocol.
        decode: of the JSON that comes back; raises what it likes.
        progress: told what goes on here and, line by line, what the measurement there says.
        patience: with the connection.
        meter: of the board's power, on this machine.
        against: measured in turns with the bundle; the board has to be its board too.

    Returns:
        What `decode` makes of the result.

    Raises:
        BundleError: the bundle holds no engines, or arrives changed.
        WrongBoardError, DeviceError: see :func:`edgekit.bench.preflight.refuse` and :func:`edgekit.bench.lock.take`.
        UnreachableError: the board did not come back; the measurement there goes on.
        OutOfMemoryError: the board's kernel ended it for lack of memory.
        EdgekitError: what the measurement there ended with.
    """
    if INSTALLER not in bundle.manifest.files:
        raise BundleError(f"{bundle.root} holds no engines for a board", remedy="build it without --no-runtime")
    probed = probe(device, target.deploy.remote_dir)
    home = home_in(probed.place)
    _preflight(device, bundle, target, probed, home, progress)
    if against is not None:
        _preflight_against(device, bundle, against, probed, home)
    patience, token = patience or Patience(), secrets.token_hex(8)
    patiently(device, progress, patience, lambda: prepare(device, home))
    lock = patiently(device, progress, patience, lambda: locks.take(device, home, progress, token=token))
    other = None if against is None else against.bundle
    visit = _Visit(device, bundle, home, tuple(arguments), progress, patience, lock, probed, meter, other)
    try:
        result = decode(visit.measured())
    except UnreachableError as error:
        remedy = "a measurement that began there goes on: run the same command again later"
        raise UnreachableError(error.found, remedy=remedy) from error
    except BaseException:
        visit.leave()
        raise
    visit.leave()
    return result


def _preflight(device: Device, bundle: Bundle, target: Target, probed: Probed, home: Home, progress: Progress) -> None:
    findings = check(target, probed, _needs(device, bundle, target, home.bundle(bundle.root.name)))
    refuse(findings, device.title)
    for finding in findings:
        progress.note(f"{device.title}: {finding.words()}")


def _needs(device: Device, bundle: Bundle, target: Target, place: str) -> Needs:
    there = device.read(f"{place}/{MANIFEST}", MAX_MANIFEST)
    return needs_of(bundle.manifest, target, there=there == (bundle.root / MANIFEST).read_bytes())


def _preflight_against(device: Device, bundle: Bundle, against: Against, probed: Probed, home: Home) -> None:
    """Is it the other bundle's board too, and has it room for both?"""
    needs = _needs(device, against.bundle, against.target, home.against(against.bundle.root.name))
    first = _needs(device, bundle, against.target, home.bundle(bundle.root.name))
    both = needs.disk_mib + first.disk_mib - against.target.deploy.min_free_mib
    needs = replace(needs, disk_mib=both, python="")  # its engines are not installed
    refuse(check(against.target, probed, needs), f"{device.title}, for the bundle of --against")


def decoder(device: Device, bundle: Bundle, against: Bundle | None = None) -> Callable[[bytes], BenchResult]:
    """Reads the result of this device and these bundles, and calls the device as the user did.

    Raises (the function it returns):
        FileFormatError: it is no result.
        DeviceError: it is one of another bundle, or says that an emulated board was measured.
    """

    def decode(data: bytes) -> BenchResult:
        result = from_json(data, f"the result of {device.title}")
        wanted = (identity(bundle.manifest), against and identity(against.manifest))
        if (result.bundle.manifest_sha256, result.against and result.against.manifest_sha256) != wanted:
            raise DeviceError(f"{device.title} answers with the result of another bundle")
        if (result.measured_on == "emulated") != (device.kind == "emulated"):
            raise DeviceError(f"{device.title} says it is {result.measured_on}", expected=device.kind)
        return msgspec.structs.replace(result, device=msgspec.structs.replace(result.device, url=device.url))

    return decode


def bench_all(
    names: Sequence[str],
    bundle: Bundle,
    target: Target,
    arguments: Sequence[str],
    progress: Progress,
    keep: Callable[[BenchResult], None] = lambda _: None,
    meter: Meter | None = None,
    against: Against | None = None,
) -> tuple[Outcome[BenchResult], ...]:
    """Measure a bundle on several boards at the same time; see :func:`bench_on` and :func:`on_all`.

    `keep` is given each result before its board forgets it; a `meter` is for a single board.
    """

    def work(device: Device, told: Progress) -> BenchResult:
        read = decoder(device, bundle, against.bundle if against else None)

        def decode(data: bytes) -> BenchResult:
            keep(result := read(data))
            return result

        return bench_on(
            device, bundle, target, arguments, decode=decode, progress=told, meter=meter, against=against
        )  # fmt: skip

    return on_all(names, work, progress)


@dataclass
class _Visit:
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


def patiently(
    device: Device,
    progress: Progress,
    patience: Patience,
    work: Callable[[], T],
    back: Callable[[], None] | None = None,
) -> T:
    """Do `work`, and do it again while the connection is lost, ever less often; before that, once it is back, `back`.

    Raises:
        UnreachableError: it was lost for too long.
    """
    lost, wait = 0.0, patience.first_s
    while True:
        again = time.monotonic()
        try:
            if lost and back is not None:
                back()
                again = time.monotonic()
            return work()
        except UnreachableError as error:
            now = time.monotonic()
            if lost and back is not None and now - again > patience.lost_s:  # it was back for long: another cut
                lost, wait = 0.0, patience.first_s
            if not lost:
                progress.note(f"{error.found}; trying again")
            lost = lost or now
            if now - lost > patience.lost_s:
                raise
        device.cancel.wait(wait)
        wait = min(2 * wait, patience.longest_s)


def _pairs(home: Home) -> list[str]:
    return [f"{name}={value}" for name, value in home.environment.items()]
