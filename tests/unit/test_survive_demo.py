"""`edgekit survive --demo`: recorded curves, told as recorded, without a model and without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from edgekit.dispersion.recorded import load
from edgekit.dispersion.survival import GRIDS


def test_the_record_is_whole() -> None:
    found = load()
    assert len(found.curves) == 3
    assert len({curve.text for curve in found.curves}) == 1, "judged on the same text"
    for curve in found.curves:
        assert {point.grid for point in curve.points} == set(GRIDS)
        assert all(point.noise is not None and point.engine == "torch" for point in curve.points)
    assert "not measured on this machine" in found.label
    assert found.made_by in found.label


def test_table_page_and_figures_say_that_they_are_recorded(cli: Cli, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    done = cli("survive", "--demo", "-o", page, "--json", figures)
    assert done.code == 0
    label = load().label
    for said in (" ".join(done.out.split()), page.read_text()):
        assert label in said
        assert all(curve.model in said for curve in load().curves)
    told = json.loads(figures.read_text())
    assert told["label"] == label
    assert {curve["model"] for curve in told["curves"]} == {curve.model for curve in load().curves}
    assert len(told["text_sha256"]) == 64
    assert set(told["versions"]) == {"torch", "transformers"}
    cli("survive", "--demo", "-o", page).refused(18, "page.html", "--force")


@pytest.mark.parametrize("more", [["model"], ["--noise"], ["--grids", "Q8_0"], ["--seed", "0"], ["--no-cache"]])
def test_nothing_can_be_measured_with_it(more: list[str], cli: Cli, tmp_path: Path) -> None:
    done = cli("survive", "--demo", *more, "-o", tmp_path / "page.html")
    name = more[0] if more[0].startswith("-") else "MODEL"
    done.refused(29, f"--demo shows what was recorded, and {name} was given")
    assert not (tmp_path / "page.html").exists()


def test_it_needs_no_framework() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
    code += "from edgekit.cli.main import main; main(['survive', '--demo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Recorded on" in done.stdout
