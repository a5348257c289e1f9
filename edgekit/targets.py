"""Boards as data: reading, inheriting and checking target files.

A shipped target is named (`rpi5`), any other is a path to a .toml file. Every mistake in a file is one sentence with
the file, the line and the key. `python -m edgekit.targets` prints the JSON schema.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from edgekit import target_files
from edgekit.errors import TargetFileError
from edgekit.machine import cores
from edgekit.target_files import Document, dotted, inherited, names, place_of, short, source_path
from edgekit.target_schema import (
    PRINTABLE,
    Accelerator,
    Anchor,
    Cluster,
    Coherence,
    CoherenceLimits,
    Deploy,
    GgufRuntime,
    LatencyLimits,
    Limits,
    Memory,
    OnnxRuntime,
    Power,
    PowerMode,
    Probe,
    ReadRate,
    Runtime,
    Soc,
    Target,
    Thermal,
    Threads,
    Toolchain,
    json_schema,
)
from edgekit.toml_lines import KeyPath

__all__ = [
    "Accelerator",
    "Anchor",
    "Cluster",
    "Coherence",
    "CoherenceLimits",
    "Deploy",
    "GgufRuntime",
    "LatencyLimits",
    "Limits",
    "Memory",
    "OnnxRuntime",
    "Power",
    "PowerMode",
    "Probe",
    "ReadRate",
    "Runtime",
    "Soc",
    "Target",
    "Thermal",
    "Threads",
    "Toolchain",
    "alone",
    "coherence_limits",
    "digest",
    "json_schema",
    "load",
    "names",
    "ram_mib",
    "resolved_threads",
    "source_path",
    "usable_mib",
    "validate",
]


@dataclass(frozen=True)
class _Problem:
    """What is wrong at `path` of a document; `path` may end in a key that is missing."""

    path: KeyPath
    found: str
    expected: str = ""
    remedy: str = ""


def load(name_or_path: str) -> Target:
    """The target of a shipped name or alias, or of a path (anything that ends in .toml or has a slash).

    Raises:
        UnknownTargetError: no such name, or no file at that path.
        TargetFileError: the file, or a parent of it, is wrong; names file, line and key.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return validate(Path(name_or_path))
    return validate(source_path(name_or_path))


def validate(path: Path) -> Target:
    """The target that the file at `path` describes, parents included; raises as :func:`load`."""
    return _checked(inherited(path, ()), path)


def alone(data: bytes, path: Path) -> Target:
    """The target in the bytes of a file without parents; `path` is what messages call it.

    Raises:
        TargetFileError: it is wrong, or has parents; names file, line and key.
    """
    return _checked(target_files.alone(data, path), path)


def digest(target: Target) -> str:
    """SHA-256, in lower-case hex, of a target as it is after inheritance, whatever it inherited from."""
    whole = msgspec.to_builtins(msgspec.structs.replace(target, inherits=""), str_keys=True)
    return hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()


def _checked(document: Document, path: Path) -> Target:
    try:
        target = msgspec.convert(document.data, Target, str_keys=True)
    except msgspec.ValidationError as error:
        problem = next(_problems(document.data, Target, ()), _Problem((), str(error)))
        raise _located(problem, document, path) from error
    if contradiction := next(_contradictions(target), None):
        raise _located(contradiction, document, path)
    return target


def ram_mib(target: Target) -> int:
    """RAM of the target in MiB; for `default_ram_mib = 0`, of the machine this runs on."""
    if target.memory.default_ram_mib:
        return target.memory.default_ram_mib
    import psutil

    return int(psutil.virtual_memory().total) >> 20


def usable_mib(target: Target) -> int:
    """The part of :func:`ram_mib` that a model may take, in MiB."""
    return int(ram_mib(target) * target.memory.usable_fraction)


def resolved_threads(count: int) -> int:
    """A thread count of a target, with 0 replaced by this machine's physical cores (at least 1)."""
    return count or cores()


def coherence_limits(target: Target, bits: int) -> CoherenceLimits:
    """The gates for a requested bit width; a width without gates takes those of the next narrower width that has some.

    With none at or below `bits`, nothing is judged: every limit is None.
    """
    table = target.limits.coherence
    for width in range(min(bits, 8), 1, -1):
        limits: CoherenceLimits | None = getattr(table, f"bits{width}", None)
        if limits is not None:
            return limits
    return CoherenceLimits()


