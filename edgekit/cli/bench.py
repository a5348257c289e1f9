"""`edgekit bench`: what a bundle does on a device."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from edgekit.cli.bench_board import BoardOptions, board_options
from edgekit.cli.bench_counted import NAME as COUNTED
from edgekit.cli.bench_counted import counted, refuse_uncounted
from edgekit.cli.bench_outputs import Outputs, judged_outputs
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.bench.kept import Keeper
    from edgekit.bench.result import BenchResult, DeviceKind, Failure, Format
    from edgekit.bundle.bundle import Bundle
    from edgekit.devices.boards.meter import Meter
    from edgekit.progress import Progress
    from edgekit.targets import Target

F = TypeVar("F", bound=Callable[..., Any])


def device_options(command: F) -> F:
    """Where to measure."""
    command = click.option(
        "--device", "devices", multiple=True, default=("local",), show_default=True, metavar="DEVICE",
        help="local (the machine this runs on), ssh://[user@]host, emulated:TARGET or a name of `edgekit devices`; "
        "repeat for several boards at once.",
    )(command)  # fmt: skip
    # Who starts this on an emulated board says so; a program cannot tell by itself.
    return click.option("--emulated", is_flag=True, hidden=True)(command)


def protocol_options(command: F) -> F:
    """What to measure."""
    options = (
        click.option(
            "--protocol", type=click.Choice(["smoke", "standard", "long", COUNTED]), default="standard",
            show_default=True, help="How much is measured, and how often; see docs/bench.md.",
        ),
        click.option(
            "--format", "formats", type=click.Choice(["gguf", "onnx"]), multiple=True,
            help="Repeat for several. Default: all of the bundle's.",
        ),
        click.option(
            "--threads", type=click.IntRange(0, 1024), default=0,
            help="Of the engines; default: the target's, or what a sweep finds faster.",
        ),
        click.option("--target", help="Board: a name or a .toml file. Default: the one the bundle was built for."),
        click.option(
            "--against", type=click.Path(path_type=Path), metavar="BUNDLE",
            help="Another bundle, measured in turns with this one: how many times as fast, with an interval.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """Where the result goes."""
    options = (
        click.option(
            "--journal", type=click.Path(path_type=Path), metavar="DIR",
            help="Keep what was measured here; the same command takes an interrupted run up again.",
        ),
        click.option(
            "--json", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT",
            help="Write the result here.",
        ),
        click.option("--force", is_flag=True, help="Measure everything again, and replace OUT."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@device_options
@protocol_options
@board_options
@output_options
@judged_outputs
def command(
    bundle: Path, devices: tuple[str, ...], emulated: bool, protocol: str, formats: tuple[Literal["gguf", "onnx"], ...],
    threads: int, target: str | None, against: Path | None, board: BoardOptions, journal: Path | None,
    out: Path | None, force: bool, outputs: Outputs,
) -> None:  # fmt: skip
    """Measure BUNDLE on a device: speed, latency, memory, energy, and whether it still speaks sense there.

    A device that is not this machine gets the bundle, installs its engines in a folder of its own, and measures.
    """
    from edgekit.bench.kept import Keeper
    from edgekit.cli.bench_devices import HERE, far_away, far_settings, only, place_of, refuse_contradictions
    from edgekit.progress import Bars

    refuse_contradictions(devices, target, journal)
    board.refuse(devices, emulated)
    if protocol == COUNTED:
        refuse_uncounted(devices, formats, threads, against)
    meter = board.opened()
    places = {} if out is None else {device: place_of(out, device, len(devices) > 1) for device in devices}
    ready = outputs.before(force, list(places.values()))
    progress, kind = Bars(), _kind(emulated)
    kept = Keeper(progress)
    opened = _open(bundle, progress)
    other = None if against is None else _other(against, opened, formats, progress)
    with kept.named():
        if HERE in devices:
            settings = _settings(opened, target, progress)
            prepared = functools.partial(_prepared, settings, board, meter, kind, progress, other, target)
            found = only(
                HERE,
                lambda: _here(opened, settings, protocol, formats, threads, journal, force, progress, kept, prepared),
            )
        elif protocol == COUNTED:
            settings = far_settings(opened, target)
            found = counted(devices, opened, settings, progress, kept)
        else:
            settings = far_settings(opened, target)
            beside = None if other is None else (other, far_settings(other, target))
            arguments = (*_for_devices(protocol, formats, threads, target, force), *board.arguments)
            found = far_away(devices, opened, settings, arguments, progress, kept, meter, beside)
        ready.finish(found, opened, settings, places, kept)
    for result in found.results.values():
        refuse_failures(result, formats)


def _here(
    opened: Bundle, settings: Target, protocol: str, formats: Sequence[Format], threads: int, journal: Path | None,
    fresh: bool, progress: Progress, kept: Keeper, prepared: Callable[[], AbstractContextManager[dict[str, Any]]],
) -> BenchResult:  # fmt: skip
    from edgekit.bench.here import Asked, bench_here
    from edgekit.bench.plan import protocol as named

    with prepared() as board:
        asked = Asked(
            named(protocol), formats=formats, journal=journal, threads=threads, fresh=fresh, keep=kept.keep, **board
        )
        return bench_here(opened, settings, asked, progress)


@contextmanager
def _prepared(
    settings: Target, board: BoardOptions, meter: Meter | None, kind: DeviceKind, progress: Progress,
    other: Bundle | None = None, target: str | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Make this machine ready and then sample it; yields what `Asked` has to say of it."""
    import dataclasses

    from edgekit.bench.ready import ready
    from edgekit.bench.sensors import board_here, board_sensors

    here, real = board_here(settings), kind == "measured"
    against = None if other is None else _settings(other, target, progress)
    with (
        ready(settings, here, progress, wanted=board.wanted, emulated=not real, against=against) as prepared,
        board_sensors(settings, here, energy=real, meter=meter) as sensors,
    ):
        yield {
            "sensors": dataclasses.replace(sensors, facts=prepared.onto(sensors.facts)), "kind": kind,
            "preflight": prepared.preflight, "conditions": board.words, "against": other,
        }  # fmt: skip


