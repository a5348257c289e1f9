"""LoRA adapters (Hu et al., 2021) merged into the weights by peft, one tensor at a time, into a folder in the cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.cached import cached_folder
from edgekit.checkpoint.checkpoint import CODES, TOKENIZER_FILES, Checkpoint, Open, open_checkpoint, read_json
from edgekit.checkpoint.raw import read_tensor
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.checkpoint.writing import DType, Slot, ordered, stored, write_safetensors
from edgekit.errors import (
    BadWeightsError,
    CorruptCheckpointError,
    InputNotFoundError,
    MissingDependencyError,
    UnknownArchitectureError,
    UnsafeCheckpointError,
)
from edgekit.hashes import remembered_sha256
from edgekit.progress import Advance, Progress, Quiet, counter

F32 = NDArray[np.float32]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FORMAT = 1
"""Raised when merging changes, so that an old folder in the cache is not taken for a new one."""
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.weight)?")
_USED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights")
_HARMLESS = (
    "peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "lora_dropout",
    "fan_in_fan_out", "bias", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
"""Settings that say how the adapter was trained or where it lies: its tensors tell what is left to know."""
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base weights alone."""
_PATTERN = re.compile(r"[\w.^$\\]{1,200}", re.ASCII)
"""Names of modules in rank_pattern and alpha_pattern: regular expressions to peft, here none that could run long."""
_QUIET = Quiet()


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight matrix; ranks and shapes are checked."""

    rank: int
    alpha: float
    parts: Mapping[str, str]
    """"lora_A", "lora_B", … → name in the adapter's file."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that fits a model."""

    folder: Path
    changes: Mapping[str, Change]
    """Tensor name of the model → what is merged into it."""
    replaced: Mapping[str, str]
    """Tensor name of the model → name in the adapter's file, for what was trained whole (modules_to_save, biases)."""
    use_rslora: bool
    use_dora: bool

    def read(self, name: str) -> F32:
        """A tensor of the adapter's file in float32.

        Raises:
            BadWeightsError: it holds NaN or infinity.
        """
        values = read_tensor(self.folder / _WEIGHTS, name)
        if not np.isfinite(values).all():
            raise BadWeightsError(
                f"tensor {ascii(name)[1:80]} of the adapter {self.folder} holds NaN or infinite values",
                expected="finite weights",
                remedy="the adapter is broken: use an earlier one",
            )
        return values


def with_lora(
    base: Checkpoint, folder: Path, *, progress: Progress = _QUIET, opened: Open = open_checkpoint
) -> Checkpoint:
    """The checkpoint `base` with the adapter in `folder` merged in; merged once into the cache.

    Merged tensors are stored in float32, all others as they were. A tokenizer in `folder` replaces the base's. Codes
    that a training found for the base's weights are left behind, which is said.

    Args:
        base: what the adapter was trained on.
        folder: of the adapter.
        progress: shows the merging.
        opened: opens the merged folder; as `base` was opened.

    Raises:
        InputNotFoundError: no adapter there.
        UnsafeCheckpointError: its weights are a pickle.
        UnknownArchitectureError: it is no LoRA adapter, or of a kind that cannot be merged.
        BadWeightsError: it was made for a model of another shape, or holds NaN or infinity.
        CorruptCheckpointError: a file cannot be read.
        MissingDependencyError: peft is not installed.
    """
    adapter = read_adapter(folder, base.spec)
    sha = _hash([folder / name for name in (_CONFIG, _WEIGHTS, *TOKENIZER_FILES)])
    own = _hash([base.root / "config.json", *base.tokenizer_files()])
    key = hashlib.sha256(f"{base.sha256} {own} {sha}".encode()).hexdigest()[:24]
    label = folder.resolve().name
    if (base.root / CODES).is_file():
        progress.note(f"{base.name} was trained on number formats: merged with {label} it is quantized anew")

    def write(fresh: Path) -> None:
        with progress.step(f"Merge the adapter {label}, once") as advance:
            merge(base, adapter, fresh, advance)

    merged = cached_folder("lora", f"{base.name}+{label}", f"{key}-v{_FORMAT}", write)
    source = f"{base.source}, merged with the LoRA adapter {label}@{sha[:12]}"
    return opened(merged, name=f"{base.name}-{label}", source=source, caveat=base.caveat)


