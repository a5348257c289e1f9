"""Block-wise training: a block comes closer to its twin, in codes and steps that its format can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tiny_families  # noqa: E402

from edgekit.checkpoint.checkpoint import Checkpoint  # noqa: E402
from edgekit.checkpoint.source import resolve  # noqa: E402
from edgekit.dispersion.blockwise import Settings, Trained, train_block  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.errors import BadWeightsError, OptionError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.quantize.blocks import Blocks  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["llama-biases", "qwen3", "gemma3", "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TorchEngine]:
    folder = tiny_families.make(tmp_path_factory.mktemp("blockwise") / "model", request.param)
    return resolve(str(folder)), TorchEngine(folder)


def sequences(count: int = 8) -> list[Any]:
    return [np.random.default_rng(seed).integers(3, tiny_families.VOCAB, 24) for seed in range(count)]


def trained(
    family: tuple[Checkpoint, TorchEngine], settings: Settings, grid: str = "int3-sym-b32", layers: int = 1
) -> list[Trained]:
    checkpoint, engine = family
    blocks, twins = (Blocks(engine.module, checkpoint.spec, sequences()) for _ in range(2))
    found = []
    for layer in range(layers):
        tensors = {t.hf: t for t in checkpoint.spec.tensors if t.layer == layer and t.rule.kind == "linear"}
        start = {name: get(grid).quantize(checkpoint.read(tensor)) for name, tensor in tensors.items()}
        read = {name: checkpoint.read(tensor) for name, tensor in tensors.items()}
        found.append(train_block(blocks, twins, layer, start, read.__getitem__, settings))
    return found


@pytest.mark.parametrize("grid", ["int3-sym-b32", "Q4_0", "IQ4_NL"])
def test_blocks_come_closer_to_their_twins_and_the_model_stays_as_it_was(
    family: tuple[Checkpoint, TorchEngine], grid: str
) -> None:
    _, engine = family
    before = engine.logits(sequences()[0])
    for found in trained(family, Settings(iterations=60), grid, layers=2):
        assert found.after < 0.9 * found.before
        for matrix in found.matrices.values():
            known = get(grid)
            again = known.unpack(known.pack(matrix), matrix.shape)
            np.testing.assert_array_equal(known.dequantize(again), known.dequantize(matrix))
    np.testing.assert_array_equal(engine.logits(sequences()[0]), before)


def test_the_same_seed_gives_the_same(family: tuple[Checkpoint, TorchEngine]) -> None:
    one, two = (trained(family, Settings(iterations=6, batch=2))[0] for _ in range(2))
    other = trained(family, Settings(iterations=6, batch=2, seed=1))[0]
    assert one.after == two.after
    assert one.after != other.after


def test_what_is_no_better_is_not_taken(family: tuple[Checkpoint, TorchEngine]) -> None:
    (found,) = trained(family, Settings(iterations=2, rate=50.0, step_rate=0.0))
    assert found.after == found.before


def test_an_error_that_is_no_number_is_told(
    family: tuple[Checkpoint, TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "output", lambda self, _layer, number, _weights: self._states[number] * torch.nan)
    with pytest.raises(BadWeightsError, match="NaN or infinite"):
        trained(family, Settings(iterations=2))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"rate": -1.0}, {"step_rate": float("nan")}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Settings(**wrong)
