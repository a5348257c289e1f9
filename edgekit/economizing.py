"""Counting a model's economy, one stage a point, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from edgekit import against, cache, steps, weighing
from edgekit.building import apart
from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence import metrics, reference
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import EvalText
from edgekit.economy import figures
from edgekit.economy.allotting import ANCHOR, LEVELS, Allotment, Site, allot
from edgekit.economy.gating import Counts, Inputs, gated, inputs
from edgekit.economy.record import MAX_KL, SHARES, Decoded, Economy, Point, within
from edgekit.engines.base import Ids
from edgekit.engines.torch import TorchEngine
from edgekit.errors import OptionError
from edgekit.options import Options
from edgekit.progress import Progress, counter
from edgekit.quantize.plan import Plan
from edgekit.quantize.sensitivity import sample
from edgekit.stages import Made, Stage
from edgekit.steps import Work
from edgekit.surviving import in_format
from edgekit.targets import Target
from edgekit.weighing import load_importance

_PROBES = 4
"""Sequences on which sites and blocks are measured one by one."""
_CHUNK = 4
"""Blocks that are kept together: what a killed run loses at most."""
_MOST = LEVELS[-1]


@dataclass(frozen=True)
class Wish:
    """What is to be counted."""

    plan: Plan
    """Whose bytes are counted."""
    target: Target
    """Whose speed and energy are predicted."""
    grid: str | None = None
    """Format that the linear layers are computed in; None: as the model has them."""
    shares: tuple[float, ...] = SHARES
    max_kl: float = MAX_KL
    uniform: bool = False
    """Leave the same share out of every layer."""
    measured: Decoded | None = None
    """What a board said."""


class _Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point."""

    coherence: metrics.Coherence
    fired: dict[str, float]
    """Linear layer → share of its inputs that fired."""


def economy(
    checkpoint: Checkpoint, parent: Checkpoint | None, wish: Wish, options: Options, progress: Progress
) -> Economy:
    """Count one model.

    Args:
        checkpoint: the model.
        parent: whose full-precision answers it is compared with; None: its own.
        wish: what to count.
        options: texts, seed, cache.
        progress: told about the steps.

    Raises:
        GridError: the format does not fit a matrix.
        OptionError: a share is no share; the parent has another tokenizer, or a longer context than the model and used
            it.
        BadWeightsError: an activation is NaN or infinite; names the layer.
        EdgekitError: see :func:`edgekit.steps.texts` and :func:`edgekit.steps.sealed`.
    """
    wish = replace(wish, shares=_checked(wish))
    if parent is not None:
        against.refuse_others(checkpoint, parent)
    lengths = [one.spec.context_length for one in (checkpoint, parent) if one is not None]
    options = replace(options, length=min(options.length, *lengths), calibrate=True)
    with cache.using(checkpoint.root):
        with apart(parent or checkpoint, options, progress) as work:
            made = steps.texts(work)
            answers, digest = steps.sealed(work, made)
        against.refuse_long(checkpoint, answers)
        with apart(checkpoint, options, progress) as work:
            importance = weighing.importance(work, made)
            run = _Run(work, wish, made.calibration or made.evaluation, answers, digest, importance)
            allotments = run.allotments
            found = {share: run.point(share, allotments[share]) for share in wish.shares}
            points = [_point(run, share, allotments[share], one) for share, one in found.items()]
            best = within(points, wish.max_kl)
            costs = run.blocks(best.asked, allotments[best.asked])
    kind = "text of the reference's own" if made.evaluation.kind == "self-generated" else "a text file"
    words = f"{len(made.evaluation.sequences)} sequences of {kind}, sha256 {made.evaluation.sha256[:12]}"
    return _economy(run, (parent or checkpoint).name, words, points, best, found[best.asked].fired, costs)


def _checked(wish: Wish) -> tuple[float, ...]:
    for share in wish.shares:
        if not 0 <= share <= _MOST:
            raise OptionError(f"{share:g} is no share that can be left out", expected=f"0 to {_MOST}, such as 0.3")
    if not wish.max_kl >= 0:
        raise OptionError(f"{wish.max_kl:g} nats are no divergence", expected="0 or more, such as 0.03")
    return tuple(sorted({0.0, *wish.shares}))


