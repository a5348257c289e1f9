"""Tiny checkpoints become GGUF and ONNX files that official readers take and that say what the original says.

Every comparison has its negative control: the same check on an export with one thing wrong must fail, and name it.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from tiny import Tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("llama_cpp")

from gguf import GGUFReader  # noqa: E402
from original import LENGTH, Original, genai_says_what_our_engine_says  # noqa: E402

from edgekit import __version__  # noqa: E402
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from edgekit.checkpoint.rope import Rope  # noqa: E402
from edgekit.coherence.distribution import kl_full  # noqa: E402
from edgekit.engines.llamacpp import LlamaCppEngine  # noqa: E402
from edgekit.engines.ort import OrtEngine  # noqa: E402
from edgekit.errors import ParityError  # noqa: E402
from edgekit.export import artefacts, gguf, onnx_reading, parity  # noqa: E402
from edgekit.export.artefacts import Built  # noqa: E402
from edgekit.export.onnx_store import DATA  # noqa: E402
from edgekit.options import Container  # noqa: E402
from edgekit.progress import Quiet  # noqa: E402
from edgekit.quantize.choose import choose  # noqa: E402
from edgekit.targets import load  # noqa: E402

pytestmark = pytest.mark.integration

MODELS = {
    "tied": Tiny(),
    "untied": Tiny(tied=False, hidden=96, ffn=160, heads=3, kv_heads=1, head_dim=64, vocab=391, dtype="f32"),
    "sharded": Tiny(hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=1000, shards=3, dtype="bf16"),
    "llama3": Tiny(
        hidden=288, ffn=320, heads=6, kv_heads=2, head_dim=32, layers=1, vocab=640, theta=500000.0, llama3_rope=True,
        tokenizer="llama3",
    ),
    "mistral": Tiny(
        architecture="MistralForCausalLM", tokenizer="sentencepiece", vocab=512, tied=False, kv_heads=4, layers=1
    ),
}  # fmt: skip
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TinyOriginal(Original):
    """With the sizes and traits it was made of."""

    like: Tiny


Originals = Callable[[str], TinyOriginal]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Originals]:
    made: dict[str, TinyOriginal] = {}

    def get(name: str) -> TinyOriginal:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            checkpoint = open_checkpoint(tiny.make(folder / "model", MODELS[name]))
            made[name] = TinyOriginal(checkpoint, MODELS[name])
        return made[name]

    yield get
    for item in made.values():
        item.engine.close()


FORMATS: tuple[Container, ...] = ("gguf", "onnx")
ALL_FORMATS = pytest.mark.parametrize("container", FORMATS)
ALL_MODELS = pytest.mark.parametrize("name", MODELS)


# -- the original


@ALL_MODELS
def test_torch_says_what_the_formulas_say(name: str, original: Originals) -> None:
    """The reference itself, against the numpy model: shapes, rotary positions and scaling are read right."""
    made = original(name)
    stored = tiny.weights(made.like)
    ids = made.sequences[0]
    assert kl_full(tiny.forward(stored, made.like, ids), made.engine.logits(ids)).max() < 1e-6


@ALL_MODELS
def test_logits_have_structure(name: str, original: Originals) -> None:
    made = original(name)
    logits = made.engine.logits(made.sequences[0]).astype(np.float64)
    assert tiny.entropy(logits) < 0.5 * math.log(made.like.vocab)


# -- parity


@ALL_MODELS
@ALL_FORMATS
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_parity(name: str, container: Container, bits: int, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    found = made.check(made.write(container, bits, tmp_path / "out"))
    print(f"{name} {container} {bits}: export {found.full_precision_kl:.1e}, activations {found.activation_kl:.1e}")
    assert 0 <= found.full_precision_kl < 1e-4
    assert 0 < found.activation_kl <= parity.ACTIVATION_LIMIT, "int8 activations always cost something"


@ALL_MODELS
@pytest.mark.parametrize("bits", [4, 3])
def test_activation_cost_is_that_of_activations(name: str, bits: int, original: Originals, tmp_path: Path) -> None:
    """With float activations nothing is left of it: the artefact computes with exactly the weights it stores."""
    made = original(name)
    built = made.write("onnx", bits, tmp_path / "out")
    model = onnx.load(str(built.path), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0 if node.domain == "edgekit" else 1  # float32
    built.path.write_bytes(model.SerializeToString())
    found = made.check(built)
    print(f"{name} onnx {bits}: float activations {found.activation_kl:.1e}")
    assert found.activation_kl < 1e-8


@ALL_FORMATS
def test_weights_are_put_back_after_the_comparison(container: Container, original: Originals, tmp_path: Path) -> None:
    made = original("tied")
    before = made.engine.logits(made.sequences[0])
    made.check(made.write(container, 3, tmp_path / "out"))
    np.testing.assert_array_equal(made.engine.logits(made.sequences[0]), before)


# -- official readers


@ALL_MODELS
def test_gguf_in_the_official_reader_and_llama_cpp(name: str, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    path = made.write("gguf", 4, tmp_path / "out").path
    reader = GGUFReader(path)
    names = {tensor.name for tensor in reader.tensors}
    assert ("output.weight" in names) == (not made.like.tied), "a tied embedding is stored once"
    assert ("rope_freqs.weight" in names) == made.like.llama3_rope
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.freq_base"].contents() == made.like.theta
    assert reader.fields["llama.attention.head_count_kv"].contents() == made.like.kv_heads
    engine = LlamaCppEngine(path, context=LENGTH)
    assert (engine.vocab_size, engine.max_context) == (made.like.vocab, LENGTH)
    engine.close()


@ALL_MODELS
def test_onnx_in_the_checker_and_onnxruntime(name: str, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    built = made.write("onnx", 4, tmp_path / "out")
    assert {path.name for path in built.path.parent.iterdir()} >= {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not (built.path.parent / "check.onnx").exists()
    shipped, source = (folder / "tokenizer.json" for folder in (built.path.parent, made.checkpoint.root))
    assert shipped.read_bytes() == source.read_bytes(), "the original's rules, not what a library made of them"
    model = onnx.load(str(built.path), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert "MatMul" not in kinds, "every matrix is quantized"
    assert (model.producer_name, model.producer_version) == ("edgekit", __version__), "nothing of the folder it ran in"
    assert kinds.count("GatherBlockQuantized") == 1
    big = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    assert not [key for key in big if "embed" in key and not key.endswith("scales")], "no embedding in full precision"
    session = ort.InferenceSession(str(built.path), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"


def test_scales_are_widened_once_and_not_for_every_token(original: Originals, tmp_path: Path) -> None:
    built = original("tied").write("onnx", 4, tmp_path / "out")
    written = onnx.load(str(built.path), load_external_data=False)
    scales = {t.name for t in written.graph.initializer if t.name.endswith(".scales")}
    kinds = {t.name: t.data_type for t in written.graph.initializer}
    assert {kinds[name] for name in scales} == {onnx.TensorProto.FLOAT16}
    assert not widened_at_run_time(built.path, scales, tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert widened_at_run_time(built.path, scales, tmp_path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL) == len(scales)


def widened_at_run_time(path: Path, scales: set[str], folder: Path, level: Any) -> int:
    """How many of the scales onnxruntime still widens in the graph that it runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(folder / "optimized.onnx"), load_external_data=False).graph.node
    return sum(node.op_type == "Cast" and node.input[0] in scales for node in nodes)