def _hash(paths: list[Path]) -> str:
    parts = [f"{path.name} {remembered_sha256(path)}" for path in paths if path.is_file()]
    return hashlib.sha256("\n".join(parts).encode("utf8", "surrogateescape")).hexdigest()


# --- reading an adapter ----------------------------------------------------------------------------------------------


def read_adapter(folder: Path, spec: Spec) -> Adapter:
    """Read adapter_config.json and the header of adapter_model.safetensors, and find the model's tensor for each part.

    Raises:
        See :func:`with_lora`.
    """
    _refuse_missing(folder)
    config = read_json(folder / _CONFIG)
    _refuse_kinds(folder, config, spec)
    shapes = _shapes(folder / _WEIGHTS)
    tensors = {tensor.hf: tensor for tensor in spec.tensors}
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in shapes:
        plain = name.removeprefix(_PREFIX)
        if match := _PART.fullmatch(plain):
            parts.setdefault(f"{match['module']}.weight", {})[match["part"]] = name
        else:
            replaced[plain.replace(".base_layer.", ".")] = name  # what peft saves of a layer it wrapped
    for target in (*parts, *replaced):
        _refuse_foreign(folder, target, tensors, spec)
    for target, name in replaced.items():
        _refuse_shape(folder, name, shapes[name], tensors[target].stored_shape)
    changes = {target: _change(folder, config, tensors[target], found, shapes) for target, found in parts.items()}
    flags = (config.get("use_rslora") is True, config.get("use_dora") is True)
    return Adapter(folder, changes, replaced, *flags)


def _refuse_missing(folder: Path) -> None:
    if (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file():
        return
    pickles = sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix in (".bin", ".pt", ".pth"))
    if (folder / _CONFIG).is_file() and pickles:
        raise UnsafeCheckpointError(
            f"{folder} holds its adapter as a pickle ({pickles[0]}), which can run any code when it is loaded",
            expected=_WEIGHTS,
            remedy="convert it where you trust it: peft's from_pretrained(…) then save_pretrained(…)",
        )
    lacking = _WEIGHTS if (folder / _CONFIG).is_file() else _CONFIG
    raise InputNotFoundError(
        f"{folder} has no {lacking}", expected="a folder with a LoRA adapter of peft", remedy="check --lora"
    )


