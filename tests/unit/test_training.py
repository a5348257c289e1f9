"""Training tiny models: what comes out, what is refused, what an interrupted run goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny
import tiny_families
import tiny_tokenizers
from tiny import Tiny

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from edgekit import api
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.errors import (
    CorruptCheckpointError,
    EdgekitError,
    GridError,
    InputNotFoundError,
    OptionError,
    OutOfMemoryError,
    OutputExistsError,
    TextError,
    TrainingError,
)
from edgekit.grids import get
from edgekit.progress import Advance, Quiet
from edgekit.quantize import trained
from edgekit.quantize.rounded import load
from edgekit.training import loop
from edgekit.training.averages import Average
from edgekit.training.objective import Measure, cross_entropy, divergence
from edgekit.training.passes import fitting, refuse_divergence, refuse_infinite, refuse_nan, without_dropout
from edgekit.training.recipe import Average as Kind
from edgekit.training.recipe import Blockwise, EndToEnd, Objective, Recipe
from edgekit.training.record import RUN, Point, Run

SIZES = Tiny(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=384)
STEPS = Recipe(
    grid="int3", length=32, blockwise=Blockwise(sequences=8, iterations=4), end_to_end=EndToEnd(train="steps", steps=6)
)
ALL = Recipe(grid="int4", length=32, end_to_end=EndToEnd(steps=6, code_rate=0.02))
PLAIN = Recipe(
    length=32, objective=Objective(cross_entropy=1, distillation=0.5, dispersion=0.5),
    end_to_end=EndToEnd(steps=6, learning_rate=1e-3, weight_decay=0.1),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("training") / "model", SIZES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(tiny_tokenizers.SENTENCES * 40))
    return str(path)


def weights(folder: Path) -> dict[str, Any]:
    found = open_checkpoint(folder)
    return {tensor.hf: values for tensor, values in found.tensors()}


def same(one: Path, other: Path) -> bool:
    mine, yours = weights(one), weights(other)
    return mine.keys() == yours.keys() and all(np.array_equal(mine[name], yours[name]) for name in mine)


class Killed(BaseException):
    """As sudden as a signal."""


class Killing(Quiet):
    """Kills the training when the whole model has been trained for so many steps."""

    def __init__(self, after: int) -> None:
        self._after = after

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""

        def advance(done: int, _total: int) -> None:
            if title == "train the whole model" and done > self._after:
                raise Killed

        yield advance


# -- bad input


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"": {"grid": "Q3_K"}}, GridError, "cannot be on Q3_K"),
        ({"": {"grid": "IQ3_S"}}, GridError, "no code of its own for each weight"),
        ({"": {"grid": "F16"}}, GridError, "no code of its own for each weight"),
        ({"": {"grid": "int33"}}, GridError, "not a number format; expected"),
        ({"objective": {"loss": "spread", "dispersion": 1.0}}, OptionError, "no dispersion loss spread"),
        ({"objective": {"layers": "most", "dispersion": 1.0}}, OptionError, "most of 2 layers"),
        ({"": {"seed": 1 << 44}}, OptionError, "seed is 17592186044416"),
        ({"end_to_end": {"learning_rate": 1e38}}, OptionError, r"learning_rate is 1e\+38"),
    ],
)
def test_settings_that_cannot_be(
    model: Path, corpus: str, tmp_path: Path, change: Any, kind: type[EdgekitError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL, changes=change)
    assert not (tmp_path / "out").exists()


def test_text_that_is_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(TextError):
        api.disperse(model, tmp_path / "out", text=[str(tmp_path / "short.txt")], recipe=ALL)
    with pytest.raises(InputNotFoundError):
        api.disperse(model, tmp_path / "out", text=[str(tmp_path / "none.txt")], recipe=ALL)


def test_an_output_that_is_there(model: Path, corpus: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL)


def test_a_rate_that_makes_nan(model: Path, corpus: str, tmp_path: Path) -> None:
    """Nothing at the output; a second call with another rate is told what differs, and may begin anew."""
    out = tmp_path / "out"
    wild = {"end_to_end": {"learning_rate": 1e30, "clip": 0.0, "warmup": 0.0}}
    with pytest.raises(TrainingError, match=r"NaN or infinite in step \d \((cross_entropy|distillation|dispersion)"):
        api.disperse(model, out, text=[corpus], recipe=PLAIN, changes=wild)
    assert not out.exists()
    with pytest.raises(OptionError, match=r"end_to_end.learning_rate: 1e\+30, now 0.001.*--restart"):
        api.disperse(model, out, text=[corpus], recipe=PLAIN)
    api.disperse(model, out, text=[corpus], recipe=PLAIN, restart=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_weights_that_are_nan_are_not_kept() -> None:
    refuse_infinite({"norm.weight": torch.tensor([1.0, 2.0])}, 3)
    with pytest.raises(TrainingError, match=r"norm.weight is NaN or infinite after 3 steps"):
        refuse_infinite({"norm.weight": torch.tensor([1.0, float("nan")])}, 3)


def test_dropout_is_off() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64)
    model = GPT2LMHeadModel(config)
    parent = GPT2LMHeadModel(config).eval()
    parent.load_state_dict(model.state_dict())
    without_dropout(model.train())
    loss = Measure(Objective(), parent)(model, torch.arange(32)[None], torch.Generator())
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-6)


def test_the_same_text_twice_is_read_once(model: Path, corpus: str, tmp_path: Path) -> None:
    once = api.disperse(model, tmp_path / "once", text=[corpus], recipe=ALL)
    twice = api.disperse(model, tmp_path / "twice", text=[corpus, corpus], recipe=ALL)
    assert once.text == twice.text


def test_a_loss_that_climbs() -> None:
    def points(*losses: float) -> list[Point]:
        return [Point(step=1, tokens=1, seconds=1.0, rate=1.0, loss=loss, parts={}) for loss in losses]

    refuse_divergence(points(9.0, *[3.0] * 30))
    refuse_divergence(points(*[0.1] * 10, *[0.4] * 10))
    with pytest.raises(TrainingError, match="the loss was 3 in its first 10 steps and is 7 now"):
        refuse_divergence(points(*[3.0] * 10, *[7.0] * 10))


def test_the_part_that_is_nan() -> None:
    refuse_nan({"distillation": 1.0}, 0)
    with pytest.raises(TrainingError, match=r"in step 3 \(dispersion\)"):
        refuse_nan({"distillation": 1.0, "dispersion": float("inf")}, 2)


def test_a_batch_that_fits() -> None:
    def run(most: int) -> Any:
        def forward(batch: int) -> int:
            if batch > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
            return batch

        return forward

    assert fitting(16, run(16)) == 16
    with pytest.raises(OutOfMemoryError, match="a batch of 4, which does — give --batch 4 --accumulate 4"):
        fitting(16, run(7))
    with pytest.raises(OutOfMemoryError, match="not fit either — give --gradient-checkpointing"):
        fitting(16, run(0))


# -- what comes out


@pytest.mark.parametrize("recipe", [STEPS, ALL], ids=["steps", "all"])
def test_on_a_grid(model: Path, corpus: str, tmp_path: Path, recipe: Recipe) -> None:
    """The folder's weights are the codes' values to the last bit, and nearer to the parent than nearest rounding."""
    out = tmp_path / "out"
    run = api.disperse(model, out, text=[corpus], recipe=recipe)
    found = open_checkpoint(out)
    places = trained.places(found)
    linear = [t for t in found.spec.tensors if t.rule.kind == "linear" and t.layer is not None]
    assert places.keys() == {tensor.hf for tensor in linear}
    for tensor in linear:
        matrix = load(tensor.hf, places[tensor.hf])
        assert matrix.grid == run.recipe.grid
        assert np.array_equal(get(matrix.grid).dequantize(matrix), found.read(tensor))
    before, own = weights(model), weights(out)
    assert np.array_equal(own["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not np.array_equal(own["model.norm.weight"], before["model.norm.weight"])
    assert run.held_out[-1].kl < run.held_out[0].kl
    assert run.grids == {run.recipe.grid: len(linear)}
    assert [point.step for point in run.points] == [1, 2, 3, 4, 5, 6]
    assert msgspec.json.decode((out / RUN).read_bytes(), type=Run) == run
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_without_a_grid(model: Path, corpus: str, tmp_path: Path) -> None:
    run = api.disperse(model, tmp_path / "out", text=[corpus], recipe=PLAIN)
    assert trained.places(open_checkpoint(tmp_path / "out")) == {}
    assert not (tmp_path / "out" / trained.FILE).exists()
    assert run.held_out[0].kl == pytest.approx(0, abs=1e-6)
    assert run.held_out[-1].cross_entropy < run.held_out[0].cross_entropy
    assert run.points[0].parts.keys() == {"cross_entropy", "distillation", "dispersion"}
    parts = run.points[3].parts
    weighed = parts["cross_entropy"] + 0.5 * parts["distillation"] + 0.5 * parts["dispersion"]
    assert run.points[3].loss == pytest.approx(weighed, rel=1e-5)


def test_blocks_alone(model: Path, corpus: str, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(STEPS, end_to_end=None)
    run = api.disperse(model, tmp_path / "out", text=[corpus], recipe=recipe)
    assert [block.layer for block in run.blocks] == [0, 1]
    assert all(block.after < block.before for block in run.blocks)
    assert run.points == ()
    assert run.held_out[-1].kl < run.held_out[0].kl


def test_gpt2_stores_its_matrices_turned(corpus: str, tmp_path: Path) -> None:
    gpt2 = tiny_families.make(tmp_path / "gpt2", "gpt2")
    run = api.disperse(gpt2, tmp_path / "out", text=[corpus], recipe=ALL, changes={"": {"grid": "int3"}})
    found = open_checkpoint(tmp_path / "out")
    assert trained.places(found)
    assert run.held_out[-1].kl < run.held_out[0].kl


def test_minutes_become_steps(model: Path, corpus: str, tmp_path: Path) -> None:
    limit = {"end_to_end": {"steps": 9, "minutes": 5.0}}
    assert len(api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL, changes=limit).points) == 9
    limit = {"end_to_end": {"steps": 0, "minutes": 0.005}}
    run = api.disperse(model, tmp_path / "few", text=[corpus], recipe=ALL, changes=limit)
    assert 6 <= len(run.points) < 500


def test_tokens_and_accumulation(model: Path, corpus: str, tmp_path: Path) -> None:
    limit = {"end_to_end": {"steps": 0, "tokens": 1000, "batch": 2, "accumulate": 3}}
    run = api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL, changes=limit)
    assert [point.tokens for point in run.points] == [192, 384, 576, 768, 960, 1152]


def test_accumulation_is_a_larger_batch(model: Path, corpus: str, tmp_path: Path) -> None:
    whole = {"end_to_end": {"batch": 4, "accumulate": 1}}
    parts = {"end_to_end": {"batch": 1, "accumulate": 4}}
    one = api.disperse(model, tmp_path / "one", text=[corpus], recipe=PLAIN, changes=whole)
    four = api.disperse(model, tmp_path / "four", text=[corpus], recipe=PLAIN, changes=parts)
    assert four.points[0].parts["cross_entropy"] == pytest.approx(one.points[0].parts["cross_entropy"], rel=1e-3)
    assert four.points[5].parts["cross_entropy"] == pytest.approx(one.points[5].parts["cross_entropy"], rel=1e-2)


# -- again, and on


@pytest.mark.parametrize("recipe", [STEPS, PLAIN], ids=["steps", "plain"])
@pytest.mark.parametrize("average", ["none", "lawa", "ema"])
def test_killed_and_gone_on(
    model: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, average: Kind
) -> None:
    """The same weights, to the last bit, as without the break; and the same again with the same seed."""
    changes = {"end_to_end": {"average": average, "average_every": 2, "average_last": 2}}
    whole = api.disperse(model, tmp_path / "whole", text=[corpus], recipe=recipe, changes=changes)
    monkeypatch.setattr(loop, "_KEEP_SECONDS", 0.0)
    with pytest.raises(Killed):
        api.disperse(model, tmp_path / "out", text=[corpus], recipe=recipe, changes=changes, progress=Killing(3))
    assert not (tmp_path / "out").exists()
    on = api.disperse(model, tmp_path / "out", text=[corpus], recipe=recipe, changes=changes)
    assert same(tmp_path / "whole", tmp_path / "out")
    assert [point.loss for point in on.points] == [point.loss for point in whole.points]
    assert on.averaged == whole.averaged == (1 if average == "none" else 2 if average == "lawa" else 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_another_seed(model: Path, corpus: str, tmp_path: Path) -> None:
    api.disperse(model, tmp_path / "one", text=[corpus], recipe=ALL)
    api.disperse(model, tmp_path / "two", text=[corpus], recipe=ALL, changes={"": {"seed": 1}})
    assert not same(tmp_path / "one", tmp_path / "two")


def test_what_was_kept_is_damaged(model: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_KEEP_SECONDS", 0.0)
    with pytest.raises(Killed):
        api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL, progress=Killing(2))
    kept = tmp_path / "out.training"
    for name in ("latest/going.json", "latest/model.safetensors", "latest/optimizer.bin", "plain.json",
                 "start/block-0000.safetensors"):  # fmt: skip
        whole = (kept / name).read_bytes()
        (kept / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CorruptCheckpointError, match=r"cannot be read.*--restart"):
            api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL)
        (kept / name).write_bytes(whole)
    (tmp_path / "out.training" / "settings.json").write_text("[")
    with pytest.raises(CorruptCheckpointError, match=r"settings.json cannot be read"):
        api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL)
    api.disperse(model, tmp_path / "out", text=[corpus], recipe=ALL, restart=True)


# -- parts


def test_averages_are_means(tmp_path: Path) -> None:
    end = EndToEnd(steps=9, average="lawa", average_every=2, average_last=3)
    average = Average(end, tmp_path)
    for step in range(1, 10):
        average.add(step, {"x": torch.full((2,), float(step))})
    mean, count = average.mean(9)
    assert count == 3
    assert mean["x"].tolist() == [6.0, 6.0]  # of 4, 6 and 8
    assert len(list(tmp_path.iterdir())) == 3
    moving = Average(EndToEnd(steps=9, average="ema", average_every=1, average_decay=0.5), tmp_path)
    for step in (1, 2, 3):
        moving.add(step, {"x": torch.tensor([float(step)])})
    assert moving.mean(3)[0]["x"].tolist() == [0.25 * 1 + 0.25 * 2 + 0.5 * 3]
    assert Average(EndToEnd(steps=9), tmp_path).mean(9) == ({}, 1)


def test_losses_are_what_their_formulas_say() -> None:
    torch.manual_seed(0)
    said, wanted, ids = torch.randn(2, 5, 7), torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    p, q = wanted.double().softmax(-1), said.double().softmax(-1)
    assert float(divergence(said, wanted)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    picked = q[:, :-1].log().gather(-1, ids[:, 1:, None])
    assert float(cross_entropy(said, ids)) == pytest.approx(-float(picked.mean()), rel=1e-5)


def test_distillation_without_a_parent(model: Path) -> None:
    own = AutoModelForCausalLM.from_pretrained(model)
    with pytest.raises(ValueError, match="needs the parent"):
        Measure(Objective(), None)(own, torch.zeros(1, 4, dtype=torch.long), torch.Generator())
