"""Training from scratch: what is refused, which weights it begins with, what comes out, weights along the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny
import tiny_tokenizers
from conftest import Cli
from test_model_card import RUN as WITH_PARENT
from tiny import Tiny

pytest.importorskip("torch")

from test_training import Killed, Killing, same, weights
from transformers import AutoModelForCausalLM

from edgekit import api
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.dispersing import from_scratch
from edgekit.engines.torch import TorchEngine
from edgekit.errors import OptionError, TokenizerError
from edgekit.report.model_card import model_card
from edgekit.report.training import render
from edgekit.training import loop, whole
from edgekit.training.recipe import EndToEnd, Objective, Recipe, load
from edgekit.training.record import RUN, Run
from edgekit.training.scratch import open_scratch

SIZES = Tiny(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=384)
RECIPE = Recipe(
    length=32, objective=Objective(cross_entropy=1, distillation=0),
    end_to_end=EndToEnd(steps=8, learning_rate=3e-3, weight_decay=0.1),
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llama.json"
    path.write_text(json.dumps(tiny.config_of(SIZES)))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tiny_tokenizers.write(folder, SIZES.tokenizer, SIZES.vocab)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(tiny_tokenizers.SENTENCES * 40))
    return str(path)


def changed(config: Path, **values: Any) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


# -- what is refused


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, 15, ["MambaForCausalLM"]),
        ({"num_key_value_heads": 3}, 11, ["3 key-value heads"]),
        ({"vocab_size": 300}, 14, ["up to 383", "vocab_size", "300", "384 or more"]),
        ({"model_type": "martian"}, 29, ["transformers makes no model of", "martian"]),
    ],
)  # fmt: skip
def test_configurations_that_are_none(
    cli: Cli, config: Path, tokenizer: Path, corpus: str, tmp_path: Path, values: dict[str, Any], code: int,
    words: list[str],
) -> None:  # fmt: skip
    changed(config, **values)
    given = ("--from-scratch", config, "--tokenizer", tokenizer, "--text", corpus, "-o", tmp_path / "out")
    cli("disperse", *given).refused(code, *words)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--from-scratch", "NOWHERE", "--tokenizer", "TOKENIZER"], 10, ["no configuration", "nowhere"]),
        (["--from-scratch", "CORPUS", "--tokenizer", "TOKENIZER"], 11, ["not valid JSON"]),
        (["--from-scratch", "CONFIG"], 10, ["no tokenizer in", "--tokenizer FOLDER"]),
        (["--from-scratch", "CONFIG", "--tokenizer", "CORPUS"], 10, ["no tokenizer in"]),
        (["MODEL", "--from-scratch", "CONFIG", "--tokenizer", "TOKENIZER"], 29, ["MODEL", "both given"]),
        (["--from-scratch", "CONFIG", "--tokenizer", "TOKENIZER", "--lora", "TOKENIZER"], 29, ["--lora", "both given"]),
        (["MODEL", "--tokenizer", "TOKENIZER"], 29, ["--tokenizer", "without --from-scratch"]),
        (["SCRATCH", "--distill"], 29, ["objective.distillation is 1", "no parent", "--no-distill"]),
        (["SCRATCH", "--recipe", "int3"], 29, ["objective.distillation is 1"]),
        (["SCRATCH", "--cross-entropy", "0", "--weight", "1"], 29, ["objective.cross_entropy is 0", "the text alone"]),
        (["SCRATCH", "--grid", "int4"], 29, ["random weights", "int4-sym-b32", "--grid none"]),
        (["SCRATCH", "--keep-every", "-1"], 29, ["keep_every is -1"]),
        (["SCRATCH", "-o", "TOKENIZER", "--force"], 29, ["is the model itself"]),
    ],
)
def test_options_that_cannot_be(
    cli: Cli, config: Path, tokenizer: Path, corpus: str, tmp_path: Path, arguments: list[str], code: int,
    words: list[str],
) -> None:  # fmt: skip
    known = {"CONFIG": config, "TOKENIZER": tokenizer, "CORPUS": corpus, "NOWHERE": tmp_path / "nowhere"}
    given = [known.get(argument, argument) for argument in arguments if argument != "SCRATCH"]
    if "SCRATCH" in arguments:
        given = ["--from-scratch", config, "--tokenizer", tokenizer, *given]
    cli("disperse", "--text", corpus, "-o", tmp_path / "out", *given).refused(code, *words)
    assert not list(tmp_path.glob("out*"))
    assert (tokenizer / "tokenizer.json").is_file()


# -- what comes out


def test_the_same_seed_draws_the_same_bytes(config: Path, tokenizer: Path, tmp_path: Path) -> None:
    model = open_scratch(config, tokenizer)
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        model.made(tmp_path / name, seed)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "one").num_parameters() == model.spec.parameters


def test_from_a_configuration_to_a_model(cli: Cli, config: Path, tokenizer: Path, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = cli(
        "disperse", "--from-scratch", config, "--tokenizer", tokenizer / "tokenizer.json", "--text", corpus, "-o", out,
        "--length", "32", "--steps", "30", "--seed", "5", "--keep-every", "10", "--batch", "4",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "trained from scratch, random initialisation seed 5; full precision" in said.out
    assert "cross-entropy: " in said.out
    assert "KL" not in said.out
    run = msgspec.json.decode((out / RUN).read_bytes(), type=Run)
    assert run.parent is None
    assert run.scratch is not None
    assert (run.scratch.name, run.scratch.seed, run.name) == ("llama", 5, "scratch")
    assert run.scratch.sha256 == open_scratch(config, tokenizer).made(tmp_path / "again", 5).sha256
    assert [held.divergence for held in run.held_out] == [None, None]
    assert run.held_out[0].cross_entropy == pytest.approx(np.log(384), rel=0.05), "random weights know nothing"
    assert run.held_out[-1].cross_entropy < run.held_out[0].cross_entropy - 0.5
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    kept = sorted((out / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-000010", "step-000020", "step-000030"]
    assert not same(kept[0], kept[1])
    assert same(kept[2], out), "not averaged: the last weights are the result"
    assert api.disperse(out, tmp_path / "on", text=[corpus], recipe=RECIPE).parent is not None


def test_nothing_is_said_of_a_parent(config: Path, tokenizer: Path, corpus: str, tmp_path: Path) -> None:
    run = from_scratch(config, tmp_path / "out", text=[corpus], tokenizer=tokenizer, recipe=RECIPE)
    assert run.scratch is not None
    page, card = render(run), model_card(run, "child")
    for text in (page, card):
        assert "random initialisation" in text
        assert "seed 0" in text
        assert run.scratch.sha256 in text
    assert "KL(parent" not in page
    assert "<h2>Parent</h2>" not in page
    assert "<td>nan" not in page
    assert "KL" not in card
    assert "base_model" not in card
    assert "KL(parent" in render(WITH_PARENT)
    with pytest.raises(ValueError, match="no parent"):
        _ = run.held_out[0].kl


def test_no_second_model_is_loaded(
    config: Path, tokenizer: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    class Counted(TorchEngine):
        def __init__(self, folder: Path) -> None:
            loaded.append(folder)
            super().__init__(folder)

    monkeypatch.setattr(whole, "TorchEngine", Counted)
    from_scratch(config, tmp_path / "out", text=[corpus], tokenizer=tokenizer, recipe=RECIPE)
    assert len(loaded) == 1


def test_killed_and_gone_on(
    config: Path, tokenizer: Path, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights along the way and at the end are the same, to the last bit, as without the break."""
    more: Any = {
        "text": [corpus],
        "tokenizer": tokenizer,
        "recipe": RECIPE,
        "changes": {"end_to_end": {"keep_every": 3}},
    }
    from_scratch(config, tmp_path / "whole", **more)
    monkeypatch.setattr(loop, "_KEEP_SECONDS", 0.0)
    with pytest.raises(Killed):
        from_scratch(config, tmp_path / "out", **more, progress=Killing(4))
    with pytest.raises(OptionError, match=r"begun with other settings \(seed: 0, now 1\)"):
        from_scratch(
            config, tmp_path / "out", **{**more, "changes": {"": {"seed": 1}, "end_to_end": {"keep_every": 3}}}
        )
    on = from_scratch(config, tmp_path / "out", **more)
    assert same(tmp_path / "whole", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000006"]
    for name in names:
        assert same(tmp_path / "whole" / "checkpoints" / name, tmp_path / "out" / "checkpoints" / name)
    assert len(on.points) == 8


def test_a_folder_with_configuration_and_tokenizer(corpus: str, tmp_path: Path) -> None:
    """Of a model only the shape is taken, not the weights; a float16 one begins in float32."""
    model = tiny.make(tmp_path / "model", SIZES)
    from_scratch(model, tmp_path / "out", text=[corpus], recipe=RECIPE)
    (model / "model.safetensors").unlink()
    from_scratch(model, tmp_path / "bare", text=[corpus], recipe=RECIPE)
    assert same(tmp_path / "out", tmp_path / "bare")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert set(map(float, weights(tmp_path / "out")["model.norm.weight"])) != {1.0}, "it has learned"


def test_a_tokenizer_that_is_broken(config: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copyfile(config, tokenizer / "config.json")
    (tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        open_scratch(tokenizer)


def test_the_recipe() -> None:
    recipe = load("scratch")
    assert recipe.objective == Objective(cross_entropy=1, distillation=0)
    assert recipe.grid == ""
    assert recipe.end_to_end is not None
    assert recipe.end_to_end.learning_rate == 1e-3


def test_weights_along_the_way_of_a_model_on_a_grid(corpus: str, tmp_path: Path) -> None:
    """They hold their codes, as the result does."""
    model = tiny.make(tmp_path / "model", SIZES)
    recipe = Recipe(grid="int4", length=32, end_to_end=EndToEnd(steps=4, keep_every=2))
    api.disperse(model, tmp_path / "out", text=[corpus], recipe=recipe)
    for step in (2, 4):
        folder = tmp_path / "out" / "checkpoints" / f"step-{step:06d}"
        assert (folder / "edgekit" / "codes.safetensors").is_file()
        assert open_checkpoint(folder).spec.layers == 2
    assert same(folder, tmp_path / "out")
