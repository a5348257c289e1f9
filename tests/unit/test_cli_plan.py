"""`edgekit plan`: what would be built, and every refusal before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from conftest import Cli
from tiny import Tiny


def test_unknown_target(cli: Cli, sound: Path) -> None:
    cli("plan", sound, "--target", "rpi55").refused(16, "rpi55", "rpi5")


def test_broken_target_file(cli: Cli, sound: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text('schema_version = 1\ninherits = "rpi5"\nname = "b"\ntitle = "B"\ntier = 3\nram = 5\n')
    cli("plan", sound, "--target", board).refused(17, "board.toml:6", "ram")


@pytest.mark.parametrize("bits", [2, 5, 6, 7])
def test_bits_that_nothing_is_built_at(bits: int, cli: Cli, sound: Path) -> None:
    cli("plan", sound, "--bits", bits).refused(29, f"--bits is {bits}", "3 or 4 or 8")


@pytest.mark.parametrize(
    ("asked", "words"), [(["gguf"], "rows of 64 weights"), (["onnx", "--portable"], "no 3-bit kernel")]
)
def test_strict(asked: list[str], words: str, cli: Cli, sound: Path) -> None:
    cli("plan", sound, "--bits", "3", "--strict", "--format", *asked).refused(22, words)


def test_too_big_for_the_board_shows_the_plan_and_refuses(cli: Cli, sound: Path, tmp_path: Path) -> None:
    board = tmp_path / "toy.toml"
    board.write_text(
        'schema_version = 1\ninherits = "rpi5"\nname = "toy"\ntitle = "Toy"\ntier = 3\n'
        "[memory]\nram_mib = [64]\ndefault_ram_mib = 64\n"
    )
    result = cli("plan", sound, "--target", board)
    result.refused(19, "MiB more than the", "of 64 MiB (predicted)")
    assert "does not fit" in result.out


def test_table_shows_what_is_asked_and_what_is_given(cli: Cli, sound: Path) -> None:
    result = cli("plan", sound, "--bits", "3", "--format", "gguf")
    assert result.code == 0, result.err
    assert "3 bits requested" in result.out
    assert "only 0% of the linear weights are in 3-bit codes: not a 3-bit model" in " ".join(result.out.split())
    assert "not as asked because of Q3_K: rows of 64 weights are not divisible by 256" in result.out
    assert "predicted" in result.out


def test_one_line_for_each_tensor(cli: Cli, sound: Path) -> None:
    every = cli("plan", sound, "--format", "gguf", "--all").out
    names = [tensor for tensor in tiny.weights(Tiny()) if tensor in every]
    assert len(names) == len(tiny.weights(Tiny()))


def test_json_adds_up(cli: Cli, sound: Path) -> None:
    plans = json.loads(cli("plan", sound, "--json").out)
    assert [plan["format"] for plan in plans] == ["gguf", "onnx"]
    for plan in plans:
        assert plan["bytes"] == sum(tensor["bytes"] for tensor in plan["tensors"])
        weights = sum(array.size for array in tiny.weights(Tiny()).values())
        assert plan["effective_bits"] == pytest.approx(8 * plan["bytes"] / weights)
        assert plan["predicted"]["fits"] is True
        assert {tensor["tensor"] for tensor in plan["tensors"]} == tiny.weights(Tiny()).keys()


def test_a_format_named_twice_is_planned_once(cli: Cli, sound: Path) -> None:
    plans = json.loads(cli("plan", sound, "--json", "--format", "onnx", "--format", "onnx").out)
    assert [plan["format"] for plan in plans] == ["onnx"]


def test_plan_writes_nothing(cli: Cli, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("plan", sound).code == 0
    assert list(tmp_path.iterdir()) == []
