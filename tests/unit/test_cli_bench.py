"""`edgekit bench`: what is refused, and a whole run of a real engine on a toy model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_toys import toy_bundle
from conftest import Cli

from edgekit.bench import result

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("bench") / "toy").root


def test_missing_bundle(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("bench", tmp_path / "nothing")
    assert outcome.code == 10
    assert "nothing" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [["--protocol", "quick"], ["--format", "torch"], ["--threads", "-1"], ["--threads", "9999"], ["--nonsense"]],
)
def test_wrong_call(arguments: list[str], cli: Cli, bundle: Path) -> None:
    outcome = cli("bench", bundle, *arguments)
    assert outcome.code == 2
    assert arguments[0] in outcome.err


def test_unknown_device(cli: Cli, bundle: Path) -> None:
    outcome = cli("bench", bundle, "--device", "nowhere:x")
    assert outcome.code != 0
    assert "nowhere" in outcome.err
    assert "Traceback" not in outcome.err


def test_format_that_is_not_there(cli: Cli, bundle: Path) -> None:
    outcome = cli("bench", bundle, "--format", "gguf", "--protocol", "smoke")
    assert outcome.code == 20
    assert "no gguf artefact" in outcome.err


def test_a_result_is_not_replaced_unasked(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    cli("bench", bundle, "--json", tmp_path / "out.json").refused(18, "out.json", "--force")
    assert (tmp_path / "out.json").read_text() == "mine"


def test_a_changed_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    root = toy_bundle(tmp_path / "toy").root
    data = bytearray((root / "onnx/model.onnx").read_bytes())
    data[-1] ^= 1
    (root / "onnx/model.onnx").write_bytes(data)
    outcome = cli("bench", root)
    assert outcome.code == 20
    assert "model.onnx" in outcome.err


def test_a_run_and_the_same_run_again(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.json", tmp_path / "journal"
    outcome = cli("bench", bundle, "--protocol", "smoke", "--json", out, "--journal", journal, "--threads", "1")
    assert outcome.code == 0, outcome.err
    assert "prompt of 32" in outcome.out
    found = result.from_json(out.read_bytes())
    assert found.measured_on == "measured"
    assert found.runs[0].coherence is not None
    assert found.runs[0].coherence.here.kl_mean < 1e-3
    assert found.runs[0].coherence.against_host is not None
    assert found.runs[0].coherence.against_host.identical_share == 1
    assert found.device.versions["onnxruntime"]
    (file,) = journal.iterdir()
    before = file.read_bytes()
    cli("bench", bundle, "--protocol", "smoke", "--json", out, "--journal", journal, "--threads", "1").refused(18)
    again = cli(
        "bench", bundle, "--protocol", "smoke", "--json", tmp_path / "2.json", "--journal", journal, "--threads", "1"
    )
    assert again.code == 0
    assert file.read_bytes() == before
    assert result.from_json((tmp_path / "2.json").read_bytes()).runs == found.runs


def test_an_engine_that_cannot_load_ends_with_its_own_code(cli: Cli, tmp_path: Path) -> None:
    from bench_toys import seal_folder

    root = toy_bundle(tmp_path / "toy").root
    (root / "onnx/model.onnx").write_bytes(b"nothing")
    (root / "manifest.json").unlink()
    seal_folder(root)
    outcome = cli("bench", root, "--protocol", "smoke", "--json", tmp_path / "out.json", "--emulated")
    assert outcome.code == 26
    assert "cannot load" in outcome.err
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["failure"]["kind"] == "error"
    assert "ended here" in outcome.out
