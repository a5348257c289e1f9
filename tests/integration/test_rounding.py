"""--effort good: blocks are rounded one by one, engines run those codes, the model is closer to its original."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import tiny_families  # noqa: E402

from edgekit import api, rounding  # noqa: E402
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from edgekit.coherence.distribution import kl_full  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.errors import BadWeightsError, OptionError, TextError, UnknownArchitectureError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.options import Container, Effort, Options  # noqa: E402
from edgekit.quantize import rounding as block_rounding  # noqa: E402
from edgekit.quantize.blocks import Blocks, inputs_of  # noqa: E402
from edgekit.quantize.curvature import token_weights  # noqa: E402
from edgekit.quantize.rounded import Place, Rounded, load, save  # noqa: E402
from edgekit.quantize.rounding import round_output, second_moment  # noqa: E402

pytestmark = pytest.mark.integration

FAMILIES = ("llama-biases", "qwen2", "qwen3", "smollm3", "gemma3", "gpt2")


def _sequences(vocab: int, count: int = 3, length: int = 40, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, vocab, size=length) for _ in range(count)]


def _linear(checkpoint: Checkpoint, layer: int | None = None) -> list[str]:
    tensors = checkpoint.spec.tensors
    return [t.hf for t in tensors if t.rule.kind == "linear" and (layer is None or t.layer == layer)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TorchEngine]:
    folder = tiny_families.make(tmp_path_factory.mktemp(request.param) / "model", request.param)
    checkpoint = open_checkpoint(folder)
    return checkpoint, TorchEngine(folder)


def test_blocks_one_by_one_say_what_the_model_says(family: tuple[Checkpoint, TorchEngine]) -> None:
    """Masks, windows and positions of every layer arrive, sequences of different lengths included."""
    checkpoint, engine = family
    sequences = [*_sequences(tiny_families.VOCAB), *_sequences(tiny_families.VOCAB, 1, 23)]
    blocks = Blocks(engine.module, checkpoint.spec, sequences)
    last = checkpoint.spec.layers - 1
    for layer in range(last):
        blocks.advance(layer)
    name = _linear(checkpoint, last)[0]
    heard: list[Any] = []
    module = dict(engine.module.named_modules())[name.removesuffix(".weight")]
    hook = module.register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0].flatten(0, -2)))
    for ids in sequences:
        engine.logits(ids)
    hook.remove()
    torch.testing.assert_close(blocks.inputs(last, name), torch.cat(heard), rtol=1e-4, atol=1e-4)


def test_layers_that_read_the_same_input_are_found(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, engine = family
    groups = Blocks(engine.module, checkpoint.spec, _sequences(tiny_families.VOCAB)).groups(0)
    assert sorted(name for group in groups for name in group) == sorted(_linear(checkpoint, 0))
    assert all(len(group) <= 3 for group in groups)
    if checkpoint.spec.family.name != "gpt2":
        assert sorted(map(len, groups)) == [1, 1, 2, 3], groups


def test_weights_are_put_back(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, engine = family
    ids = _sequences(tiny_families.VOCAB)
    before = engine.logits(ids[0])
    blocks = Blocks(engine.module, checkpoint.spec, ids)
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors}
    grids = dict.fromkeys(_linear(checkpoint, 0), "int3-sym-b32")
    found = block_rounding.round_block(blocks, 0, grids, lambda name: checkpoint.read(tensors[name]), {})
    assert found.keys() == grids.keys()
    np.testing.assert_array_equal(engine.logits(ids[0]), before)


def test_a_block_is_closer_when_its_codes_are_learned(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, engine = family
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors}
    grids = dict.fromkeys(_linear(checkpoint, 0), "int3-sym-b32")
    errors = []
    for iterations in (0, 300):
        blocks = Blocks(engine.module, checkpoint.spec, _sequences(tiny_families.VOCAB))
        targets = blocks.outputs(0)
        found = block_rounding.round_block(
            blocks, 0, grids, lambda name: checkpoint.read(tensors[name]), {}, iterations
        )
        again = Blocks(engine.module, checkpoint.spec, _sequences(tiny_families.VOCAB))
        with again.borrowed(0):
            for name, matrix in found.items():
                again.put(0, name, get(matrix.grid).dequantize(matrix))
            said = again.outputs(0)
        errors.append(sum(float((one - other).square().sum()) for one, other in zip(said, targets, strict=True)))
    assert errors[1] < 0.9 * errors[0]


def test_every_token_has_a_weight(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, engine = family
    sequences = _sequences(tiny_families.VOCAB)
    before = engine.logits(sequences[0])
    names = _linear(checkpoint)
    found = token_weights(engine.module, names, sequences, 0, lambda _done, _total: None)
    assert found.keys() == set(names)
    for weights in found.values():
        assert weights.shape == (sum(map(len, sequences)),)
        assert weights.min() >= 0
        assert weights.mean() == pytest.approx(1, rel=1e-4)
    again = token_weights(engine.module, names, sequences, 0, lambda _done, _total: None)
    assert all(np.array_equal(found[name], again[name]) for name in names)
    np.testing.assert_array_equal(engine.logits(sequences[0]), before)
    assert all(parameter.requires_grad for parameter in engine.module.parameters())


def test_nan_activations_name_the_layer(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, engine = family
    blocks = Blocks(engine.module, checkpoint.spec, _sequences(tiny_families.VOCAB))
    names = _linear(checkpoint, 0)
    first, last = blocks.groups(0)[0][0], blocks.groups(0)[-1][0]
    with blocks.borrowed(0):
        tensor = next(t for t in checkpoint.spec.tensors if t.hf == first)
        for name in names:
            shape = next(t.shape for t in checkpoint.spec.tensors if t.hf == name)
            if name == first:
                blocks.put(0, name, np.full(tensor.shape, np.nan, np.float32))
            else:
                blocks.put(0, name, np.ones(shape, np.float32))
        with pytest.raises(BadWeightsError, match=last):
            blocks.inputs(0, last)


def test_a_model_without_a_list_of_blocks_is_refused(family: tuple[Checkpoint, TorchEngine]) -> None:
    checkpoint, _ = family
    with pytest.raises(UnknownArchitectureError, match="no list of"):
        Blocks(torch.nn.Linear(2, 2), checkpoint.spec, _sequences(tiny_families.VOCAB))


@pytest.mark.parametrize(("grid", "tied"), [("IQ4_NL", True), ("int4-sym-b32", False)])
def test_the_output_matrix_says_more_of_what_it_said(
    family: tuple[Checkpoint, TorchEngine], grid: str, tied: bool
) -> None:
    checkpoint, engine = family
    embedding = next(t for t in checkpoint.spec.tensors if t.rule.kind == "embedding")
    own = checkpoint.read(embedding)
    text, fresh = _sequences(tiny_families.VOCAB, 60), _sequences(tiny_families.VOCAB, 4, seed=1)
    name = engine.output_layer()
    assert name is not None
    inputs = inputs_of(engine.module, name, text)
    weights = token_weights(engine.module, [name], text, 0, lambda _done, _total: None)[name]
    importance = second_moment(inputs, None).diagonal().copy()
    heard = inputs_of(engine.module, name, fresh).numpy()
    kl = [
        kl_full(heard @ own.T, heard @ get(grid).dequantize(found).T).mean()
        for found in (get(grid).quantize(own, importance), round_output(inputs, weights, grid, own, tied=tied))
    ]
    assert kl[1] < kl[0]


def test_rounded_matrices_come_back_bit_for_bit(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
    grids = {"a.weight": "Q3_K", "a.b.weight": "int4-asym-b32", "c": "IQ4_NL"}
    made = {name: get(grid).quantize(weights) for name, grid in grids.items()}
    file = tmp_path / "codes.safetensors"
    save(made, file, {"a.weight": {"GPTQ": 5, "own": 1}, "a.b.weight": {"learned": 6}, "c": {"own": 6}})
    for name, grid in grids.items():
        found = load(name, Place(file, grid, (6, 256)))
        assert found.grid == grid
        assert found.fields.keys() == made[name].fields.keys()
        assert all(np.array_equal(found.fields[part], made[name].fields[part]) for part in found.fields)
    assert Rounded().load("a.weight") is None
    places = {name: Place(file, grid, (6, 256)) for name, grid in grids.items()}
    shapes = [(name, (6, 256)) for name in grids]
    assert Rounded(places).shares([*shapes, ("not rounded", (6, 512))]) == {
        "own": (1 + 6 + 12) / 30, "learned": 6 / 30, "GPTQ": 5 / 30
    }  # fmt: skip


# -- builds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("good") / "model", "llama-576")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model needs little text."""
    monkeypatch.setattr(rounding, "SEQUENCES", {"good": 12, "best": 12})
    monkeypatch.setattr(rounding, "LENGTH", 64)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_a_build_comes_closer_to_the_original(container: Container, model: Path, tmp_path: Path) -> None:
    """Parity checks of the build have compared bytes and logits: the engine runs the codes that were found."""
    kl = {}
    for effort in ("fast", "good"):
        options = Options(formats=(container,), asked=True, effort=effort, sequences=8, length=48)
        built = api.build(model, output=tmp_path / effort, options=options)
        (artefact,) = built.report.artefacts
        kl[effort] = artefact.coherence.kl_mean
        assert sum(artefact.codes.values()) == pytest.approx(1)
        assert ("GPTQ" in artefact.codes) == (effort == "good")
    assert kl["good"] < 0.9 * kl["fast"]


