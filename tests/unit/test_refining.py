"""The loop from plan to artefact and back, with artefacts whose size and divergence the test decides."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_sensitivity_map import made_up

pytest.importorskip("onnx")
pytest.importorskip("torch")

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import BudgetError
from edgekit.export.overhead import overhead
from edgekit.options import Budget, Container
from edgekit.quantize.budgeted import Allotment, plan_under
from edgekit.quantize.plan import Plan
from edgekit.refining import ROUNDS, allot, refuse_unmet, settle
from edgekit.targets import load


class Workshop:
    """Builds nothing: files are `extra` bytes larger than their tensors, models `worse` times worse than predicted."""

    def __init__(self, checkpoint: Checkpoint, extra: int = 0, worse: float = 1.0) -> None:
        self.map = made_up(checkpoint)
        self.allotment = Allotment(checkpoint.spec, load("rpi5"), "gguf", self.map)
        self.extra, self.worse = extra, worse
        self.made: list[Plan] = []
        self.discarded = 0

    def truth(self, plan: Plan) -> float:
        grids = {entry.tensor.hf: entry.grid for entry in plan.entries}
        return self.worse * sum(group.damage(grids[group.tensors[0]]) for group in self.map.groups)

    def settle(self, budget: Budget) -> Plan:
        def make(plan: Plan) -> Any:
            self.made.append(plan)
            return SimpleNamespace(built=SimpleNamespace(plan=plan, nbytes=plan.nbytes + self.extra))

        def discard(_item: Any) -> None:
            self.discarded += 1

        done: Any = settle(budget, self.allotment, make, lambda item: self.truth(item.built.plan), discard)
        plan: Plan = done.built.plan
        return plan


@pytest.fixture
def checkpoint(sound: Path) -> Checkpoint:
    return open_checkpoint(sound)


def test_what_never_becomes_small_enough_fails_clearly(checkpoint: Checkpoint) -> None:
    shop = Workshop(checkpoint)
    shop.extra = 10**6
    size = 1.2 * shop.allotment.by_size.base + shop.allotment.fixed
    with pytest.raises(BudgetError, match="nearest being 1"):
        shop.settle(Budget("size", size))
    assert len(shop.made) == 1, "it knows after the first one"


def test_what_stays_too_divergent_fails_clearly(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(checkpoint)
    calls = iter([0.4, 0.31, 0.301, 0.3001])
    monkeypatch.setattr(shop, "truth", lambda _plan: next(calls))
    with pytest.raises(BudgetError, match=r"3 plans for gguf were built.*0.301 nats"):
        shop.settle(Budget("max-kl", 0.3))
    assert (len(shop.made), shop.discarded) == (ROUNDS, ROUNDS)


@pytest.mark.parametrize("budget", [Budget("size", 10_000), Budget("bits", 2.5), Budget("min-speed", 1e9)])
@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_what_nothing_meets_is_refused_before_anything_is_measured(
    container: Container, budget: Budget, checkpoint: Checkpoint
) -> None:
    with pytest.raises(BudgetError, match="nearest"):
        refuse_unmet(checkpoint, load("rpi5"), container, budget)


def test_a_file_within_the_size_is_built_once(checkpoint: Checkpoint) -> None:
    shop = Workshop(checkpoint)
    plan = shop.settle(Budget("size", 80_000))
    assert (len(shop.made), shop.discarded) == (1, 0)
    assert plan.nbytes <= 80_000


def test_a_file_above_the_size_is_tightened_once(checkpoint: Checkpoint) -> None:
    shop = Workshop(checkpoint, extra=5000)
    plan = shop.settle(Budget("size", 80_000))
    assert (len(shop.made), shop.discarded) == (2, 1)
    assert 75_000 - 3000 < plan.nbytes <= 75_000, "tightened by what the file really has beside its tensors"


@pytest.mark.parametrize("worse", [0.3, 0.7, 1.0, 1.7, 5.0])
def test_a_limit_on_divergence_is_met_as_measured_by_a_small_file(worse: float, checkpoint: Checkpoint) -> None:
    shop = Workshop(checkpoint, worse=worse)
    plan = shop.settle(Budget("max-kl", 0.3))
    assert 0.5 * 0.3 < shop.truth(plan) <= 0.3
    assert len(shop.made) == (1 if worse == 1 else 2)
    assert shop.discarded == len(shop.made) - 1
    assert plan.nbytes <= min(made.nbytes for made in shop.made if shop.truth(made) <= 0.3)


def test_a_smaller_file_that_turns_out_worse_gives_way_to_the_last_good_one(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(checkpoint)
    measured = iter([0.1, 0.5, 0.6])
    monkeypatch.setattr(shop, "truth", lambda _plan: next(measured))
    plan = shop.settle(Budget("max-kl", 0.3))
    assert plan == shop.made[0] == shop.made[-1]
    assert shop.discarded == len(shop.made) - 1 >= 1


def test_a_good_file_is_not_lost_when_the_next_one_makes_the_limit_look_out_of_reach(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(checkpoint)
    measured = iter([0.1, 1e6])
    monkeypatch.setattr(shop, "truth", lambda _plan: next(measured))
    plan = shop.settle(Budget("max-kl", 0.3))
    assert plan == shop.made[0] == shop.made[-1]
    assert len(shop.made) == 3


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_the_overhead_is_what_a_file_has_beside_its_tensors(
    container: Container, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from edgekit.export.artefacts import write
    from edgekit.progress import Quiet

    given = allot(checkpoint, load("rpi5"), container, made_up(checkpoint, container))
    plan = plan_under(Budget("size", 1.2 * given.by_size.base + given.fixed + given.overhead), given)
    built = write(checkpoint, plan, tmp_path, tmp_path, Quiet())
    beside = built.nbytes - plan.nbytes
    assert beside <= given.overhead == overhead(checkpoint, plan)
    assert given.overhead - beside < (2000 if container == "gguf" else 40_000)
