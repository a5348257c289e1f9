"""Where `edgekit bench` measures: here, or on devices that are far away, all at the same time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import DeviceError, EdgekitError, OptionError

if TYPE_CHECKING:
    from edgekit.bench.kept import Keeper
    from edgekit.bench.result import BenchResult
    from edgekit.bundle.bundle import Bundle
    from edgekit.devices.boards.meter import Meter
    from edgekit.progress import Progress
    from edgekit.targets import Target

HERE = "local"


@dataclass(frozen=True)
class Measured:
    """What came back."""

    results: dict[str, BenchResult] = field(default_factory=dict)
    """Device, as the user called it → result."""
    errors: dict[str, EdgekitError] = field(default_factory=dict)


def refuse_contradictions(devices: Sequence[str], target: str | None, journal: Path | None) -> None:
    """What is quick to check of the devices.

    Raises:
        OptionError: a device twice, `local` beside others, or an option that means nothing on a device far away.
        DeviceError: a name or URL that nobody knows.
    """
    from edgekit.devices import inventory
    from edgekit.devices.base import parse_url

    if len(set(devices)) < len(devices):
        raise OptionError("a device is given twice", remedy="give each --device once")
    if HERE in devices:
        if len(devices) > 1:
            raise OptionError(
                "`--device local` is given beside others", remedy="measure this machine in a run of its own"
            )
        return
    for device in devices:
        parse_url(inventory.url_of(device))
    if journal is not None:
        raise OptionError(
            "--journal is given for a device that is not this machine", expected="--device local",
            remedy="leave it out: the device keeps its own journal, and the same command takes it up again",
        )  # fmt: skip
    if target is not None and target.endswith(".toml"):
        raise OptionError(
            "--target is a file, which a device does not have", expected="the name of a target",
            remedy="measure with --device local on the device itself",
        )  # fmt: skip


def shipped_target(name: str) -> Target:
    """A target by its name, which may come from a stranger's bundle: never taken for the path of a file.

    Raises:
        OptionError: edgekit ships no target of that name.
    """
    from edgekit.bundle.paths import plain
    from edgekit.targets import load, names

    if name not in names():
        raise OptionError(
            f"there is no target '{plain(name)}' here, for which the bundle was built",
            expected="one of `edgekit targets`", remedy="give its settings with --target",
        )  # fmt: skip
    return load(name)


def far_settings(bundle: Bundle, wanted: str | None) -> Target:
    """The target that was asked for, or the bundle's own.

    Raises:
        OptionError: see :func:`shipped_target` and :func:`edgekit.bundle.target.bundle_target`.
    """
    from edgekit.bundle.target import bundle_target

    return shipped_target(wanted) if wanted else bundle_target(bundle)


def only(device: str, measure: Callable[[], BenchResult]) -> Measured:
    """What became of one device."""
    try:
        return Measured({device: measure()})
    except EdgekitError as error:
        return Measured(errors={device: error})


def far_away(
    devices: Sequence[str], bundle: Bundle, target: Target, arguments: Sequence[str], progress: Progress, kept: Keeper,
    meter: Meter | None = None, against: tuple[Bundle, Target] | None = None,
) -> Measured:  # fmt: skip
    """Measure on all devices at the same time; one that fails does not stop the others, and each result is kept."""
    from edgekit.bench.remote import Against, bench_all

    other = None if against is None else Against(*against)
    outcomes = bench_all(devices, bundle, target, arguments, progress, kept.keep, meter, other)
    found = Measured()
    for outcome in outcomes:
        if outcome.value is not None:
            found.results[outcome.name] = outcome.value
        else:
            found.errors[outcome.name] = outcome.error or DeviceError(f"{outcome.name} gave no result")
    return found


def place_of(out: Path, device: str, several: bool) -> Path:
    """Where a device's result goes: OUT itself, or for several OUT with the device's name before its ending."""
    if not several:
        return out
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", device).strip("-.") or "device"
    return out.with_name(f"{out.stem}.{name}{out.suffix}")