@dataclass
class _Run:
    """One model in one format, loaded when something is not in the cache."""

    work: Work
    wish: Wish
    calibration: EvalText
    answers: reference.Reference
    digest: str
    importance: Made | None

    @cached_property
    def linear(self) -> list[TensorSpec]:
        return [tensor for tensor in self.work.checkpoint.spec.tensors if tensor.rule.kind == "linear"]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Shares that thresholds are found for."""
        return tuple(sorted({*LEVELS, *self.wish.shares}))

    @cached_property
    def engine(self) -> TorchEngine:
        """The model in the format; it is closed with the work, so nothing is put back."""
        engine = self.work.original.engine()
        if self.wish.grid is not None:
            with self.work.progress.step(f"economy: linear layers in {self.wish.grid}"):
                engine.replace(self._rounded(self.wish.grid))
        return engine

    def _rounded(self, grid: str) -> Iterator[tuple[str, F32]]:
        found = load_importance(self.importance) or {}
        for tensor in self.linear:
            own = self.work.checkpoint.read(tensor)
            yield tensor.hf, as_stored(tensor, in_format(self.work.checkpoint, tensor, own, grid, found))

    @property
    def _common(self) -> dict[str, object]:
        return {
            "grid": self.wish.grid, "levels": self.levels, "importance": self.importance and self.importance.digest,
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

        return self.work.stages.record(Stage("economy-inputs", title, self._common), dict[str, Inputs], make)[0]

    def limit(self, name: str, share: float) -> float:
        """Threshold of a linear layer."""
        return self.inputs[name].limits[self.levels.index(share)]

    @cached_property
    def allotments(self) -> Mapping[float, Allotment | None]:
        """Share → what each layer leaves out; None: the same everywhere."""
        if self.wish.uniform:
            return dict.fromkeys(self.wish.shares)
        layers = range(0, self.work.checkpoint.spec.layers, _CHUNK)
        return {**allot([site for first in layers for site in self._sites(first)], self.wish.shares)}

    def _sites(self, first: int) -> list[Site]:
        """Those of a few blocks."""
        last = min(first + _CHUNK, self.work.checkpoint.spec.layers)
        title = f"economy: blocks {first + 1} to {last} of {self.work.checkpoint.spec.layers}, one input at a time"
        groups = [group for layer in range(first, last) for group in self._groups(layer)]

        def make() -> list[Site]:
            probe = self._probe
            with self.work.progress.step(title) as advance:
                tick, found = counter(advance, len(groups)), []
                for group in groups:
                    found.append(self._site(probe, group))
                    tick(group)
            return found

        names = [[tensor.hf for tensor in group] for group in groups]
        stage = Stage("economy-sites", title, {**self._common, "sites": names, "text": self._sample_ids})
        return self.work.stages.record(stage, list[Site], make)[0]

    def _groups(self, layer: int) -> list[list[TensorSpec]]:
        """A block's matrices by their input: equal inputs have equal thresholds and energies."""
        found: dict[Inputs, list[TensorSpec]] = {}
        for tensor in self.linear:
            if tensor.layer == layer:
                found.setdefault(self.inputs[tensor.hf], []).append(tensor)
        return list(found.values())

    def _site(self, probe: _Probe, group: Sequence[TensorSpec]) -> Site:
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
    def _sample_ids(self) -> list[list[int]]:
        return [ids.tolist() for ids in self._sample]

    @cached_property
    def _probe(self) -> _Probe:
        return _Probe(self.engine, self._sample, self.linear[0].hf.split(f".{self.linear[0].layer}.")[0])

    def limits(self, share: float, allotment: Allotment | None) -> dict[str, float]:
        """Linear layer → threshold."""
        if allotment is None:
            return {tensor.hf: self.limit(tensor.hf, share) for tensor in self.linear}
        return {name: self.limit(name, LEVELS[level]) for name, level in allotment.levels.items()}

    def point(self, share: float, allotment: Allotment | None) -> _Measured:
        """The whole model with that share left out."""
        title = f"economy: {share:.3g} of the connections left out"
        limits = self.limits(share, allotment)

        def make() -> _Measured:
            engine, counts = self.engine, Counts()
            with self.work.progress.step(title), gated(engine.module, limits, counts):
                found = metrics.evaluate(engine, self.answers, generate=False, items=False)
            return _Measured(coherence=found, fired={name: one.share for name, one in counts.layers.items()})

        stage = Stage("economy-point", title, {**self._common, "limits": limits, "reference": self.digest})
        return self.work.stages.record(stage, _Measured, make)[0]

    def blocks(self, share: float, allotment: Allotment | None) -> list[float]:
        """KL divergence in nats with one block alone gated so, from the same model whole."""
        layers = self.work.checkpoint.spec.layers
        title = f"economy: {layers} blocks, one by one, {share:.3g} of the connections left out"
        limits = self.limits(share, allotment)

        def make() -> list[float]:
            probe = self._probe
            with self.work.progress.step(title) as advance:
                tick, found = counter(advance, layers), []
                for layer in range(layers):
                    found.append(probe.kl({t.hf: limits[t.hf] for t in self.linear if t.layer == layer}, layer))
                    tick(layer)
            return found

        stage = Stage("economy-blocks", title, {**self._common, "limits": limits, "text": self._sample_ids})
        return self.work.stages.record(stage, list[float], make)[0]


class _Probe:
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


def _point(run: _Run, share: float, allotment: Allotment | None, found: _Measured) -> Point:
    own, said = figures.linear(run.wish.plan), found.coherence
    return Point(
        asked=share, skipped=1 - figures.share_fired(own, found.fired), kl_mean=said.kl_mean, kl_low=said.kl_mean_low,
        kl_high=said.kl_mean_high, same_top=said.same_top, ppl_ratio=said.ppl_ratio,
        unread=round(figures.unread(own, found.fired)),
        predicted_kl=None if allotment is None else allotment.predicted_kl,
    )  # fmt: skip


def _economy(
    run: _Run, compared: str, text: str, points: Sequence[Point], best: Point, fired: figures.Fired,
    costs: Sequence[float],
) -> Economy:  # fmt: skip
    plan, target, context = run.wish.plan, run.wish.target, run.work.options.length
    connections = figures.connections(figures.matrices(plan))
    dense, chosen = (figures.tokens_per_second(plan, target, each) for each in ({}, fired))
    return Economy(
        model=run.work.checkpoint.name, model_sha256=run.work.checkpoint.sha256, reference=compared,
        weights=run.wish.grid or "", text=text, formats=figures.formats(plan), target=target.name,
        connections=connections, linear=figures.connections(figures.linear(plan)),
        multiply_adds=connections + figures.attention(run.work.checkpoint.spec, context), context=context,
        bytes_per_token=plan.bytes_per_token, uniform=run.wish.uniform, points=tuple(points), max_kl=run.wish.max_kl,
        chosen=best.asked, roles=figures.roles(plan, fired), blocks=figures.blocks(plan, fired, costs),
        tokens_per_second=dense, tokens_per_second_chosen=chosen, millijoules=figures.millijoules(target, dense),
        millijoules_chosen=figures.millijoules(target, chosen), basis=figures.basis(target),
        measured=run.wish.measured,
    )  # fmt: skip
