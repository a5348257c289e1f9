"""config.json becomes a typed description, or one sentence that names the key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from tiny import Tiny

from edgekit.checkpoint.architectures import supported
from edgekit.checkpoint.spec import Spec, spec_from_config
from edgekit.errors import CorruptCheckpointError, UnknownArchitectureError

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
}


def spec(like: Tiny = Tiny(), **config: Any) -> Spec:  # noqa: B008
    return spec_from_config({**tiny.config_of(like), **config})


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "max_position_embeddings",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "value", [0, -1, 10**12, 10**400, 1e12, float("inf"), float("nan"), 64.5, "64", "many", [64], {"a": 1}, True]
)
def test_absurd_size(key: str, value: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"config.json gives {key} = .*; expected a whole number") as told:
        spec(**{key: value})
    assert len(str(told.value)) < 250, "a sentence, whatever the value"


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_missing_size(key: str) -> None:
    config = {name: value for name, value in tiny.config_of(Tiny()).items() if name != key}
    with pytest.raises(CorruptCheckpointError, match=f"config.json lacks {key}"):
        spec_from_config(config)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 10**400, "1e-5", [1]])
def test_absurd_number(value: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match="rms_norm_eps"):
        spec(rms_norm_eps=value)
    with pytest.raises(CorruptCheckpointError, match="rope_theta"):
        spec(rope_parameters={"rope_theta": value})
    with pytest.raises(CorruptCheckpointError, match="factor"):
        spec(rope_parameters={**tiny.LLAMA3_SCALING, "factor": value})


@pytest.mark.parametrize("names", [["BertModel"], ["BloomForCausalLM"], "LlamaForCausalLM", [], None, [{"a": 1}], [7]])
def test_unknown_architecture_lists_the_supported_ones(names: Any) -> None:
    with pytest.raises(UnknownArchitectureError, match=", ".join(supported())):
        spec(architectures=names)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias"),
        ({"architectures": ["SmolLM3ForCausalLM"], "mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {**YARN, "mscale": 0.7}}, "mscale"),
        ({"rope_parameters": {**YARN, "truncate": False}}, "truncate = False"),
        ({"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast = 16 .*32.0, which llama.cpp assumes"),
        ({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({**GEMMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping = 30"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA, "query_pre_attn_scalar": 168}, "query_pre_attn_scalar = 168"),
        ({**GEMMA, "hidden_activation": "gelu"}, "gelu"),
        ({**GEMMA, "layer_types": ["full_attention"] * 2}, "sliding window to other layers"),
        ({**GEMMA, "sliding_window_pattern": 2}, "sliding window to other layers"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [0, 1]}, "rotary positions out of other layers"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**GPT2, "activation_function": "relu"}, "relu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_variant_that_would_be_silently_wrong(config: dict[str, Any], word: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=word):
        spec(**config)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"num_attention_heads": 5}, "5 heads and 2 key-value heads"),
        ({"head_dim": 15}, "heads of 15 values"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({**GEMMA, "layer_types": ["full_attention"]}, "layer_types"),
        ({**GEMMA, "layer_types": 7}, "layer_types"),
        ({**GEMMA, "sliding_window": -3}, "sliding_window"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1, 1]}, "no_rope_layers"),
        ({**GPT2, "n_embd": 0}, "n_embd"),
        ({"rope_parameters": {**YARN, "rope_theta": 0.5}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": 7}, "rope_parameters"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor"),
        ({"rope_parameters": {**tiny.LLAMA3_SCALING, "high_freq_factor": 1.0}}, "high_freq_factor = 1"),
    ],
)
def test_contradiction(config: dict[str, Any], word: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=word):
        spec(**config)


def test_shapes_are_those_of_the_weights() -> None:
    for like in (Tiny(), Tiny(tied=False, hidden=96, heads=6, kv_heads=2, head_dim=48, vocab=391)):
        expected = {name: array.shape for name, array in tiny.weights(like).items()}
        assert {tensor.hf: tensor.shape for tensor in spec(like).tensors} == expected
        assert spec(like).parameters == sum(array.size for array in tiny.weights(like).values())


def test_defaults_of_a_short_config() -> None:
    """Old configurations leave out the head size, the key-value heads and everything about rotary positions."""
    config = tiny.config_of(Tiny())
    for key in ("head_dim", "num_key_value_heads", "rope_parameters", "rope_theta", "tie_word_embeddings"):
        del config[key]
    found = spec_from_config(config)
    assert (found.head_dim, found.kv_heads, found.rope_theta, found.tied) == (16, 4, 10000.0, False)
    assert spec_from_config({**config, "head_dim": None, "num_key_value_heads": None, "rope_scaling": None}) == found


def test_order_is_the_order_of_reading() -> None:
    names = [tensor.hf for tensor in spec(Tiny(tied=False)).tensors]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert layers == sorted(layers)


def test_sliding_window_bounds_the_context() -> None:
    assert spec(sliding_window=100, max_position_embeddings=512).context_length == 100
    assert spec(sliding_window=None, max_position_embeddings=512).context_length == 512


def test_key_value_cache_by_hand() -> None:
    assert spec(Tiny(layers=3, kv_heads=2, head_dim=16)).kv_bytes_per_token(2) == 2 * 3 * 2 * 16 * 2


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_llama3_rope_factors_are_the_ratio_of_frequencies(key: str) -> None:
    """Against the numpy model's own frequencies, a ramp on the inverse scale; in both places where configs have it."""
    config = tiny.config_of(Tiny(head_dim=32, theta=500000.0))
    config |= {"rope_parameters": None, key: tiny.LLAMA3_SCALING}
    found = spec_from_config(config)
    assert found.rope_theta == 500000.0
    assert found.rope.kind == "llama3"
    plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
    assert found.rope.scaling is not None
    divisors = found.rope.scaling.divisors(32, 500000.0)
    np.testing.assert_allclose(plain / divisors, tiny.llama3_frequencies(plain), rtol=1e-12)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert len({round(divisor, 6) for divisor in divisors}) >= 3, "the ramp between them is tested too"


