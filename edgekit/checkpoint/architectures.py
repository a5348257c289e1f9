"""The supported model families, as data: which tensor plays which role, and which fact goes under which GGUF key.

Adding a family is adding a :class:`Family` to :data:`FAMILIES`; the exporters hold no family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["embedding", "head", "linear", "norm", "bias"]
RowOrder = Literal["as_is", "rope_q", "rope_k"]
GgufType = Literal["u32", "f32"]


@dataclass(frozen=True)
class TensorRule:
    """One role: the tensor's name in each world. "{i}" stands for the layer number."""

    role: str
    kind: Kind
    hf: str
    gguf: str
    onnx: str = ""
    """Base name of the MatMul node in the onnxruntime-genai builder's graph; empty: not a MatMul."""
    optional: bool = False
    rows: RowOrder = "as_is"
    """GGUF's llama family stores q and k rows so that a rotary pair is adjacent; Hugging Face stores halves."""

    @property
    def per_layer(self) -> bool:
        """Whether the role exists once for each transformer block."""
        return "{i}" in self.hf


@dataclass(frozen=True)
class Family:
    """A model family."""

    name: str
    hf_architectures: tuple[str, ...]
    gguf_arch: str
    tensors: tuple[TensorRule, ...]
    gguf_metadata: Mapping[str, tuple[str, GgufType]]
    """GGUF key (without the architecture's prefix) → (field of Spec, type)."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """MatMul nodes of the builder's graph that hold several roles, rows stacked in this order."""


_LLAMA_TENSORS = (
    TensorRule(
        "embedding", "embedding", "model.embed_tokens.weight", "token_embd.weight", "/model/embed_tokens/Gather"
    ),
    TensorRule("attn_norm", "norm", "model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    TensorRule(
        "attn_q",
        "linear",
        "model.layers.{i}.self_attn.q_proj.weight",
        "blk.{i}.attn_q.weight",
        "/model/layers.{i}/attn/q_proj/MatMul",
        rows="rope_q",
    ),
    TensorRule(
        "attn_k",
        "linear",
        "model.layers.{i}.self_attn.k_proj.weight",
        "blk.{i}.attn_k.weight",
        "/model/layers.{i}/attn/k_proj/MatMul",
        rows="rope_k",
    ),
    TensorRule(
        "attn_v",
        "linear",
        "model.layers.{i}.self_attn.v_proj.weight",
        "blk.{i}.attn_v.weight",
        "/model/layers.{i}/attn/v_proj/MatMul",
    ),
    TensorRule(
        "attn_output",
        "linear",
        "model.layers.{i}.self_attn.o_proj.weight",
        "blk.{i}.attn_output.weight",
        "/model/layers.{i}/attn/o_proj/MatMul",
    ),
    TensorRule("ffn_norm", "norm", "model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    TensorRule(
        "ffn_gate",
        "linear",
        "model.layers.{i}.mlp.gate_proj.weight",
        "blk.{i}.ffn_gate.weight",
        "/model/layers.{i}/mlp/gate_proj/MatMul",
    ),
    TensorRule(
        "ffn_up",
        "linear",
        "model.layers.{i}.mlp.up_proj.weight",
        "blk.{i}.ffn_up.weight",
        "/model/layers.{i}/mlp/up_proj/MatMul",
    ),
    TensorRule(
        "ffn_down",
        "linear",
        "model.layers.{i}.mlp.down_proj.weight",
        "blk.{i}.ffn_down.weight",
        "/model/layers.{i}/mlp/down_proj/MatMul",
    ),
    TensorRule("output_norm", "norm", "model.norm.weight", "output_norm.weight"),
    TensorRule("head", "head", "lm_head.weight", "output.weight", "/lm_head/MatMul", optional=True),
)

LLAMA = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf_arch="llama",
    tensors=_LLAMA_TENSORS,
    gguf_metadata={
        "block_count": ("layers", "u32"),
        "context_length": ("context_length", "u32"),
        "embedding_length": ("hidden_size", "u32"),
        "feed_forward_length": ("ffn_size", "u32"),
        "attention.head_count": ("heads", "u32"),
        "attention.head_count_kv": ("kv_heads", "u32"),
        "attention.key_length": ("head_dim", "u32"),
        "attention.value_length": ("head_dim", "u32"),
        "attention.layer_norm_rms_epsilon": ("norm_epsilon", "f32"),
        "rope.freq_base": ("rope_theta", "f32"),
        "rope.dimension_count": ("head_dim", "u32"),
        "vocab_size": ("vocab_size", "u32"),
    },
    fused={"/model/layers.{i}/attn/qkv_proj/MatMul": ("attn_q", "attn_k", "attn_v")},
)

FAMILIES: tuple[Family, ...] = (LLAMA,)


def supported() -> list[str]:
    """Hugging Face architecture names that edgekit can build, sorted."""
    return sorted(name for family in FAMILIES for name in family.hf_architectures)


def family_of(architecture: str) -> Family | None:
    """The family of a Hugging Face architecture name, None when unknown."""
    return next((family for family in FAMILIES if architecture in family.hf_architectures), None)