def _for_devices(
    protocol: str, formats: Sequence[Format], threads: int, target: str | None, force: bool
) -> tuple[str, ...]:
    """What the measurement on a device is asked for."""
    more = [word for form in formats for word in ("--format", form)]
    more += ["--threads", str(threads)] if threads else []
    more += ["--target", target] if target else []
    more += ["--force"] if force else []
    return ("--protocol", protocol, *more)


def _kind(emulated: bool) -> DeviceKind:
    return "emulated" if emulated else "measured"


def _open(path: Path, progress: Progress) -> Bundle:
    from edgekit.bundle.bundle import open_bundle

    with progress.step("checksums") as advance:
        return open_bundle(path, progress=advance)


def _other(path: Path, bundle: Bundle, formats: Sequence[Format], progress: Progress) -> Bundle:
    """The bundle of --against, when it can be measured in turns with the other one."""
    from edgekit.bench.ab import shared

    shared(bundle, other := _open(path, progress), formats)
    return other


def _settings(bundle: Bundle, wanted: str | None, progress: Progress) -> Target:
    """The target that was asked for, or the bundle's own; on another kind of machine its settings say nothing."""
    from edgekit.bundle.paths import plain
    from edgekit.bundle.target import bundle_target
    from edgekit.targets import load

    if wanted is not None:
        return load(wanted)
    target = bundle_target(bundle)
    if target.soc.arch in ("any", platform.machine()):
        return target
    progress.note(f"{plain(target.title)} is {target.soc.arch}, this machine {platform.machine()}: settings of `host`")
    return load("host")


def refuse_failures(result: BenchResult, asked: Sequence[Format]) -> None:
    """Raise what ended an engine's run: always a crash, an engine that is not there only where it was needed."""
    for run in result.runs:
        needed = run.format in asked or len(result.failures) == len(result.runs)
        if run.failure and (needed or run.failure.kind != "error"):
            raise _as_error(run.failure)
        if run.turns and run.turns.failure:
            raise _as_error(run.turns.failure)


def _as_error(failure: Failure) -> EdgekitError:
    """The same class again, and so the same exit code."""
    from edgekit import errors

    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, EdgekitError) and kind.exit_code == failure.exit_code:
            error: EdgekitError = kind(failure.sentence)
            return error
    return EdgekitError(failure.sentence)
