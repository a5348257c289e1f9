"""A build that fails or is stopped: one sentence, its own exit code, no leftovers, and the old bundle still there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_tokenizers
from conftest import Cli
from tiny import Tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("llama_cpp")

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.errors import OutputError
from edgekit.export import artefacts, gguf
from edgekit.files import whole_folder
from edgekit.options import Container
from edgekit.progress import Quiet
from edgekit.quantize.choose import choose
from edgekit.targets import load

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own_cache")]

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with somebody's old bundle in it."""
    old = tmp_path / "dist" / "model.rpi5"
    old.mkdir(parents=True)
    (old / "mine.txt").write_text("mine")
    return tmp_path / "dist"


def untouched(out: Path) -> None:
    assert [path.name for path in out.iterdir()] == ["model.rpi5"], "leftovers"
    assert [path.name for path in (out / "model.rpi5").iterdir()] == ["mine.txt"]
    assert (out / "model.rpi5" / "mine.txt").read_text() == "mine"


def last_line(result_err: str) -> str:
    return result_err.strip().splitlines()[-1]


# -- Ctrl-C


def stop_at(
    stage: str, arguments: list[str | Path], temporary: Path, send: Callable[[subprocess.Popen[str]], None]
) -> tuple[int, str]:
    """Run a build, send it a signal when it announces `stage`; its exit code and standard error."""
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "build", "--no-runtime", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stdout is not None
    alarm = threading.Timer(120, process.kill)
    alarm.start()
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith(stage) and line.rstrip().endswith("…"):
                send(process)
                break
        said += process.stderr.readlines()
        process.stdout.read()
        return process.wait(), "".join(said)
    finally:
        alarm.cancel()
        process.stdout.close()
        process.stderr.close()
        if process.poll() is None:
            process.kill()


def to_the_process(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def to_the_group(process: subprocess.Popen[str]) -> None:
    """What a terminal does: children hear it too."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("stage", "send"),
    [
        ("text:", to_the_process), ("reference:", to_the_process), ("ONNX: quantize and write", to_the_process),
        ("ONNX: quantize and write", to_the_group),
    ],
    ids=["text", "reference", "export", "export, from a terminal"],
)  # fmt: skip
def test_interrupt(
    stage: str, send: Callable[[subprocess.Popen[str]], None], sound: Path, out: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = [sound, "-o", out, "--format", "onnx", "--force", "--no-calibration"]
    code, said = stop_at(stage, arguments, tmp_path / "tmp", send)
    assert code == 130, said
    assert last_line(said) == ("edgekit: interrupted — nothing half-written was left; run the same command again."), (
        said
    )
    assert "Traceback" not in said
    untouched(out)
    assert list((tmp_path / "tmp").glob("*edgekit*")) == [], "temporary files are gone too"


# -- broken models, in a whole build


def test_weights_that_are_not_finite(cli: Cli, model: Path, out: Path) -> None:
    stored = tiny.weights(Tiny())
    stored[DOWN][3, 5] = np.nan
    tiny.write_weights(model, stored)
    result = cli("build", "--no-runtime", model, "-o", out, "--force")
    assert result.code == 13, result.err
    assert last_line(result.err).startswith(f"edgekit: tensor {DOWN} holds 1 NaN or infinite values")
    untouched(out)


def test_tokenizer_with_ids_beyond_the_embedding(cli: Cli, model: Path, out: Path) -> None:
    tiny_tokenizers.write(model, "smollm", 400)
    for container in ("gguf", "onnx"):
        cli("build", "--no-runtime", model, "-o", out, "--force", "--format", container).refused(
            14, "up to 399", "384 rows"
        )
    untouched(out)


def test_missing_tokenizer(cli: Cli, model: Path, out: Path) -> None:
    (model / "tokenizer.json").unlink()
    cli("build", "--no-runtime", model, "-o", out, "--force").refused(14, "tokenizer.json")
    untouched(out)


def test_short_text(cli: Cli, sound: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    result = cli("build", "--no-runtime", sound, "-o", out, "--force", "--text", tmp_path / "short.txt")
    assert result.code == 28, result.err
    assert "short.txt has only" in last_line(result.err)
    untouched(out)


# -- faults of ours, and of the disk


def test_failed_parity_stops_the_build(
    cli: Cli, sound: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny_tokenizers.SENTENCES) * 12)
    monkeypatch.setattr(gguf, "file_rows", lambda weights, _order, _spec: weights)
    arguments = ["--force", "--format", "gguf", "--text", text, "--no-calibration"]
    result = cli("build", "--no-runtime", sound, "-o", out, *arguments)
    assert result.code == 21, result.err
    assert "unquantized GGUF export differs from the original" in last_line(result.err)
    untouched(out)


def test_full_disk(cli: Cli, sound: Path, small_disk: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(tiny_tokenizers.SENTENCES) * 12)
    result = cli("build", "--no-runtime", sound, "-o", small_disk, "--text", text, "--no-calibration")
    assert result.code == 27, result.err
    assert "no space left on the disk" in last_line(result.err)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_disk_that_fills_up_while_a_model_is_written(container: Container, sound: Path, small_disk: Path) -> None:
    checkpoint = open_checkpoint(sound)
    plan = choose(checkpoint.spec, load("rpi5"), container, 8)
    with (
        pytest.raises(OutputError, match="no space left on the disk while writing"),
        whole_folder(small_disk / "out") as folder,
    ):
        artefacts.write(checkpoint, plan, folder, folder, Quiet())
    assert list(small_disk.iterdir()) == []
