"""genai_config.json: what onnxruntime-genai, and our engine for onnxruntime, must know of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint, read_json
from edgekit.engines.ort import OPERATORS
from edgekit.export.onnx_decoder import positions
from edgekit.threebit.library import LIBRARY


def genai_config(
    checkpoint: Checkpoint, session: Mapping[str, str] | None = None, *, own_operators: bool = False
) -> dict[str, Any]:
    """The file's contents (https://onnxruntime.ai/docs/genai/reference/config.html).

    `session` holds configuration entries of ONNX Runtime's session; with `own_operators` the library with edgekit's is
    named.
    """
    spec, tokens = checkpoint.spec, _special_tokens(checkpoint)
    options = {"log_id": "onnxruntime-genai", "provider_options": [], **(session or {})}
    if own_operators:
        options[OPERATORS] = LIBRARY
    decoder = {
        "session_options": options,
        "filename": "model.onnx",
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
    }  # fmt: skip
    model = {
        **tokens, "context_length": positions(spec), "decoder": decoder, "type": spec.family.genai_type,
        "vocab_size": spec.vocab_size,
    }  # fmt: skip
    return {"model": model, "search": {"max_length": positions(spec), "past_present_share_buffer": True}}


def put_session(path: Path, session: Mapping[str, str]) -> None:
    """Add configuration entries of ONNX Runtime's session, if any, to a genai_config.json."""
    if not session:
        return
    config = json.loads(path.read_text(encoding="utf8"))
    config["model"]["decoder"]["session_options"] |= dict(session)
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf8")


def _special_tokens(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Ids that begin, end and fill a text; generation_config.json knows better than config.json.

    Where neither names an end, the tokenizer does.
    """
    path = checkpoint.root / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    found: dict[str, Any] = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = (generation.get(key), checkpoint.config.get(key))
        if (value := next(filter(_ids, given), None)) is not None:
            found[key] = value
    if "eos_token_id" not in found:
        found["eos_token_id"] = sorted(load_tokenizer(checkpoint.root).stop_ids) or 0
    ends = found["eos_token_id"]
    found.setdefault("pad_token_id", ends[0] if isinstance(ends, list) else ends)  # genai insists on one
    return found


def _ids(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(item) is int and item >= 0 for item in values)
