"""runtime/runtime.json: what a bundle's runtime is made of. It holds no time, host name or path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.errors import BundleError

NAME = "runtime.json"
MAX_BYTES = 1 << 20
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
Text = Annotated[str, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=0, le=1 << 40)]


class Wheel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One package that is shipped."""

    file: Text
    name: Text
    version: Text
    sha256: Sha256
    size: Size
    """Bytes."""
    licence: Text
    """As its own metadata says it; an SPDX expression where that is one."""
    why: Text
    mismatch: Text = ""
    """The version that the host runs, when there is no wheel of that one for the board."""


class Excluded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One package that the metadata of a shipped one asks for and that is left out on purpose."""

    name: Text
    asked_by: Text
    why: Text


class Tool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One native program that needs no Python."""

    path: Text
    """Below the runtime's folder."""
    sha256: Sha256
    size: Size


class Compiled(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How llama.cpp was compiled for the board."""

    llama_cpp_python: Text
    ggml: Text
    toolchain: Text
    toolchain_version: Text
    march: Text
    mtune: Text
    glibc: Text
    """C library that it was linked against."""
    flags: tuple[Text, ...]


class Audited(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the audit of everything native found; a runtime with a fault is never shipped."""

    files: Annotated[int, Meta(ge=0)]
    started: Text = ""
    """Whether it was started on an emulated CPU of the target, in words; not in runtime.json, see :func:`shipped`."""


class RuntimeRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of runtime.json."""

    schema_version: Literal[1] = 1
    edgekit: Text
    target: Text
    formats: tuple[Literal["gguf", "onnx"], ...]
    machine: Text
    """As `uname -m` says it."""
    python: Text
    """The one Python that the wheels are for, such as "3.11"."""
    glibc: Text
    """Lowest C library that all wheels run on."""
    glibc_max: Text
    """Lowest C library of the target's systems: the wheels may need no newer one."""
    accel: Literal["none", "cuda"] = "none"
    compiled: Compiled | None = None
    wheels: tuple[Wheel, ...]
    excluded: tuple[Excluded, ...]
    tools: tuple[Tool, ...] = ()
    audit: Audited | None = None

    @property
    def wheel_bytes(self) -> int:
        """Of all wheels."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def tool_bytes(self) -> int:
        """Of all native tools."""
        return sum(tool.size for tool in self.tools)


def shipped(record: RuntimeRecord) -> RuntimeRecord:
    """The record as a bundle holds it: without what depends on the host's own tools, which is in report.json."""
    audit = record.audit and msgspec.structs.replace(record.audit, started="")
    return msgspec.structs.replace(record, audit=audit)


def to_json(record: RuntimeRecord) -> bytes:
    """Keys sorted, two spaces, a newline at the end: equal records are equal bytes."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def read(path: Path) -> RuntimeRecord:
    """The record at `path`.

    Raises:
        BundleError: it is missing, too large, or not what :func:`to_json` writes.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 10} KiB")
        return msgspec.json.decode(data, type=RuntimeRecord)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} cannot be read as the record of a runtime ({error})", remedy="get the bundle again"
        ) from error
