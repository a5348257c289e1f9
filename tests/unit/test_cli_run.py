"""`edgekit run`: what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli


def test_missing_bundle(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", tmp_path / "nothing", "hi")
    assert result.code in (10, 20)
    result.refused(result.code, "nothing")


def test_folder_that_is_no_bundle(cli: Cli, sound: Path) -> None:
    result = cli("run", sound, "hi")
    assert result.code in (10, 20)
    result.refused(result.code, "manifest.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--engine", "torch"], ["--max-tokens", "0"], ["--temperature", "warm"], ["--seed", "-1"], ["--threads", "-1"],
        ["--context", "1"],
    ],
)  # fmt: skip
def test_wrong_call(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    result = cli("run", tmp_path, "hi", *arguments)
    assert result.code == 2
    assert arguments[0] in result.err


def test_prompt_is_needed(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", tmp_path).code == 2
