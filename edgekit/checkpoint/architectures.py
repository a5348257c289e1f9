"""The supported model families, as data: which tensor plays which role, and which fact goes under which GGUF key.

Adding a family is adding a :class:`Family` to :data:`FAMILIES`; the exporters hold no family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["embedding", "head", "linear", "norm", "bias", "position"]
RowOrder = Literal["as_is", "rope_q", "rope_k"]
GgufType = Literal["u32", "f32", "str"]
Activation = Literal["silu", "gelu_tanh"]
Size = Literal["hidden", "q", "kv", "qkv", "ffn", "vocab", "head_dim", "context"]

MATRICES: tuple[Kind, ...] = ("embedding", "head", "linear")
"""What is quantized; everything else stays in float32."""


@dataclass(frozen=True)
class TensorRule:
    """One role: the tensor's name in each world. "{i}" stands for the layer number."""

    role: str
    kind: Kind
    hf: str
    gguf: str
    shape: tuple[Size, ...]
    """Rows (outputs) first; see edgekit.checkpoint.spec for what each name stands for."""
    rows: RowOrder = "as_is"
    """GGUF's llama family stores q and k rows so that a rotary pair is adjacent; Hugging Face stores halves."""
    when: str = ""
    """The switch of config.json that must be true for the tensor to exist; empty: it always does."""
    shift: float = 0.0
    """What the model adds to the stored weight before it multiplies (Gemma's norms); GGUF stores the sum."""
    transposed: bool = False
    """Whether Hugging Face stores inputs first (GPT-2's Conv1D)."""

    @property
    def per_layer(self) -> bool:
        """Whether the role exists once for each transformer block."""
        return "{i}" in self.hf

    @property
    def matrix(self) -> bool:
        """Whether the tensor is quantized."""
        return self.kind in MATRICES


@dataclass(frozen=True)
class Family:
    """A model family. The graph follows from which roles exist: a bias, a norm of q and k, a gate, a norm after."""

    name: str
    hf_architectures: tuple[str, ...]
    gguf_arch: str
    genai_type: str
    """`model.type` in genai_config.json."""
    tensors: tuple[TensorRule, ...]
    gguf_metadata: Mapping[str, tuple[str, GgufType]]
    """GGUF key (without the architecture's prefix) → (attribute of Spec, type); an attribute of None is left out."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"attn_qkv": ("attn_q", "attn_k", "attn_v")})
    """MatMul nodes of the ONNX graph that hold several roles, rows stacked in this order."""
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rope", "learned"] = "rope"
    activations: Mapping[str, Activation] = field(default_factory=lambda: {"silu": "silu", "swish": "silu"})
    """What config.json may name → what is computed. llama.cpp fixes the activation of each architecture."""
    embedding_scaled: bool = False
    """Whether embeddings are multiplied by the square root of the hidden size."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Our name of a key of config.json → this family's."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Keys (our names) that this family's config.json may leave out, with the family's own defaults."""
    switches: tuple[str, ...] = ()
    """Switches of config.json that may be true: their tensors are in the table."""
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys of config.json that change the computation → the values that do not."""
    window: Literal["bounds", "pattern"] = "bounds"
    """A sliding window bounds the context (within it attention is the same without one), or it belongs to some layers
    as `layer_types` or `sliding_window_pattern` says."""
    local_theta: float | None = None
    """Usual rope_theta of layers with a sliding window; None: the same as in all layers."""
    no_rope_interval: int | None = None
    """Every so many layers one has no rotary positions (llama.cpp fixes how many); None: all have them."""
    base_prefix: str = "model."
    """In front of all names but the head's; some checkpoints leave it out."""

    def key(self, name: str) -> str:
        """What this family's config.json calls a key."""
        return self.aliases.get(name, name)


def _linear(role: str, hf: str, shape: tuple[Size, Size], rows: RowOrder = "as_is") -> TensorRule:
    return TensorRule(role, "linear", f"model.layers.{{i}}.{hf}.weight", f"blk.{{i}}.{role}.weight", shape, rows)


def _norm(role: str, hf: str, size: Size = "hidden") -> TensorRule:
    return TensorRule(role, "norm", f"model.layers.{{i}}.{hf}.weight", f"blk.{{i}}.{role}.weight", (size,))


def _bias(of: TensorRule, when: str = "") -> TensorRule:
    hf, gguf = of.hf.removesuffix("weight") + "bias", of.gguf.removesuffix("weight") + "bias"
    return TensorRule(f"{of.role}_bias", "bias", hf, gguf, of.shape[:1], of.rows, when)


