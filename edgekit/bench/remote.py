"""A bundle on a board that is far away: asked, sent, installed, measured there, and the result brought back.

The measurement runs detached from the connection and keeps a journal: a cut cable is waited for, after a restart of the
board it goes on where it was, and Ctrl-C leaves the board as it was but for what makes the next time faster.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from edgekit.bench import lock as locks
from edgekit.bench.fleet import Outcome, on_all
from edgekit.bench.patience import Patience, patiently
from edgekit.bench.preflight import Needs, check, needs_of, refuse
from edgekit.bench.probe import Probed, probe
from edgekit.bench.result import BenchResult, from_json
from edgekit.bench.visit import INSTALLER, Visit
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import MANIFEST, identity
from edgekit.bundle.manifest import MAX_BYTES as MAX_MANIFEST
from edgekit.devices.base import Device, UnreachableError
from edgekit.devices.boards.meter import Meter
from edgekit.devices.home import Home, home_in, prepare
from edgekit.errors import BundleError, DeviceError
from edgekit.progress import Progress
from edgekit.targets import Target

# Who measures far away also says how long a lost connection is waited for.
__all__ = ("Patience",)

T = TypeVar("T")


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
    _preflight(device, bundle, target, probed, home, progress, against)
    patience, token = patience or Patience(), secrets.token_hex(8)
    patiently(device, progress, patience, lambda: prepare(device, home))
    lock = patiently(device, progress, patience, lambda: locks.take(device, home, progress, token=token))
    other = None if against is None else against.bundle
    visit = Visit(device, bundle, home, tuple(arguments), progress, patience, lock, probed, meter, other)
    with _left_clean(visit):
        return decode(visit.measured())


@contextmanager
def _left_clean(visit: Visit) -> Iterator[None]:
    """The board is left clean afterwards, unless it cannot be reached: what was begun there then goes on."""
    try:
        yield
    except UnreachableError as error:
        remedy = "a measurement that began there goes on: run the same command again later"
        raise UnreachableError(error.found, remedy=remedy) from error
    except BaseException:
        visit.leave()
        raise
    visit.leave()


def _preflight(
    device: Device, bundle: Bundle, target: Target, probed: Probed, home: Home, progress: Progress,
    against: Against | None,
) -> None:  # fmt: skip
    findings = check(target, probed, _needs(device, bundle, target, home.bundle(bundle.root.name)))
    refuse(findings, device.title)
    for finding in findings:
        progress.note(f"{device.title}: {finding.words()}")
    if against is not None:
        _preflight_against(device, bundle, against, probed, home)


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
