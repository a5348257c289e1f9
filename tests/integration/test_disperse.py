"""`edgekit disperse` as a user calls it: killed, on two processes, wrong inputs, and built from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny
import tiny_tokenizers
from conftest import Cli
from tiny import Tiny

pytest.importorskip("accelerate")

from edgekit import api
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.options import Options
from edgekit.training.record import RUN, Run

pytestmark = pytest.mark.integration

SETTINGS = (
    "--grid", "int3", "--length", "32", "--batch", "2", "--average", "lawa", "--cross-entropy", "0.5",
    "--weight", "0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(tiny_tokenizers.SENTENCES * 40))
    return path


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = Tiny(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=384)
    return tiny.make(tmp_path_factory.mktemp("training") / "model", sizes)


def started(*arguments: str | Path, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launch, "-m", "edgekit", "disperse", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def weights(folder: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {tensor.hf: values for tensor, values in open_checkpoint(folder).tensors()}


def same(one: Path, other: Path) -> bool:
    mine, yours = weights(one), weights(other)
    return all(np.array_equal(mine[name], yours[name]) for name in mine)


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def test_killed_with_a_signal_that_cannot_be_caught(parent: Path, corpus: Path, tmp_path: Path) -> None:
    """Killed among the blocks or while the whole model is trained: the weights come out as without it."""
    arguments = (parent, "--text", corpus, "--recipe", "laptop", *SETTINGS, "--steps", "40")
    said = ended(started(*arguments, "-o", tmp_path / "whole"))
    assert "held-out text" in said
    begun = tmp_path / "out.training"
    for sign in (begun / "start" / "block-0000.safetensors", begun / "plain.json"):
        process = started(*arguments, "-o", tmp_path / "out")
        while process.poll() is None and not sign.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "out").exists()
    assert begun.is_dir()
    ended(started(*arguments, "-o", tmp_path / "out"))
    assert same(tmp_path / "whole", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_two_processes_are_one_training_of_twice_the_batch(parent: Path, corpus: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = (parent, "--text", corpus, "--recipe", "int3", "--length", "32", "--steps", "12", "--average", "lawa")
    ended(started(*arguments, "--batch", "4", "-o", tmp_path / "one"))
    ended(started(*arguments, "--batch", "2", "-o", tmp_path / "two", launch=launch))
    assert '"devices": 2' in (tmp_path / "two" / "edgekit" / "run.json").read_text()
    one, two, own = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(parent)
    moved = [name for name in own if not np.array_equal(one[name], own[name])]
    assert moved
    far = sum(float(np.abs(one[name] - two[name]).sum()) for name in moved)
    assert far < 0.05 * sum(float(np.abs(one[name] - own[name]).sum()) for name in moved)


def test_two_processes_begin_with_the_same_random_weights(parent: Path, corpus: Path, tmp_path: Path) -> None:
    """The first one draws them, and writes those along the way; the model's folder only lends shape and tokenizer."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = ("--from-scratch", parent, "--text", corpus, "--length", "32", "--steps", "6", "--keep-every", "3")
    ended(started(*arguments, "--batch", "4", "-o", tmp_path / "one"))
    ended(started(*arguments, "--batch", "2", "-o", tmp_path / "two", launch=launch))
    one, two = (msgspec.json.decode((tmp_path / name / RUN).read_bytes(), type=Run) for name in ("one", "two"))
    assert one.scratch == two.scratch
    assert two.devices == 2
    assert two.points[-1].loss == pytest.approx(one.points[-1].loss, rel=0.01)
    for name in ("one", "two"):
        kept = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert kept == ["step-000003", "step-000006"]


def test_survival_of_what_was_trained(parent: Path, corpus: Path, tmp_path: Path) -> None:
    """On the format that it was trained on, it is exported as it is; on another it is rounded like any model."""
    arguments = ("--text", str(corpus), "-o", str(tmp_path / "out"), "--recipe", "laptop", "--grid", "int3")
    ended(started(parent, *arguments, "--length", "32"))
    options = Options(text=corpus, sequences=2, length=32)
    found = api.survive(tmp_path / "out", against=parent, grids=("int3-sym-b32", "Q4_0"), options=options)
    assert found.points[0].error == 0
    assert found.points[1].error > 0


def test_wrong_inputs(cli: Cli, parent: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli(
        "disperse", parent, "--text", corpus, "-o", out, "--recipe", "int5"
    ).refused(10, "there is no recipe int5")  # fmt: skip
    cli("disperse", tmp_path / "none", "--text", corpus, "-o", out).refused(10, "none")
    cli("disperse", parent, "--text", tmp_path / "none.txt", "-o", out).refused(10, "none.txt")
    cli("disperse", parent, "--text", corpus, "-o", out, "--batch", "0").refused(29, "batch is 0")
    cli("disperse", parent, "--text", corpus, "-o", out, "--grid", "Q3_K").refused(25, "Q3_K")
    cli("disperse", parent, "--text", corpus, "-o", parent).refused(18, "is there already")
    cli("disperse", parent, "--text", corpus, "-o", parent, "--force").refused(29, "is the model itself")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "thesis.doc").write_text("years of work")
    for more in ((), ("--restart",)):
        cli("disperse", parent, "--text", corpus, "-o", out, *more).refused(29, "something that is not of a training")
    assert (tmp_path / "out.training" / "thesis.doc").read_text() == "years of work"
    assert not out.exists()


def test_dispersion_in_full_precision(cli: Cli, parent: Path, corpus: Path, tmp_path: Path) -> None:
    said = cli(
        "disperse", parent, "--text", corpus, "-o", tmp_path / "out", "--recipe", "gentle", "--steps", "4",
        "--length", "32", "--loss", "orthogonalization", "--layers", "all",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "full precision; held-out text" in said.out
    assert "orthogonalization" in (tmp_path / "out" / "README.md").read_text()
