"""Tiny Llama models as GGUF files, written with gguf-py alone: what another program's converter would leave."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import tiny_tokenizers
from numpy.typing import NDArray
from tiny import Tiny

TINY = Tiny()
F32 = NDArray[np.float32]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
PRE = {"smollm": "smollm", "gpt2": "gpt-2", "qwen2": "qwen2", "llama3": "llama-bpe"}


def metadata(made: Tiny) -> dict[str, Any]:
    """Facts of the architecture, without its prefix."""
    return {
        "block_count": made.layers, "context_length": made.context, "embedding_length": made.hidden,
        "feed_forward_length": made.ffn, "attention.head_count": made.heads, "attention.head_count_kv": made.kv_heads,
        "attention.key_length": made.head_dim, "attention.layer_norm_rms_epsilon": tiny.EPSILON,
        "rope.freq_base": made.theta, "rope.dimension_count": made.head_dim,
    }  # fmt: skip


def tensors(made: Tiny) -> dict[str, F32]:
    """The weights of `made` under GGUF's names, q and k with the rows of a rotary pair side by side."""
    found = {}
    for name, array in tiny.weights(made).items():
        parts = name.split(".")
        if parts[1] == "layers":
            role = NAMES[".".join(parts[3:-1])]
            heads = {"attn_q": made.heads, "attn_k": made.kv_heads}.get(role)
            if heads:
                halves = np.split(array.reshape(heads, -1, made.hidden), 2, axis=1)
                array = np.stack(halves, axis=2).reshape(array.shape)
            found[f"blk.{parts[2]}.{role}.weight"] = array
        else:
            short = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
            found[f"{short.get(name, 'output')}.weight"] = array
    return found


def vocabulary(kind: str, size: int) -> dict[str, Any]:
    """tokenizer.ggml.* of a tokenizer of tests/tiny_tokenizers.py."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_tokenizers.write(Path(folder), kind, size)
        data = json.loads((Path(folder) / "tokenizer.json").read_text())
        config = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    ids = dict(data["model"]["vocab"]) | {token["content"]: token["id"] for token in data["added_tokens"]}
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
    control = {token["content"] for token in data["added_tokens"]}
    special = {f"{name}_token_id": ids[config[f"{name}_token"]] for name in ("bos", "eos")}
    merges = ["".join(pair) if kind == "sentencepiece" else " ".join(pair) for pair in data["model"]["merges"]]
    common = {"tokens": tokens, "token_type": [3 if token in control else 1 for token in tokens], **special}
    if kind != "sentencepiece":
        return {"model": "gpt2", "pre": PRE[kind], **common, "merges": merges}
    ranks = {piece: rank for rank, piece in reversed(list(enumerate(merges)))}
    types = [
        6 if token.startswith("<0x") else 2 if token == "<unk>" else 3 if token in control else 1 for token in tokens
    ]
    scores = [-float(ranks.get(token, len(merges))) for token in tokens]
    return {"model": "llama", "pre": "default", **common, "token_type": types, "scores": scores}


def write(
    path: Path, made: Tiny = TINY, *, kind: str = "F16", arch: str = "llama",
    facts: Mapping[str, Any] | None = None, words: Mapping[str, Any] | None = None,
    more: Mapping[str, F32] | None = None, drop: str = "", endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> Path:  # fmt: skip
    """Write the file and return its path.

    Args:
        path: of the new file.
        made: sizes.
        kind: number format of the matrices; norms are F32.
        arch: general.architecture.
        facts: keys of the architecture to change or add; None leaves one out, a dot in front the prefix.
        words: the same for tokenizer.ggml.*.
        more: tensors to add or replace.
        drop: a tensor to leave out.
        endian: byte order.
    """
    writer = gguf.GGUFWriter(path, arch, endianess=endian)
    for key, value in {**metadata(made), **(facts or {})}.items():
        _add(writer, key[1:] if key.startswith(".") else f"{arch}.{key}", value)
    for key, value in {**vocabulary(made.tokenizer, made.vocab), **(words or {})}.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    for name, array in {**tensors(made), **(more or {})}.items():
        if name != drop:
            _tensor(writer, name, array, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is not None:
        adders[type(value)](key, value)


def _tensor(writer: gguf.GGUFWriter, name: str, array: F32, kind: str) -> None:
    wanted = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else kind]
    if wanted in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        writer.add_tensor(name, array.astype(np.float16 if wanted == gguf.GGMLQuantizationType.F16 else np.float32))
    else:
        writer.add_tensor(name, gguf.quantize(array, wanted), raw_dtype=wanted)
