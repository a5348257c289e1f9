"""Counting a model's economy, one stage a point, so that a killed run goes on where it was."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np

from edgekit import against, cache, steps, weighing
from edgekit.building import apart
from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.checkpoint.spec import TensorSpec
from edgekit.coherence import metrics, reference
from edgekit.coherence.distribution import kl_full
from edgekit.coherence.text import EvalText
from edgekit.economy.gating import Counts, gated, thresholds
from edgekit.economy.record import MAX_KL, SHARES, Decoded, Economy, Part, Point, within
from edgekit.engines.torch import TorchEngine
from edgekit.errors import OptionError
from edgekit.grids import get
from edgekit.options import Options
from edgekit.progress import Progress, counter
from edgekit.quantize.plan import Entry, Plan
from edgekit.quantize.predict import decode_speed, efficiency, streamed
from edgekit.quantize.sensitivity import sample
from edgekit.stages import Made, Stage
from edgekit.steps import Work
from edgekit.surviving import in_format
from edgekit.targets import Target
from edgekit.weighing import load_importance

_PROBES = 4
"""Sequences on which blocks are measured one by one."""


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
        GridError: the format fits a matrix not.
        OptionError: a share is no share; there is no calibration text; the parent has another tokenizer, or a longer
            context than the model and used it.
        BadWeightsError: an activation is NaN or infinite; names the layer.
        EdgekitError: see :func:`edgekit.steps.texts` and :func:`edgekit.steps.sealed`.
    """
    wish = replace(wish, shares=_checked(wish))
    if parent is not None:
        against.refuse_others(checkpoint, parent)
    lengths = [one.spec.context_length for one in (checkpoint, parent) if one is not None]
    options = replace(options, length=min(options.length, *lengths))
    with cache.using(checkpoint.root):
        with apart(parent or checkpoint, options, progress) as work:
            made = steps.texts(work)
            answers, digest = steps.sealed(work, made)
        against.refuse_long(checkpoint, answers)
        with apart(checkpoint, options, progress) as work:
            importance = weighing.importance(work, made)
            assert made.calibration is not None  # noqa: S101
            run = _Run(work, wish, made.calibration, answers, digest, importance)
            found = {share: run.point(share) for share in wish.shares}
            points = [_point(run, share, one) for share, one in found.items()]
            best = within(points, wish.max_kl)
            costs = run.blocks(best.asked)
    kind = "text of the reference's own" if made.evaluation.kind == "self-generated" else "a text file"
    words = f"{len(made.evaluation.sequences)} sequences of {kind}, sha256 {made.evaluation.sha256[:12]}"
    return _economy(run, (parent or checkpoint).name, words, points, best, found[best.asked].fired, costs)


def _checked(wish: Wish) -> tuple[float, ...]:
    for share in wish.shares:
        if not 0 <= share < 1:
            raise OptionError(f"{share:g} is no share of inputs to leave out", expected="0 to below 1, such as 0.3")
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

    @property
    def linear(self) -> list[TensorSpec]:
        return [tensor for tensor in self.work.checkpoint.spec.tensors if tensor.rule.kind == "linear"]

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
            "grid": self.wish.grid, "shares": self.wish.shares,
            "importance": self.importance and self.importance.digest,
            "calibration": [ids.tolist() for ids in self.calibration.sequences],
        }  # fmt: skip

    @cached_property
    def limits(self) -> Mapping[float, Mapping[str, float]]:
        """Share → linear layer → threshold."""
        title = f"economy: thresholds of {len(self.linear)} layers"

        def make() -> dict[str, tuple[float, ...]]:
            engine, names = self.engine, [tensor.hf for tensor in self.linear]
            with self.work.progress.step(title) as advance:
                return thresholds(engine.module, names, self.calibration.sequences, self.wish.shares, advance)

        stage = Stage("economy-thresholds", title, self._common)
        found = self.work.stages.record(stage, dict[str, tuple[float, ...]], make)[0]
        return {
            share: {name: each[index] for name, each in found.items()} for index, share in enumerate(self.wish.shares)
        }

    def point(self, share: float) -> _Measured:
        """The whole model with that share left out everywhere."""
        title = f"economy: {share:.0%} of the inputs left out"
        limits = self.limits[share]

        def make() -> _Measured:
            engine, counts = self.engine, Counts()
            with self.work.progress.step(title), gated(engine.module, limits, counts):
                found = metrics.evaluate(engine, self.answers, generate=False, items=False)
            return _Measured(coherence=found, fired={name: one.share for name, one in counts.layers.items()})

        stage = Stage("economy-point", title, {**self._common, "share": share, "reference": self.digest})
        return self.work.stages.record(stage, _Measured, make)[0]

    def blocks(self, share: float) -> list[float]:
        """KL divergence in nats of each block alone with that share left out, from the same model whole."""
        spec = self.work.checkpoint.spec
        title = f"economy: {spec.layers} blocks, one by one, {share:.0%} of the inputs left out"
        limits = self.limits[share]

        def make() -> list[float]:
            sequences = sample([np.array(ids) for ids in self.answers.sequences.lists()], _PROBES, spec.vocab_size)
            engine, found = self.engine, []
            stack = next(t.hf.split(f".{t.layer}.")[0] for t in spec.tensors if t.layer is not None)
            with self.work.progress.step(title) as advance:
                whole = [engine.record(ids, stack) for ids in sequences]
                tick = counter(advance, spec.layers)
                for layer in range(spec.layers):
                    own = {t.hf: limits[t.hf] for t in self.linear if t.layer == layer}
                    with gated(engine.module, own):
                        parts = [
                            kl_full(logits, engine.logits_from(ids, stack, given, layer))
                            for ids, (logits, given) in zip(sequences, whole, strict=True)
                        ]
                    found.append(float(np.concatenate(parts).mean()))
                    tick(layer)
            return found

        stage = Stage("economy-blocks", title, {**self._common, "share": share, "reference": self.digest})
        return self.work.stages.record(stage, list[float], make)[0]


