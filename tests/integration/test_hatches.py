"""The exporters of others, for real: a llama.cpp tree's converter and optimum's exporter, on families without a table.

They need what edgekit's own environment cannot hold: `nox -s llama_cpp` and `nox -s optimum` bring it and run these.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_tokenizers
from conftest import Cli
from numpy.typing import NDArray
from original import Original

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

from edgekit.checkpoint.demo import demo_checkpoint  # noqa: E402
from edgekit.checkpoint.foreign import open_foreign  # noqa: E402
from edgekit.engines.base import greedy  # noqa: E402
from edgekit.engines.opening import open_engine  # noqa: E402
from edgekit.errors import ConverterError, ParityError, TokenizerError  # noqa: E402
from edgekit.export import artefacts, hatches, optimum_env, parity  # noqa: E402
from edgekit.export.artefacts import Built  # noqa: E402
from edgekit.export.foreign import Foreign, gather, plan_of  # noqa: E402
from edgekit.options import Container, Options  # noqa: E402
from edgekit.progress import Quiet  # noqa: E402
from edgekit.targets import load  # noqa: E402

pytestmark = pytest.mark.nightly

TREE = "EDGEKIT_LLAMA_CPP"
"""Names the llama.cpp source tree to test with."""
VOCAB = 512
CONTAINERS: tuple[Container, ...] = ("gguf", "onnx")
BOTH = pytest.mark.parametrize("container", CONTAINERS)
Ids = NDArray[np.int64]


def options(container: Container) -> Options:
    """With the exporter of somebody else for that format; skips when it is not there."""
    if container == "gguf":
        if not (named := os.environ.get(TREE)):
            pytest.skip(f"needs a llama.cpp source tree in ${TREE}: nox -s llama_cpp")
        return Options(formats=("gguf",), llama_cpp=Path(named))
    if not os.environ.get(optimum_env.PYTHON):
        pytest.skip(f"needs an interpreter with optimum's exporter in ${optimum_env.PYTHON}: nox -s optimum")
    optimum_env.interpreter()
    return Options(formats=("onnx",), exporter="optimum")


def save(model: Any, folder: Path, kind: str) -> Path:
    """The checkpoint as transformers 5 saves it, with a tiny tokenizer."""
    model.half().save_pretrained(folder)
    tiny_tokenizers.write(folder, kind, VOCAB)
    return folder


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.15,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip


def granite(folder: Path) -> Path:
    """Granite multiplies embeddings, attention, residuals and logits by factors of its own; tied, grouped queries."""
    torch.manual_seed(0)
    config = transformers.GraniteConfig(
        **SIZES, num_key_value_heads=2, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.5,
        logits_scaling=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    save(transformers.GraniteForCausalLM(config), folder, "sentencepiece")
    write_sentencepiece(folder)
    return folder


def write_sentencepiece(folder: Path) -> None:
    """tokenizer.model with the pieces of tokenizer.json, scored by the order in which they merge."""
    model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf8"))["model"]["vocab"]
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.add_dummy_prefix, model.normalizer_spec.remove_extra_whitespaces = True, False
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    for index, token in enumerate(sorted(vocab, key=vocab.get)):
        kind = kinds.get(token, 6 if token.startswith("<0x") else 1)
        model.pieces.add(piece=token, score=-float(index), type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def olmo2(folder: Path) -> Path:
    """OLMo 2 normalizes after each layer, and whole queries and keys; its head is its own."""
    torch.manual_seed(1)
    config = transformers.Olmo2Config(**{**SIZES, "initializer_range": 0.4}, num_key_value_heads=4)
    return save(transformers.Olmo2ForCausalLM(config), folder, "smollm")


def stablelm(folder: Path) -> Path:
    """StableLM with another rotary base than its usual one, and the demo's tokenizer."""
    torch.manual_seed(2)
    sizes = {**SIZES, "vocab_size": 49152, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**sizes, num_key_value_heads=2))
    model.half().save_pretrained(folder)
    for path in demo_checkpoint().tokenizer_files():
        if path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@dataclass(frozen=True)
class Stranger(Original):
    """A checkpoint of an unknown family."""

    folder: Path

    def converted(self, container: Container, name: str = "") -> Foreign:
        """The full-precision file, made once."""
        folder = self.folder / (name or container)
        if not folder.exists():
            folder.mkdir()
            hatches.convert(container, self.checkpoint, options(container), folder, Quiet())
        return hatches.opened(container, self.checkpoint, folder, self.folder, "key")

    def exported(self, container: Container, bits: int, folder: Path, name: str = "") -> Built:
        """The artefact below the new folder."""
        folder.mkdir(parents=True)
        foreign = self.converted(container, name)
        plan = plan_of(foreign.converted, foreign.spec, load("rpi5"), bits)
        importance = gather(self.engine, foreign.spec, self.sequences)
        return artefacts.write(self.checkpoint, plan, folder, folder, Quiet(), importance, foreign)


MODELS: dict[str, Callable[[Path], Path]] = {"granite": granite, "olmo2": olmo2}
CASES: list[tuple[str, Container]] = [("granite", "gguf"), ("granite", "onnx"), ("olmo2", "onnx")]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stranger]:
    made: dict[str, Stranger] = {}

    def get(name: str) -> Stranger:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = Stranger(open_foreign(MODELS[name](folder / "model")), folder)
        return made[name]

    return get


Originals = Callable[[str], Stranger]


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_structure(name: str, original: Originals) -> None:
    made = original(name)
    assert tiny.entropy(made.engine.logits(made.sequences[0]).astype(np.float64)) < 0.5 * math.log(VOCAB)


