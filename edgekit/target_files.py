"""Target files: where they are, reading one, laying it over its parents. Checking the result is targets.py's."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import TargetFileError, UnknownTargetError
from edgekit.toml_lines import KeyPath, TooDeepError, key_lines

MAX_BYTES = 256 * 1024
MAX_PARENTS = 8
_OWN_KEYS = ("name", "title", "tier", "aliases", "inherits")
"""Identity and promise of a file: a child never gets them from its parent."""


@dataclass(frozen=True)
class Document:
    """A file's data with the place each key was written: key path → (file, line)."""

    data: dict[str, Any]
    places: dict[KeyPath, tuple[Path, int]]


def _folder() -> Path:
    """Where the shipped targets are: inside the wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "_targets"
    return shipped if shipped.is_dir() else package.parent / "targets"


def names() -> list[str]:
    """Names of the shipped targets, sorted; parents that are no board (`_base` …) are left out."""
    return sorted(path.stem for path in _folder().glob("*.toml") if not path.name.startswith("_"))


def _aliases() -> dict[str, str]:
    """Alias → name, over the shipped targets."""
    return {alias: name for name in names() for alias in _read(_folder() / f"{name}.toml").data.get("aliases", ())}


def source_path(name: str) -> Path:
    """The file of a shipped target, by name or alias.

    Raises:
        UnknownTargetError: no shipped target is called that.
    """
    known = names()
    if name in known:
        return _folder() / f"{name}.toml"
    aliases = _aliases()
    if name in aliases:
        return _folder() / f"{aliases[name]}.toml"
    close = difflib.get_close_matches(name.lower()[:64], [*known, *aliases], n=1)
    hint = f"did you mean {close[0]}?" if close else "give one of these, or the path of a .toml file"
    raise UnknownTargetError(
        f"there is no target {short(name)}", expected="one of " + ", ".join(known), remedy=hint.rstrip("?")
    )


def _read(path: Path) -> Document:
    """One file, parsed, before inheritance."""
    return _parsed(_text(path), path)


def alone(raw: bytes, path: Path) -> Document:
    """A file that was read already and may not have parents; raises TargetFileError."""
    document = _laid_over(Document({}, {}), _parsed(_decoded(raw, path), path))
    if "inherits" in document.data:
        raise TargetFileError(
            "{}:{}: inherits is in a bundle's target".format(*place_of(document, ("inherits",), path)),
            expected="a target without parents", remedy="do not use this bundle, get it again from who built it",
        )  # fmt: skip
    return document


def _parsed(text: str, path: Path) -> Document:
    try:
        lines = key_lines(text)
        data = tomllib.loads(text)
    except TooDeepError as error:
        raise TargetFileError(
            f"{path}:{error.line}: nested too deep", remedy="use the tables of docs/targets.md"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _syntax_error(path, text, error) from error
    return Document(data, {key: (path, line) for key, line in lines.items()})


def _text(path: Path) -> str:
    try:
        if not path.exists():
            raise UnknownTargetError(
                f"there is no target file {path}", remedy="give a path that exists, or a name: " + ", ".join(names())
            )
        if not path.is_file():
            raise TargetFileError(f"{path} is not a regular file", expected="a .toml file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TargetFileError(
            f"{short(str(path))} cannot be read ({reason})", expected="a readable .toml file"
        ) from error
    return _decoded(raw, path)


def _decoded(raw: bytes, path: Path) -> str:
    if len(raw) > MAX_BYTES:
        raise TargetFileError(f"{path} is larger than {MAX_BYTES >> 10} KiB", expected="a target file of a few KiB")
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TargetFileError(f"{path}:{line}: a byte that is not UTF-8", remedy="save the file as UTF-8") from error


def _syntax_error(path: Path, text: str, error: Exception) -> TargetFileError:
    """The error of tomllib, "… (at line 3, column 5)" or "… (at end of document)", with the line in front."""
    message = str(error)
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if place is None:
        return TargetFileError(f"{path}: not TOML: {short(message)}", remedy="correct the file")
    line = place[1] or text.count("\n") + 1
    return TargetFileError(f"{path}:{line}: not TOML: {short(message[: place.start()])}", remedy="correct that line")


def inherited(path: Path, children: tuple[Path, ...]) -> Document:
    """The file at `path` laid over its parents; `children` are the files that led here."""
    child = _read(path)
    parent_name = child.data.get("inherits")
    seen = (*children, path.resolve())
    if parent_name is None:
        return _laid_over(Document({}, {}), child)
    place = "{}:{}".format(*place_of(child, ("inherits",), path))
    if not isinstance(parent_name, str):
        raise TargetFileError(f"{place}: inherits is not a string", expected="a target's name or a .toml file")
    parent = _parent_path(parent_name, path, place)
    if parent.resolve() in seen:
        raise TargetFileError(
            f"{place}: inherits goes round in a circle through {parent.name}", remedy="remove one inherits"
        )
    if len(seen) > MAX_PARENTS:
        raise TargetFileError(f"{place}: more than {MAX_PARENTS} parents", remedy="flatten the chain of inherits")
    above = inherited(parent, seen)
    heirloom = {key: value for key, value in above.data.items() if key not in _OWN_KEYS}
    return _laid_over(Document(heirloom, above.places), child)


def _parent_path(name: str, child: Path, place: str) -> Path:
    """The parent's file: beside or below the child for a .toml path, else a shipped target."""
    if not name.endswith(".toml"):
        if re.fullmatch(r"_[a-z0-9-]{1,63}", name) and (_folder() / f"{name}.toml").is_file():
            return _folder() / f"{name}.toml"
        try:
            return source_path(name)
        except UnknownTargetError as error:
            raise TargetFileError(
                f"{place}: inherits: {error.found}", expected=error.expected, remedy=error.remedy
            ) from error
    home = child.resolve().parent
    try:
        parent = (home / name).resolve()
        missing = not parent.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise TargetFileError(f"{place}: inherits {short(name)} is not a path") from error
    if not parent.is_relative_to(home):
        raise TargetFileError(
            f"{place}: inherits {short(name)} leaves {home}", expected="a file in that folder or below it"
        )
    if missing:
        raise TargetFileError(f"{place}: inherits {short(name)} is not there", expected=f"a file in {home}")
    return parent


