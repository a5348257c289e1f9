"""Broken and hostile checkpoints: the command line says in one sentence what is wrong, and where."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.errors import BadWeightsError, CorruptCheckpointError, EdgekitError

MISSING, CORRUPT, UNSAFE, BAD_WEIGHTS, UNKNOWN = 10, 11, 12, 13, 15
DOWN = "model.layers.1.mlp.down_proj.weight"


def weight_file(model: Path) -> Path:
    return model / "model.safetensors"


def reheader(path: Path, change: Any) -> None:
    """Rewrite the JSON header of a safetensors file; the data stays."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


# -- the folder


def test_missing_folder(cli: Cli, tmp_path: Path) -> None:
    cli("plan", tmp_path / "nothing").refused(MISSING, str(tmp_path / "nothing"), "no model folder")


def test_name_too_long_for_the_file_system(cli: Cli, tmp_path: Path) -> None:
    cli("plan", tmp_path / ("a" * 300)).refused(MISSING, "no model folder")


def test_empty_folder(cli: Cli, tmp_path: Path) -> None:
    cli("plan", tmp_path).refused(MISSING, str(tmp_path), "is empty")


def test_file_instead_of_a_folder(cli: Cli, model: Path) -> None:
    cli("plan", weight_file(model)).refused(MISSING, "model.safetensors is not a folder")


def test_link_to_nowhere(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    cli("plan", tmp_path / "link").refused(MISSING, "link")


def test_no_config(cli: Cli, model: Path) -> None:
    (model / "config.json").unlink()
    cli("plan", model).refused(MISSING, "has no config.json")


def test_no_weights(cli: Cli, model: Path) -> None:
    weight_file(model).unlink()
    cli("plan", model).refused(MISSING, "has no *.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickle_is_refused_and_never_opened(name: str, cli: Cli, model: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    weight_file(model).unlink()
    (model / name).write_bytes(pickle.dumps(Bomb()))
    cli("plan", model).refused(UNSAFE, name, "pickle", "save_pretrained")
    assert not (tmp_path / "ran").exists()


# -- weight files


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -5000])
def test_truncated_weights(keep: int, cli: Cli, model: Path) -> None:
    """Cut in the header's length, in the header, and in the data."""
    raw = weight_file(model).read_bytes()
    weight_file(model).write_bytes(raw[:keep])
    cli("plan", model).refused(CORRUPT, str(weight_file(model)), "download it again")


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40).to_bytes(8, "little") + b'{"x":{"dtype":"F16","shape":[-1],"a":0}}',
        (100_000).to_bytes(8, "little") + b'{"a":' * 20_000,
        b"<!DOCTYPE html><html>404 Not Found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    ],
)
def test_garbage_weights(raw: bytes, cli: Cli, model: Path) -> None:
    weight_file(model).write_bytes(raw)
    cli("plan", model).refused(CORRUPT, str(model))


def test_offsets_beyond_the_file(cli: Cli, model: Path) -> None:
    reheader(weight_file(model), lambda header: header[DOWN].update(data_offsets=[0, 1 << 40]))
    cli("plan", model).refused(CORRUPT, "model.safetensors")


def test_overlapping_tensors(cli: Cli, model: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        header[DOWN]["data_offsets"] = header["model.layers.0.mlp.down_proj.weight"]["data_offsets"]

    reheader(weight_file(model), overlap)
    cli("plan", model).refused(CORRUPT, "model.safetensors")


def test_missing_tensor(cli: Cli, model: Path) -> None:
    left = {name: array for name, array in tiny.weights(Tiny()).items() if name != DOWN}
    tiny.write_weights(model, left)
    cli("plan", model).refused(CORRUPT, DOWN, "lacks 1 tensor")


def test_untied_config_without_a_head(cli: Cli, model: Path) -> None:
    tiny.write_json(model / "config.json", {**tiny.config_of(Tiny()), "tie_word_embeddings": False})
    cli("plan", model).refused(CORRUPT, "lm_head.weight", "tie_word_embeddings")


@pytest.mark.parametrize(
    ("name", "shape"),
    [(DOWN, (96, 64)), (DOWN, (6144,)), ("model.norm.weight", (63,)), ("model.embed_tokens.weight", (383, 64))],
)
def test_wrong_shape(name: str, shape: tuple[int, ...], cli: Cli, model: Path) -> None:
    tiny.write_weights(model, {**tiny.weights(Tiny()), name: np.zeros(shape, np.float32)})
    cli("plan", model).refused(BAD_WEIGHTS, name, str(list(shape)), "from config.json")


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "BOOL"])
def test_weights_that_are_no_floats(dtype: str, cli: Cli, model: Path) -> None:
    """A quantized checkpoint read as plain numbers would be silently wrong: its scales lie elsewhere."""

    def retype(header: dict[str, Any]) -> None:
        begin, end = header[DOWN]["data_offsets"]
        header[DOWN] = {"dtype": dtype, "shape": [64, 96], "data_offsets": [begin, begin + 64 * 96]}
        header["rest"] = {"dtype": dtype, "shape": [64, 96], "data_offsets": [begin + 64 * 96, end]}

    reheader(weight_file(model), retype)
    cli("plan", model).refused(BAD_WEIGHTS, DOWN, dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float, model: Path) -> None:
    stored = tiny.weights(Tiny())
    stored[DOWN][3, 5] = value
    tiny.write_weights(model, stored)
    with pytest.raises(BadWeightsError, match=f"tensor {DOWN} holds 1 NaN or infinite value"):
        list(open_checkpoint(model).tensors())


