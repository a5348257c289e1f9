"""The target that a bundle was built for, sealed in it: a board needs no file of whoever built the bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit import targets
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.paths import plain, read_bounded
from edgekit.errors import BundleError, OptionError
from edgekit.target_files import MAX_BYTES
from edgekit.targets import Target

NAME = "target.toml"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def bundle_target(bundle: Bundle) -> Target:
    """The target of an opened bundle: the shipped one when that is the same still, else the one in the bundle.

    Nothing in a bundle is ever taken for the path of a file outside it.

    Raises:
        TargetFileError: its target.toml is no target, or has parents.
        BundleError: its target.toml is another target than its manifest names, or no plain file of at most 256 KiB.
        OptionError: it has no target.toml, and edgekit ships no target of that name.
    """
    wanted = bundle.manifest.target
    shipped = targets.load(wanted.id) if wanted.id in targets.names() else None
    if shipped is not None and targets.digest(shipped) == wanted.sha256:
        return shipped
    if NAME in bundle.manifest.files:
        return _sealed(bundle)
    if shipped is None:
        raise OptionError(
            f"there is no target '{plain(wanted.id)}' here, for which the bundle was built",
            expected="one of `edgekit targets`", remedy="give its settings with --target",
        )  # fmt: skip
    return shipped


def _sealed(bundle: Bundle) -> Target:
    found = targets.alone(read_bounded(bundle.root, NAME, MAX_BYTES), bundle.root / NAME)
    if found.name != bundle.manifest.target.id:
        raise BundleError(
            f"{NAME} in the bundle is of '{found.name}'", expected=f"'{plain(bundle.manifest.target.id)}'",
            remedy="get the bundle again from who built it",
        )  # fmt: skip
    return found


def seal_target(folder: Path, target: Target) -> None:
    """Write `target`, with all that it inherited, into the folder of a bundle that is being made."""
    (folder / NAME).write_text(to_toml(target), encoding="utf8")


def to_toml(target: Target) -> str:
    """A target file without parents that is read as `target` again; equal targets are equal texts."""
    data: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(target, inherits=""), str_keys=True)
    del data["inherits"]
    return "\n".join([*_table(data, ""), ""])


def _table(data: Mapping[str, Any], at: str) -> Iterator[str]:
    """Lines of one table: its values, then the tables in it. What is None is left out: TOML has no null."""
    below = {key: value for key, value in data.items() if _tables(value)}
    for key, value in data.items():
        if key not in below and value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in below.items():
        name = f"{at}{_key(key)}"
        for item, head in [(value, f"[{name}]")] if isinstance(value, dict) else [(i, f"[[{name}]]") for i in value]:
            yield ""
            yield head
            yield from _table(item, f"{name}.")


def _tables(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, dict)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    """JSON's spelling is TOML's for what targets hold: texts, numbers, truth values and arrays of these."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
