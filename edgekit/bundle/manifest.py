"""manifest.json: what a bundle says about itself. `python -m edgekit.bundle.manifest` prints its JSON schema."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.bundle.paths import check_names, check_path, plain
from edgekit.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
TOKENIZER = "tokenizer"
REPORTS = "report"
"""Folder of what is measured; see :func:`is_report`."""
MAX_BYTES = 16 << 20
_GET_AGAIN = "get the bundle again from who built it"

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64, description="lower-case hex")]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Bits = Annotated[float, Meta(gt=0, le=64)]
Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of one file."""

    sha256: Sha256
    size: Count
    """Bytes."""


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The full-precision model that the bundle was made from."""

    name: Name
    architecture: Name
    source: Text
    """Where the weights came from, in words; never a path of the building machine."""
    sha256: Sha256
    """Of the weights."""
    parameters: Count
    license: Text | None = None


class TargetRef(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The target that the bundle was made for."""

    id: Name
    sha256: Sha256
    """Of the resolved target, `inherits` and defaults filled in."""


class PlanEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of one tensor in one artefact."""

    tensor: Name
    role: Name
    shape: Annotated[tuple[Count, ...], Meta(max_length=8)]
    requested_bits: Bits
    grid: Name
    bits: Bits
    """Effective: 8 · bytes / number of weights, scales and zero points included."""
    bytes: Count
    reason: Text | None = None
    """Why the grid is not the requested one."""


class Artefact(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model file and how it was quantized."""

    format: Literal["gguf", "onnx"]
    path: Name
    engine: Literal["llama.cpp", "onnxruntime"]
    requested_bits: Bits
    effective_bits: Bits
    """8 · bytes of the files / parameters, everything included."""
    plan: tuple[PlanEntry, ...]


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number that was computed, not measured."""

    value: float
    unit: Text
    kind: Literal["predicted"] = "predicted"
    source: Text = ""
    """The formula or model that gave it."""


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of manifest.json. It holds no time stamp, host name or path of the building machine."""

    schema_version: Literal[1] = 1
    edgekit: Name
    """Version of edgekit that built the bundle."""
    name: Name
    model: Model
    target: TargetRef
    calibration: Text = ""
    """What the choice of codes and scales was calibrated on, in words."""
    artefacts: Annotated[tuple[Artefact, ...], Meta(min_length=1)]
    versions: dict[Name, Text] = {}
    """Packages that the bytes depend on, name to version."""
    seeds: dict[Name, Seed] = {}
    predicted: dict[Name, Figure] = {}
    files: dict[Name, FileEntry] = {}
    """Every file but the manifest itself and the reports, by relative path."""
    reports: dict[Name, FileEntry] = {}
    """Files that hold measurements and so differ between two builds; see :func:`is_report`."""


class _Version(Struct):
    schema_version: int


def is_report(path: str) -> bool:
    """Whether a path of a bundle is a report: `report.<ext>` at the top, or anything in `report/`."""
    return path.startswith(f"{REPORTS}/") or (path.startswith("report.") and "/" not in path)


def to_json(manifest: Manifest) -> bytes:
    """Canonical JSON: keys sorted, two spaces, UTF-8, newline at the end; equal manifests give equal bytes.

    Raises:
        BundleError: a value is outside the schema (msgspec checks on reading only, so the bytes are read back).
    """
    try:
        checked = _decode(msgspec.json.encode(manifest))
    except (ValueError, TypeError) as error:
        raise BundleError(f"the manifest cannot be written ({plain(str(error))})", remedy="report this") from error
    # What was read back is written: an int given for a float would otherwise change its bytes at the second writing.
    return msgspec.json.format(msgspec.json.encode(checked, order="sorted"), indent=2) + b"\n"


def from_json(data: bytes) -> Manifest:
    """Read and check a stranger's manifest.json.

    Raises:
        BundleError: too large, not JSON, nested too deeply, another schema version, a wrong, missing, unknown or
            duplicate key, an unsafe path, or an artefact that is not among the files.
    """
    if len(data) > MAX_BYTES:
        raise _bad(f"is larger than {MAX_BYTES >> 20} MiB")
    manifest = _decode(data)
    _refuse_duplicate_keys(data)
    _check_paths(manifest)
    return manifest


def _bad(fault: str) -> BundleError:
    return BundleError(f"{MANIFEST} {fault}", expected="a manifest as edgekit writes it", remedy=_GET_AGAIN)


def _decode(data: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST} has schema version {version}",
                expected=f"version {SCHEMA_VERSION}",
                remedy="use the edgekit that built the bundle",
            )
        return msgspec.json.decode(data, type=Manifest)
    except RecursionError as error:
        raise _bad("is nested too deeply") from error
    except msgspec.ValidationError as error:
        raise _bad(f"does not fit the schema ({plain(str(error))})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(f"is not JSON ({plain(str(error))})") from error


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _bad(f"has the key '{plain(key)}' twice")
        seen.add(key)


def _refuse_duplicate_keys(data: bytes) -> None:
    """JSON readers disagree on which of two equal keys counts, so none is allowed. msgspec has bounded the depth."""
    try:
        json.loads(data, object_pairs_hook=_unique, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise _bad(f"is not JSON ({plain(str(error))})") from error


def _check_paths(manifest: Manifest) -> None:
    check_names([MANIFEST, *manifest.files, *manifest.reports])
    listed = [*manifest.files, *manifest.reports]
    if MANIFEST in listed or len(set(listed)) != len(listed):
        raise _bad("lists a file twice or itself")
    for path in listed:
        if is_report(path) != (path in manifest.reports):
            raise _bad(f"lists '{plain(path)}' in the wrong one of files and reports")
    if len({artefact.format for artefact in manifest.artefacts}) != len(manifest.artefacts):
        raise _bad("has two artefacts of one format")
    for artefact in manifest.artefacts:
        check_path(artefact.path)
        if artefact.path not in manifest.files:
            raise _bad(f"names the artefact '{plain(artefact.path)}' but does not list it among the files")


def identity(manifest: Manifest) -> str:
    """SHA-256 of the manifest without its reports: equal for two builds from the same inputs on one machine."""
    return hashlib.sha256(to_json(msgspec.structs.replace(manifest, reports={}))).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of manifest.json; docs/schemas/manifest.schema.json is this."""
    schema = msgspec.json.schema(Manifest)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgekit bundle manifest", **schema}


def schema_text() -> str:
    """:func:`json_schema` as the committed file has it."""
    return json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
