"""A plan under a budget: one fast format for each group, the least predicted damage that the limit allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import BudgetError, OptionError
from edgekit.grids import get
from edgekit.options import Budget, Container
from edgekit.quantize.budget import Choice, InfeasibleError, Solution, Table, least_cost, least_damage, tabulate
from edgekit.quantize.groups import Group, fast_formats, fitting, groups
from edgekit.quantize.plan import Entry, Plan, kept
from edgekit.quantize.predict import decode_speed, efficiency, streamed
from edgekit.quantize.sensitivity_map import SensitivityMap
from edgekit.targets import Target

_POINTS = 14
_BITS = range(3, 9)
"""What a plan's `bits`, by which it is judged, may be."""


@dataclass(frozen=True)
class Allotment:
    """What there is to choose from: a model's groups, a target's fast formats, the damage that a map tells."""

    spec: Spec
    target: Target
    container: Container
    map: SensitivityMap
    """Checked: it is the model's."""
    overhead: int = 0
    """Bytes of the file beside the tensors: vocabulary, metadata, graph."""
    factor: float = 1.0
    """Measured KL divergence over what the map predicts, from an artefact that was built."""

    @cached_property
    def groups(self) -> tuple[tuple[Group, tuple[str, ...]], ...]:
        """Every group with the formats that it may get.

        Raises:
            OptionError: the map knows nothing of one of them.
            GridError, OptionError: see edgekit.quantize.groups.
        """
        fast = fast_formats(self.target, self.container)
        found = tuple((g, fitting(g, self.container, fast)) for g in groups(self.spec, self.container))
        for (group, names), measured in zip(found, self.map.groups, strict=True):
            if unknown := set(names) - measured.errors.keys():
                raise OptionError(
                    f"the sensitivity map says nothing of {group.names[0]} in {min(unknown)}, "
                    f"which target {self.target.name} calls fast",
                    remedy="leave --sensitivity out, and it is measured",
                )
        return found

    @cached_property
    def by_size(self) -> Table:
        """All plans by bytes."""
        return self._table(lambda group, name: group.nbytes(name))

    @cached_property
    def by_time(self) -> Table:
        """All plans by bytes read per token, corrected by each format's efficiency."""
        tied = not any(group.kind == "head" for group, _ in self.groups)

        def cost(group: Group, name: str) -> int:
            read = 0 if group.kind == "embedding" and not tied else group.loaded_nbytes(name)
            return math.ceil(read / (efficiency(self.target, name) if self.container == "gguf" else 1.0))

        return self._table(cost)

    def _table(self, cost: Callable[[Group, str], int]) -> Table:
        return tabulate([
            [Choice(self.factor * measured.damage(name), cost(group, name)) for name in names]
            for (group, names), measured in zip(self.groups, self.map.groups, strict=True)
        ])  # fmt: skip

    @cached_property
    def fixed(self) -> int:
        """Bytes of what is never quantized: norms and biases."""
        return sum(4 * tensor.parameters for tensor in self.spec.tensors if not tensor.rule.matrix)

    def plan(self, solution: Solution, budget: str) -> Plan:
        """The plan that a solution stands for."""
        grids = {
            tensor: names[pick]
            for (group, names), pick in zip(self.groups, solution.picks, strict=True)
            for tensor in group.names
        }
        made = plan_of_grids(self.spec, self.target, self.container, grids)
        return replace(made, budget=budget, predicted_kl=solution.damage, map_sha256=self.map.digest, gap=solution.gap)


def plan_of_grids(spec: Spec, target: Target, container: Container, grids: Mapping[str, str]) -> Plan:
    """The plan that gives every matrix (Hugging Face name) the named grid; it is judged by its whole effective bits."""
    entries = tuple(_entry(tensor, grids[tensor.hf]) if tensor.rule.matrix else kept(tensor) for tensor in spec.tensors)
    made = Plan(container, 4, entries)
    made = replace(made, bits=min(max(int(made.effective_bits), _BITS.start), _BITS[-1]))
    if container == "gguf":
        return made
    runtime = target.runtime.onnx
    return replace(made, accuracy_level=runtime.accuracy_level, session=tuple(sorted(runtime.session.items())))


