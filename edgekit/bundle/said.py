"""What each artefact said, greedily, on the machine that built it: sealed among the files, which the digest covers.

A board's continuations are held against these ids, so they must not change unnoticed: a report may differ between two
builds and is no part of a bundle's identity, this file is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.paths import plain, read_bounded
from edgekit.errors import BundleError

NAME = "said.json"
_MAX_BYTES = 16 << 20
Form = Literal["gguf", "onnx"]
Id = Annotated[int, Meta(ge=0, lt=1 << 24)]
Continuation = Annotated[tuple[Id, ...], Meta(max_length=1 << 16)]
Continuations = Annotated[tuple[Continuation, ...], Meta(max_length=1 << 12)]


class _Said(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema_version: Literal[1] = 1
    artefacts: dict[Form, Continuations]
    """Format → token ids of the greedy continuations of the reference's first prompts, an ending token included."""


def seal_said(folder: Path, said: Mapping[Form, Sequence[Sequence[int]]]) -> None:
    """Write the ids, by format, into the folder of a bundle that is being made; see :func:`said_of`."""
    made = msgspec.convert({"artefacts": said}, _Said)
    (folder / NAME).write_bytes(msgspec.json.encode(made, order="sorted") + b"\n")


def said_of(bundle: Bundle, form: str) -> Continuations:
    """Token ids of the greedy continuations of the reference's first prompts; empty where none are sealed.

    Raises:
        BundleError: the file is no such record.
    """
    if NAME not in bundle.manifest.files:
        return ()
    try:
        found = msgspec.json.decode(read_bounded(bundle.root, NAME, _MAX_BYTES), type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{NAME} of the bundle does not fit its schema ({plain(str(error))})",
            remedy="get the bundle again from who built it",
        ) from error
    return {str(name): ids for name, ids in found.artefacts.items()}.get(form, ())
