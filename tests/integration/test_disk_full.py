"""A disk that fills up at any write, or takes none: exit code 27 and one sentence, and nothing half-written stays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_tokenizers
from conftest import Cli, Outcome

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.integration

FEW = (0.02, 0.5, 0.9, 1.05, 2, 8)
MANY = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 8)
"""Sizes of the disk, in parts of the finished bundle; more than the bundle is needed on the way to it."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(tiny_tokenizers.SENTENCES) * 12)
    return path


@pytest.fixture(autouse=True)
def _own_cache(own_cache: Path) -> None:
    """Nothing is there to be used again."""


def resize(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(kib, 4)}k", disk], check=True)


@pytest.fixture
def read_only(small_disk: Path) -> Iterator[Path]:
    """A disk with something on it that cannot be written."""
    (small_disk / "mine.txt").write_text("mine")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    yield small_disk
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


def left(folder: Path) -> list[str]:
    """All that is there, hidden names included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(result: Outcome, *words: str) -> None:
    assert result.code == 27, result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("edgekit: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in result.err


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) >> 10


@pytest.mark.parametrize("container", ["gguf", "onnx"])
@pytest.mark.parametrize("shares", [FEW, pytest.param(MANY, marks=pytest.mark.nightly)], ids=["few", "many"])
def test_every_size_of_disk(
    shares: tuple[float, ...], container: str, cli: Cli, sound: Path, small_disk: Path, text: Path, tmp_path: Path
) -> None:
    """Growing until it is enough: each run before that leaves the disk as empty as it was."""
    arguments = ["--format", container, "--text", text, "--no-calibration", "--no-cache"]
    assert cli("build", "--no-runtime", sound, "-o", tmp_path / "whole", *arguments).code == 0
    whole, refusals = used(tmp_path / "whole"), 0
    for share in shares:
        resize(small_disk, int(whole * share))
        result = cli("build", "--no-runtime", sound, "-o", small_disk, *arguments)
        if result.code == 0:
            break
        refused(result, "no space left on the disk", "nothing was left half-written")
        assert left(small_disk) == []
        refusals += 1
    assert result.code == 0, "eight times the bundle is enough"
    assert refusals >= sum(share < 1 for share in shares), "less than the bundle is not"
    assert cli("verify", small_disk / "model.rpi5", "--checksums-only").code == 0
    assert not [name for name in left(small_disk) if name.startswith(".")]


def test_old_bundle_survives_a_full_disk(cli: Cli, sound: Path, small_disk: Path, text: Path) -> None:
    """--force replaces it only when the new one is whole."""
    resize(small_disk, 1 << 16)
    arguments = ["-o", small_disk, "--format", "gguf", "--text", text, "--no-calibration", "--no-cache", "--force"]
    assert cli("build", "--no-runtime", sound, *arguments).code == 0
    before = {name: (small_disk / name).read_bytes() for name in left(small_disk) if (small_disk / name).is_file()}
    resize(small_disk, used(small_disk) + 64)
    refused(cli("build", "--no-runtime", sound, *arguments, "--seed", "7"), "no space left on the disk")
    after = {name: (small_disk / name).read_bytes() for name in left(small_disk) if (small_disk / name).is_file()}
    assert after == before


def test_scratch_files_on_the_full_disk(
    cli: Cli, sound: Path, small_disk: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    result = cli(
        "build", "--no-runtime", sound, "-o", small_disk / "out", "--text", text, "--no-calibration", "--no-cache"
    )
    refused(result, "no space left on the disk")
    assert not [name for name in left(small_disk) if name != "out"]


@pytest.mark.parametrize("place", ["", "deep/er"])
def test_read_only_output(place: str, cli: Cli, sound: Path, read_only: Path, text: Path) -> None:
    result = cli(
        "build", "--no-runtime", sound, "-o", read_only / place, "--text", text, "--no-calibration", "--no-cache"
    )
    refused(result, "cannot write", "Read-only file system", "choose another folder")
    assert left(read_only) == ["mine.txt"]


def test_output_below_a_file(cli: Cli, sound: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = cli(
        "build", "--no-runtime", sound, "-o", tmp_path / "file", "--text", text, "--no-calibration", "--no-cache"
    )
    refused(result, "cannot write", "choose another folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission(cli: Cli, sound: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = cli(
        "build", "--no-runtime", sound, "-o", tmp_path / "locked", "--text", text, "--no-calibration", "--no-cache"
    )
    refused(result, "cannot write", "choose another folder")