def _matrices(plan: Plan) -> list[Entry]:
    """What a token is multiplied by: linear layers and the head, which may be the embedding."""
    kinds = ("linear", "embedding" if plan.tied else "head")
    return [entry for entry in plan.entries if entry.tensor.rule.kind in kinds]


def _linear(plan: Plan) -> list[Entry]:
    return [entry for entry in plan.entries if entry.tensor.rule.kind == "linear"]


def _unread(entries: Sequence[Entry], fired: Mapping[str, float]) -> float:
    return sum(entry.loaded_nbytes * (1 - fired[entry.tensor.hf]) for entry in entries)


def _fired(entries: Sequence[Entry], fired: Mapping[str, float]) -> float:
    """Share of the entries' connections."""
    whole = sum(entry.tensor.parameters for entry in entries)
    return sum(entry.tensor.parameters * fired[entry.tensor.hf] for entry in entries) / whole


def _point(run: _Run, share: float, found: _Measured) -> Point:
    own, said = _linear(run.wish.plan), found.coherence
    return Point(
        asked=share, skipped=1 - _fired(own, found.fired), kl_mean=said.kl_mean, kl_low=said.kl_mean_low,
        kl_high=said.kl_mean_high, same_top=said.same_top, ppl_ratio=said.ppl_ratio,
        unread=round(_unread(own, found.fired)),
    )  # fmt: skip


def _parts(groups: Mapping[str, Sequence[Entry]], fired: Mapping[str, float], costs: Sequence[float | None]) -> tuple[
    Part, ...
]:  # fmt: skip
    return tuple(
        Part(
            name=name, connections=sum(entry.tensor.parameters for entry in entries), fired=_fired(entries, fired),
            nbytes=sum(entry.loaded_nbytes for entry in entries), kl=cost,
        )
        for (name, entries), cost in zip(groups.items(), costs, strict=True)
    )  # fmt: skip


def _economy(
    run: _Run, compared: str, text: str, points: Sequence[Point], best: Point, fired: Mapping[str, float],
    costs: Sequence[float],
) -> Economy:  # fmt: skip
    plan, spec, target = run.wish.plan, run.work.checkpoint.spec, run.wish.target
    linear, whole = _linear(plan), {**dict.fromkeys((e.tensor.hf for e in _matrices(plan)), 1.0), **fired}
    roles = {role: [e for e in _matrices(plan) if e.tensor.role == role]
             for role in dict.fromkeys(e.tensor.role for e in _matrices(plan))}  # fmt: skip
    blocks = {str(layer): [e for e in linear if e.tensor.layer == layer] for layer in range(spec.layers)}
    connections = sum(entry.tensor.parameters for entry in _matrices(plan))
    context = run.work.options.length
    attention = 2 * spec.layers * spec.heads * spec.head_dim * context  # scores, then the values they weigh
    dense, chosen = _seconds(plan, target, dict.fromkeys(fired, 1.0)), _seconds(plan, target, fired)
    watts = published_watts(target)
    return Economy(
        model=run.work.checkpoint.name, model_sha256=run.work.checkpoint.sha256, reference=compared,
        weights=run.wish.grid or "", text=text, formats=_formats(plan), target=target.name, connections=connections,
        linear=sum(entry.tensor.parameters for entry in linear), multiply_adds=connections + attention, context=context,
        bytes_per_token=plan.bytes_per_token, points=tuple(points), max_kl=run.wish.max_kl, chosen=best.asked,
        roles=_parts(roles, whole, [None] * len(roles)), blocks=_parts(blocks, fired, costs),
        tokens_per_second=_over(1, dense), tokens_per_second_chosen=_over(1, chosen),
        millijoules=_times(watts, dense), millijoules_chosen=_times(watts, chosen), basis=_basis(target, watts),
        measured=run.wish.measured,
    )  # fmt: skip


def _seconds(plan: Plan, target: Target, fired: Mapping[str, float]) -> float | None:
    """Predicted for a token."""
    saved = sum(e.loaded_nbytes * (1 - fired[e.tensor.hf]) / efficiency(target, e.grid) for e in _linear(plan))
    return _over(1, decode_speed(target, streamed(plan, target) - saved))


def _over(one: float, other: float | None) -> float | None:
    return None if other is None else one / other


def _times(watts: float | None, seconds: float | None) -> float | None:
    return None if watts is None or seconds is None else 1000 * watts * seconds


def published_watts(target: Target) -> float | None:
    """Power while decoding on the target, the median of what its file has published; None: it has nothing."""
    each = [
        anchor.mj_per_token / 1000 * anchor.tg_tok_s
        for anchor in target.anchors
        if anchor.mj_per_token is not None and anchor.tg_tok_s is not None
    ]
    return statistics.median(each) if each else None


def _basis(target: Target, watts: float | None) -> str:
    if target.memory.decode_gbps is None:
        return f"the file of {target.name} has no decode bandwidth: nothing is predicted"
    power = "no published energy" if watts is None else f"{watts:.1f} W while decoding, the median of published ones"
    return f"{target.memory.decode_gbps} GB/s ({target.memory.decode_basis}), {power}"


def _formats(plan: Plan) -> str:
    shares = plan.shares(linear_only=True)
    named = ", ".join(name for name, _ in shares.most_common(3))
    head = next((get(entry.grid).name for entry in _matrices(plan) if entry.tensor.rule.kind != "linear"), "")
    return f"{plan.container.upper()}, linear layers in {named}{f', head in {head}' if head else ''}"
