"""Tiny random checkpoints of every family, made by transformers itself, with logits that have structure.

Every matrix is noise with two dominant directions, every norm and bias is far from neutral, and the final norm is
scaled until the mean entropy of the next token is `tiny.ENTROPY` of ln(vocabulary): a forgotten bias, a norm in the
wrong place or a window too long shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny
import tiny_tokenizers
import torch
import transformers

VOCAB = 391
"""Not a multiple of 32."""
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
_ROPE = {"rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **_ROPE}
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **_ROPE}}),
    "llama-576": ("Llama", {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
                            "intermediate_size": 640, "num_hidden_layers": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen2-untied": ("Qwen2", {"tie_word_embeddings": False, "hidden_size": 896, "num_attention_heads": 14,
                               "num_key_value_heads": 2, "intermediate_size": 256, "num_hidden_layers": 1}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, "rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "gemma3": ("Gemma3Text", {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 16,
                              "query_pre_attn_scalar": 32}),
    "gemma3-640": ("Gemma3Text", {"hidden_size": 640, "num_hidden_layers": 1, "num_attention_heads": 4,
                                  "num_key_value_heads": 1, "head_dim": 64, "query_pre_attn_scalar": 64,
                                  "intermediate_size": 128, "sliding_window": 16}),
    "gpt2": ("GPT2", {}),
    "gpt2-untied": ("GPT2", {"tie_word_embeddings": False, "n_layer": 1, "n_inner": 160}),
}  # fmt: skip
"""Name → (transformers' prefix of the classes, what config.json says besides the common sizes)."""


def make(
    folder: Path, name: str, *, tokenizer: str = "smollm", dtype: str = "float32", context: int | None = None
) -> Path:
    """Write the checkpoint to the new folder and return it; `context` in tokens instead of the family's own here."""
    family, changes = CONFIGS[name]
    if context is not None:
        changes = {**changes, "n_positions" if family == "GPT2" else "max_position_embeddings": context}
    config = getattr(transformers, f"{family}Config")(**{**_sizes(family), **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.inference_mode():
        _fill(model)
        _sharpen(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizers.write(folder, tokenizer, VOCAB)
    return folder


def _sizes(family: str) -> dict[str, Any]:
    if family != "GPT2":
        return _SIZES
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
             "max_position_embeddings": "n_positions"}  # fmt: skip
    left_out = ("intermediate_size", "num_key_value_heads")
    return {names.get(key, key): value for key, value in _SIZES.items() if key not in left_out}


def _fill(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    gemma = "gemma" in model.config.model_type
    for name, weights in model.named_parameters():
        if weights.ndim == 2:
            rows, columns = weights.shape
            inputs = rows if "c_" in name else columns  # GPT-2 stores inputs first
            filled = normal(rows, columns)
            for strength in (0.6, 0.4):
                filled += strength * torch.outer(normal(rows), normal(columns))
            embeds = any(part in name for part in ("embed_tokens", "wte", "wpe"))
            size = 0.5 / (math.sqrt(columns) if gemma else 1) if embeds else 1 / math.sqrt(inputs)
            weights.copy_(filled * size)
        elif name.endswith("bias"):
            weights.copy_(normal(*weights.shape) * 0.3)
        else:
            scale = torch.rand(weights.shape, generator=generator) + 0.5
            weights.copy_(scale - 1 if gemma else scale)


def _sharpen(model: Any) -> None:
    """Scale all logits to the entropy wanted: through the final norm, whose Gemma form is stored less one."""
    ids = torch.randint(VOCAB, (1, 48), generator=torch.Generator().manual_seed(2))
    logits = model(ids).logits[0].double().numpy()
    low, high = 1e-4, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        wide = tiny.entropy(logits * middle) > tiny.ENTROPY * math.log(VOCAB)
        low, high = (middle, high) if wide else (low, middle)
    body = model.base_model
    norm = body.ln_f if hasattr(body, "ln_f") else body.norm
    shift = 1.0 if "gemma" in model.config.model_type else 0.0
    norm.weight.copy_((norm.weight + shift) * high - shift)
    if getattr(norm, "bias", None) is not None:
        norm.bias.mul_(high)
