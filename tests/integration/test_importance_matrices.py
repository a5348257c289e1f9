"""Importance matrices from end to end: ours is llama-imatrix's, llama.cpp quantizes by it, a build follows a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import tiny_families
import tiny_gguf
import tiny_tokenizers

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

from conftest import Cli

from edgekit import api
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.coherence.text import EvalText
from edgekit.engines.torch import TorchEngine
from edgekit.errors import BadWeightsError, FileFormatError, OptionError, OutputExistsError
from edgekit.grids import get
from edgekit.options import Options
from edgekit.original import Texts, calibrate
from edgekit.progress import Quiet
from edgekit.quantize import imatrix
from edgekit.quantize.importance import gather

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "data"
SAME = tiny.Tiny(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16, tied=False, dtype="f32")
"""The model of tests/data/tiny.imatrix.gguf."""
SHORT = Options(formats=("gguf",), asked=True, sequences=4, length=32, cache=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("imatrix") / "model", tiny.Tiny())


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "own.gguf"
    api.imatrix(model, path, options=SHORT)
    return path


class Heard(Quiet):
    """Keeps what a build says, and which steps it takes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    @contextmanager
    def step(self, title: str) -> Iterator[Any]:
        self.steps.append(title)
        yield lambda _done, _total: None


# --- what is refused -------------------------------------------------------------------------------------------------


def test_another_models_file_is_refused_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    heard = Heard()
    options = replace(SHORT, imatrix=DATA / "tiny.imatrix.gguf")
    with pytest.raises(OptionError, match=r"has 32 inputs for .*; expected 64|names output\.weight"):
        api.build(model, output=tmp_path / "out", options=options, progress=heard)
    assert not any("text" in step or "load" in step for step in heard.steps)
    with pytest.raises(OptionError):
        api.sensitivity(model, "gguf", options=options, progress=heard)


def test_a_damaged_file_is_refused(model: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(written.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="larger than the file"):
        api.build(model, output=tmp_path / "out", options=replace(SHORT, imatrix=tmp_path / "cut.gguf"))


def test_an_existing_file_is_kept_and_nothing_measured(model: Path, written: Path) -> None:
    before, heard = written.read_bytes(), Heard()
    with pytest.raises(OutputExistsError):
        api.imatrix(model, written, options=SHORT, progress=heard)
    assert (written.read_bytes(), heard.steps) == (before, [])


def test_moments_that_overflow_name_the_layer(tmp_path: Path) -> None:
    """Activations of 1e25 are finite, their squares are not."""
    folder = tiny.make(tmp_path / "model", tiny.Tiny(dtype="f32"))
    weights = dict(tiny.weights(tiny.Tiny(dtype="f32")))
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"] * np.float32(1e25)
    (folder / "model.safetensors").unlink()
    tiny.write_weights(folder, weights, tiny.Tiny(dtype="f32"))
    checkpoint = open_checkpoint(folder)
    text = EvalText((np.arange(3, 40),), "file", "0" * 64)
    with pytest.raises(BadWeightsError, match=r"mean square of input \d+ of model\.layers\.1\.mlp\.down_proj\.weight"):
        calibrate(TorchEngine(folder), checkpoint, Texts(text, text), Quiet())


# --- ours and llama.cpp's --------------------------------------------------------------------------------------------


def test_what_we_gather_is_what_llama_imatrix_gathers(tmp_path: Path) -> None:
    """tests/data holds its file for this model: `llama-imatrix -c 64 --chunks 4 --process-output` on the sentences."""
    folder = tiny.make(tmp_path / "model", SAME)
    spec = open_checkpoint(folder).spec
    ids = load_tokenizer(folder).encode("\n".join(tiny_tokenizers.SENTENCES))
    own = gather(TorchEngine(folder), spec, list(np.array(ids[:256]).reshape(4, 64)))
    theirs = imatrix.for_model(imatrix.read(DATA / "tiny.imatrix.gguf"), spec)
    assert own.keys() == theirs.keys()
    for name, means in theirs.items():
        np.testing.assert_allclose(own[name], means, rtol=1e-3)  # its activations are rounded, ours are not


def test_llama_cpp_quantizes_by_our_file(tmp_path: Path) -> None:
    """Read as llama-quantize reads it (sums over counts), given to its C interface, and the result says so."""
    source = tiny_gguf.write(tmp_path / "float.gguf", SAME, kind="F32")
    folder = tiny.make(tmp_path / "model", SAME)
    spec = open_checkpoint(folder).spec
    random = np.random.default_rng(0)
    importance = {
        t.hf: np.exp(3 * random.normal(size=t.shape[1])).astype(np.float32)
        for t in spec.tensors
        if t.rule.kind in ("linear", "head")
    }
    imatrix.write(tmp_path / "own.gguf", importance, spec, [np.zeros(128, np.int64)], "t")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "own.gguf").tensors}
    table = {
        name.removesuffix(".in_sum2"): np.array(sums) / tensors[name.replace("in_sum2", "counts")].item()
        for name, sums in tensors.items()
        if name.endswith(".in_sum2")
    }
    for name, given in {"with": table, "even": {name: np.ones_like(means) for name, means in table.items()}}.items():
        np.savez(tmp_path / f"{name}.npz", **given)
        # In a process of its own, as the benchmark: after many other tests llama.cpp's quantizer crashed in this one.
        job = [str(source), str(tmp_path / f"{name}.gguf"), str(tmp_path / f"{name}.npz"), "IQ4_NL", "", "0"]
        subprocess.run([sys.executable, "-m", "benchmarks._peers", *job], check=True, cwd=ROOT, timeout=300)
    for name in ("blk.0.attn_v.weight", "blk.1.ffn_up.weight"):
        own = tiny_gguf.tensors(SAME)[name]
        errors = []
        for made in ("with", "even"):
            tensor = next(t for t in gguf.GGUFReader(tmp_path / f"{made}.gguf").tensors if t.name == name)
            assert tensor.tensor_type == gguf.GGMLQuantizationType.IQ4_NL
            change = gguf.dequantize(tensor.data, tensor.tensor_type) - own
            errors.append(float((table[name] * change**2).sum()))
        assert errors[0] < 0.8 * errors[1]


