"""config.json from GGUF metadata: the families' tables of metadata, read backwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.architectures import FAMILIES, Family
from edgekit.checkpoint.layers import sliding_layers
from edgekit.checkpoint.rope import Llama3
from edgekit.checkpoint.sizes import MOST
from edgekit.checkpoint.spec import Spec, spec_from_config
from edgekit.errors import CorruptCheckpointError, EdgekitError, UnknownArchitectureError

Metadata = Mapping[str, Any]
"""GGUF key → value; numbers are plain ints and floats."""

_SIZES = {
    "hidden_size": "hidden_size", "ffn_size": "intermediate_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "context_length": "max_position_embeddings", "sliding_window": "sliding_window",
}  # fmt: skip
"""Attribute of Spec → our name of the key in config.json, for whole numbers."""
_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""`model_type` of families where it is not the family's name."""
_COPIES = {"gemma3": {"query_pre_attn_scalar": "head_dim"}}
"""Family → key that Hugging Face has and llama.cpp derives → the key it is derived from."""
_CHANGES: Mapping[str, tuple[int, ...]] = {
    "expert_count": (0,), "attn_logit_softcapping": (0,), "final_logit_softcapping": (0,), "attention.scale": (0,),
    "logit_scale": (0, 1), "embedding_scale": (0, 1), "residual_scale": (0, 1), "rope.scale_linear": (0, 1),
    "attention.temperature_scale": (0,),
}  # fmt: skip
"""Metadata that would change the computation in a way no family's table describes → values with which it does not: 0,
which llama.cpp takes for unset, and 1 for a factor."""
_ATTENTION_FACTORS = ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor")
"""llama.cpp multiplies by both."""
_REMEDY = "use the Hugging Face checkpoint that it was made from"


def family_of_gguf(metadata: Metadata) -> Family:
    """The family that `general.architecture` names.

    Raises:
        UnknownArchitectureError: none of ours.
    """
    name = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf_arch == name:
            return family
    raise UnknownArchitectureError(
        f"the GGUF file holds the architecture {str(name)[:40]!a}",
        expected="one of " + ", ".join(sorted(family.gguf_arch for family in FAMILIES)),
        remedy="other families are not supported yet",
    )


def config_from_gguf(
    metadata: Metadata, tensors: Mapping[str, tuple[int, ...]], frequency_divisors: NDArray[np.float32] | None = None
) -> tuple[dict[str, Any], Spec]:
    """What config.json would say about a GGUF file, and the model's description made from it.

    Args:
        metadata: of the file.
        tensors: name in the file → shape, outputs first.
        frequency_divisors: (head_dim / 2,), the tensor `rope_freqs.weight`.

    Raises:
        UnknownArchitectureError: the family, or a variant of it, is not supported.
        CorruptCheckpointError: a key is missing, impossible, or contradicts another.
    """
    family = family_of_gguf(metadata)
    facts = {key.removeprefix(f"{family.gguf_arch}."): value for key, value in metadata.items()}
    _refuse_variants(family, facts)
    config = _config(family, facts, tensors)
    config |= _rope(family, facts, config, frequency_divisors)
    config |= _ends(family, metadata, config)
    try:
        spec = spec_from_config(config)
    except EdgekitError as error:
        raise type(error)(
            f"the GGUF file's metadata makes no model: {error.found.replace('config.json ', 'it ')}",
            expected=error.expected, remedy=error.remedy or _REMEDY,
        ) from error  # fmt: skip
    _refuse_contradictions(spec, facts)
    return config, spec


def short_float(value: float) -> float:
    """The decimal number that a float32 was made from: 9.999999747378752e-06 → 1e-05."""
    return float(str(np.float32(value)))


def _refuse_variants(family: Family, facts: Metadata) -> None:
    for key, neutral in _CHANGES.items():
        if facts.get(key) not in (None, *neutral):
            raise UnknownArchitectureError(
                f"the GGUF file sets {family.gguf_arch}.{key} = {ascii(facts[key])[:40]}",
                expected="this family's usual computation",
                remedy="this variant of the family is not supported yet",
            )
    if family.gguf_arch == "gemma3" and facts.get("block_count") == 62:  # llama.cpp scales its attention differently
        raise UnknownArchitectureError("the GGUF file holds Gemma 3 27B", remedy="use one of its smaller models")


