"""What genai_config.json says: which ids end a text, and how a session is to be set up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

pytest.importorskip("onnx")

from edgekit import targets
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engines.ort import session_entries
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


def test_the_session_s_entries_reach_the_engine_and_no_others(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model")
    asked = {"mlas.disable_kleidiai": "1", "session.load_model_format": "ORT", "session.intra_op.allow_spinning": "x"}
    config = genai_config(open_checkpoint(folder), asked)
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert session_entries(folder) == {"mlas.disable_kleidiai": "1"}
    (folder / "genai_config.json").write_text("[]")
    assert session_entries(folder) == {}


def test_every_target_asks_for_activations_by_the_block() -> None:
    for path in Path(targets.__file__).parents[1].joinpath("targets").glob("[a-z]*.toml"):
        assert targets.load(path.stem).runtime.onnx.session == {"mlas.disable_kleidiai": "1"}