def _entry(tensor: TensorSpec, grid: str) -> Entry:
    return Entry(tensor, get(grid).nominal_bits, grid, get(grid).nbytes((tensor.shape[0], tensor.shape[1])))


def plan_under(budget: Budget, allotment: Allotment) -> Plan:
    """The plan that keeps to the budget.

    Under a limit on size or speed it is the one with the least predicted KL divergence, under a limit on that the
    smallest one. Sizes count the whole file.

    Raises:
        BudgetError: nothing keeps to it; names the nearest that does.
        OptionError: a speed is asked for on a target whose file has no decode bandwidth.
        GridError: see :attr:`Allotment.groups`.
    """
    found = _solved(budget, allotment)
    return allotment.plan(found, budget.words)


def _solved(budget: Budget, given: Allotment) -> Solution:
    if budget.kind == "max-kl":
        return _under_kl(budget, given)
    if budget.kind == "min-speed":
        return _under_time(budget, given)
    whole = budget.value if budget.kind == "size" else budget.value * given.spec.parameters / 8
    beside = given.fixed + given.overhead
    try:
        return least_damage(given.by_size, math.floor(whole) - beside)
    except InfeasibleError as error:
        least = int(error.nearest) + beside
        bits = 8 * least / given.spec.parameters
        raise _unmet(budget, given, f"{least / 1e6:.2f} MB, or {bits:.2f} bits per weight") from error


def _under_kl(budget: Budget, given: Allotment) -> Solution:
    try:
        return least_cost(given.by_size, budget.value)
    except InfeasibleError as error:
        raise _unmet(budget, given, f"{error.nearest:.3g} nats (predicted)") from error


def _under_time(budget: Budget, given: Allotment) -> Solution:
    rate = decode_speed(given.target, 1.0)
    if rate is None:
        raise OptionError(
            f"target {given.target.name} has no decode bandwidth, so no speed can be planned",
            expected="memory.decode_gbps in its file",
            remedy="give --size, or measure the board with edgekit bench",
        )
    try:
        return least_damage(given.by_time, math.floor(rate / budget.value) - given.fixed)
    except InfeasibleError as error:
        best = rate / (error.nearest + given.fixed)
        raise _unmet(budget, given, f"{best:.1f} tokens/s (predicted)") from error


def _unmet(budget: Budget, given: Allotment, nearest: str) -> BudgetError:
    return BudgetError(
        f"no plan for {given.container} on {given.target.name} keeps to {budget.words}",
        expected=f"a budget that can be met, the nearest being {nearest}",
        remedy="ask for that, or let the target's file name more formats as fast",
    )


@dataclass(frozen=True)
class Point:
    """One plan of the curve."""

    plan: Plan
    file_bytes: int
    tokens_per_second: float | None


def curve(given: Allotment, points: int = _POINTS) -> list[Point]:
    """Plans from the smallest to the one with the least damage, in about equal steps of bytes, each better than all
    smaller ones.
    """
    table = given.by_size
    least, most = table.base, least_cost(table, float(table.best[-1])).cost
    found: list[Point] = []
    for limit in _steps(least, most, points):
        solution = least_damage(table, limit)
        made = given.plan(solution, f"at most {(limit + given.fixed + given.overhead) / 1e6:.4g} MB")
        if found and found[-1].plan.nbytes == made.nbytes:
            continue
        speed = decode_speed(given.target, streamed(made, given.target))
        found.append(Point(made, made.nbytes + given.overhead, speed))
    return found


def _steps(least: int, most: int, points: int) -> Iterator[int]:
    for index in range(points):
        yield least + (most - least) * index // (points - 1)
