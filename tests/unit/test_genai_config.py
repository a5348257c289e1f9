"""Which ids genai_config.json names as the ends of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("onnx")

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.export.genai_config import genai_config


def model(folder: Path, generation: dict[str, Any], **config: Any) -> dict[str, Any]:
    tiny.make(folder, **config)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    made: dict[str, Any] = genai_config(open_checkpoint(folder))["model"]
    return made


@pytest.mark.parametrize("useless", [None, -1, "2", True, []])
def test_what_is_no_id_hides_nothing(useless: object, tmp_path: Path) -> None:
    made = model(tmp_path / "model", {"eos_token_id": useless, "bos_token_id": 7}, eos_token_id=5, bos_token_id=6)
    assert (made["eos_token_id"], made["bos_token_id"], made["pad_token_id"]) == (5, 7, 5)


def test_the_generation_config_knows_better(tmp_path: Path) -> None:
    made = model(tmp_path / "model", {"eos_token_id": [4, 9], "pad_token_id": 3}, eos_token_id=5)
    assert (made["eos_token_id"], made["pad_token_id"]) == ([4, 9], 3)


def test_the_tokenizer_names_the_ends_that_nobody_else_does(tmp_path: Path) -> None:
    made = model(tmp_path / "model", {"eos_token_id": None}, eos_token_id=None)
    ends = load_tokenizer(tmp_path / "model").stop_ids
    assert len(ends) > 1
    assert made["eos_token_id"] == sorted(ends)
    assert made["pad_token_id"] == min(ends)


def test_a_model_without_any_end(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(data))
    made = genai_config(open_checkpoint(folder))["model"]
    assert (made["eos_token_id"], made["pad_token_id"]) == (0, 0)