def _problems(value: Any, annotation: Any, path: KeyPath) -> Iterator[_Problem]:
    """Everything in `value` that `annotation` does not allow, in the order of the schema."""
    kind = _bare(annotation)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield from _table_problems(value, kind, path)
    elif get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, get_args(kind)[0], (*path, index))
    elif get_origin(kind) is dict and isinstance(value, dict):
        key_type, item_type = get_args(kind)
        for key, item in value.items():
            yield from _leaf_problems(key, key_type, (*path, key), strict=False)
            yield from _problems(item, item_type, (*path, key))
    else:
        yield from _leaf_problems(value, annotation, path)


def _table_problems(value: Any, kind: type[msgspec.Struct], path: KeyPath) -> Iterator[_Problem]:
    if not isinstance(value, dict):
        yield _Problem(path, f"is {_toml_type(value)}", expected="a table")
        return
    hints = get_type_hints(kind, include_extras=True)
    for key in value:
        if key not in hints:
            close = difflib.get_close_matches(key[:64], hints, n=1)
            known = "" if close else "one of " + ", ".join(hints)
            yield _Problem((*path, key), "is an unknown key", known, f"did you mean {close[0]}" if close else "")
    for field in msgspec.structs.fields(kind):
        if field.name in value:
            yield from _problems(value[field.name], hints[field.name], (*path, field.name))
        elif field.required:
            yield _Problem((*path, field.name), "is missing", remedy="add it")


def _leaf_problems(value: Any, annotation: Any, path: KeyPath, *, strict: bool = True) -> Iterator[_Problem]:
    try:
        msgspec.convert(value, annotation, strict=strict, str_keys=True)
    except msgspec.ValidationError as error:
        bare = _bare(annotation)
        if get_origin(bare) is not Literal:
            expected = _plain(re.sub(r"^Expected |, got .*$|`| \| null| - at .*$", "", str(error)))
            if repr(PRINTABLE) in str(error):
                expected = "a string without control characters, line ends or changes of direction"
            yield _Problem(path, _said(value), expected)
            return
        choices = [str(choice) for choice in get_args(bare) if choice != ""]
        close = difflib.get_close_matches(_said(value)[3:].strip("'"), choices, n=1)
        yield _Problem(path, _said(value), "one of " + ", ".join(choices), f"did you mean {close[0]}" if close else "")


def _said(value: Any) -> str:
    """`is 'text'`, `is 5`, `is a table`."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "is an integer of more than 64 bits"
    return f"is {short(repr(value))}" if isinstance(value, str | int | float) else f"is {_toml_type(value)}"


def _bare(annotation: Any) -> Any:
    """The type without Annotated and without None."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation


def _contradictions(target: Target) -> Iterator[_Problem]:
    """Keys that are right by themselves and wrong together."""
    memory, power = target.memory, target.power
    if memory.ram_mib and memory.default_ram_mib not in memory.ram_mib:
        sizes = ", ".join(map(str, memory.ram_mib))
        yield _Problem(("memory", "default_ram_mib"), f"is {memory.default_ram_mib}", f"one of ram_mib: {sizes}")
    for name, table in (("memory", memory), ("accelerator", target.accelerator)):
        if table.decode_gbps is not None and not (table.decode_basis and table.source):
            yield _Problem(
                (name, "decode_gbps"), "has no decode_basis or no source beside it", remedy="say where it is from"
            )
    if power.default_mode not in ("", *power.modes):
        modes = ", ".join(power.modes) or "none, as power.modes is empty"
        yield _Problem(
            ("power", "default_mode"), f"is {short(repr(power.default_mode))}", f"one of power.modes: {modes}"
        )
    for list_name in ("prefer", "embedding_prefer"):
        for bits, types_ in getattr(target.runtime.gguf, list_name).items():
            if not types_:
                yield _Problem(("runtime", "gguf", list_name, str(bits)), "is empty", "at least one type")


def _located(problem: _Problem, document: Document, path: Path) -> TargetFileError:
    missing = problem.found == "is missing"
    file, line = place_of(document, problem.path[:-1] if missing else problem.path, path)
    key = f" {dotted(problem.path)}" if problem.path else ""
    return TargetFileError(f"{file}:{line}:{key} {problem.found}", expected=problem.expected, remedy=problem.remedy)


def _plain(expected: str) -> str:
    names_ = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false", "array": "an array"}
    first, _, rest = expected.partition(" ")
    return f"{names_.get(first, first)} {rest}".strip()


def _toml_type(value: Any) -> str:
    kinds = {
        dict: "a table",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return kinds.get(type(value), "a date or time")


def main() -> None:
    """Print the JSON schema, as docs/schemas/target.schema.json holds it."""
    import json

    sys.stdout.write(json.dumps(json_schema(), indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
