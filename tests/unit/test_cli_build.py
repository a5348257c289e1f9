"""`edgekit build`: what is refused before any work, quickly and without leaving anything behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dist"


def test_bad_model_is_refused_without_loading_a_framework(tmp_path: Path) -> None:
    code = (
        "import sys; from edgekit.cli.main import main\n"
        f"try: main(['build', {str(tmp_path / 'nothing')!r}])\n"
        "except SystemExit as stop: assert stop.code == 10, stop.code\n"
        "assert not {'torch', 'transformers', 'onnx'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_missing_package_is_named_with_its_extra(package: str, sound: Path, out: Path) -> None:
    """On a board there is no PyTorch: the verb says what to install."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from edgekit.cli.main import main\n"
        f"main(['build', {str(sound)!r}, '-o', {str(out)!r}])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 24, ran.stderr
    assert package in ran.stderr
    assert "pip install 'edgekit[build]'" in ran.stderr
    assert not out.exists()


def test_unknown_target(cli: Cli, sound: Path, out: Path) -> None:
    cli("build", sound, "-o", out, "--target", "abacus").refused(16, "abacus")
    assert not out.exists()


def test_missing_text(cli: Cli, sound: Path, out: Path) -> None:
    cli("build", sound, "-o", out, "--text", "/no/such.txt").refused(28, "/no/such.txt", "--text")
    cli("build", sound, "-o", out, "--calibration-text", "/no/such.txt").refused(28, "--calibration-text")
    assert not out.exists()


def test_calibration_text_and_no_calibration_contradict(cli: Cli, sound: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "text.txt").write_text("Some words.")
    arguments = ("--calibration-text", tmp_path / "text.txt", "--no-calibration")
    cli("build", sound, "-o", out, *arguments).refused(29, "--no-calibration")
    assert not out.exists()


def test_wrong_call(cli: Cli, sound: Path) -> None:
    for arguments in (["--format", "exl2"], ["--seed", "-1"], ["--bits", "1"]):
        assert cli("build", sound, *arguments).code == 2


@pytest.fixture
def _torch() -> None:
    """Refusals of the build itself load the host side first."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("onnx")


@pytest.mark.usefixtures("_torch")
def test_existing_bundle_needs_force(cli: Cli, sound: Path, out: Path) -> None:
    kept = out / "model.rpi5" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    cli("build", sound, "-o", out).refused(18, str(out / "model.rpi5"), "--force")
    assert kept.read_text() == "mine"


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--bits", "3", "--strict"], 22, "not divisible by 256"),
        (["--bits", "5"], 29, "--bits is 5"),
    ],
)
def test_refused_before_anything_is_written(
    arguments: list[str], code: int, words: str, cli: Cli, sound: Path, out: Path
) -> None:
    cli("build", sound, "-o", out, *arguments).refused(code, words)
    assert not out.exists()
