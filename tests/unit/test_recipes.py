"""Recipes: what edgekit brings, what a stranger's file may not say, what options change."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import InputNotFoundError, OptionError
from edgekit.grids.scalar import is_scalar
from edgekit.training import schedule
from edgekit.training.recipe import Blockwise, EndToEnd, Objective, Recipe, changed, checked, load, names


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(InputNotFoundError, match="there is no recipe int5; expected one of .*int3"):
        load("int5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid = ", "is not a recipe"),
        ("\xff", "is not a recipe"),
        ("[end_to_end]\nsteps = 5\nlearnig_rate = 1", "learnig_rate"),
        ("[end_to_end]\nsteps = 'five'", "int"),
        ("about = 'nothing'", "nothing is to be trained"),
        ("[end_to_end]\nlearning_rate = 0.1", "the training has no end"),
        ("[blockwise]\niterations = 4", "on no grid"),
        ("[end_to_end]\nsteps = 5\ntrain = 'steps'", "no grid"),
        ("[end_to_end]\nsteps = 5\nbatch = 0", "end_to_end.batch is 0; expected 1 to 65536"),
        ("[end_to_end]\nsteps = 5\nlearning_rate = nan", "learning_rate is nan"),
        ("[end_to_end]\nsteps = 5\nlearning_rate = -1.0", "learning_rate is -1.0; expected 0 to 1e\\+30"),
        ("[end_to_end]\nsteps = 5\nwarmup = 2.0", "warmup is 2.0; expected 0 to 1"),
        ("[end_to_end]\nsteps = 5\n[objective]\ndistillation = 0", "every part of the loss has weight 0"),
        ("length = 1\n[end_to_end]\nsteps = 5", "length is 1; expected 2"),
        ("[end_to_end]\nsteps = 1" + 400 * "0", "own.toml|steps"),
        ("# " + 70_000 * "x", "larger than 64 KiB"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(OptionError, match=said):
        load(path)


def test_a_folder_and_another_file_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{}")
    for path in (tmp_path, tmp_path / "own.json"):
        with pytest.raises(InputNotFoundError, match="there is no recipe"):
            load(path)


@pytest.mark.parametrize("name", names())
def test_every_recipe_of_edgekit(name: str) -> None:
    recipe = load(name)
    assert recipe.about
    assert recipe.cost
    assert recipe.gives
    assert not recipe.grid or is_scalar(recipe.grid)


def test_own_file_and_short_name_of_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("grid = 'int3'\n[blockwise]\nsequences = 8\n")
    assert load(path) == Recipe(grid="int3-sym-b32", blockwise=Blockwise(sequences=8))


WHOLE = Recipe(grid="int3", blockwise=Blockwise(), end_to_end=EndToEnd(minutes=5, train="steps"))


def test_changes() -> None:
    made = changed(WHOLE, {"": {"length": 64, "seed": None}, "objective": {"dispersion": 0.5}})
    assert (made.length, made.seed, made.grid) == (64, 0, "int3-sym-b32")
    assert made.objective == Objective(dispersion=0.5)
    with pytest.raises(OptionError, match="length is 1"):
        changed(WHOLE, {"": {"length": 1}})
    with pytest.raises(OptionError, match="average"):
        changed(WHOLE, {"end_to_end": {"average": "some"}})


def test_without_a_grid_nothing_of_it_is_left() -> None:
    made = changed(WHOLE, {"": {"grid": ""}})
    assert made.blockwise is None
    assert made.end_to_end == EndToEnd(minutes=5, train="all")


def test_cosine() -> None:
    end = EndToEnd(steps=100, warmup=0.1)
    rates = [schedule.rate(end, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_warm_up_stable_decay() -> None:
    end = EndToEnd(steps=100, warmup=0.1, schedule="wsd", decay=0.2)
    rates = [schedule.rate(end, step, 100) for step in range(100)]
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_checked_is_idempotent() -> None:
    assert checked(checked(WHOLE)) == checked(WHOLE)
