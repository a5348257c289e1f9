"""Settings of config.json that would change what is computed: supported, neutral, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.checkpoint.architectures import Activation, Family
from edgekit.checkpoint.config_fields import real, switch, table
from edgekit.errors import UnknownArchitectureError

_BIASES = ("attention_bias", "mlp_bias")


def activation_of(config: Mapping[str, Any], family: Family) -> Activation:
    """What the feed-forward layers compute with.

    Raises:
        UnknownArchitectureError: the family has no such activation here.
    """
    key = family.key("hidden_act")
    given = config.get(key) or config.get("hidden_act") or family.defaults.get("hidden_act", "silu")
    if isinstance(given, str) and given in family.activations:
        return family.activations[given]
    raise UnknownArchitectureError(
        f"config.json sets the activation {str(given)[:40]!a}",
        expected=" or ".join(repr(name) for name in family.activations),
        remedy="other activations of this family are not supported yet",
    )


def refuse_variants(config: Mapping[str, Any], family: Family) -> None:
    """Raise UnknownArchitectureError for what the family's tables do not describe; naming the key."""
    for key in _BIASES:
        if switch(config, key, False) and key not in family.switches:
            raise UnknownArchitectureError(
                f"config.json sets {key}",
                expected="a model without biases in its linear layers",
                remedy="biased variants of this family are not supported yet",
            )
    if quantization := table(config, "quantization_config"):
        raise UnknownArchitectureError(
            f"the checkpoint is quantized already ({ascii(quantization.get('quant_method'))[:40]})",
            expected="full-precision weights",
            remedy="use the model that it was made from",
        )
    for place in (config, table(config, "rope_parameters")):
        if real(place, "partial_rotary_factor", 1.0) != 1:
            raise UnknownArchitectureError(
                "config.json sets partial_rotary_factor",
                expected="rotary positions on whole heads",
                remedy="this variant of the family is not supported yet",
            )
    for key, values in family.neutral.items():
        if config.get(key) not in values:
            raise _variant(key, config[key])
    _refuse_scale(config, family)


def _refuse_scale(config: Mapping[str, Any], family: Family) -> None:
    """Gemma may scale attention by another size than the head's; llama.cpp takes the head's."""
    head_dim = config.get("head_dim", family.defaults.get("head_dim"))
    if (scale := config.get("query_pre_attn_scalar")) is not None and scale != head_dim:
        raise _variant("query_pre_attn_scalar", scale)


def _variant(key: str, value: object) -> UnknownArchitectureError:
    return UnknownArchitectureError(
        f"config.json sets {key} = {ascii(value)[:40]}",
        expected="this family's usual computation",
        remedy="this variant of the family is not supported yet",
    )
