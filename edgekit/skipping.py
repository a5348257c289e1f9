"""Thresholds below which inputs of linear layers count as zero: found on calibration text, shared out among layers so
that the whole loses least. One stage for each few blocks, so that a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgekit.checkpoint.checkpoint import F32
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import EvalText
from edgekit.economy.allotting import ANCHOR, LEVELS, Allotment, Site, allot
from edgekit.economy.gating import Inputs, gated, inputs
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.errors import OptionError
from edgekit.grids.threebit_columns import BY_DENSE
from edgekit.options import Options
from edgekit.original import Texts
from edgekit.progress import counter
from edgekit.quantize.plan import Entry, Plan
from edgekit.quantize.sensitivity import sample
from edgekit.stages import Stage
from edgekit.steps import Work

_PROBES = 4
"""Sequences on which sites and blocks are measured one by one."""
_CHUNK = 4
"""Blocks that are kept together: what a killed run loses at most."""


def refuse(plans: Sequence[Plan], options: Options) -> None:
    """Check that there is something to skip.

    Raises:
        OptionError: no plan has a layer that can.
    """
    if options.active is None or any(_able(plan) for plan in plans):
        return
    formats = ", ".join(sorted({e.grid for plan in plans for e in plan.entries if e.tensor.rule.kind == "linear"}))
    raise OptionError(
        f"--active is given, and the linear layers are in {formats}",
        expected="edgekit's own 3 bits in ONNX", remedy="give --bits 3 --format onnx, without --portable",
    )  # fmt: skip


def gated_plan(work: Work, plan: Plan, texts: Texts, active: float) -> Plan:
    """The plan with thresholds, so that `active` (a share) of the connections of its 3-bit layers fires.

    Layers that are to leave something out get the grid that is stored by columns; a plan without such layers comes back
    as it is.

    Raises:
        BadWeightsError: an input is NaN or infinite; names the layer.
    """
    if not (names := _able(plan)):
        return plan
    share = round(1 - active, 6)  # a step of the levels where it is one, so that what was measured is found again
    if texts.calibration is None:
        raise ValueError("thresholds are found on calibration text")
    found = Skipping(work=work, calibration=texts.calibration, shares=(share,), only=names)
    limits = found.limits(share, found.allotments[share])
    entries = tuple(_gated(entry, limits.get(entry.tensor.hf, 0.0)) for entry in plan.entries)
    return replace(plan, entries=entries, active=active)


def _able(plan: Plan) -> frozenset[str]:
    return frozenset(e.tensor.hf for e in plan.entries if e.tensor.rule.kind == "linear" and e.grid in BY_DENSE)


def _gated(entry: Entry, threshold: float) -> Entry:
    if threshold == 0:
        return entry
    grid = BY_DENSE[entry.grid]
    rows, columns = entry.tensor.shape
    return replace(entry, grid=grid.name, nbytes=grid.nbytes((rows, columns)), threshold=threshold)


@dataclass(kw_only=True)
class Skipping:
    """One model whose linear layers are to leave inputs out."""

    work: Work
    calibration: EvalText
    shares: tuple[float, ...]
    """Of the connections that are to be left out: each 0 to the largest of the levels."""
    grid: str | None = None
    """Format that the linear layers are computed in; None: as the model has them."""
    weighed_by: str | None = None
    """Digest of the importance that rounding to the format looks at."""
    only: frozenset[str] | None = None
    """Parameter names of the linear layers that may; None: all."""

    @cached_property
    def linear(self) -> list[TensorSpec]:
        """The layers."""
        found = [tensor for tensor in self.work.checkpoint.spec.tensors if tensor.rule.kind == "linear"]
        return [tensor for tensor in found if self.only is None or tensor.hf in self.only]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Shares that thresholds are found for."""
        return tuple(sorted({*LEVELS, *self.shares}))

    @cached_property
    def engine(self) -> TorchEngine:
        """The model that is measured."""
        return self.work.original.engine()

    @property
    def common(self) -> dict[str, object]:
        """What every stage depends on."""
        return {
            "grid": self.grid, "levels": self.levels, "importance": self.weighed_by,
            "calibration": [ids.tolist() for ids in self.calibration.sequences],
        }  # fmt: skip

    @cached_property
    def inputs(self) -> Mapping[str, Inputs]:
        """Linear layer → thresholds for :attr:`levels`."""
        title = f"economy: thresholds of {len(self.linear)} layers"

        def make() -> dict[str, Inputs]:
            engine, names = self.engine, [tensor.hf for tensor in self.linear]
            with self.work.progress.step(title) as advance:
                return inputs(engine.module, names, self.calibration.sequences, self.levels, advance)

        return self.work.stages.record(Stage("economy-inputs", title, self.common), dict[str, Inputs], make)[0]

    def limit(self, name: str, share: float) -> float:
        """Threshold of a linear layer."""
        return self.inputs[name].limits[self.levels.index(share)]

    @cached_property
    def allotments(self) -> Mapping[float, Allotment]:
        """Share → what each layer leaves out."""
        layers = range(0, self.work.checkpoint.spec.layers, _CHUNK)
        return allot([site for first in layers for site in self._sites(first)], self.shares)

    def _sites(self, first: int) -> list[Site]:
        """Those of a few blocks."""
        last = min(first + _CHUNK, self.work.checkpoint.spec.layers)
        title = f"economy: blocks {first + 1} to {last} of {self.work.checkpoint.spec.layers}, one input at a time"
        groups = [group for layer in range(first, last) for group in self._groups(layer)]

        def make() -> list[Site]:
            probe = self.probe
            with self.work.progress.step(title) as advance:
                tick, found = counter(advance, len(groups)), []
                for group in groups:
                    found.append(self._site(probe, group))
                    tick(group)
            return found

        names = [[tensor.hf for tensor in group] for group in groups]
        stage = Stage("economy-sites", title, {**self.common, "sites": names, "text": self.sample_ids})
        return self.work.stages.record(stage, list[Site], make)[0]

    def _groups(self, layer: int) -> list[list[TensorSpec]]:
        """A block's matrices by their input: equal inputs have equal thresholds and energies."""
        found: dict[Inputs, list[TensorSpec]] = {}
        for tensor in self.linear:
            if tensor.layer == layer:
                found.setdefault(self.inputs[tensor.hf], []).append(tensor)
        return list(found.values())

    def _site(self, probe: Probe, group: Sequence[TensorSpec]) -> Site:
        own = self.inputs[group[0].hf]
        return Site(
            weights=tuple(tensor.hf for tensor in group), connections=sum(tensor.parameters for tensor in group),
            kl=probe.kl({tensor.hf: self.limit(tensor.hf, ANCHOR) for tensor in group}, group[0].layer or 0),
            energies=tuple(own.energies[self.levels.index(level)] for level in LEVELS),
        )  # fmt: skip

    @cached_property
    def _sample(self) -> tuple[Ids, ...]:
        """Of the calibration text: the evaluation text has no say in what is left out."""
        return tuple(sample(self.calibration.sequences, _PROBES, self.work.checkpoint.spec.vocab_size))

    @property
    def sample_ids(self) -> list[list[int]]:
        """The sequences that sites are measured on, for a stage's key."""
        return [ids.tolist() for ids in self._sample]

    @cached_property
    def probe(self) -> Probe:
        """The model and what it says of those sequences."""
        return Probe(self.engine, self._sample, self.linear[0].hf.split(f".{self.linear[0].layer}.")[0])

    def limits(self, share: float, allotment: Allotment | None) -> dict[str, float]:
        """Linear layer → threshold."""
        if allotment is None:
            return {tensor.hf: self.limit(tensor.hf, share) for tensor in self.linear}
        return {name: self.limit(name, LEVELS[level]) for name, level in allotment.levels.items()}


class Probe:
    """The model, what it says of a few sequences, and what it says when something is left out."""

    def __init__(self, engine: TorchEngine, sequences: Sequence[Ids], stack: str) -> None:
        self._engine, self._sequences, self._stack = engine, sequences, stack
        self._whole: list[tuple[F32, list[Any]]] = [engine.record(ids, stack) for ids in sequences]

    def kl(self, limits: Mapping[str, float], layer: int) -> float:
        """Mean divergence in nats with these thresholds, all of them in one layer."""
        with gated(self._engine.module, limits):
            parts = [
                kl_full(logits, self._engine.logits_from(ids, self._stack, given, layer))
                for ids, (logits, given) in zip(self._sequences, self._whole, strict=True)
            ]
        return max(0.0, float(np.concatenate(parts).mean()))