def _plain(rule: TensorRule) -> TensorRule:
    """Rows as Hugging Face stores them: what llama.cpp calls NEOX rotary positions."""
    return replace(rule, rows="as_is")


_EMBEDDING = TensorRule("embedding", "embedding", "model.embed_tokens.weight", "token_embd.weight", ("vocab", "hidden"))
_OUTPUT_NORM = TensorRule("output_norm", "norm", "model.norm.weight", "output_norm.weight", ("hidden",))
_HEAD = TensorRule("head", "head", "lm_head.weight", "output.weight", ("vocab", "hidden"))
_ATTN_NORM = _norm("attn_norm", "input_layernorm")
_FFN_NORM = _norm("ffn_norm", "post_attention_layernorm")
_QKV = (
    _linear("attn_q", "self_attn.q_proj", ("q", "hidden"), "rope_q"),
    _linear("attn_k", "self_attn.k_proj", ("kv", "hidden"), "rope_k"),
    _linear("attn_v", "self_attn.v_proj", ("kv", "hidden")),
)
_NEOX_QKV = tuple(map(_plain, _QKV))
_QK_NORMS = (_norm("attn_q_norm", "self_attn.q_norm", "head_dim"), _norm("attn_k_norm", "self_attn.k_norm", "head_dim"))
_ATTN_OUTPUT = _linear("attn_output", "self_attn.o_proj", ("hidden", "q"))
_MLP = (
    _linear("ffn_gate", "mlp.gate_proj", ("ffn", "hidden")),
    _linear("ffn_up", "mlp.up_proj", ("ffn", "hidden")),
    _linear("ffn_down", "mlp.down_proj", ("hidden", "ffn")),
)


def _decoder(*block: TensorRule) -> tuple[TensorRule, ...]:
    return (_EMBEDDING, *block, _OUTPUT_NORM, _HEAD)


_SIZES: dict[str, tuple[str, GgufType]] = {
    "block_count": ("layers", "u32"),
    "context_length": ("context_length", "u32"),
    "embedding_length": ("hidden_size", "u32"),
    "feed_forward_length": ("ffn_size", "u32"),
    "attention.head_count": ("heads", "u32"),
    "vocab_size": ("vocab_size", "u32"),
}
_ROPE: dict[str, tuple[str, GgufType]] = {
    "attention.head_count_kv": ("kv_heads", "u32"),
    "attention.key_length": ("head_dim", "u32"),
    "attention.value_length": ("head_dim", "u32"),
    "attention.layer_norm_rms_epsilon": ("norm_epsilon", "f32"),
    "rope.freq_base": ("rope_theta", "f32"),
    "rope.dimension_count": ("head_dim", "u32"),
    "rope.scaling.type": ("gguf_scaling_type", "str"),
    "rope.scaling.factor": ("gguf_scaling_factor", "f32"),
    "rope.scaling.original_context_length": ("yarn_original_context", "u32"),
    "rope.scaling.attn_factor": ("gguf_yarn_attention_factor", "f32"),
}
_DECODER_METADATA = {**_SIZES, **_ROPE}

LLAMA = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM",),
    gguf_arch="llama",
    genai_type="llama",
    tensors=_decoder(
        _ATTN_NORM,
        *_QKV,
        _ATTN_OUTPUT,
        *(_bias(rule, "attention_bias") for rule in (*_QKV, _ATTN_OUTPUT)),
        _FFN_NORM,
        *_MLP,
        *(_bias(rule, "mlp_bias") for rule in _MLP),
    ),
    gguf_metadata=_DECODER_METADATA,
    switches=("attention_bias", "mlp_bias"),
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    hf_architectures=("MistralForCausalLM",),
    switches=(),
    defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
)

QWEN2 = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    gguf_arch="qwen2",
    genai_type="qwen2",
    tensors=_decoder(_ATTN_NORM, *_NEOX_QKV, *map(_bias, _NEOX_QKV), _ATTN_OUTPUT, _FFN_NORM, *_MLP),
    gguf_metadata=_DECODER_METADATA,
    defaults={"use_sliding_window": False, "num_key_value_heads": 32, "max_position_embeddings": 32768},
)

