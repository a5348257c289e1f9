"""What a model folder, a bundle or a model file holds, without loading its weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.paths import plain
from edgekit.errors import CorruptCheckpointError, FileFormatError, InputNotFoundError, TokenizerError
from edgekit.inspecting_files import (
    Findings,
    Row,
    TensorHeader,
    Value,
    dtype_rows,
    gguf_file,
    safetensors_file,
    safetensors_header,
)
from edgekit.options import SourceOptions
from edgekit.progress import Progress, Quiet

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.checkpoint.checkpoint import Checkpoint

__all__ = ["Findings", "inspect"]

_PLAIN, _QUIET = SourceOptions(), Quiet()
_EXPECTED = "a model folder, a bundle, or a .gguf, .onnx or .safetensors file"


def inspect(what: str, source: SourceOptions = _PLAIN, *, progress: Progress = _QUIET) -> Findings:
    """Find out what `what` is and what it holds.

    Args:
        what: path of a folder or file; when no such path exists, "demo" for the embedded model, or org/name on the hub.
        source: how a model is got; with an adapter, `what` is shown as a model merged with it.
        progress: shows a download or a conversion.

    Raises:
        InputNotFoundError: nothing is there that can be read, or the folder is empty.
        FileFormatError: it is none of the kinds that edgekit knows, or a damaged file.
        EdgekitError: what opening a checkpoint or a bundle raises.
    """
    try:
        return _inspect(what, Path(what), source, progress)
    except OSError as error:
        fault = plain(error.strerror or str(error))
        raise InputNotFoundError(f"'{plain(what)}' cannot be read ({fault})", expected=_EXPECTED) from error


def _inspect(what: str, path: Path, source: SourceOptions, progress: Progress) -> Findings:
    from edgekit.checkpoint.source import on_hub, resolve

    there = path.exists() or path.is_symlink()
    if source.lora is not None or source.revision is not None or (not there and (what == "demo" or on_hub(what))):
        return _model(resolve(what, source, progress=progress))
    if not there:
        raise InputNotFoundError(f"there is nothing at '{plain(what)}'", expected=_EXPECTED)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    raise FileFormatError(f"'{plain(what)}' is neither a file nor a folder", expected=_EXPECTED)


def _folder(path: Path) -> Findings:
    from edgekit.bundle.bundle import open_bundle
    from edgekit.checkpoint.checkpoint import open_checkpoint

    if (path / "manifest.json").is_file():
        return _bundle(open_bundle(path, check=False))
    if (path / "config.json").is_file() or not any(path.iterdir()):
        return _model(open_checkpoint(path))
    raise FileFormatError(
        f"the folder {path} is neither a bundle nor a model", expected="manifest.json or config.json in it",
        remedy="name a file in it, or the folder that holds the model",
    )  # fmt: skip


def _file(path: Path) -> Findings:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return gguf_file(path)
    if path.suffix == ".safetensors":
        return safetensors_file(path)
    if path.suffix == ".onnx":
        from edgekit.inspecting_onnx import onnx_file

        return onnx_file(path)
    raise FileFormatError(f"{path} is of no kind that edgekit knows", expected=_EXPECTED)


# --- a model folder --------------------------------------------------------------------------------------------------


def _model(checkpoint: Checkpoint) -> Findings:
    spec = checkpoint.spec
    headers: dict[str, TensorHeader] = {}
    files = sorted(set(checkpoint.files.values()))
    for file in files:
        headers |= safetensors_header(file)[0]
    facts: dict[str, Value] = {
        "name": plain(checkpoint.name), "source": plain(checkpoint.source, 1000),
        "caveat": plain(checkpoint.caveat, 1000) or None,
        "architecture": spec.architecture, "family": spec.family.name, "parameters": spec.parameters,
        "tied_embedding": spec.tied, "layers": spec.layers, "hidden_size": spec.hidden_size, "ffn_size": spec.ffn_size,
        "heads": spec.heads, "kv_heads": spec.kv_heads, "head_dim": spec.head_dim, "vocab_size": spec.vocab_size,
        "context_length": spec.context_length, "norm_epsilon": spec.norm_epsilon, "rope_theta": spec.rope_theta,
        "rope_scaling": None if spec.rope.scaling is None else spec.rope.kind, "weight_files": len(files),
        "weight_bytes": sum(file.stat().st_size for file in files), **_tokenizer(checkpoint.root),
        "trained_codes": _trained_codes(checkpoint),
    }  # fmt: skip
    return Findings("model", str(checkpoint.root), facts, {"roles": _roles(checkpoint), "types": dtype_rows(headers)})


def _roles(checkpoint: Checkpoint) -> list[Row]:
    """Tensors of one role and shape in a row, in the order of the model."""
    groups: dict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    for tensor in checkpoint.spec.tensors:
        groups[tensor.role, tensor.shape] += 1
    each = {(tensor.role, tensor.shape): tensor.parameters for tensor in checkpoint.spec.tensors}
    return [
        {"role": role, "shape": "x".join(map(str, shape)), "count": count, "parameters": count * each[role, shape]}
        for (role, shape), count in groups.items()
    ]


def _tokenizer(root: Path) -> dict[str, Value]:
    """A model without a usable tokenizer is still worth looking at: what is wrong with it becomes a fact."""
    from edgekit.bundle.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(root)
    except TokenizerError as error:
        return {"tokenizer": f"none that can be used: {plain(error.sentence())}", "chat_template": None}
    return {
        "tokenizer": type(tokenizer.backend.model).__name__,
        "tokenizer_size": tokenizer.vocab_size,
        "chat_template": tokenizer.template is not None,
    }


def _trained_codes(checkpoint: Checkpoint) -> str | None:
    """Which formats a training found codes for, or what is wrong with their file."""
    from edgekit.quantize.trained import places

    try:
        count = Counter(place.grid for place in places(checkpoint).values())
    except CorruptCheckpointError as error:
        return f"none that can be used: {plain(error.sentence(), 1000)}"
    return ", ".join(f"{number} matrices of {grid}" for grid, number in count.most_common()) or None


# --- a bundle --------------------------------------------------------------------------------------------------------


def _bundle(bundle: Bundle) -> Findings:
    manifest = bundle.manifest
    entries = [*manifest.files.values(), *manifest.reports.values()]
    facts: dict[str, Value] = {
        "name": plain(manifest.name), "built_by": f"edgekit {plain(manifest.edgekit)}",
        "model": plain(manifest.model.name),
        "architecture": plain(manifest.model.architecture), "source": plain(manifest.model.source),
        "license": plain(manifest.model.license) if manifest.model.license else None,
        "parameters": manifest.model.parameters, "target": plain(manifest.target.id), "files": len(entries),
        "all_bytes": sum(entry.size for entry in entries),
        "checksums": "not checked (edgekit verify does); names and sizes are as in the manifest",
    }  # fmt: skip
    tables: dict[str, Sequence[Row]] = {
        "artefacts": [
            {"format": a.format, "path": a.path, "engine": a.engine, "requested_bits": a.requested_bits,
             "effective_bits": a.effective_bits, "fallbacks": sum(1 for entry in a.plan if entry.reason)}
            for a in manifest.artefacts
        ],
        "grids": _grids(bundle),
        "predicted": [
            {"figure": plain(name), "value": f.value, "unit": plain(f.unit), "source": plain(f.source)}
            for name, f in sorted(manifest.predicted.items())
        ],
        "versions": [{"package": plain(n), "version": plain(v)} for n, v in sorted(manifest.versions.items())],
    }  # fmt: skip
    return Findings("bundle", str(bundle.root), facts, tables)


def _grids(bundle: Bundle) -> list[Row]:
    """Bytes of the planned tensors by artefact and grid, largest first."""
    rows: list[Row] = []
    for artefact in bundle.manifest.artefacts:
        count: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for entry in artefact.plan:
            row = count[entry.grid]
            row[:] = row[0] + 1, row[1] + entry.bytes
        total = sum(size for _, size in count.values()) or 1
        rows += [
            {"format": artefact.format, "grid": plain(grid), "tensors": tensors, "bytes": size, "share": size / total}
            for grid, (tensors, size) in sorted(count.items(), key=lambda item: -item[1][1])
        ]
    return rows
