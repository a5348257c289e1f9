"""`edgekit targets`: which boards there are, and what a target file says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.targets import Target


@click.group(name="targets", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the boards, show one, or check a target file."""
    if context.invoked_subcommand is None:
        context.invoke(list_targets, as_json=as_json)
    elif as_json:
        raise click.UsageError(f"--json goes behind the verb: targets {context.invoked_subcommand} --json")


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_targets(as_json: bool) -> None:
    """List the shipped targets."""
    from edgekit import targets

    found = [targets.load(name) for name in targets.names()]
    if as_json:
        _write_json([_row(target) for target in found])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "board", "tier", "RAM MiB", "decode GB/s")
    for target in found:
        speed = target.memory.decode_gbps
        told = "not predicted" if speed is None else f"{speed:g} {target.memory.decode_basis}"
        ram = str(target.memory.default_ram_mib or "this machine's")
        table.add_row(*(Text(cell) for cell in (target.name, target.title, str(target.tier), ram, told)))
    Console().print(table)


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def show(name: str, as_json: bool) -> None:
    """Show NAME, a shipped target or a .toml file, with everything it inherits."""
    import msgspec

    from edgekit import targets

    data = msgspec.to_builtins(targets.load(name), str_keys=True)
    if as_json:
        _write_json(data)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "value")
    for key, value in _flat(data, ""):
        table.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    Console().print(table)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check FILE, a target file, and its parents."""
    from edgekit import targets

    target = targets.validate(file)
    click.echo(f"{file}: {target.name} ({target.title}) is a valid target.")


def _row(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "title": target.title,
        "aliases": target.aliases,
        "tier": target.tier,
        "default_ram_mib": target.memory.default_ram_mib,
        "decode_gbps": target.memory.decode_gbps,
        "decode_basis": target.memory.decode_basis,
    }


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as text; what is not set is left out."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}[{index}]")
    elif isinstance(value, list | tuple):
        if value:
            yield key, ", ".join(map(str, value))
    elif value is not None and value != "":
        yield key, str(value)


def _write_json(data: Any) -> None:
    import json

    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
