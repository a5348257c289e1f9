"""A checkpoint of a family that has no table here: sizes by optimum's normalized configs, tensors by their headers.

Such a checkpoint cannot be exported by edgekit itself. It is what the exporters of others are given and compared with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.checkpoint.architectures import Family, Kind, TensorRule
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.config_fields import table
from edgekit.checkpoint.rope import Rope
from edgekit.checkpoint.sizes import MOST
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import CorruptCheckpointError, MissingDependencyError, UnknownArchitectureError

_TASK = "text-generation"
_LAYER = re.compile(r"(?:^|[./])(\d+)[./]")
_MOST_TENSORS = 1 << 20
_FLOATS = ("F64", "F32", "F16", "BF16")


def open_foreign(root: Path, *, name: str = "", source: str = "", caveat: str = "") -> Checkpoint:
    """Open a local Hugging Face folder of any family of causal language models that transformers knows.

    Raises:
        UnknownArchitectureError: transformers does not know it, it generates no text, or it is quantized already.
        MissingDependencyError: optimum or transformers is not installed.
        InputNotFoundError, UnsafeCheckpointError, CorruptCheckpointError, BadWeightsError: as open_checkpoint.
    """
    return open_checkpoint(
        root, name=name, source=source, caveat=caveat, describe=lambda config, files: _describe(root, config, files)
    )


def is_foreign(checkpoint: Checkpoint) -> bool:
    """Whether edgekit has no table for the family, so that only the exporters of others can make something of it."""
    return not checkpoint.spec.family.tensors


def open_any(root: Path, *, name: str = "", source: str = "", caveat: str = "") -> Checkpoint:
    """Open a folder as open_checkpoint does, or as :func:`open_foreign` what that does not support."""
    try:
        return open_checkpoint(root, name=name, source=source, caveat=caveat)
    except UnknownArchitectureError:
        return open_foreign(root, name=name, source=source, caveat=caveat)


def foreign_tensor(name: str, shape: Sequence[int], kind: Kind, *, hf: str = "") -> TensorSpec:
    """A tensor without a table.

    Args:
        name: in the file at hand.
        shape: outputs first.
        kind: what is known of its meaning.
        hf: its name in the Hugging Face checkpoint; the same when empty. The first number in it is the layer, what
            follows the role.
    """
    known = hf or name
    found = _LAYER.search(known)
    role = known[found.end() :] if found else known
    for affix in ("/MatMul", "/Gemm", "/Gather", ".weight"):
        role = role.removesuffix(affix)
    rule = TensorRule(role=role.strip("/") or known, kind=kind, hf=known, gguf=name, shape=())
    return TensorSpec(rule, int(found.group(1)) if found else None, tuple(shape))


def _describe(root: Path, config: Mapping[str, Any], files: Sequence[Path]) -> Spec:
    architecture = _architecture(config)
    if quantization := table(config, "quantization_config"):
        raise UnknownArchitectureError(
            f"the checkpoint is quantized already ({ascii(quantization.get('quant_method'))[:40]})",
            expected="full-precision weights",
            remedy="use the model that it was made from",
        )
    _refuse_other_tasks(architecture)
    sizes = _sizes(root)
    tensors = tuple(
        foreign_tensor(name, shape, _kind(name, shape, sizes["vocab_size"])) for name, shape in _headers(files).items()
    )
    # What only our own exporters compute from (activation, rotary positions) holds neutral values.
    return Spec(
        family=Family(architecture, (architecture,), "", "", (), {}, fused={}),
        architecture=architecture,
        norm_epsilon=0.0,
        activation="silu",
        rope=Rope(10000.0, None),
        local_rope=None,
        sliding_window=None,
        sliding=frozenset(),
        no_rope=frozenset(),
        tied=not any(tensor.rule.kind == "head" for tensor in tensors),
        tensors=tensors,
        **sizes,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str) and names[0].isidentifier()):
        raise CorruptCheckpointError("config.json names no architecture", expected="a Hugging Face config")
    return names[0]


def _refuse_other_tasks(architecture: str) -> None:
    try:
        import transformers
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]'"
        ) from error
    model = getattr(transformers, architecture, None)
    if not isinstance(model, type):
        raise UnknownArchitectureError(
            f"transformers {transformers.__version__} does not know the architecture {architecture[:80]!a}",
            expected="one of its own: a model's own Python code is never run",
            remedy="use a newer transformers, or a model of another architecture",
        )
    try:
        task = str(TasksManager.infer_task_from_model(model))
    except ValueError:
        task = "none that optimum knows"
    if task != _TASK:
        raise UnknownArchitectureError(
            f"the task of {architecture[:80]!a} is {task}", expected=_TASK, remedy="use a causal language model"
        )


def _sizes(root: Path) -> dict[str, int]:
    """The sizes of Spec, whatever the family's config calls them."""
    from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a stranger's config.json makes of transformers' validation
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptCheckpointError(f"transformers refuses {root / 'config.json'} ({first[:200]})") from error
    try:
        normal = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:  # a family without names of its own
        normal = NormalizedTextConfig(config)

    def size(key: str, limit: str, names: Sequence[str], default: int | None = None) -> int:
        given = (getattr(normal, name) for name in names if normal.has_attribute(name))
        value = next((found for found in given if found is not None), default)
        if type(value) is not int or not 1 <= value <= MOST[limit]:
            raise CorruptCheckpointError(
                f"config.json gives {key} = {ascii(value)[:40]}", expected=f"a whole number from 1 to {MOST[limit]}"
            )
        return value

    hidden = size("hidden size", "hidden_size", ("hidden_size",))
    heads = size("attention heads", "num_attention_heads", ("num_attention_heads",))
    ffn = ("intermediate_size", "ffn_dim", "n_inner")
    return {
        "hidden_size": hidden,
        "ffn_size": size("feed-forward size", "intermediate_size", ffn, 4 * hidden),
        "layers": size("layers", "num_hidden_layers", ("num_layers",)),
        "heads": heads,
        "kv_heads": size("key-value heads", "num_key_value_heads", ("num_key_value_heads",), heads),
        "head_dim": size("head size", "head_dim", ("head_dim",), max(1, hidden // heads)),
        "vocab_size": size("vocabulary", "vocab_size", ("vocab_size",)),
        "context_length": size("context", "max_position_embeddings", ("max_position_embeddings",), 2048),
    }


def _headers(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that is, or should be, made of floats."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as stream:
                for name in stream.keys():  # noqa: SIM118 — not a mapping
                    header = stream.get_slice(name)
                    shape = tuple(header.get_shape())
                    if header.get_dtype() in _FLOATS or _quantized(name, shape):
                        found[name] = shape
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpointError(
                f"{path} cannot be read as safetensors ({error})",
                expected="a whole file",
                remedy="it is damaged or cut short: download it again",
            ) from error
    if not 0 < len(found) < _MOST_TENSORS:
        raise CorruptCheckpointError(f"{files[0].parent} holds {len(found)} tensors", expected="a model's weights")
    return found


def _quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor that is no float holds weights, which open_checkpoint refuses by its type, not a buffer."""
    return len(shape) == 2 and name.endswith("weight")


def _kind(name: str, shape: Sequence[int], vocab: int) -> Kind:
    """What a tensor is by its name and shape; good enough for a description, nothing is computed from it."""
    if len(shape) != 2 or not name.endswith(".weight"):
        return "bias" if name.endswith(".bias") else "norm"
    if shape[0] >= vocab:
        return "head" if any(word in name for word in ("lm_head", "embed_out", "output")) else "embedding"
    return "linear"