@pytest.mark.usefixtures("short")
def test_a_killed_build_goes_on_at_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_families.make(tmp_path / "model", "qwen2")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    options = Options(formats=("gguf",), asked=True, effort="good", sequences=4, length=32)
    whole = api.build(model, output=tmp_path / "whole", options=Options(**{**vars(options), "cache": False}))
    rounded: list[int] = []
    own = block_rounding.round_block

    def stop_at_one(blocks: Blocks, layer: int, *rest: object) -> object:
        if layer == 1 and not rounded.count(1) and not stop.done:
            stop.done = True
            raise KeyboardInterrupt
        rounded.append(layer)
        return own(blocks, layer, *rest)  # type: ignore[arg-type]

    stop = SimpleNamespace(done=False)
    monkeypatch.setattr(block_rounding, "round_block", stop_at_one)
    with pytest.raises(KeyboardInterrupt):
        api.build(model, output=tmp_path / "out", options=options)
    assert rounded == [0]
    resumed = api.build(model, output=tmp_path / "out", options=options)
    assert rounded == [0, 1]
    file = "gguf/model.gguf"
    assert (resumed.bundle / file).read_bytes() == (whole.bundle / file).read_bytes()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("effort", "words"), [("good", "GPTQ"), ("best", "learned rounding")])
