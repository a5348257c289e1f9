"""`edgekit bench`: what a bundle does on a device."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from edgekit.cli.bench_outputs import Outputs, judged_outputs, refuse_clashes
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.bench.result import BenchResult, DeviceKind, Failure, Format
    from edgekit.bundle.bundle import Bundle
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
            "--protocol", type=click.Choice(["smoke", "standard", "long"]), default="standard", show_default=True,
            help="How much is measured, and how often; see docs/bench.md.",
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
@output_options
@judged_outputs
def command(
    bundle: Path, devices: tuple[str, ...], emulated: bool, protocol: str, formats: tuple[Literal["gguf", "onnx"], ...],
    threads: int, target: str | None, journal: Path | None, out: Path | None, force: bool, outputs: Outputs,
) -> None:  # fmt: skip
    """Measure BUNDLE on a device: speed, latency, memory, energy, and whether it still speaks sense there.

    A device that is not this machine gets the bundle, installs its engines in a folder of its own, and measures.
    """
    from edgekit.bench.words import lines
    from edgekit.cli.bench_devices import HERE, far_away, place_of, refuse_contradictions, shipped_target
    from edgekit.files import refuse_existing
    from edgekit.progress import Bars

    refuse_contradictions(devices, target, journal)
    places = {} if out is None else {device: place_of(out, device, len(devices) > 1) for device in devices}
    for place in places.values():
        refuse_existing(place, force)
    refuse_clashes(list(places.values()))
    outputs.before(force)
    progress, kind = Bars(), _kind(emulated)
    opened = _open(bundle, progress)
    if HERE in devices:
        settings = _settings(opened, target, progress)
        result = _here(opened, settings, protocol, formats, threads, journal, kind, force, progress)
        results, errors = {HERE: result}, {}
    else:
        settings = shipped_target(target or opened.manifest.target.id)
        arguments = _for_devices(protocol, formats, threads, target, force)
        found = far_away(devices, opened, settings, arguments, progress)
        results, errors = found.results, found.errors
    for device, result in results.items():
        if device in places:
            _write(result, places[device], force)
        for line in lines(result):
            click.echo(line)
    for device, error in errors.items():
        click.echo(f"{device}: {error.sentence()}", err=True)
    outputs.finish(list(results.values()), opened, settings, force)
    for error in errors.values():
        raise error
    for result in results.values():
        refuse_failures(result, formats)


def _here(
    opened: Bundle, settings: Target, protocol: str, formats: Sequence[Format], threads: int, journal: Path | None,
    kind: DeviceKind, fresh: bool, progress: Progress,
) -> BenchResult:  # fmt: skip
    from edgekit.bench.here import bench_here
    from edgekit.bench.plan import protocol as named
    from edgekit.bench.ready import ready
    from edgekit.bench.sensors import board_sensors

    real = kind == "measured"
    with board_sensors(settings, energy=real) as sensors, ready(settings, sensors.board, progress) as preflight:
        return bench_here(
            opened, settings, named(protocol), formats=formats, journal=journal, progress=progress, sensors=sensors,
            kind=kind, threads=threads, fresh=fresh, preflight=preflight,
        )  # fmt: skip


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


def _settings(bundle: Bundle, wanted: str | None, progress: Progress) -> Target:
    """The target that was asked for, or the bundle's own; on another kind of machine its settings say nothing."""
    from edgekit.bundle.paths import plain
    from edgekit.cli.bench_devices import shipped_target
    from edgekit.targets import load

    if wanted is not None:
        return load(wanted)
    target = shipped_target(bundle.manifest.target.id)
    if target.soc.arch in ("any", platform.machine()):
        return target
    progress.note(f"{plain(target.title)} is {target.soc.arch}, this machine {platform.machine()}: settings of `host`")
    return load("host")


def _write(result: BenchResult, out: Path, force: bool) -> None:
    from edgekit.bench.result import to_json
    from edgekit.files import whole_file

    with whole_file(out, force=force) as fresh:
        fresh.write_bytes(to_json(result))


def refuse_failures(result: BenchResult, asked: Sequence[Format]) -> None:
    """Raise what ended an engine's run: always a crash, an engine that is not there only where it was needed."""
    for run in result.runs:
        needed = run.format in asked or len(result.failures) == len(result.runs)
        if run.failure and (needed or run.failure.kind != "error"):
            raise _as_error(run.failure)


def _as_error(failure: Failure) -> EdgekitError:
    """The same class again, and so the same exit code."""
    from edgekit import errors

    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, EdgekitError) and kind.exit_code == failure.exit_code:
            error: EdgekitError = kind(failure.sentence)
            return error
    return EdgekitError(failure.sentence)
