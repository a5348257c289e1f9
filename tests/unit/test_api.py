"""The Python API: lazy, typed, with the command line's errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import BundleError, InputNotFoundError, OptionError, TextError, UnknownTargetError
from edgekit.options import Options


def test_importing_edgekit_imports_nothing_else() -> None:
    code = "import sys, edgekit; print(sorted(m for m in sys.modules if m.partition('.')[0] in "
    code += "('edgekit', 'rich', 'numpy', 'torch', 'click', 'msgspec')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['edgekit']"


def test_the_functions_survive_the_import_of_every_module() -> None:
    """A submodule named like a function would take its place."""
    import edgekit.building
    import edgekit.cli.build

    assert edgekit.build.__module__ == "edgekit.api"
    assert edgekit.open_bundle.__module__ == "edgekit.opened"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        edgekit.bild  # noqa: B018


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no bundle"):
        edgekit.open_bundle(tmp_path / "none")
    with pytest.raises(InputNotFoundError):
        edgekit.build(tmp_path / "none", output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        edgekit.open_bundle(str(tmp_path))


def test_what_is_quick_to_check_comes_first(tmp_path: Path, sound: Path) -> None:
    with pytest.raises(UnknownTargetError):
        edgekit.build(sound, target="rpi55", output=tmp_path / "out")
    with pytest.raises(TextError, match="no text file"):
        edgekit.build(sound, output=tmp_path / "out", options=Options(text=tmp_path / "none.txt"))
    text = tmp_path / "text.txt"
    text.write_text("words")
    with pytest.raises(OptionError, match="contradict"):
        edgekit.build(sound, output=tmp_path / "out", options=Options(calibrate=False, calibration_text=text))
    assert not (tmp_path / "out").exists()