def test_both_formats_without_a_cache(
    effort: Effort, words: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rounding._ITERATIONS, "best", 12)
    options = Options(effort=effort, sequences=4, length=32, cache=False)
    built = api.build(model, output=tmp_path / "out", options=options)
    assert [artefact.format for artefact in built.report.artefacts] == ["gguf", "onnx"]
    assert words in built.report.calibration


def test_the_same_text_twice_is_refused(model: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("word " * 3000, encoding="utf8")
    options = Options(text=tmp_path / "a.txt", calibration_text=tmp_path / "b.txt")
    with pytest.raises(OptionError, match="the same text"):
        api.build(model, output=tmp_path / "out", options=options)


def test_a_family_of_somebody_elses_converter_contradicts_it(model: Path, tmp_path: Path) -> None:
    options = Options(formats=("gguf",), asked=True, effort="good", llama_cpp=tmp_path)
    with pytest.raises(OptionError, match="another tool converts"):
        api.build(model, output=tmp_path / "out", options=options)


def test_no_calibration_contradicts_it(model: Path, tmp_path: Path) -> None:
    options = Options(formats=("gguf",), asked=True, effort="good", calibrate=False, sequences=4, length=32)
    with pytest.raises(OptionError, match="--no-calibration"):
        api.build(model, output=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_too_short_a_calibration_text_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("word " * 300, encoding="utf8")
    options = Options(
        formats=("gguf",), asked=True, effort="good", sequences=4, length=32, calibration_text=tmp_path / "text.txt"
    )
    with pytest.raises(TextError, match="tokens"):
        api.build(model, output=tmp_path / "out", options=options)
