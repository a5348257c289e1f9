"""`edgekit runtime`: the engines for a board, cross-compiled and audited."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from edgekit.options import RuntimeOptions, Toolchain

_VERBS = {"build": "Cross-compile the engines for a board.", "audit": "Check that what ships starts on its board."}


class _Verbs(click.Group):
    """`audit` is imported when it is called: it brings the disassembler."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "audit":
            command: click.Command = importlib.import_module("edgekit.cli.runtime_audit").command
            return command
        return super().get_command(ctx, cmd_name)


def runtime_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add --toolchain and --accel to a command."""
    function = click.option(
        "--accel", type=click.Choice(["none", "cuda"]), default="none", show_default=True,
        help="Accelerator the engines are compiled for; the CPU's are always in the bundle.",
    )(function)  # fmt: skip
    return click.option(
        "--toolchain", type=click.Choice(["zig", "gcc", "docker"]), default="zig", show_default=True,
        help="Who compiles llama.cpp for the board.",
    )(function)  # fmt: skip


@click.group("runtime", cls=_Verbs)
def command() -> None:
    """Make and check what runs a bundle's model on its board.

    `edgekit build` does both by itself; these verbs are for making a runtime ahead of it, and for looking into one.
    """


@command.command("build")
@click.option(
    "--target", default="rpi5", show_default=True, help="Board: a name of `edgekit targets`, or a .toml file."
)
@runtime_options
@click.option("--offline", is_flag=True, help="Download nothing: use what is in the cache, or say what is missing.")
@click.option("--force", is_flag=True, help="Compile again, whatever the cache holds.")
def build(target: str, toolchain: Toolchain, accel: str, offline: bool, force: bool) -> None:
    """Cross-compile llama.cpp for a board's CPU and keep it in the cache.

    Targets with the same CPU share it. The first time for a CPU takes minutes; an interrupted compile goes on.
    """
    from edgekit.crossbuild.package import prepare
    from edgekit.progress import Bars
    from edgekit.targets import load

    options = RuntimeOptions(toolchain=toolchain, accel="cuda" if accel == "cuda" else "none", offline=offline)
    native = prepare(load(target), options, Bars(), force=force)
    for name in sorted(native.record.files):
        click.echo(f"{native.record.files[name].size / 1e6:8.2f} MB  {name}")
    click.echo(f"runtime: {_shown(native.folder)}")


def _shown(folder: Path) -> str:
    from edgekit.errors import one_line

    return one_line(str(folder))
