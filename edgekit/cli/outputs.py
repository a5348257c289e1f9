"""What verbs that measure several models have in common: what is refused before the first, and their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from edgekit.errors import OptionError
from edgekit.options import SourceOptions


def refuse_outputs(paths: Sequence[Path | None], force: bool) -> None:
    """Refuse files that exist (without --force), and one name for two of them.

    Raises:
        OutputError: a file is there already.
        OptionError: two outputs have the same name.
    """
    from edgekit.files import refuse_existing

    given = [path for path in paths if path is not None]
    if len({path.absolute() for path in given}) < len(given):
        raise OptionError(f"two outputs are to be written to {given[0]}", expected="a file for each")
    for path in given:
        refuse_existing(path, force)


def resolved(models: Sequence[str], source: SourceOptions) -> None:
    """Find every model: one that is missing is told before the others have taken their time.

    Raises:
        EdgekitError: see :func:`edgekit.checkpoint.source.resolve`.
    """
    from edgekit.checkpoint.source import resolve
    from edgekit.progress import Bars

    for model in models:
        resolve(model, source, progress=Bars())


def write(found: Any, json_file: Path | None, page: Path | None, render: Callable[[Any], str], *, force: bool) -> None:
    """Write the measurements as JSON and as a page, where asked, and say so.

    Raises:
        OutputError: a file cannot be written.
    """
    from edgekit.errors import one_line
    from edgekit.files import whole_file

    if json_file is not None:
        import msgspec

        with whole_file(json_file, force=force) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        click.echo(f"figures: {one_line(str(json_file))}")
    if page is not None:
        with whole_file(page, force=force) as part:
            part.write_text(render(found), "utf-8")
        click.echo(f"page: {one_line(str(page))}")
