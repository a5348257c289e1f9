"""Inspect: what is not there or not known is one sentence; a model folder and a bundle are told as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.bundle import write_manifest
from edgekit.bundle.manifest import Artefact, Manifest, Model, PlanEntry, TargetRef
from edgekit.cli.main import main

SHA = "ab" * 32


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["inspect", *arguments])
    return int(left.value.code or 0)


def found(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert run(str(path), "--json") == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


# --- what is not there, or nothing we know ---------------------------------------------------------------------------


def test_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "no.gguf")) == 10
    assert "no.gguf" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000])
def test_impossible_path(name: str) -> None:
    assert run(name) == 10


@pytest.mark.parametrize("name", ["notes.txt", "weights.bin", "noext"])
def test_unknown_file(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"something else")
    assert run(str(tmp_path / name)) == 26
    assert name in capsys.readouterr().err


def test_unknown_folder(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    assert run(str(tmp_path)) == 26


def test_empty_folder(tmp_path: Path) -> None:
    assert run(str(tmp_path)) == 10


def test_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert run(str(tmp_path / "pipe.gguf")) == 26


# --- a model folder --------------------------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    numpy_files = pytest.importorskip("safetensors.numpy")
    from edgekit.checkpoint.spec import spec_from_config

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {t.hf: np.zeros(t.shape, np.float16) for t in spec_from_config(CONFIG).tensors}
    tensors["model.norm.weight"] = np.zeros(8, np.float32)
    numpy_files.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_model_with_an_unknown_architecture(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["StrangeForCausalLM"]}))
    assert run(str(model)) == 15


def test_truncated_model(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-5])
    assert run(str(model)) == 11


def test_model_without_tokenizer_is_shown_all_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = found(capsys, model)["facts"]
    assert facts["tokenizer"].startswith("none that can be used")
    assert "tokenizer.json" in facts["tokenizer"]


def test_model_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(model / "tokenizer.json"))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    data = found(capsys, model)
    facts, roles = data["facts"], {row["role"]: row for row in data["tables"]["roles"]}
    assert (facts["architecture"], facts["family"], facts["tied_embedding"]) == ("LlamaForCausalLM", "llama", True)
    assert facts["parameters"] == sum(row["parameters"] for row in roles.values())
    assert (facts["tokenizer"], facts["tokenizer_size"], facts["chat_template"]) == ("BPE", 2, True)
    assert roles["attn_k"] == {"role": "attn_k", "shape": "4x8", "count": 2, "parameters": 64}
    assert "head" not in roles
    assert {row["type"]: row["parameters"] for row in data["tables"]["types"]} == {
        "F16": facts["parameters"] - 8,
        "F32": 8,
    }
    assert run(str(model)) == 0
    assert "attn_k" in capsys.readouterr().out


# --- a bundle --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name in ("tokenizer/tokenizer.json", "gguf/model.gguf"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"1234")

    def entry(name: str, grid: str, nbytes: int) -> PlanEntry:
        return PlanEntry(
            tensor=name, role="attn_q", shape=(64, 64), requested_bits=4, grid=grid, bits=8 * nbytes / 4096,
            bytes=nbytes, reason="rows of 576" if grid != "Q4_K" else None,
        )  # fmt: skip

    artefact = Artefact(
        format="gguf", path="gguf/model.gguf", engine="llama.cpp", requested_bits=4, effective_bits=4.75,
        plan=(entry("a", "Q4_K", 300), entry("b", "Q5_0", 100)),
    )  # fmt: skip
    model = Model(name="tiny", architecture="LlamaForCausalLM", source="[red]a test", sha256=SHA, parameters=8192)
    target = TargetRef(id="rpi5", sha256=SHA)
    write_manifest(
        tmp_path,
        Manifest(
            edgekit="0", name="tiny.rpi5", model=model, target=target, artefacts=(artefact,), versions={"gguf": "1"}
        ),
    )
    return tmp_path


def test_bundle_with_an_extra_file(bundle: Path) -> None:
    (bundle / "extra").write_bytes(b"")
    assert run(str(bundle)) == 20


def test_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = found(capsys, bundle)
    assert (data["kind"], data["facts"]["target"]) == ("bundle", "rpi5")
    assert data["facts"]["checksums"].startswith("not checked")
    first = data["tables"]["artefacts"][0]
    assert (first["requested_bits"], first["effective_bits"], first["fallbacks"]) == (4, 4.75, 1)
    assert [(row["grid"], row["share"]) for row in data["tables"]["grids"]] == [("Q4_K", 0.75), ("Q5_0", 0.25)]
    assert data["tables"]["versions"] == [{"package": "gguf", "version": "1"}]
    assert run(str(bundle)) == 0
    assert "[red]a test" in capsys.readouterr().out