# --- builds ----------------------------------------------------------------------------------------------------------


def test_a_build_follows_the_file_and_says_what_it_leaves_out(model: Path, written: Path, tmp_path: Path) -> None:
    checkpoint, heard = open_checkpoint(model), Heard()
    found = dict(imatrix.for_model(imatrix.read(written), checkpoint.spec))
    own = {"model.embed_tokens.weight": found.pop("model.embed_tokens.weight")}
    skewed = {name: means * np.geomspace(1e-3, 1e3, means.size).astype(np.float32) for name, means in found.items()}
    imatrix.write(tmp_path / "less.gguf", skewed, checkpoint.spec, [np.zeros(128, np.int64)], "t")
    options = replace(SHORT, imatrix=tmp_path / "less.gguf")
    built = api.build(model, output=tmp_path / "out", options=options, progress=heard)
    assert any("says nothing of model.embed_tokens.weight" in note for note in heard.notes)
    assert "importance matrix less.gguf (sha256" in built.report.calibration
    assert "of model.embed_tokens.weight on the calibration text" in built.report.calibration
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(built.bundle / "gguf/model.gguf").tensors}
    for tensor in checkpoint.spec.tensors:
        if tensor.hf in {**skewed, **own} and tensor.rule.rows == "as_is":
            grid, weights = get(stored[tensor.gguf].tensor_type.name), checkpoint.read(tensor)
            differ = [
                np.mean(stored[tensor.gguf].data.ravel() != grid.pack(grid.quantize(weights, given))["data"].ravel())
                for given in ({**skewed, **own}[tensor.hf], found.get(tensor.hf))
            ]
            # Sums are written in float32: a mean may differ in its last digit, and a scale with it.
            assert differ[0] < 0.01, tensor.gguf
            assert differ[1] > 0.05 or grid.nominal_bits >= 8, tensor.gguf


def test_what_it_decides_with_gptq_is_said(model: Path, written: Path) -> None:
    for effort, said in (("fast", False), ("good", True)):
        heard = Heard()
        options = replace(SHORT, imatrix=written, effort=effort, probes=1)  # type: ignore[arg-type]
        api.sensitivity(model, "gguf", options=options, progress=heard)
        assert any("which it holds the diagonal alone" in note for note in heard.notes) == said


def test_sensitivity_is_measured_by_it(model: Path, written: Path, tmp_path: Path) -> None:
    spec = open_checkpoint(model).spec
    found = imatrix.for_model(imatrix.read(written), spec)
    imatrix.write(tmp_path / "ten.gguf", {n: 10 * m for n, m in found.items()}, spec, [np.zeros(128, np.int64)], "t")
    options = replace(SHORT, probes=1)
    maps = [
        api.sensitivity(model, "gguf", options=replace(options, imatrix=path))
        for path in (written, tmp_path / "ten.gguf")
    ]
    for own, ten in zip(maps[0].groups, maps[1].groups, strict=True):
        assert ten.errors["Q4_0"] == pytest.approx(10 * own.errors["Q4_0"], rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_short_context_shortens_the_text(family: str, tmp_path: Path) -> None:
    """A model with learned positions would not even run on longer text."""
    folder = tiny_families.make(tmp_path / "model", family, context=64)
    found = api.imatrix(folder, tmp_path / "own.gguf", options=Options(sequences=3, cache=False))
    assert all(np.isfinite(means).all() for means in found.values())
    reader = gguf.GGUFReader(tmp_path / "own.gguf")
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    assert {t.data.item() for t in reader.tensors if t.name.endswith(".counts")} == {192}


def test_the_command(model: Path, tmp_path: Path, cli: Cli) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny_tokenizers.SENTENCES), encoding="utf8")
    said = ["imatrix", str(model), "-o", str(tmp_path / "own.gguf"), "--calibration-text", str(text), "--no-cache"]
    ran = cli(*said, "--sequences", "3", "--length", "32")
    assert (ran.code, "15 matrices" in ran.out) == (0, True)
    assert gguf.GGUFReader(tmp_path / "own.gguf").fields["imatrix.datasets"].contents() == ["text.txt"]
    again = cli(*said)
    assert again.code == 18
    assert "--force" in again.err


@pytest.mark.parametrize(("other", "warned"), [("чайник поёт на кухне\n", True), ("a quick sea sings\n", False)])
def test_a_calibration_text_of_another_language_is_warned_of(
    other: str, warned: bool, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "judged.txt").write_text("the kettle sings in a quiet kitchen\n" * 400, encoding="utf8")
    (tmp_path / "other.txt").write_text(other * 800, encoding="utf8")
    heard = Heard()
    options = replace(SHORT, text=tmp_path / "judged.txt", calibration_text=tmp_path / "other.txt")
    options = replace(options, sequences=32, length=48, probes=1)
    api.sensitivity(model, "gguf", options=options, progress=heard)
    assert any("of another language or kind" in note for note in heard.notes) == warned
