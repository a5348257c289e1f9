"""`edgekit devices`: which boards there are, what one is, and removing what edgekit has left there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.bench.preflight import Finding
    from edgekit.bench.probe import Probed
    from edgekit.devices.base import Device


@click.group(name="devices", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, ask, name and clean devices: boards behind ssh, emulated boards, this machine.

    A device is a name from this list, or a URL: local, ssh://[user@]host[:port], emulated:TARGET.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_devices, as_json=False)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_devices(as_json: bool) -> None:
    """List the devices that have a name. None of them is asked anything."""
    from edgekit.devices import inventory

    known = inventory.devices()
    if as_json:
        _write_json([{"name": name, "url": url} for name, url in known.items()])
        return
    for name, url in known.items():
        click.echo(f"{name}  {url}")
    if not known:
        click.echo(f"no device has a name yet ({inventory.path()}): edgekit devices add NAME URL")


@command.command()
@click.argument("device")
@click.option("--target", "target_name", help="Say what speaks against this board, and fail if it is another one.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def probe(device: str, target_name: str | None, as_json: bool) -> None:
    """Ask DEVICE what it is, without changing anything on it."""
    import msgspec

    from edgekit import targets
    from edgekit.bench.preflight import check, recognised, refuse
    from edgekit.bench.probe import probe as ask

    target = targets.load(target_name) if target_name else None
    with _opened(device) as opened:
        probed = ask(opened, target.deploy.remote_dir) if target else ask(opened)
        title = opened.title
    findings = check(target, probed) if target else ()
    fits = recognised(probed)
    if as_json:
        rows = [{"level": f.level, "about": f.about, "found": f.found, "expected": f.expected} for f in findings]
        _write_json({"device": device, "facts": msgspec.to_builtins(probed), "targets": fits, "findings": rows})
    else:
        _show(probed, fits, findings)
    refuse(findings, title)


@command.command()
@click.argument("name")
@click.argument("url")
def add(name: str, url: str) -> None:
    """Call the device at URL by NAME from now on."""
    from edgekit.devices import inventory

    inventory.add(name, url)
    click.echo(f"{name} is {url} ({inventory.path()})")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget NAME; nothing on the device changes."""
    from edgekit.devices import inventory

    inventory.remove(name)
    click.echo(f"{name} is forgotten")


@command.command()
@click.argument("device")
@click.option("--target", "target_name", help="Whose deploy.remote_dir to look in, where it is another one.")
@click.option("--force", is_flag=True, help="Also end what is measured there, and forget settings that stay changed.")
def clean(device: str, target_name: str | None, force: bool) -> None:
    """Remove from DEVICE everything that edgekit put there: bundles, environments, journals, its lock.

    A governor or power mode that a measurement left changed when it crashed is set back first.
    """
    from edgekit import targets
    from edgekit.bench.probe import probe as ask
    from edgekit.devices import home

    target = targets.load(target_name) if target_name else None
    with _opened(device) as opened:
        probed = ask(opened, target.deploy.remote_dir) if target else ask(opened)
        ours = home.home_in(probed.place)
        freed = home.clean(opened, ours, force=force)
    click.echo(f"removed {ours.base}: {freed / 1024:.1f} MiB" if freed else f"nothing of edgekit's is at {ours.base}")


def _opened(name: str) -> Any:
    from contextlib import closing

    from edgekit.devices.base import open_device

    device: Device = open_device(name)
    return closing(device)


def _show(probed: Probed, fits: tuple[str, ...], findings: tuple[Finding, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("fact", "value", show_header=False)
    for name, value in _rows(probed):
        table.add_row(Text(name, style="bold"), Text(value or "unknown", overflow="fold"))
    Console().print(table)
    for finding in findings:
        click.echo(f"{finding.level}: {finding.words()}")
    click.echo(f"fits: {', '.join(fits)}" if fits else "fits: no shipped target (edgekit targets)")


def _rows(probed: Probed) -> Iterator[tuple[str, str]]:
    def mib(value: int | None) -> str:
        return "" if value is None else f"{value} MiB"

    yield "model", probed.model
    yield "CPU", f"{probed.cores} × {', '.join(probed.cpu_parts) or probed.machine}"
    yield "features", " ".join(probed.features)
    yield "clock", f"up to {probed.clock_mhz:.0f} MHz, {', '.join(probed.governors)}" if probed.clock_mhz else ""
    yield "RAM", f"{mib(probed.ram_mib)}, {mib(probed.available_mib)} available" if probed.ram_mib else ""
    yield "disk", f"{mib(probed.free_mib)} free for {probed.place}" if probed.free_mib is not None else ""
    yield "system", f"{probed.os_title}, Linux {probed.kernel}, glibc {probed.glibc or 'unknown'}"
    yield "Python", ", ".join(probed.pythons) or "none"
    yield "at work", "" if probed.busy is None else f"{probed.busy:.2f} cores (load {probed.load})"
    if probed.missing:
        yield "missing", ", ".join(probed.missing)


def _write_json(data: Any) -> None:
    import json

    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