def _config(family: Family, facts: Metadata, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    named = {rule.role: rule for rule in family.tensors}
    sizes = _sizes(family, facts)
    sizes["vocab_size"] = next(iter(tensors.get(named["embedding"].gguf, ())), 0)
    epsilon = _real(facts, next(key for key, (attribute, _) in family.gguf_metadata.items() if "epsilon" in attribute))
    config: dict[str, Any] = {
        "architectures": [family.hf_architectures[0]],
        "model_type": _MODEL_TYPES.get(family.name, family.name),
        **{family.key(key): value for key, value in sizes.items()},
        family.key("rms_norm_eps"): short_float(epsilon),
        family.key("hidden_act"): next(iter(family.activations)),
        "tie_word_embeddings": named["head"].gguf not in tensors,
    }
    for switch in family.switches:
        rules = [rule.gguf.replace("{i}", "0") for rule in family.tensors if rule.when == switch]
        if any(name in tensors for name in rules):
            config[switch] = True
    config |= {copy: sizes[key] for copy, key in _COPIES.get(family.name, {}).items()}
    if family.window == "pattern":
        layers = sizes["num_hidden_layers"]
        _, sliding = sliding_layers(config, family, layers)
        config["layer_types"] = ["sliding_attention" if i in sliding else "full_attention" for i in range(layers)]
    if family.no_rope_interval is not None:
        config["no_rope_layer_interval"] = family.no_rope_interval
    return config


def _sizes(family: Family, facts: Metadata) -> dict[str, int]:
    """Whole numbers under our names of their keys; what llama.cpp takes for granted is written out."""
    found: dict[str, int] = {}
    for key, (attribute, _) in family.gguf_metadata.items():
        name = _SIZES.get(attribute)
        if name is not None and key in facts and name not in found:
            found[name] = _whole(facts, key, MOST.get(name, (1 << 31) - 1))
    for key, (attribute, _) in family.gguf_metadata.items():
        if (name := _SIZES.get(attribute)) not in (None, *found, "num_key_value_heads", "head_dim"):
            raise _missing(family, key)
    attributes = {attribute for attribute, _ in family.gguf_metadata.values()}
    heads = found["num_attention_heads"]
    if "kv_heads" in attributes:
        found.setdefault("num_key_value_heads", heads)
    usual = found["hidden_size"] // heads
    if "head_dim" in attributes and "head_dim" in family.defaults:
        found.setdefault("head_dim", usual)
    elif found.get("head_dim") == usual:
        del found["head_dim"]
    return found


def _whole(facts: Metadata, key: str, most: int) -> int:
    value = facts[key]
    if type(value) is not int or not 1 <= value <= most:
        raise CorruptCheckpointError(
            f"the GGUF file gives {key} = {ascii(value)[:40]}",
            expected=f"a whole number from 1 to {most}, the same for all layers",
            remedy=_REMEDY,
        )
    return value


def _real(facts: Metadata, key: str, default: float | None = None) -> float:
    value = facts.get(key, default)
    if type(value) not in (int, float) or not 0 < float(str(value)) < math.inf:
        raise CorruptCheckpointError(
            f"the GGUF file gives {key} = {ascii(value)[:40]}", expected="a finite number above 0", remedy=_REMEDY
        )
    return float(str(value))


def _missing(family: Family, key: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"the GGUF file lacks the metadata {family.gguf_arch}.{key}", remedy=_REMEDY)


# --- rotary positions ------------------------------------------------------------------------------------------------


def _rope(
    family: Family, facts: Metadata, config: Mapping[str, Any], divisors: NDArray[np.float32] | None
) -> dict[str, Any]:
    if family.positions != "rope":
        return {}
    theta = short_float(_real(facts, "rope.freq_base", 10000.0))  # llama.cpp's own default
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    scaling = _scaling(facts, config) if divisors is None else _llama3(divisors, int(head_dim), theta)
    far = {"rope_type": "default", **scaling, "rope_theta": theta}
    if family.local_theta is None:
        return {"rope_theta": theta, "rope_parameters": far}
    near = short_float(_real(facts, "rope.freq_base_swa", family.local_theta))
    local = {"rope_type": "default", "rope_theta": near}
    return {"rope_parameters": {"full_attention": far, "sliding_attention": local}}


def _scaling(facts: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = facts.get("rope.scaling.type", "linear" if facts.get("rope.scaling.factor") else "none")  # as llama.cpp
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise UnknownArchitectureError(
            f"the GGUF file asks for rotary scaling {str(kind)[:40]!a}", expected="none, linear or yarn", remedy=_REMEDY
        )
    factor = short_float(_real(facts, "rope.scaling.factor"))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    longest = config["max_position_embeddings"]
    key = "rope.scaling.original_context_length"
    found = {
        "rope_type": "yarn", "factor": factor,
        "original_max_position_embeddings": _whole({key: facts.get(key, longest)}, key, (1 << 31) - 1),
        "beta_fast": short_float(_real(facts, "rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": short_float(_real(facts, "rope.scaling.yarn_beta_slow", 1.0)),
    }  # fmt: skip
    rest = math.prod(_real(facts, key, 1.0) for key in _ATTENTION_FACTORS)
    if abs(rest - 1) > 1e-6:  # llama.cpp multiplies it by the usual factor
        found["attention_factor"] = short_float(rest * (0.1 * math.log(factor) + 1))
    return found


def _llama3(divisors: NDArray[np.float32], head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling from its divisors: a ramp that is linear in the frequency, so two points on it tell its ends.

    The ends and the original context are known up to a common factor, which the published low_freq_factor of 1 fixes.
    """
    wrong = UnknownArchitectureError(
        "the GGUF file stretches its rotary frequencies (rope_freqs.weight) in an unknown way",
        expected="Llama 3's scaling", remedy=_REMEDY,
    )  # fmt: skip
    if divisors.shape != (head_dim // 2,) or not np.isfinite(divisors).all() or divisors.min() < 1:
        raise wrong
    factor = short_float(float(divisors.max()))
    turns = theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    guesses = [Llama3(factor, 1.0, 4.0, 8192)]  # Llama 3.1 and 3.2
    ramp = (divisors > 1.0001) & (divisors < factor * 0.9999)
    if ramp.sum() >= 2:
        smooth = (1 / divisors[ramp].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(turns[ramp], smooth, 1)
        high = round(float(1 - 1 / start), 3)
        guesses.append(Llama3(factor, 1.0, high, max(round(float(slope) * (high - 1)), 1)))
    for guess in guesses:
        if np.allclose(guess.divisors(head_dim, theta), divisors, rtol=1e-3):
            return {
                "rope_type": "llama3", "factor": guess.factor, "low_freq_factor": guess.low_freq_factor,
                "high_freq_factor": guess.high_freq_factor, "original_max_position_embeddings": guess.original_context,
            }  # fmt: skip
    raise wrong


# --- the rest --------------------------------------------------------------------------------------------------------


def _ends(family: Family, metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    rows = config[family.key("vocab_size")]
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        found[f"{name}_token_id"] = value if type(value) is int and 0 <= value < rows else None
    return found


def _refuse_contradictions(spec: Spec, facts: Metadata) -> None:
    """Every fact of the file that the family's table names must be what the model's description says."""
    for key, (attribute, _) in spec.family.gguf_metadata.items():
        if key not in facts or (key.startswith("rope.scaling") and facts.get("rope.scaling.type") != spec.rope.kind):
            continue
        given, made = facts[key], getattr(spec, attribute)
        numbers = isinstance(made, int | float) and isinstance(given, int | float)
        if made != given and not (numbers and math.isclose(made, given, rel_tol=1e-5)):
            raise CorruptCheckpointError(
                f"the GGUF file gives {spec.family.gguf_arch}.{key} = {ascii(given)[:40]}",
                expected=f"{ascii(made)[:40]}, as its other metadata and tensors say",
                remedy=_REMEDY,
            )
