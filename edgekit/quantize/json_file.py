"""Reading what a stranger wrote as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from edgekit.errors import FileFormatError, InputNotFoundError

T = TypeVar("T")


def read_json(path: Path, kind: type[T], what: str, most: int, remedy: str) -> T:
    """The value in a file.

    Args:
        path: of the file.
        kind: a strict msgspec type.
        what: it is called in messages, for example "plan".
        most: bytes that the file may have.
        remedy: how to get a new one.

    Raises:
        InputNotFoundError: nothing is there.
        FileFormatError: too large, not JSON (which knows no NaN), or not of that type.
    """
    if not path.is_file():
        raise InputNotFoundError(f"there is no {what} at {path}", remedy=remedy)
    if path.stat().st_size > most:
        raise FileFormatError(f"{path} is larger than {most >> 20} MiB", expected=f"a {what}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a {what} ({error})", remedy=remedy) from error