def _refuse_kinds(folder: Path, config: Mapping[str, Any], spec: Spec) -> None:
    if config.get("peft_type") != "LORA":
        raise UnknownArchitectureError(
            f"{folder} holds an adapter of the kind {str(config.get('peft_type'))[:40]!a}",
            expected="LORA",
            remedy="merge it with peft's merge_and_unload() where peft can, and name the merged folder",
        )
    wrong = [key for key, value in config.items() if value and key not in _USED + _HARMLESS]
    if config.get("fan_in_fan_out") and not spec.family.tensors:  # no table says which weights are transposed
        wrong.append("fan_in_fan_out")
    initial = config.get("init_lora_weights", True)
    if not isinstance(initial, str | bool | None) or initial not in _INITIAL:
        wrong.append("init_lora_weights")
    if wrong:
        raise UnknownArchitectureError(
            f"the adapter {folder} sets {ascii(wrong[0])[1:-1][:40]} = {ascii(config.get(wrong[0]))[:40]}",
            expected="plain LoRA, rsLoRA or DoRA, which can be merged into the weights it was trained on",
            remedy="merge it with peft where it was trained, and name the merged folder",
        )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stream:
            slices = {str(name): stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
            wrong = [name for name, part in slices.items() if part.get_dtype() not in ("F64", "F32", "F16", "BF16")]
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(
            f"{path} cannot be read as safetensors ({error})",
            expected="a whole file",
            remedy="it is damaged or cut short: download it again",
        ) from error
    if wrong or not shapes:
        raise BadWeightsError(
            f"{path} holds {ascii(wrong[0])[1:80] + ', which is no float' if wrong else 'no tensors'}",
            expected="a LoRA adapter's weights",
        )
    return shapes


def _refuse_foreign(folder: Path, target: str, tensors: Mapping[str, TensorSpec], spec: Spec) -> None:
    found = tensors.get(target)
    if found is None and not (spec.tied and target == "lm_head.weight"):
        raise BadWeightsError(
            f"the adapter {folder} changes {ascii(target)[1:-1][:80]}, which the model does not have",
            expected="an adapter that was trained on this model",
            remedy="name the model that adapter_config.json names, or its own adapter",
        )
    if spec.tied and (found is None or found.rule.kind in ("embedding", "head")):
        raise UnknownArchitectureError(
            f"the adapter {folder} changes {target}, which is embedding and head at once in this model",
            expected="an adapter that leaves a tied embedding alone",
            remedy="merge it with peft where it was trained, and name the merged folder",
        )


def _refuse_shape(folder: Path, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise BadWeightsError(
            f"tensor {ascii(name)[1:-1][:120]} of the adapter {folder} has shape {list(shape)}",
            expected=f"{list(wanted)} for this model",
            remedy="name the model that the adapter was trained on",
        )


def _change(
    folder: Path, config: Mapping[str, Any], tensor: TensorSpec, parts: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Change:  # fmt: skip
    module = tensor.hf.removesuffix(".weight")
    given_rank = _setting(folder, config, "r", "rank_pattern", module)
    alpha = _setting(folder, config, "lora_alpha", "alpha_pattern", module)
    if (rank := int(given_rank)) != given_rank:
        raise _bad_setting(folder, "r", given_rank)
    wanted: dict[str, tuple[int, ...]] = {"lora_A": (rank, tensor.shape[-1]), "lora_B": (tensor.shape[0], rank)}
    if tensor.rule.kind == "embedding":  # peft counts its sides from the other end
        wanted = {"lora_embedding_A": (rank, tensor.shape[0]), "lora_embedding_B": (tensor.shape[-1], rank)}
    if config.get("use_dora") is True:
        wanted["lora_magnitude_vector"] = tensor.shape[:1]
    if parts.keys() != wanted.keys() or len(tensor.shape) != 2:
        raise BadWeightsError(
            f"the adapter {folder} has {', '.join(sorted(parts))} for {module}",
            expected=", ".join(sorted(wanted)),
            remedy="it is damaged: download it again",
        )
    for part, name in parts.items():
        _refuse_shape(folder, name, shapes[name], wanted[part])
    return Change(rank, alpha, parts)


def _setting(folder: Path, config: Mapping[str, Any], key: str, pattern: str, module: str) -> float:
    """`key`, or what the first name in `pattern` that ends the module's name says (as peft's get_pattern_key)."""
    value = config.get(key, 8)
    table = config.get(pattern) or {}
    if not isinstance(table, dict) or not all(_PATTERN.fullmatch(name) for name in table):
        raise _bad_setting(folder, pattern, table)
    for name, own in table.items():
        try:
            if re.match(rf"(.*\.)?({name})$", module):
                value = own
                break
        except re.error as error:
            raise _bad_setting(folder, pattern, name) from error
    if type(value) not in (int, float) or not 0 < value < 1 << 20:
        raise _bad_setting(folder, key, value)
    return float(value)


def _bad_setting(folder: Path, key: str, value: object) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{folder / _CONFIG} gives {key} = {ascii(value)[:60]}", expected="what peft writes", remedy="correct it"
    )


# --- merging ---------------------------------------------------------------------------------------------------------


def merge(base: Checkpoint, adapter: Adapter, folder: Path, advance: Advance = lambda _done, _total: None) -> None:
    """Write the merged model into an empty folder; one tensor is in memory at a time.

    Raises:
        BadWeightsError: a tensor holds NaN or infinity, also after merging.
        MissingDependencyError: peft is not installed.
    """
    named = {tensor.hf: tensor for tensor in base.spec.tensors}
    merged = _merger(adapter)
    slots = ordered(Slot(name, _dtype(base, adapter, name), tensor.stored_shape) for name, tensor in named.items())
    tick = counter(advance, len(slots))

    def pieces() -> Iterator[NDArray[Any]]:
        for slot in slots:
            tensor, values = named[slot.name], _base_values(base, adapter, named[slot.name])
            if slot.name in adapter.changes:
                values = merged(tensor, values, adapter.changes[slot.name])
            yield stored(np.ascontiguousarray(values.T if tensor.rule.transposed else values), slot.dtype)
            tick(slot.name)

    write_safetensors(folder / "model.safetensors", slots, pieces())
    config = {**base.config, "dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
    _copy_tokenizer(base, adapter, folder)


def _base_values(base: Checkpoint, adapter: Adapter, tensor: TensorSpec) -> F32:
    """What the change is merged into, outputs first."""
    if (name := adapter.replaced.get(tensor.hf)) is None:
        return base.read(tensor)
    values = adapter.read(name)
    return np.ascontiguousarray(values.T if tensor.rule.transposed else values)


def _dtype(base: Checkpoint, adapter: Adapter, name: str) -> DType:
    from safetensors import safe_open

    if name in adapter.changes or name in adapter.replaced:
        return "F32"
    with safe_open(base.files[name], framework="np") as stream:
        kind = stream.get_slice(base.stored_names.get(name, name)).get_dtype()
    return kind if kind in ("F16", "BF16") else "F32"


def _merger(adapter: Adapter) -> Callable[[TensorSpec, F32, Change], F32]:
    """A function that gives a weight matrix (outputs first, or rows of an embedding) with its change merged in.

    Each matrix is merged as a layer of its own: peft knows scaling, rsLoRA and DoRA, and never needs the whole model.
    """
    try:
        import torch
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", expected="it, to merge an adapter",
            remedy="pip install 'edgekit[build]'",
        ) from error  # fmt: skip

    def run(tensor: TensorSpec, values: F32, change: Change) -> F32:
        rows, columns = values.shape
        embedding = tensor.rule.kind == "embedding"
        layer: Any = torch.nn.Embedding(rows, columns) if embedding else torch.nn.Linear(columns, rows, bias=False)
        layer.weight = torch.nn.Parameter(torch.from_numpy(values), requires_grad=False)
        config = LoraConfig(
            r=change.rank, lora_alpha=change.alpha, target_modules=["0"], use_rslora=adapter.use_rslora,
            use_dora=adapter.use_dora,
        )  # fmt: skip
        model = inject_adapter_in_model(config, torch.nn.Sequential(layer))
        state = {_peft_name(part): torch.from_numpy(adapter.read(name)) for part, name in change.parts.items()}
        set_peft_model_state_dict(model, state)
        try:
            model[0].merge(safe_merge=True)
        except ValueError as error:  # peft's own check for NaN
            raise BadWeightsError(
                f"tensor {tensor.hf} holds NaN or infinity after merging", remedy="the adapter is broken"
            ) from error
        out: F32 = model[0].get_base_layer().weight.detach().numpy()
        return out

    return run


def _peft_name(part: str) -> str:
    """Name of a part of the only layer, as peft saves it."""
    return f"0.{part}.weight" if part in ("lora_A", "lora_B") else f"0.{part}"


def _copy_tokenizer(base: Checkpoint, adapter: Adapter, folder: Path) -> None:
    home = adapter.folder if (adapter.folder / "tokenizer.json").is_file() else base.root
    for name in TOKENIZER_FILES:
        place = base.root if name == "generation_config.json" else home
        if (place / name).is_file():
            shutil.copyfile(place / name, folder / name)
