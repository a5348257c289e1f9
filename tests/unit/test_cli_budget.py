"""Budgets, maps and plan files on the command line: refusals before any work, and what a person sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from conftest import Cli
from test_sensitivity_map import made_up

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.options import Container
from edgekit.quantize.sensitivity_map import to_json

pytest.importorskip("torch")
pytest.importorskip("onnx")


@pytest.fixture
def maps(sound: Path, tmp_path: Path) -> list[str | Path]:
    """Options that give made-up maps of the sound model for both containers."""
    checkpoint = open_checkpoint(sound)
    containers: tuple[Container, ...] = ("gguf", "onnx")
    for container in containers:
        (tmp_path / f"{container}.json").write_bytes(to_json(made_up(checkpoint, container)))
    return ["--sensitivity", tmp_path / "gguf.json", "--sensitivity", tmp_path / "onnx.json"]


@pytest.mark.parametrize("verb", ["plan", "build"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "90MB", "--bits", "4"], ["--bits and --size"]),
        (["--max-kl", "0.1", "--min-speed", "5"], ["--max-kl and --min-speed"]),
        (["--bits", "3.5", "--max-kl", "0.1"], ["--bits and --max-kl"]),
        (["--size", "ninety"], ["--size is 'ninety'", "90MB"]),
        (["--size", "90TB"], ["--size is '90TB'"]),
        (["--size", "0MB"], ["--size is '0MB'"]),
        (["--size", "-5MB"], ["--size is"]),
        (["--max-kl", "0"], ["--max-kl is 0"]),
        (["--max-kl", "nan"], ["--max-kl is nan"]),
        (["--bits", "nan"], ["--bits is nan"]),
        (["--min-speed", "-3"], ["--min-speed is -3"]),
        (["--min-speed", "inf"], ["--min-speed is inf"]),
    ],
)
def test_budgets_that_make_no_sense(
    verb: str, arguments: list[str], words: list[str], cli: Cli, sound: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cli(verb, sound, *arguments).refused(29, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_size_that_nothing_meets_names_the_nearest_before_anything_is_measured(
    verb: str, cli: Cli, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli(verb, sound, "--format", "gguf", "--size", "20kB").refused(40, "at most 0.02 MB", "nearest being 0.06 MB")
    assert list(tmp_path.iterdir()) == []


def test_a_map_of_another_model(cli: Cli, tmp_path: Path, maps: list[str | Path]) -> None:
    other = tiny.make(tmp_path / "other", tiny.Tiny(seed=9))
    for verb in ("plan", "build"):
        cli(verb, other, "--size", "90kB", "--format", "gguf", *maps).refused(29, "map is of model", "one of other")


def test_a_map_with_nan(cli: Cli, sound: Path, tmp_path: Path, maps: list[str | Path]) -> None:
    text = (tmp_path / "gguf.json").read_text()
    (tmp_path / "gguf.json").write_text(text.replace('"kl": 0.01', '"kl": NaN', 1))
    cli("plan", sound, "--size", "90kB", "--format", "gguf", *maps).refused(26, "gguf.json is not a sensitivity map")


def test_outputs_that_are_there_already(cli: Cli, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    cli("plan", sound, "-o", tmp_path / "there").refused(18, "--force")
    cli("plan", sound, "--pareto", "--html", tmp_path / "there").refused(18, "--force")
    cli("sensitivity", sound, "-o", tmp_path / "there").refused(18, "--force")
    assert (tmp_path / "there").read_text() == "mine"


def test_options_of_the_curve_that_contradict(cli: Cli, sound: Path, tmp_path: Path) -> None:
    cli("plan", sound, "--html", tmp_path / "x.html").refused(29, "--pareto")
    cli("plan", sound, "--pareto", "--size", "90MB").refused(29, "--pareto shows all plans")
    cli("plan", sound, "--pareto", "-o", tmp_path / "x.json").refused(29, "--pareto shows all plans")


def test_a_plan_file_and_bits_or_a_budget_contradict(cli: Cli, sound: Path, tmp_path: Path) -> None:
    for arguments in (["--bits", "8"], ["--size", "90MB"]):
        cli("build", sound, "--plan", tmp_path / "p.json", *arguments).refused(29, "--plan says which formats")
    cli("build", sound, "--plan", tmp_path / "p.json").refused(10, "no plan at")


def test_whole_bits_mean_what_they_did(cli: Cli, sound: Path) -> None:
    four, default = (cli("plan", sound, "--json", *arguments).out for arguments in (["--bits", "4.0"], []))
    assert four == default
    assert json.loads(four)[0]["budget"] is None


def test_a_fraction_of_bits_is_a_budget_for_the_whole_file(cli: Cli, sound: Path, maps: list[str | Path]) -> None:
    weights = sum(array.size for array in tiny.weights(tiny.Tiny()).values())
    (plan,) = json.loads(cli("plan", sound, "--json", "--format", "gguf", "--bits", "7.5", *maps).out)
    assert plan["budget"] == "at most 7.5 bits per weight"
    assert 8 * plan["bytes"] / weights < 7.5
    assert plan["predicted"]["kl"] > 0


def test_the_curve_as_table_page_and_json(cli: Cli, sound: Path, tmp_path: Path, maps: list[str | Path]) -> None:
    shown = cli("plan", sound, "--pareto", "--html", tmp_path / "curve.html", *maps)
    assert shown.code == 0, shown.err
    assert "GGUF for rpi5: predicted, not measured" in shown.out
    assert "ONNX for rpi5" in shown.out
    page = (tmp_path / "curve.html").read_text()
    found = json.loads(cli("plan", sound, "--pareto", "--json", *maps).out)
    for points in found.values():
        assert [point["kl"] for point in points] == sorted((point["kl"] for point in points), reverse=True)
        assert all(f"{point['bytes'] / 1e6:.2f}" in page for point in points)


def test_a_plan_is_written_and_what_was_edited_is_refused(
    cli: Cli, sound: Path, tmp_path: Path, maps: list[str | Path]
) -> None:
    path = tmp_path / "plan.json"
    assert cli("plan", sound, "--size", "110kB", "-o", path, *maps).code == 0
    found = json.loads(path.read_text())
    assert [part["format"] for part in found["plans"]] == ["gguf", "onnx"]
    found["plans"][0]["tensors"]["model.embed_tokens.weight"] = "Q4_K"
    path.write_text(json.dumps(found))
    cli("build", sound, "--plan", path, "-o", tmp_path / "dist").refused(25, "model.embed_tokens.weight", "256")
    assert not (tmp_path / "dist").exists()
