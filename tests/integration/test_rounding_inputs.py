"""--effort good on inputs that are unlike the usual: too large, dead, of a short context; and on no proper text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import tiny_families  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from edgekit import api, building, targets  # noqa: E402
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.errors import BadWeightsError, GridError, OptionError, TextError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.grids.base import Quantized  # noqa: E402
from edgekit.options import Options  # noqa: E402
from edgekit.progress import Quiet  # noqa: E402
from edgekit.quantize.blocks import Blocks  # noqa: E402
from edgekit.quantize.choose import choose  # noqa: E402
from edgekit.quantize.gptq import output_error  # noqa: E402
from edgekit.quantize.importance import gather  # noqa: E402
from edgekit.quantize.rounding import naming, round_block, second_moment  # noqa: E402
from edgekit.rounding import rounded  # noqa: E402

pytestmark = pytest.mark.integration

F32 = NDArray[np.float32]
MADE = tiny.Tiny(dtype="f32", ffn=96)
LAYER = "model.layers.0."
UP, DOWN, GATE = (f"{LAYER}mlp.{name}_proj.weight" for name in ("up", "down", "gate"))
NORM = f"{LAYER}input_layernorm.weight"


def changed(folder: Path, **changes: Any) -> tuple[Checkpoint, TorchEngine]:
    """The tiny checkpoint with some tensors replaced; `changes` are by the end of the name."""
    weights = dict(tiny.weights(MADE))
    for name, change in changes.items():
        weights[name] = change(weights[name].copy())
    root = tiny.make(folder / "model", MADE)
    (root / "model.safetensors").unlink()
    tiny.write_weights(root, weights, MADE)
    return open_checkpoint(root), TorchEngine(root)


def block_of(checkpoint: Checkpoint, engine: TorchEngine, grid: str, **own: F32) -> dict[str, Quantized]:
    """The first block rounded; `own` replaces what is read of a tensor."""
    sequences = [np.random.default_rng(seed).integers(3, MADE.vocab, size=40) for seed in range(4)]
    tensors = {t.hf: t for t in checkpoint.spec.tensors if t.layer == 0 and t.rule.kind == "linear"}
    blocks = Blocks(engine.module, checkpoint.spec, sequences)
    return round_block(
        blocks, 0, dict.fromkeys(tensors, grid), lambda name: own.get(name, checkpoint.read(tensors[name])), {}
    )


# --- statistics ------------------------------------------------------------------------------------------------------


def test_a_moment_that_overflows_names_the_layer(tmp_path: Path) -> None:
    """Activations of 1e20 are finite, their squares are not."""
    checkpoint, engine = changed(tmp_path, **{NORM: lambda norm: norm * np.float32(1e20)})
    with pytest.raises(BadWeightsError, match=r"0\.self_attn\.q_proj\.weight: the second moment .* magnitude .*e\+20"):
        block_of(checkpoint, engine, "Q4_0")


def test_weights_that_are_nan_name_the_layer(tmp_path: Path) -> None:
    checkpoint, engine = changed(tmp_path)
    bad = checkpoint.read(next(t for t in checkpoint.spec.tensors if t.hf == DOWN)).copy()
    bad[3, 5] = np.nan
    with pytest.raises(BadWeightsError, match=rf"{DOWN}: the weights hold NaN"):
        block_of(checkpoint, engine, "Q4_0", **{DOWN: bad})


def test_a_name_is_said_once() -> None:
    with pytest.raises(GridError, match=r"^here: a matrix; expected another\.$"), naming("here"):
        raise GridError("a matrix.", expected="another")
    with pytest.raises(BadWeightsError, match=r"^here is a NaN\.$"), naming("here"):
        raise BadWeightsError("here is a NaN")


@pytest.mark.parametrize("weighed", [False, True])
def test_the_moment_of_long_text_is_that_of_its_parts(weighed: bool) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(5000, 12)).astype(np.float32)
    weights = random.exponential(size=5000).astype(np.float32) if weighed else None
    expected = (inputs * (1 if weights is None else weights[:, None])).T.astype(np.float64) @ inputs / 5000
    np.testing.assert_allclose(second_moment(torch.from_numpy(inputs), weights), expected, rtol=1e-4, atol=1e-5)


# --- dead channels ---------------------------------------------------------------------------------------------------


def _dead(weights: F32) -> F32:
    weights[::3] = 0
    return weights


@pytest.mark.parametrize("grid", ["Q4_0", "IQ4_NL", "int4-asym-b32", "int3-sym-b32"])
@pytest.mark.parametrize("tensor", [NORM, UP, GATE], ids=["norm", "up", "all of gate"])
def test_inputs_that_are_always_zero_do_no_harm(grid: str, tensor: str, tmp_path: Path) -> None:
    """A third of the inputs of q, k and v; of down; all of down's. What is alive is rounded as well as ever."""
    checkpoint, engine = changed(tmp_path, **{tensor: np.zeros_like if tensor == GATE else _dead})
    reader = "self_attn.q_proj.weight" if tensor == NORM else "mlp.down_proj.weight"
    sequences = [np.random.default_rng(seed).integers(3, MADE.vocab, size=40) for seed in range(4)]
    importance = gather(engine, checkpoint.spec, sequences)[f"{LAYER}{reader}"]
    assert (importance == 0).sum() >= importance.size // 3
    found = block_of(checkpoint, engine, grid)
    assert all(np.isfinite(get(grid).dequantize(matrix)).all() for matrix in found.values())

    name = f"{LAYER}{reader}"
    weights = checkpoint.read(next(t for t in checkpoint.spec.tensors if t.hf == name))
    moment = second_moment(Blocks(engine.module, checkpoint.spec, sequences).inputs(0, name), None)
    nearest = get(grid).dequantize(get(grid).quantize(weights, importance))
    assert np.isfinite(nearest).all()
    own = get(grid).dequantize(found[name])
    assert output_error(weights, own, moment) <= 1.1 * output_error(weights, nearest, moment)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_text_is_never_longer_than_the_context(family: str, tmp_path: Path) -> None:
    """64 tokens: a model with learned positions would fail at the 65th."""
    checkpoint = open_checkpoint(tiny_families.make(tmp_path / "model", family, context=64))
    options = Options(effort="good", cache=False)
    plan = choose(checkpoint.spec, targets.load("rpi5"), "gguf", 4)
    steps: list[str] = []

    class Heard(Quiet):
        def step(self, title: str) -> Any:
            steps.append(title)
            return super().step(title)

    with building.apart(checkpoint, options, Heard()) as work:
        found, digest = rounded(work, plan, None)
    assert found.places.keys() >= {t.hf for t in checkpoint.spec.tensors if t.rule.kind == "linear"}
    assert digest is not None
    assert "text: the full-precision model writes 48 × 64 tokens" in steps


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\x7fELF\x02\x01\x01\x00" * 4000, "control characters"),
        (b"caf\xe9 " * 4000, "not UTF-8"),
        (b"word " * 100, r"has only \d+ tokens; expected at least"),
    ],
    ids=["empty", "blank", "binary", "latin-1", "short"],
)
def test_a_calibration_text_that_is_none(data: bytes, message: str, tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", tiny.Tiny())
    (tmp_path / "text.txt").write_bytes(data)
    (tmp_path / "judged.txt").write_text("the kettle sings\n" * 2000, encoding="utf8")
    options = Options(
        formats=("gguf",), asked=True, effort="good", cache=False, text=tmp_path / "judged.txt",
        calibration_text=tmp_path / "text.txt",
    )  # fmt: skip
    with pytest.raises(TextError, match=message):
        api.build(model, output=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_context_too_short_for_the_prompts_is_refused_in_one_sentence(tmp_path: Path) -> None:
    model = tiny_families.make(tmp_path / "model", "gpt2", context=64)
    with pytest.raises(OptionError, match=r"a sequence of \d+ tokens does not fit into the context"):
        api.build(model, output=tmp_path / "out", options=Options(formats=("gguf",), asked=True, cache=False))
