"""A sensitivity map's file: every damage to it and every wrong model is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import FileFormatError, InputNotFoundError, OptionError
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.groups import FORMATS, fitting, groups
from edgekit.quantize.sensitivity_map import GroupDamage, SensitivityMap, check, chosen, read, to_json


def made_up(checkpoint: Checkpoint, container: Container = "gguf") -> SensitivityMap:
    """A map as edgekit writes one, with damages that fall fourfold a bit."""
    parts = []
    for number, group in enumerate(groups(checkpoint.spec, container), 1):
        names = fitting(group, container, FORMATS[container])
        parts.append(
            GroupDamage(
                tensors=group.names, anchor=names[0], kl=0.01 * number,
                errors={name: 4.0 ** -get(name).nominal_bits for name in names},
                bytes={name: group.nbytes(name) for name in names},
            )
        )  # fmt: skip
    return SensitivityMap(
        model=checkpoint.name, model_sha256=checkpoint.sha256, container=container, text_sha256="ab" * 32, tokens=512,
        groups=tuple(parts),
    )  # fmt: skip


@pytest.fixture
def checkpoint(sound: Path) -> Checkpoint:
    return open_checkpoint(sound)


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        place: Any = found
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_set("groups", 0, "kl", to=float("nan")), "not a sensitivity map"),
        (_set("groups", 0, "errors", "Q8_0", to=float("nan")), "not a sensitivity map"),
        (_set("groups", 0, "kl", to=float("inf")), "not a sensitivity map"),
        (_set("groups", 0, "kl", to=-0.1), "kl"),
        (_set("groups", 0, "kl", to=None), "kl"),
        (_set("groups", 0, "anchor", to="Q9_9"), "not the same formats"),
        (_set("groups", 0, "bytes", to={"IQ4_NL": 5}), "not the same formats"),
        (_set("groups", 0, "kl", to=1e300), "damage"),
        (_set("groups", to=[]), "groups"),
        (_set("more", to=1), "more"),
        (_set("schema_version", to=2), "not a sensitivity map"),
        (_set("kind", to="edgekit plan"), "not a sensitivity map"),
        (_set("container", to="safetensors"), "not a sensitivity map"),
        (_set("model_sha256", to="xyz"), "not a sensitivity map"),
    ],
)
def test_what_is_no_map(change: Callable[[Any], None], word: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = json.loads(to_json(made_up(checkpoint)))
    change(found)
    path = tmp_path / "map.json"
    path.write_text(json.dumps(found))
    with pytest.raises(FileFormatError, match=word):
        read(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_even_json(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_bytes(data)
    with pytest.raises(FileFormatError, match="not a sensitivity map"):
        read(tmp_path / "map.json")


def test_a_map_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputNotFoundError, match="edgekit sensitivity"):
            read(path)


def test_a_map_too_large_to_read(tmp_path: Path) -> None:
    with (tmp_path / "map.json").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(FileFormatError, match="larger than 64 MiB"):
        read(tmp_path / "map.json")


def test_a_map_of_another_model_says_found_expected_and_remedy(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = open_checkpoint(tiny.make(tmp_path / "other", tiny.Tiny(seed=7)))
    with pytest.raises(OptionError) as refused:
        check(made_up(other), checkpoint, "gguf")
    assert refused.value.found == f"the sensitivity map is of other (weights {other.sha256[:12]})"
    assert checkpoint.sha256[:12] in refused.value.expected
    assert "edgekit sensitivity" in refused.value.remedy


def test_a_map_for_another_container(checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match="for onnx"):
        check(made_up(checkpoint, "onnx"), checkpoint, "gguf")


def test_a_map_that_lies_about_groups_or_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for keys, value in ((("groups", 0, "tensors"), ["x"]), (("groups", 1, "bytes", "Q8_0"), 7)):
        found = json.loads(to_json(made_up(checkpoint)))
        _set(*keys, to=value)(found)
        (tmp_path / "map.json").write_text(json.dumps(found))
        with pytest.raises(FileFormatError, match=r"groups of tensors|7 bytes"):
            check(read(tmp_path / "map.json"), checkpoint, "gguf")


def test_of_several_maps_each_container_finds_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = [tmp_path / "gguf.json", tmp_path / "onnx.json"]
    paths[0].write_bytes(to_json(made_up(checkpoint, "gguf")))
    paths[1].write_bytes(to_json(made_up(checkpoint, "onnx")))
    assert chosen(paths, checkpoint, "gguf") == made_up(checkpoint)
    assert chosen(paths, checkpoint, "onnx") == made_up(checkpoint, "onnx")
    assert chosen(paths[1:], checkpoint, "gguf") is None
    with pytest.raises(OptionError, match="two sensitivity maps are for gguf"):
        chosen([paths[0], *paths], checkpoint, "gguf")


def test_damage_goes_as_the_error_and_is_none_on_the_anchors_grid() -> None:
    group = GroupDamage(tensors=("a",), anchor="Q4_0", kl=0.5, errors={"Q4_0": 8.0, "Q8_0": 2.0}, bytes={})
    assert group.damage("Q4_0") == 0.5
    assert group.damage("Q8_0") == 0.125
    exact = GroupDamage(tensors=("a",), anchor="Q4_0", kl=0.0, errors={"Q4_0": 0.0, "Q8_0": 2.0}, bytes={})
    assert exact.damage("Q8_0") == 0.0


def test_groups_are_what_a_container_fuses(checkpoint: Checkpoint) -> None:
    matrices = [t.hf for t in checkpoint.spec.tensors if t.rule.matrix]
    alone, fused = groups(checkpoint.spec, "gguf"), groups(checkpoint.spec, "onnx")
    assert [group.names for group in alone] == [(name,) for name in matrices]
    assert sorted(name for group in fused for name in group.names) == sorted(matrices)
    assert [len(group.names) for group in fused].count(3) == checkpoint.spec.layers
    assert all("self_attn" in name for group in fused if len(group.names) == 3 for name in group.names)
