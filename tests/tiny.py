"""Tiny random Llama checkpoints as Hugging Face folders, made in milliseconds with numpy and `tokenizers` alone.

Their logits have structure: a forward pass in numpy, which shares nothing with the code under test, scales the final
norm until the mean entropy of the next token is `ENTROPY` of ln(vocabulary). A model that says nearly the same after
every text would pass any comparison.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_tokenizers
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Weights = Mapping[str, F32]

ENTROPY = 0.4
EPSILON = 1e-5
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Tiny:
    """Sizes and traits of one checkpoint; every field has a value that works."""

    hidden: int = 64
    ffn: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocab: int = 384
    tied: bool = True
    shards: int = 1
    dtype: str = "f16"
    theta: float = 10000.0
    llama3_rope: bool = False
    tokenizer: str = "smollm"
    architecture: str = "LlamaForCausalLM"
    context: int = 512
    seed: int = 0


def make(folder: Path, tiny: Tiny = Tiny(), **config: Any) -> Path:
    """Write the checkpoint to the new folder and return it; keywords override keys of config.json."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {**config_of(tiny), **config})
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_weights(folder, weights(tiny), tiny)
    tiny_tokenizers.write(folder, tiny.tokenizer, tiny.vocab)
    return folder


def config_of(tiny: Tiny) -> dict[str, Any]:
    """What config.json says."""
    names = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
    rope = LLAMA3_SCALING if tiny.llama3_rope else {"rope_type": "default"}
    return {
        "architectures": [tiny.architecture],
        "model_type": "mistral" if tiny.architecture.startswith("Mistral") else "llama",
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.ffn,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.head_dim,
        "vocab_size": tiny.vocab,
        "max_position_embeddings": tiny.context,
        "rms_norm_eps": EPSILON,
        "rope_theta": tiny.theta,
        "rope_parameters": {**rope, "rope_theta": tiny.theta},
        "hidden_act": "silu",
        "tie_word_embeddings": tiny.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": names[tiny.dtype],
        **({"sliding_window": None} if tiny.architecture.startswith("Mistral") else {}),
    }


def weights(tiny: Tiny) -> dict[str, F32]:
    """Tensors by Hugging Face name, as the file of `tiny.dtype` holds them."""
    rng = np.random.default_rng(tiny.seed)
    q, kv = tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim

    def matrix(rows: int, columns: int, gain: float) -> F64:
        """Noise and two dominant directions; maps inputs of size 1 to outputs of about `gain`."""
        noise = rng.standard_normal((rows, columns)) / math.sqrt(columns)
        for strength in (0.6, 0.4):
            noise += strength * np.outer(rng.standard_normal(rows), rng.standard_normal(columns)) / math.sqrt(columns)
        return gain * noise

    def norm() -> F64:
        return rng.uniform(0.5, 1.5, tiny.hidden)

    made: dict[str, F64] = {"model.embed_tokens.weight": matrix(tiny.vocab, tiny.hidden, math.sqrt(tiny.hidden) / 2)}
    for layer in range(tiny.layers):
        name = f"model.layers.{layer}"
        made |= {
            f"{name}.input_layernorm.weight": norm(),
            f"{name}.self_attn.q_proj.weight": matrix(q, tiny.hidden, 1.3),
            f"{name}.self_attn.k_proj.weight": matrix(kv, tiny.hidden, 1.3),
            f"{name}.self_attn.v_proj.weight": matrix(kv, tiny.hidden, 1.3),
            f"{name}.self_attn.o_proj.weight": matrix(tiny.hidden, q, 1.3),
            f"{name}.post_attention_layernorm.weight": norm(),
            f"{name}.mlp.gate_proj.weight": matrix(tiny.ffn, tiny.hidden, 1.3),
            f"{name}.mlp.up_proj.weight": matrix(tiny.ffn, tiny.hidden, 1.3),
            f"{name}.mlp.down_proj.weight": matrix(tiny.hidden, tiny.ffn, 1.3),
        }
    made["model.norm.weight"] = norm()
    if not tiny.tied:
        made["lm_head.weight"] = matrix(tiny.vocab, tiny.hidden, 1.0)
    stored = {name: _decode(_encode(array, tiny.dtype), tiny.dtype) for name, array in made.items()}
    scaled = stored["model.norm.weight"] * _sharpness(stored, tiny)
    stored["model.norm.weight"] = _decode(_encode(scaled, tiny.dtype), tiny.dtype)
    return stored


