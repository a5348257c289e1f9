"""A plan under a budget is built, measured against the budget and corrected until it keeps to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import BudgetError
from edgekit.export.overhead import overhead
from edgekit.options import Budget, Container
from edgekit.quantize.budgeted import Allotment, plan_of_grids, plan_under
from edgekit.quantize.groups import fast_formats, fitting, groups
from edgekit.quantize.plan import Plan
from edgekit.quantize.sensitivity_map import GroupDamage, SensitivityMap
from edgekit.steps import Artefact
from edgekit.targets import Target

ROUNDS = 3
"""Artefacts that are built for one budget, at most."""
_STEP = 1.02
"""A correction that is not enough grows at least by this, and one that loosens keeps this distance."""
_ENOUGH = 0.9
"""Share of the allowed divergence from which a plan is good enough."""


def allot(checkpoint: Checkpoint, target: Target, container: Container, found: SensitivityMap) -> Allotment:
    """What a plan for one container can choose from, the file's overhead counted.

    Raises:
        OptionError, GridError, TokenizerError: see edgekit.quantize.groups and edgekit.export.overhead.
    """
    own = groups(checkpoint.spec, container)
    fast = fast_formats(target, container)
    first: Mapping[str, str] = {name: fitting(g, container, fast)[0] for g in own for name in g.names}
    beside = overhead(checkpoint, plan_of_grids(checkpoint.spec, target, container, first))
    return Allotment(checkpoint.spec, target, container, found, beside)


def refuse_unmet(checkpoint: Checkpoint, target: Target, container: Container, budget: Budget) -> None:
    """Refuse a size or a speed that nothing meets, before anything is measured.

    Raises:
        BudgetError: names the nearest that can be met; otherwise as :func:`allot`.
    """
    plan_under(budget, allot(checkpoint, target, container, _blank(checkpoint, target, container)))


def _blank(checkpoint: Checkpoint, target: Target, container: Container) -> SensitivityMap:
    """A map in which nothing does damage."""
    fast, parts = fast_formats(target, container), []
    for group in groups(checkpoint.spec, container):
        names = fitting(group, container, fast)
        parts.append(
            GroupDamage(
                tensors=group.names, anchor=names[0], kl=0.0, errors=dict.fromkeys(names, 0.0),
                bytes={name: group.nbytes(name) for name in names},
            )
        )  # fmt: skip
    return SensitivityMap(
        model=checkpoint.name, model_sha256=checkpoint.sha256, container=container, text_sha256="0" * 64, tokens=1,
        groups=tuple(parts),
    )  # fmt: skip


def settle(
    budget: Budget,
    allotment: Allotment,
    make: Callable[[Plan], Artefact],
    measure: Callable[[Artefact], float],
    discard: Callable[[Artefact], None],
) -> Artefact:
    """Build a plan; tighten and build again while the file is larger, or the divergence higher, than the budget.

    Under a limit on divergence a plan that stays well below it is loosened, too: the file is to be small.

    Args:
        budget: what to keep to.
        allotment: what to choose from.
        make: builds the artefact of a plan.
        measure: its mean KL divergence, nats; asked under a limit on that only.
        discard: removes an artefact that is not the last one.

    Raises:
        BudgetError: nothing keeps to it, or what was built does not after :data:`ROUNDS` rounds.
    """
    kept: Plan | None = None
    fault = ""
    plan = plan_under(budget, allotment)
    for number in range(1, ROUNDS + 1):
        made = make(plan)
        found = _judged(budget, allotment, plan, made, measure)
        allotment = found.correction or allotment
        following = plan
        if found.correction and number < ROUNDS:
            following = _next_plan(budget, allotment, kept or (plan if found.met else None))
        if found.met and following.nbytes >= plan.nbytes:
            return made
        discard(made)
        kept, fault = (plan, "") if found.met else (kept, found.fault)
        if kept is not None and following.nbytes >= kept.nbytes:
            break
        plan = following
    if kept is not None:
        return make(kept)
    raise BudgetError(
        f"{ROUNDS} plans for {allotment.container} were built to keep to {budget.words}, and the last one has {fault}",
        remedy="give the budget a little room, or a sensitivity map measured on more text",
    )


def _next_plan(budget: Budget, allotment: Allotment, good: Plan | None) -> Plan:
    """The plan after a correction; `good`, a plan that keeps to the budget, where nothing else seems to any more."""
    try:
        return plan_under(budget, allotment)
    except BudgetError:
        if good is None:
            raise
        return good


@dataclass(frozen=True)
class _Judgement:
    met: bool
    correction: Allotment | None
    """What to choose from the next time; None when there is no reason to."""
    fault: str = ""


def _judged(
    budget: Budget, given: Allotment, plan: Plan, made: Artefact, measure: Callable[[Artefact], float]
) -> _Judgement:
    if budget.kind == "max-kl":
        return _judged_by_kl(budget, given, plan, measure(made))
    size = made.built.nbytes
    limit = budget.value if budget.kind == "size" else budget.value * given.spec.parameters / 8
    if budget.kind == "min-speed" or size <= limit:
        return _Judgement(True, None)
    beside = max(size - plan.nbytes, given.overhead + 1)
    return _Judgement(False, replace(given, overhead=beside), f"{size / 1e6:.2f} MB")


def _judged_by_kl(budget: Budget, given: Allotment, plan: Plan, found: float) -> _Judgement:
    predicted = (plan.predicted_kl or 0.0) / given.factor
    told = found / predicted if predicted > 0 else 0.0
    if found > budget.value:
        return _Judgement(False, replace(given, factor=max(told, given.factor * _STEP)), f"{found:.4g} nats")
    loose = 0 < found < _ENOUGH * budget.value
    return _Judgement(True, replace(given, factor=told * _STEP) if loose else None)
