"""`edgekit cache`: what builds left to be used again, and how to get rid of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.errors import OptionError, OutputError

if TYPE_CHECKING:
    from edgekit.cache import Entry

_NAMES = {
    "envs": "environments", "sources": "sources", "zig": "compilers", "compiles": "compiles", "runtimes": "runtimes",
    "wheels": "wheels", "training": "unfinished trainings", "journals": "journals of measurements",
    "results": "kept results",
}  # fmt: skip
"""Kinds that the bound does not count, as people call them."""
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


@click.group(name="cache", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List or clean what builds and measurements left: stages, models, environments, runtimes, journals, results."""
    if context.invoked_subcommand is None:
        context.invoke(list_entries, as_json=False)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_entries(as_json: bool) -> None:
    """List what is in the cache, least recently used first."""
    from edgekit import cache
    from edgekit.files import cache_dir

    root, bound = cache_dir(), cache.bound()
    found = cache.entries(root)
    if as_json:
        _write_json({
            "folder": str(root), "bytes": sum(entry.nbytes for entry in found), "bound": bound,
            "entries": [_row(entry) for entry in found],
        })  # fmt: skip
        return
    _show(found, root, bound)


@command.command()
@click.option("--older-than", metavar="AGE", help='Remove what was not used for that long, such as "30d" or "12h".')
@click.option("--max-size", metavar="SIZE", help='Remove what was used least recently down to that, such as "5GB".')
@click.option("--all", "everything", is_flag=True, help="Remove everything that is not in use.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def clean(older_than: str | None, max_size: str | None, everything: bool, dry_run: bool) -> None:
    """Remove what is in the cache; without options, what is damaged or beyond the cache's bound.

    The bound does not count environments (envs), what runtimes are made of (sources, zig, compiles, runtimes, wheels),
    journals of measurements that did not end, nor results that stand nowhere else: they go by an option only. What a
    running build or measurement uses stays, and so does everything that edgekit did not put there.
    """
    from edgekit import cache, sizes
    from edgekit.files import cache_dir

    if everything and (older_than or max_size):
        raise OptionError("--all contradicts --older-than and --max-size", remedy="give one of them")
    age = sizes.parse_age(older_than, "--older-than") if older_than else None
    size = sizes.parse_size(max_size, "--max-size") if max_size else None
    root = cache_dir()
    if age is None and size is None and not everything:
        found, size = cache.bounded_entries(root), cache.bound()
    else:
        found = cache.entries(root)
    going = found if everything else cache.chosen(found, older_than=age, max_bytes=size, now=time.time())
    if dry_run:
        _say("would remove", going, [])
        return
    try:
        if root.is_dir():
            cache.tidy(root)
        kept = [entry for entry in going if not cache.remove(root, entry)]
    except OSError as error:
        raise OutputError(f"cannot clean {root} ({error.strerror})", remedy="check who owns the folder") from error
    _say("removed", [entry for entry in going if entry not in kept], kept)


def _say(did: str, going: Sequence[Entry], kept: Sequence[Entry]) -> None:
    for entry in going:
        click.echo(f"{did} {entry.kind}: {_printable(entry.what)}, {_size(entry.nbytes)}")
    for entry in kept:
        click.echo(f"kept {entry.kind}: {_printable(entry.what)}, in use")
    click.echo(f"{did} {len(going)} of {_size(sum(entry.nbytes for entry in going))}")


def _show(found: Sequence[Entry], root: Path, bound: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if found:
        table = Table("kind", "name")
        for name in ("size", "age", "last used"):
            table.add_column(name, justify="right", no_wrap=True)
        now = time.time()
        for entry in found:
            times = (_age(now - entry.created), _age(now - entry.used))
            kind = f"stage {entry.kind}" if entry.is_stage else entry.kind
            table.add_row(*map(Text, (kind, _printable(entry.what), _size(entry.nbytes), *times)))
        Console().print(table)
    total = sum(entry.nbytes for entry in found if entry.bounded)
    click.echo(f"{_size(total)} of at most {_size(bound)} in {root}")
    if beside := _beside(found):
        click.echo(f"not counted: {', '.join(f'{name} {_size(nbytes)}' for name, nbytes in beside.items())}")


def _beside(found: Sequence[Entry]) -> dict[str, int]:
    """Bytes of each kind that the bound does not count."""
    sums: dict[str, int] = {}
    for entry in found:
        if not entry.bounded:
            sums[_NAMES[entry.kind]] = sums.get(_NAMES[entry.kind], 0) + entry.nbytes
    return dict(sorted(sums.items()))


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind, "what": entry.what, "path": str(entry.path), "bytes": entry.nbytes,
        "created": round(entry.created), "used": round(entry.used), "whole": entry.whole, "stage": entry.is_stage,
        "bounded": entry.bounded,
    }  # fmt: skip


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)


def _size(nbytes: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{nbytes} B"


def _age(seconds: float) -> str:
    for span, name in _SPANS:
        if seconds >= span:
            return f"{int(seconds // span)} {name}"
    return "now"


def _write_json(data: Any) -> None:
    import json

    sys.stdout.write(json.dumps(data, indent=2) + "\n")