def test_rope_of_gemma_in_both_forms() -> None:
    """Nested since transformers 5, side by side before; scaling concerns full attention alone."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    nested = {"full_attention": {**scaling, "rope_theta": 5e5}, "sliding_attention": {"rope_theta": 2e4}}
    new = spec(**GEMMA, rope_parameters=nested, rope_theta=None)
    old = spec(**GEMMA, rope_parameters=None, rope_scaling=scaling, rope_theta=5e5, rope_local_base_freq=2e4)
    for found in (new, old):
        assert (found.rope.theta, found.rope.kind) == (5e5, "linear")
        assert found.local_rope is not None
        assert (found.local_rope.theta, found.local_rope.scaling) == (2e4, None)


def test_layers_of_gemma() -> None:
    found = spec(Tiny(layers=13), **GEMMA, sliding_window=100)
    assert [i for i in range(13) if found.layer_window(i) is None] == [5, 11]
    assert found.layer_window(0) == 100
    assert found.context_length == 512, "the window is a few layers' matter"
    assert found.layer_rope(5) is found.rope
    assert found.layer_rope(0) is found.local_rope


def test_layers_without_positions_in_smollm3() -> None:
    found = spec(Tiny(layers=9), architectures=["SmolLM3ForCausalLM"])
    assert [i for i in range(9) if found.layer_rope(i) is None] == [3, 7]
    assert found.context_length == 512


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_window_of_qwen_counts_only_when_it_is_switched_on(name: str) -> None:
    assert spec(architectures=[name], sliding_window=100).context_length == 512
    assert spec(architectures=[name], sliding_window=100, use_sliding_window=True).context_length == 100


def test_gpt2_has_its_own_names() -> None:
    found = spec_from_config({**GPT2, "vocab_size": 300})
    assert (found.hidden_size, found.ffn_size, found.layers, found.heads, found.kv_heads) == (64, 256, 2, 4, 4)
    assert (found.context_length, found.norm_epsilon, found.activation, found.tied) == (128, 1e-5, "gelu_tanh", True)
    shapes = {tensor.hf: (tensor.shape, tensor.stored_shape) for tensor in found.tensors}
    assert shapes["transformer.h.1.attn.c_attn.weight"] == ((192, 64), (64, 192))
    assert shapes["transformer.wpe.weight"][0] == (128, 64)


def test_what_a_family_leaves_out_has_the_familys_own_default() -> None:
    """As transformers' configuration classes have it."""
    bare = {key: value for key, value in tiny.config_of(Tiny(kv_heads=4)).items() if key != "tie_word_embeddings"}
    wanted = {"SmolLM3ForCausalLM": True, "LlamaForCausalLM": False, "Qwen2ForCausalLM": False}
    assert {name: spec_from_config({**bare, "architectures": [name]}).tied for name in wanted} == wanted


def test_mistral_has_a_window_unless_it_says_null() -> None:
    config = tiny.config_of(Tiny(architecture="MistralForCausalLM", context=8192))
    assert spec_from_config(config).context_length == 8192, "null"
    del config["sliding_window"]
    assert spec_from_config(config).context_length == 4096


def test_old_scaling_beside_new_parameters() -> None:
    found = spec(rope_scaling={"type": "linear", "factor": 4.0}, rope_parameters={"rope_type": "default"})
    assert found.rope.kind == "linear"
    assert spec(rope_scaling={"type": None}, rope_parameters=YARN).rope.kind == "yarn"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, 1.1386), ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0), ({"mscale": 1.0}, 1.1386),
        ({"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.2}, 1.2),
    ],
)  # fmt: skip
def test_attention_factor_of_yarn(extra: dict[str, Any], expected: float) -> None:
    """As transformers' `_compute_yarn_parameters`."""
    assert spec(rope_parameters={**YARN, **extra}).rope.attention_factor == pytest.approx(expected, abs=1e-4)
