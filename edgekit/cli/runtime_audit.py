"""`edgekit runtime audit`: would a bundle's runtime, or one file, start on the board?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.errors import AuditError, OptionError

if TYPE_CHECKING:
    from edgekit.crossbuild.audit import Audit, FileAudit
    from edgekit.targets import Target

_MOST_FEATURES = 4


@click.command("audit")
@click.argument("what", type=click.Path(path_type=Path))
@click.option("--target", "name", help="Board: a name of `edgekit targets`, or a .toml file; a bundle has its own.")
@click.option("--no-start", is_flag=True, help="Start nothing: read and disassemble only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(what: Path, name: str | None, no_start: bool, as_json: bool) -> None:
    """Check whether everything native in WHAT would start on a board: a bundle, a wheel, a program or a library.

    Programs are also started on the board's CPU, emulated by qemu-user, with this user's rights: give --no-start for
    files that you do not trust.
    """
    from edgekit.crossbuild.audit import audit
    from edgekit.progress import Bars

    target = _target(what, name)
    found = audit(what, target, start=not no_start, progress=Bars())
    if as_json:
        _write_json(found)
    else:
        _show(found)
    if found.faults:
        more = f", and {len(found.faults) - 1} more" if len(found.faults) > 1 else ""
        raise AuditError(
            f"{found.faults[0]}{more}", expected=f"what runs on {target.name}",
            remedy="build the runtime again for this target",
        )  # fmt: skip


def _target(what: Path, name: str | None) -> Target:
    """The target that was asked for, else the bundle's own; a bundle is checked first."""
    from edgekit import targets
    from edgekit.bundle.bundle import open_bundle
    from edgekit.bundle.target import bundle_target

    if not what.is_dir():
        if name is None:
            raise OptionError(f"--target is missing for {what}", expected="a board", remedy="give --target NAME")
        return targets.load(name)
    bundle = open_bundle(what)
    return targets.load(name) if name else bundle_target(bundle)


def _write_json(found: Audit) -> None:
    import json

    import msgspec

    data = {**msgspec.to_builtins(found), "started": found.started, "faults": list(found.faults)}
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _show(found: Audit) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("file", "beyond Armv8.0", "glibc", "libstdc++", "needs", "started", "faults")
    for file in found.files:
        shown = (
            file.path,
            _features(file),
            file.glibc,
            file.glibcxx,
            _needs(file),
            file.started,
            str(len(file.faults)),
        )
        table.add_row(*(Text(cell or "-", overflow="fold") for cell in shown))
    console.print(table)
    for reason in sorted({file.dispatches for file in found.files if file.dispatches}):
        console.print(Text(f"dispatches: {reason}"))
    for fault in found.faults:
        console.print(Text(f"fault: {fault}"))
    console.print(Text(f"on the CPU of {found.target}: {found.started}"))


def _features(file: FileAudit) -> str:
    names = list(file.features)
    shown = " ".join(names[:_MOST_FEATURES]) + (
        f" +{len(names) - _MOST_FEATURES}" if len(names) > _MOST_FEATURES else ""
    )
    return f"{shown} (dispatches)" if file.dispatches and names else shown


def _needs(file: FileAudit) -> str:
    """Libraries without what every program needs, and without their endings."""
    return " ".join(name.partition(".so")[0] for name in file.needs if not name.startswith(("libc.so", "ld-linux")))