def test_file_that_vanishes_after_opening(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    weight_file(model).unlink()
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors cannot be read"):
        list(checkpoint.tensors())


# -- shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "sharded", Tiny(shards=3))


def reindex(model: Path, change: Any) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_missing_shard(cli: Cli, sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    cli("plan", sharded).refused(MISSING, "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("escape", ["../x.safetensors", "/etc/passwd", "a/../../x", "sub/x.safetensors"])
def test_shard_path_that_leaves_the_folder(escape: str, cli: Cli, sharded: Path) -> None:
    tiny.save(sharded.parent / "x.safetensors", {DOWN: np.zeros((64, 96), np.float32)})
    reindex(sharded, lambda index: index["weight_map"].update({DOWN: escape}))
    cli("plan", sharded).refused(CORRUPT, escape, "points outside the folder")


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_shard_that_is_no_file(name: str, cli: Cli, sharded: Path) -> None:
    reindex(sharded, lambda index: index["weight_map"].update({DOWN: name}))
    assert cli("plan", sharded).code in (MISSING, CORRUPT)


def test_tensor_in_two_shards(cli: Cli, sharded: Path) -> None:
    stored = tiny.weights(Tiny())
    second = sharded / "model-00002-of-00003.safetensors"
    reheader(second, lambda _: None)
    tiny.save(second, {DOWN: stored[DOWN]})
    first = sharded / "model-00001-of-00003.safetensors"
    tiny.save(first, {DOWN: stored[DOWN]})
    cli("plan", sharded).refused(CORRUPT, DOWN, first.name, second.name)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": None}])
def test_index_without_a_map(index: Any, cli: Cli, sharded: Path) -> None:
    tiny.write_json(sharded / "model.safetensors.index.json", index)
    cli("plan", sharded).refused(CORRUPT, "model.safetensors.index.json", "weight_map")


def test_terminal_codes_of_a_stranger_are_not_printed(cli: Cli, sharded: Path) -> None:
    evil = "\x1b[31mred"
    for shard in ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        tiny.save(sharded / shard, {evil: np.zeros(1, np.float32)})
    result = cli("plan", sharded)
    assert result.code == CORRUPT
    assert "\x1b" not in result.err


# -- config.json


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not valid JSON"),
        (b"model_type: llama", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[1, 2]", "a JSON object"),
        (b"null", "a JSON object"),
        (b"{}", "architecture"),
    ],
)
def test_config_that_is_no_config(content: bytes, word: str, cli: Cli, model: Path) -> None:
    (model / "config.json").write_bytes(content)
    result = cli("plan", model)
    assert result.code in (CORRUPT, UNKNOWN)
    result.refused(result.code, "config.json", word)


def test_config_of_unbounded_size(cli: Cli, model: Path) -> None:
    with (model / "config.json").open("wb") as stream:
        stream.truncate(1 << 30)
    cli("plan", model).refused(CORRUPT, "config.json is larger than")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from([*sorted(tiny.config_of(Tiny())), "rope_scaling", "sliding_window"]), value=JSON)
def test_any_value_under_any_key(key: str, value: Any, sound: Path) -> None:
    """Whatever stands there, the answer is a checkpoint or a sentence, never a traceback."""
    from edgekit.checkpoint.spec import spec_from_config

    told: EdgekitError | None = None
    try:
        spec_from_config({**tiny.config_of(Tiny()), key: value})
    except EdgekitError as error:
        told = error
    assert told is None or (told.exit_code in (CORRUPT, UNKNOWN) and "\n" not in str(told))