def test_tied_embedding_is_stored_once_in_onnx(original: Originals, tmp_path: Path) -> None:
    """Head and lookup read the same bytes of the data file."""
    model = onnx.load(str(original("tied").write("onnx", 4, tmp_path / "out").path), load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    lookup = next(node for node in model.graph.node if node.op_type == "GatherBlockQuantized")
    head = next(node for node in model.graph.node if "lm_head" in node.name)
    assert head.op_type == "MatMulNBits"
    assert places[lookup.input[0]] == places[head.input[1]]
    assert lookup.input[2] == head.input[2], "and the same scales"


@pytest.mark.parametrize(("name", "bits"), [("tied", 4), ("untied", 8), ("sharded", 3)])
def test_genai_generates_what_our_engine_generates(name: str, bits: int, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    folder = made.write("onnx", bits, tmp_path / "out").path.parent
    genai_says_what_our_engine_says(folder, made.sequences[0][:12], 16)


# -- engines


@ALL_FORMATS
@pytest.mark.parametrize("name", ["tied", "llama3"])
def test_step_by_step_says_what_a_whole_pass_says(
    name: str, container: Container, original: Originals, tmp_path: Path
) -> None:
    """The cache, on every position: what `start` and `step` return are the rows of `logits`."""
    made = original(name)
    built = made.write(container, 8, tmp_path / "out")
    engine = LlamaCppEngine(built.path) if container == "gguf" else OrtEngine(built.path.parent)
    ids = made.sequences[0][:48]
    whole = engine.logits(ids)
    rows = [engine.start(ids[:20])] + [engine.step(int(token)) for token in ids[20:]]
    again = engine.start(ids[:20])
    engine.close()
    assert kl_full(whole[19:], np.stack(rows)).mean() < 2e-3, "other batch sizes round otherwise, no more"
    np.testing.assert_array_equal(again, rows[0], "a new start forgets the old sequence")


# -- same bytes every time


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@ALL_FORMATS
def test_two_builds_give_the_same_bytes(container: Container, original: Originals, tmp_path: Path) -> None:
    """All of it, the builder's graph too."""
    checkpoint = original("tied").checkpoint
    plan = choose(checkpoint.spec, load("rpi5"), container, 4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-scratch").mkdir()
        artefacts.write(checkpoint, plan, tmp_path / name, tmp_path / f"{name}-scratch", Quiet())
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


@ALL_FORMATS
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_large_matrices_in_pieces_give_the_same_bytes(
    container: Container, bits: int, original: Originals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = original("untied")
    made.write(container, bits, tmp_path / "whole")
    whole = Checkpoint.pieces
    monkeypatch.setattr(Checkpoint, "pieces", lambda self, tensor: whole(self, tensor, 1000))
    monkeypatch.setattr(gguf, "PIECE", 1000)
    monkeypatch.setattr(onnx_reading, "PIECE", 1000)
    largest = max((t for t in made.checkpoint.spec.tensors if t.rule.matrix), key=lambda t: t.parameters)
    assert len(list(made.checkpoint.pieces(largest))) > 30
    built = made.write(container, bits, tmp_path / "pieces")
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")
    artefacts.check_bytes(made.checkpoint, built, Quiet())


# -- negative controls


@ALL_FORMATS
def test_changed_rope_theta_is_caught(container: Container, original: Originals, tmp_path: Path) -> None:
    made = original("tied")
    wrong_spec = dataclasses.replace(made.checkpoint.spec, rope=Rope(2 * made.like.theta))
    forged = TinyOriginal(dataclasses.replace(made.checkpoint, spec=wrong_spec), made.like)
    built = forged.write(container, 8, tmp_path / "out")
    with pytest.raises(
        ParityError, match=rf"unquantized {container.upper()} export differs .*position \d+ \(token \d+\)"
    ):
        Checked(made, forged).check(built)


@dataclass(frozen=True)
class Checked:
    """An export judged by another original: the engine of one, the checkpoint that was written from the other."""

    truth: Original
    forged: Original

    def check(self, built: Built) -> None:
        sequences = self.truth.sequences
        artefacts.check_logits(self.forged.checkpoint, built, self.truth.engine, sequences, [], Quiet())


@pytest.mark.parametrize("order", ["rope_q", "rope_k"])
def test_rows_left_in_the_wrong_order_are_caught(
    order: str, original: Originals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows = original("untied"), gguf.file_rows
    monkeypatch.setattr(
        gguf, "file_rows", lambda weights, kind, spec: weights if kind == order else rows(weights, kind, spec)
    )
    built = made.write("gguf", 8, tmp_path / "out")
    with pytest.raises(ParityError, match="unquantized GGUF export differs"):
        made.check(built)


@ALL_FORMATS
def test_forgotten_rope_scaling_is_caught(container: Container, original: Originals, tmp_path: Path) -> None:
    made = original("llama3")
    unscaled = dataclasses.replace(made.checkpoint.spec, rope=Rope(made.like.theta))
    forged = TinyOriginal(dataclasses.replace(made.checkpoint, spec=unscaled), made.like)
    built = forged.write(container, 8, tmp_path / "out")
    with pytest.raises(ParityError, match=f"unquantized {container.upper()} export differs"):
        Checked(made, forged).check(built)


@pytest.mark.parametrize("victim", ["token_embd.weight", "blk.1.ffn_down.weight", "blk.0.attn_k.weight"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_altered_scale_in_gguf_is_caught(victim: str, bits: int, original: Originals, tmp_path: Path) -> None:
    made = original("sharded")
    built = made.write("gguf", bits, tmp_path / "out")
    stored = next(tensor for tensor in GGUFReader(built.path).tensors if tensor.name == victim)
    # A block of the legacy types begins with its float16 scale, one of the K-types ends with it.
    name = next(entry.grid for entry in built.plan.entries if entry.tensor.gguf == victim)
    size = {"Q8_0": 34, "IQ4_NL": 18, "Q4_0": 18, "Q6_K": 210, "Q3_K": 110, "Q5_K": 176}[name]
    place = int(stored.data_offset) + (size - 2 if name in ("Q6_K", "Q3_K") else 0)
    with built.path.open("r+b") as stream:
        stream.seek(place)
        scale = np.frombuffer(stream.read(2), np.float16)
        stream.seek(place)
        stream.write((scale * np.float16(1.01)).tobytes())
    with pytest.raises(ParityError, match=f"tensor {victim} does not decode to what was planned"):
        artefacts.check_bytes(made.checkpoint, built, Quiet())


@pytest.mark.parametrize(
    ("victim", "culprit"),
    [
        ("embed", "model.embed_tokens.weight"), ("layers.1.ffn_down", "model.layers.1.mlp.down_proj.weight"),
        ("layers.0.attn_qkv", "model.layers.0.self_attn.q_proj.weight"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["scales", "codes"])
def test_altered_scale_or_code_in_onnx_is_caught(
    victim: str, culprit: str, what: str, original: Originals, tmp_path: Path
) -> None:
    made = original("tied")
    built = made.write("onnx", 4, tmp_path / "out")
    model = onnx.load(str(built.path), load_external_data=False)
    kinds = ("GatherBlockQuantized", "MatMulNBits")
    node = next(node for node in model.graph.node if node.op_type in kinds and victim in node.name.replace("/", "."))
    widened = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    name = widened[node.input[2]] if what == "scales" else node.input[kinds.index(node.op_type)]
    tensor = next(t for t in model.graph.initializer if t.name == name)
    place = int(next(e.value for e in tensor.external_data if e.key == "offset"))
    with built.path.with_name(DATA).open("r+b") as stream:
        stream.seek(place)
        old = stream.read(4)
        new = (
            (np.frombuffer(old, np.float16) * np.float16(1.002)).tobytes() if what == "scales" else bytes([old[0] ^ 1])
        )
        stream.seek(place)
        stream.write(new)
    with pytest.raises(ParityError, match=f"tensor {culprit} does not decode to what was planned"):
        artefacts.check_bytes(made.checkpoint, built, Quiet())


def test_engine_that_runs_other_weights_is_caught(original: Originals, tmp_path: Path) -> None:
    """The activation cost is measured against the file's own weights: those of another file are a fault."""
    made = original("tied")
    built = made.write("gguf", 8, tmp_path / "eight")
    other = made.write("gguf", 3, tmp_path / "three")
    mixed = dataclasses.replace(built, path=other.path.rename(tmp_path / "mixed.gguf"))
    shutil.copy(built.path, other.path)
    good = made.check(built)
    assert good.activation_kl < parity.ACTIVATION_LIMIT

    class Swapped(Built):
        def weights(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
            return built.weights(checkpoint)

    forged = Swapped(mixed.plan, mixed.path, mixed.full_precision, mixed.planned)
    with pytest.raises(ParityError, match="differs from its own weights"):
        artefacts.check_logits(made.checkpoint, forged, made.engine, made.sequences, [], Quiet())