QWEN3 = Family(
    name="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    gguf_arch="qwen3",
    genai_type="qwen3",
    tensors=_decoder(_ATTN_NORM, *_NEOX_QKV, *_QK_NORMS, _ATTN_OUTPUT, _FFN_NORM, *_MLP),
    gguf_metadata=_DECODER_METADATA,
    defaults={
        "use_sliding_window": False,
        "head_dim": 128,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
)

SMOLLM3 = Family(
    name="smollm3",
    hf_architectures=("SmolLM3ForCausalLM",),
    gguf_arch="smollm3",
    genai_type="smollm3",
    tensors=_decoder(_ATTN_NORM, *_QKV, _ATTN_OUTPUT, _FFN_NORM, *_MLP),
    gguf_metadata=_DECODER_METADATA,
    defaults={
        "use_sliding_window": False,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    },
    no_rope_interval=4,
)

_GEMMA3_NORMS = (
    _ATTN_NORM,
    _norm("post_attention_norm", "post_attention_layernorm"),
    _norm("ffn_norm", "pre_feedforward_layernorm"),
    _norm("post_ffw_norm", "post_feedforward_layernorm"),
    *_QK_NORMS,
)

GEMMA3 = Family(
    name="gemma3",
    hf_architectures=("Gemma3ForCausalLM",),
    gguf_arch="gemma3",
    genai_type="gemma3_text",
    tensors=tuple(
        replace(rule, shift=1.0) if rule.kind == "norm" else rule
        for rule in _decoder(*_GEMMA3_NORMS, *_NEOX_QKV, _ATTN_OUTPUT, *_MLP)
    ),
    gguf_metadata={
        **_DECODER_METADATA,
        "rope.freq_base_swa": ("local_rope_theta", "f32"),
        "attention.sliding_window": ("sliding_window", "u32"),
    },
    activations={"gelu_pytorch_tanh": "gelu_tanh"},
    embedding_scaled=True,
    aliases={"hidden_act": "hidden_activation"},
    defaults={
        "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4,
        "num_attention_heads": 8, "vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 4096,
        "rope_theta": 1000000.0,
    },
    neutral={"final_logit_softcapping": (None,), "attn_logit_softcapping": (None,)}
    | {"use_bidirectional_attention": (None, False)},
    window="pattern",
    local_theta=10000.0,
)  # fmt: skip


def _gpt2(role: str, hf: str, shape: tuple[Size, Size]) -> tuple[TensorRule, TensorRule]:
    name, stored = f"transformer.h.{{i}}.{hf}.weight", f"blk.{{i}}.{role}.weight"
    rule = TensorRule(role, "linear", name, stored, shape, transposed=True)
    return rule, _bias(rule)


def _layer_norm(role: str, hf: str, gguf: str) -> tuple[TensorRule, TensorRule]:
    rule = TensorRule(role, "norm", f"transformer.{hf}.weight", f"{gguf}.weight", ("hidden",))
    return rule, _bias(rule)


GPT2 = Family(
    name="gpt2",
    hf_architectures=("GPT2LMHeadModel",),
    gguf_arch="gpt2",
    genai_type="llama",  # genai's own "gpt2" wants keys and values in one tensor; the graph is like a Llama's
    tensors=(
        replace(_EMBEDDING, hf="transformer.wte.weight"),
        TensorRule("position", "position", "transformer.wpe.weight", "position_embd.weight", ("context", "hidden")),
        *_layer_norm("attn_norm", "h.{i}.ln_1", "blk.{i}.attn_norm"),
        *_gpt2("attn_qkv", "attn.c_attn", ("qkv", "hidden")),
        *_gpt2("attn_output", "attn.c_proj", ("hidden", "q")),
        *_layer_norm("ffn_norm", "h.{i}.ln_2", "blk.{i}.ffn_norm"),
        *_gpt2("ffn_up", "mlp.c_fc", ("ffn", "hidden")),
        *_gpt2("ffn_down", "mlp.c_proj", ("hidden", "ffn")),
        *_layer_norm("output_norm", "ln_f", "output_norm"),
        _HEAD,
    ),
    gguf_metadata={**_SIZES, "attention.layer_norm_epsilon": ("norm_epsilon", "f32")},
    fused={},
    norm="layer",
    positions="learned",
    activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    aliases={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function", "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "hidden_act": "gelu_new", "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
        "vocab_size": 50257,
    },
    neutral={
        "scale_attn_weights": (None, True), "scale_attn_by_inverse_layer_idx": (None, False),
        "add_cross_attention": (None, False),
    },
    base_prefix="transformer.",
)  # fmt: skip

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GEMMA3, GPT2)


def supported() -> list[str]:
    """Hugging Face architecture names that edgekit can build, sorted."""
    return sorted(name for family in FAMILIES for name in family.hf_architectures)


def family_of(architecture: str) -> Family | None:
    """The family of a Hugging Face architecture name, None when unknown."""
    return next((family for family in FAMILIES if architecture in family.hf_architectures), None)
