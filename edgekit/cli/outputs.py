"""What verbs that measure several models refuse before the first one is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
