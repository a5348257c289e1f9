"""Options of every verb that takes a MODEL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit.options import SourceOptions


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --revision, --offline and --lora to a command, which gets them as `source`."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, revision: str | None, offline: bool, lora: Path | None, **others: Any) -> None:
        command(*arguments, source=SourceOptions(revision=revision, offline=offline, lora=lora), **others)

    for option in (
        click.option("--lora", type=click.Path(path_type=Path), help="Folder of a LoRA adapter to merge into MODEL."),
        click.option("--offline", is_flag=True, help="Download nothing; a hub model comes from the download cache."),
        click.option("--revision", help="Branch, tag or commit of a hub model."),
    ):
        wrapped = option(wrapped)
    return wrapped