def _sharpness(stored: Weights, tiny: Tiny) -> float:
    """Factor of all logits at which the mean entropy is ENTROPY · ln(vocabulary)."""
    rng = np.random.default_rng(tiny.seed + 1)
    logits = forward(stored, tiny, rng.integers(tiny.vocab, size=48))
    low, high = 1e-4, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        wide = entropy(logits * middle) > ENTROPY * math.log(tiny.vocab)
        low, high = (middle, high) if wide else (low, middle)
    return high


def entropy(logits: F64) -> float:
    """Mean entropy in nats of the distributions of logits (T, V)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=-1, keepdims=True)
    return float((np.log(total[:, 0]) - (p / total * shifted).sum(axis=-1)).mean())


def forward(stored: Weights, tiny: Tiny, ids: NDArray[np.int64]) -> F64:
    """Logits (T, V) of a Llama (Touvron et al., 2023) in float64: pre-norm, rotary halves, grouped queries, SwiGLU."""
    w = {name: array.astype(np.float64) for name, array in stored.items()}
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(tiny.layers):
        name = f"model.layers.{layer}"
        x = x + _attention(_rms(x, w[f"{name}.input_layernorm.weight"]), w, f"{name}.self_attn", tiny)
        h = _rms(x, w[f"{name}.post_attention_layernorm.weight"])
        gate = h @ w[f"{name}.mlp.gate_proj.weight"].T
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ w[f"{name}.mlp.up_proj.weight"].T))
            @ w[f"{name}.mlp.down_proj.weight"].T
        )
    head = w["model.embed_tokens.weight" if tiny.tied else "lm_head.weight"]
    out: F64 = _rms(x, w["model.norm.weight"]) @ head.T
    return out


def _rms(x: F64, weight: F64) -> F64:
    out: F64 = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * weight
    return out


def _attention(x: F64, w: Mapping[str, F64], name: str, tiny: Tiny) -> F64:
    def heads(side: str, count: int) -> F64:
        projected: F64 = (x @ w[f"{name}.{side}_proj.weight"].T).reshape(len(x), count, -1).swapaxes(0, 1)
        return projected

    q, k = _rotated(heads("q", tiny.heads), tiny), _rotated(heads("k", tiny.kv_heads), tiny)
    group = tiny.heads // tiny.kv_heads
    k, v = (np.repeat(side, group, axis=0) for side in (k, heads("v", tiny.kv_heads)))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(tiny.head_dim)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (p / p.sum(axis=-1, keepdims=True)) @ v
    out: F64 = mixed.swapaxes(0, 1).reshape(len(x), -1) @ w[f"{name}.o_proj.weight"].T
    return out


def _rotated(heads: F64, tiny: Tiny) -> F64:
    """Rotary positions on (heads, T, head_dim), the two of a pair half a head apart."""
    frequencies = tiny.theta ** -(np.arange(0, tiny.head_dim, 2) / tiny.head_dim)
    if tiny.llama3_rope:
        frequencies = llama3_frequencies(frequencies)
    angles = np.arange(heads.shape[1])[:, None] * frequencies
    first, second = np.split(heads, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def llama3_frequencies(frequencies: F64) -> F64:
    """Slow rotations divided by the factor, fast ones kept, a ramp between (Llama 3.1)."""
    s = LLAMA3_SCALING
    turns = float(str(s["original_max_position_embeddings"])) * frequencies / (2 * math.pi)
    low, high, factor = (float(str(s[key])) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    share = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (share + (1 - share) / factor)


def _encode(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype != "bf16":
        return array.astype({"f16": np.float16, "f32": np.float32}[dtype])
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _decode(stored: NDArray[Any], dtype: str) -> F32:
    if dtype != "bf16":
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def write_weights(folder: Path, tensors: Weights, tiny: Tiny = Tiny()) -> None:
    """model.safetensors, or `tiny.shards` files and their index."""
    names = list(tensors)
    if tiny.shards == 1:
        save(folder / "model.safetensors", tensors, tiny.dtype)
        return
    where: dict[str, str] = {}
    for shard in range(tiny.shards):
        file = f"model-{shard + 1:05}-of-{tiny.shards:05}.safetensors"
        part = names[shard :: tiny.shards]
        save(folder / file, {name: tensors[name] for name in part}, tiny.dtype)
        where |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def save(path: Path, tensors: Weights, dtype: str = "f16") -> None:
    """A safetensors file: length of the header, header in JSON, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = _encode(array, dtype).tobytes()
        header[name] = {
            "dtype": dtype.upper(), "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_json(path: Path, value: object) -> None:
    """Write JSON."""
    path.write_text(json.dumps(value, indent=1), encoding="utf8")