def _laid_over(parent: Document, child: Document) -> Document:
    """Tables merge, arrays and scalars replace, "+key" appends to the parent's array."""
    moved: dict[KeyPath, int] = {}
    data = _merged(parent.data, child, child.data, (), moved)
    places = {**parent.places, **child.places}
    for old, place in child.places.items():
        for length in range(1, len(old) + 1):
            if old[:length] in moved:
                places[_shifted(old, length, moved[old[:length]])] = place
    return Document(data, places)


def _merged(
    base: dict[str, Any], child: Document, top: dict[str, Any], at: KeyPath, moved: dict[KeyPath, int]
) -> dict[str, Any]:
    """`top`, the child's table at `at`, over `base`; `moved` notes how many items precede an appended array."""
    result = dict(base)
    for key, value in top.items():
        below = base.get(key)
        if key.startswith("+"):
            before = base.get(key[1:], [])
            _refuse_append(before, top, child, (*at, key))
            moved[(*at, key)] = len(before)
            result[key[1:]] = [*before, *value]
        elif isinstance(value, dict):
            result[key] = _merged(below if isinstance(below, dict) else {}, child, value, (*at, key), moved)
        else:
            result[key] = value
    return result


def _refuse_append(before: Any, top: dict[str, Any], child: Document, path: KeyPath) -> None:
    """Raise when "+key", at `path`, has nothing to append to or its plain twin beside it."""
    plus = str(path[-1])
    where = "{}:{}: {}".format(*place_of(child, path, Path()), dotted(path))
    if plus[1:] in top:
        raise TargetFileError(f"{where} is beside {short(plus[1:])}", expected="one of the two", remedy="remove one")
    if not isinstance(before, list) or not isinstance(top[plus], list):
        raise TargetFileError(f"{where} appends, but it is not an array", remedy="write the key without +")


def _shifted(path: KeyPath, length: int, offset: int) -> KeyPath:
    """The path in the merged data of what was written at `path`, whose part `length - 1` is a "+key"."""
    head = (*path[: length - 1], str(path[length - 1])[1:])
    if len(path) == length:
        return head
    return (*head, int(path[length]) + offset, *path[length + 1 :])


def place_of(document: Document, path: KeyPath, default: Path) -> tuple[Path, int]:
    """File and line of the longest part of `path` that was written somewhere."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.places:
            return document.places[path[:length]]
    return default, 1


def dotted(path: KeyPath) -> str:
    """`memory.read_gbps.t1`, `anchors[0].source`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return short(text.removeprefix("."))


def short(text: str, limit: int = 80) -> str:
    """Printable and not longer than `limit`."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
