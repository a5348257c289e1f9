"""A Llama-shaped checkpoint of any size with random weights, written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.checkpoint.source import resolve
from edgekit.checkpoint.spec import Spec, spec_from_config

_POOL = 1 << 22
"""Different random numbers; tensors repeat them, since speed and memory do not depend on the values."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `like` is the real one that has them."""

    name: str
    like: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def config(self) -> dict[str, object]:
        """What config.json says."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
            "rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "float16",
        }  # fmt: skip

    @property
    def spec(self) -> Spec:
        """The model's description."""
        return spec_from_config(self.config())


SHAPES = {
    "135m": Shape("135m", "SmolLM2-135M", 576, 1536, 30, 9, 3, 64, 49152),
    "1b": Shape("1b", "Llama-3.2-1B", 2048, 8192, 16, 32, 8, 64, 128256),
    "3b": Shape("3b", "Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128, 128256),
}


def write(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint, float16, with the demo's tokenizer, to a new folder and return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf8")
    for path in resolve(None).tokenizer_files():
        shutil.copyfile(path, folder / path.name)
    pool = (np.random.default_rng(seed).standard_normal(_POOL) / 50).astype(np.float16)
    header: dict[str, object] = {}
    place = 0
    for tensor in shape.spec.tensors:
        end = place + 2 * tensor.parameters
        header[tensor.hf] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in shape.spec.tensors:
            whole, rest = divmod(tensor.parameters, _POOL)
            for _ in range(whole):
                stream.write(pool.data)
            stream.write(pool[:rest].data)
    return folder