@pytest.mark.parametrize(("name", "container"), CASES)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_parity(name: str, container: Container, bits: int, original: Originals, tmp_path: Path) -> None:
    options(container)
    made = original(name)
    built = made.exported(container, bits, tmp_path / "out")
    found = made.check(built)
    print(f"{name} {container} {bits}: export {found.full_precision_kl:.1e}, activations {found.activation_kl:.1e}")
    assert 0 <= found.full_precision_kl < 1e-4
    assert 0 < found.activation_kl <= parity.ACTIVATION_LIMIT
    grids = {entry.grid for entry in built.plan.entries if entry.tensor.rule.matrix}
    assert not grids & {"F16", "F32"}, "every matrix is quantized"


@pytest.mark.parametrize(("name", "container"), CASES)
def test_every_matrix_is_recognised(name: str, container: Container, original: Originals) -> None:
    """So all of them are quantized with importance."""
    options(container)
    made = original(name)
    spec = made.converted(container).spec
    names = {tensor.hf for tensor in spec.tensors if tensor.rule.matrix}
    assert names == {tensor.hf for tensor in made.checkpoint.spec.tensors if tensor.rule.matrix}
    assert gather(made.engine, spec, made.sequences).keys() >= {n for n in names if "embed" not in n}


# -- what goes wrong without a word


def test_a_converter_that_forgets_the_rotary_base_is_caught(original: Originals, tmp_path: Path) -> None:
    """llama.cpp's StableLM converter does not write it, so that llama.cpp computes with 10000."""
    made = Stranger(open_foreign(stablelm(tmp_path / "model")), tmp_path)
    options("gguf")
    built = made.exported("gguf", 8, tmp_path / "out")
    with pytest.raises(ParityError, match="unquantized GGUF export differs"):
        made.check(built)


def test_a_converter_that_loses_the_merges_is_caught(tmp_path: Path) -> None:
    """Without tokenizer.model the converter gives every piece the same score."""
    folder = granite(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    options("gguf")
    made = Stranger(open_foreign(folder), tmp_path)
    built = made.exported("gguf", 8, tmp_path / "out")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for path in made.checkpoint.tokenizer_files():
        (shipped / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ParityError, match=r"tokenizer of llama\.cpp"), artefacts.tokenizer_sides([built]) as sides:
        parity.check_tokenizer(folder, shipped, sides)


def test_an_unknown_pre_tokenizer_is_told(tmp_path: Path) -> None:
    wanted = options("gguf")
    checkpoint = open_foreign(olmo2(tmp_path / "model"))
    with pytest.raises(TokenizerError, match="convert_hf_to_gguf_update"):
        hatches.convert("gguf", checkpoint, wanted, tmp_path, Quiet())


def test_without_the_older_rope_theta_parity_fails(
    original: Originals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 4.57 then computes with 10000, and the exporter's own validation with it."""
    options("onnx")
    monkeypatch.setattr(optimum_env, "_older_config", dict)
    built = original("granite").exported("onnx", 8, tmp_path / "out", "without-theta")
    with pytest.raises(ParityError, match="unquantized ONNX export differs"):
        original("granite").check(built)


def test_without_the_older_tokenizer_class_the_export_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter itself would go on without a tokenizer."""
    wanted = options("onnx")
    folder = granite(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}
    path.write_text(json.dumps(config))
    checkpoint = open_foreign(folder)
    hatches.convert("onnx", checkpoint, wanted, tmp_path, Quiet())
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(optimum_env, "_older_tokenizer", dict)
    with pytest.raises(ConverterError, match="without one"):
        hatches.convert("onnx", checkpoint, wanted, tmp_path / "again", Quiet())


# -- our folder in their library

GENERATE = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
model = ORTModelForCausalLM.from_pretrained(sys.argv[1])
made = []
for ids in json.loads(sys.argv[2]):
    out = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=2)
    made.append(out[0, len(ids):].tolist())
print(json.dumps(made))
"""


@pytest.mark.parametrize(("name", "bits"), [("granite", 4), ("olmo2", 4), ("olmo2", 8)])
def test_optimum_generates_what_our_engine_generates(name: str, bits: int, original: Originals, tmp_path: Path) -> None:
    options("onnx")
    built = original(name).exported("onnx", bits, tmp_path / "out")
    rng = np.random.default_rng(9)
    prompts = [rng.integers(3, VOCAB, size=length) for length in (5, 12, 40)]
    engine = open_engine("onnx", built.path)
    ours = [list(greedy(engine, prompt, 16, frozenset())) for prompt in prompts]
    command = [str(optimum_env.interpreter()), "-c", GENERATE, str(built.path.parent)]
    asked = json.dumps([prompt.tolist() for prompt in prompts])
    answer = subprocess.run(
        [*command, asked], check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == ours
    assert len({token for text in ours for token in text}) > 3, "not the same token over and over"


# -- a whole build


@BOTH
def test_a_bundle_of_an_unknown_family(
    container: Container, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the format that can be made is; the report says who converted it; the bundle verifies."""
    wanted = options(container)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    how = ("--llama-cpp", wanted.llama_cpp or "") if container == "gguf" else ("--exporter", "optimum")
    folder = granite(tmp_path / "granite")
    made = cli("build", "--no-runtime", folder, *how, "--bits", "8", "-o", tmp_path)
    assert made.code == 0, made.err
    bundle = tmp_path / "granite.rpi5.bits8"
    report = json.loads((bundle / "report.json").read_text())
    assert [artefact["format"] for artefact in report["artefacts"]] == [container]
    assert ("llama.cpp tree" if container == "gguf" else "optimum==") in report["caveats"][0]
    assert cli("verify", bundle).code == 0
    again = cli("build", "--no-runtime", folder, *how, "--bits", "8", "-o", tmp_path, "--force")
    assert again.code == 0
    assert "convert (from cache)" in again.err, "the conversion is a stage like any other"
