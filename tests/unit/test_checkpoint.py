"""Checkpoints: what a sound folder gives, whatever its shards and number type."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.source import resolve

KINDS = {
    "tied": Tiny(),
    "untied": Tiny(tied=False, hidden=96, ffn=160, heads=3, kv_heads=1, head_dim=48, vocab=391, dtype="f32"),
    "sharded": Tiny(shards=3, dtype="bf16", kv_heads=4),
    "llama3": Tiny(hidden=256, ffn=288, heads=6, kv_heads=2, head_dim=32, vocab=640, llama3_rope=True, layers=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make(tmp_path / "model", KINDS[kind]))
    read = {tensor.hf: array for tensor, array in checkpoint.tensors()}
    written = tiny.weights(KINDS[kind])
    assert read.keys() == written.keys()
    for name, array in written.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_structure(kind: str) -> None:
    """Nearly uniform predictions would pass any comparison: at most half of ln V, on text it was not tuned on."""
    wanted = KINDS[kind]
    stored = tiny.weights(wanted)
    ids = np.random.default_rng(77).integers(wanted.vocab, size=96)
    logits = tiny.forward(stored, wanted, ids)
    assert 0.1 < tiny.entropy(logits) / math.log(wanted.vocab) < 0.5
    assert len(set(logits.argmax(axis=-1))) > 30, "it says many different things"
    again = tiny.forward(stored, dataclasses.replace(wanted, theta=2 * wanted.theta), ids)
    assert (logits.argmax(axis=-1) != again.argmax(axis=-1)).mean() > 0.2, "positions matter"


def test_name_and_source_come_from_the_folder(sound: Path) -> None:
    checkpoint = resolve(str(sound))
    assert checkpoint.name == "model"
    assert checkpoint.source == "local folder model"
    assert str(sound.parent) not in checkpoint.source


def test_hash_depends_on_the_weights_alone(model: Path) -> None:
    before = open_checkpoint(model).sha256
    (model / "README.md").write_text("hello")
    assert open_checkpoint(model).sha256 == before
    tiny.write_weights(model, tiny.weights(Tiny(seed=1)))
    assert open_checkpoint(model).sha256 != before


def test_tensors_of_no_role_are_left_alone(model: Path) -> None:
    more = {**tiny.weights(Tiny()), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    tiny.write_weights(model, more)
    names = {tensor.hf for tensor, _ in open_checkpoint(model).tensors()}
    assert names == more.keys() - {"model.layers.0.self_attn.rotary_emb.inv_freq"}


def test_shards_without_an_index_are_found(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", KINDS["sharded"])
    (folder / "model.safetensors.index.json").unlink()
    assert len({path.name for path in open_checkpoint(folder).files.values()}) == 3


def test_single_file_wins_over_others_beside_it(model: Path) -> None:
    (model / "consolidated.safetensors").write_bytes(b"garbage")
    assert {path.name for path in open_checkpoint(model).files.values()} == {"model.safetensors"}


def test_tokenizer_files_are_those_that_are_there(sound: Path) -> None:
    names = {path.name for path in open_checkpoint(sound).tokenizer_files()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8),
    dtype=st.sampled_from(["bf16", "f32"]),
)
def test_numbers_survive_reading(values: list[float], dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any finite weight is read as the nearest number of the stored type, checked against its bits."""
    folder = tmp_path_factory.mktemp("numbers") / "model"
    tiny.make(folder, Tiny(dtype=dtype))
    stored = tiny.weights(Tiny(dtype=dtype))
    norm = np.resize(np.array(values, np.float32), 64)
    if dtype == "bf16":
        norm = (norm.view(np.uint32) & 0xFFFF0000).view(np.float32)
    tiny.write_weights(folder, {**stored, "model.norm.weight": norm}, Tiny(dtype=dtype))
    checkpoint = open_checkpoint(folder)
    read = checkpoint.read(next(t for t in checkpoint.spec.tensors if t.role == "output_norm"))
    np.testing.assert_array_equal(read, norm)


def test_config_is_kept_as_it_is(sound: Path) -> None:
    assert open_checkpoint(sound).config == json.loads((sound / "config.json").read_text())
