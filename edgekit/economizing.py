"""Counting a model's economy, one stage a point, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec

from edgekit import against, cache, steps, weighing
from edgekit.building import apart
from edgekit.checkpoint.checkpoint import F32, Checkpoint, as_stored
from edgekit.coherence import metrics, reference
from edgekit.economy import figures
from edgekit.economy.allotting import LEVELS, Allotment
from edgekit.economy.gating import Counts, gated
from edgekit.economy.record import MAX_KL, SHARES, Decoded, Economy, Point, within
from edgekit.engines.torch import TorchEngine
from edgekit.errors import OptionError
from edgekit.options import Options
from edgekit.progress import Progress, counter
from edgekit.quantize.plan import Plan
from edgekit.skipping import Skipping
from edgekit.stages import Made, Stage
from edgekit.surviving import in_format
from edgekit.targets import Target
from edgekit.weighing import load_importance

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
            run = _Run(
                work=work, calibration=made.calibration or made.evaluation, shares=wish.shares, grid=wish.grid,
                weighed_by=importance.digest if importance else None, wish=wish, answers=answers, digest=digest,
                importance=importance,
            )  # fmt: skip
            allotments: Mapping[float, Allotment | None] = (
                dict.fromkeys(wish.shares) if wish.uniform else run.allotments
            )
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


@dataclass(kw_only=True)
class _Run(Skipping):
    """One model in one format, loaded when something is not in the cache."""

    wish: Wish
    answers: reference.Reference
    digest: str
    importance: Made | None

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

    def point(self, share: float, allotment: Allotment | None) -> _Measured:
        """The whole model with that share left out."""
        title = f"economy: {share:.3g} of the connections left out"
        limits = self.limits(share, allotment)

        def make() -> _Measured:
            engine, counts = self.engine, Counts()
            with self.work.progress.step(title), gated(engine.module, limits, counts):
                found = metrics.evaluate(engine, self.answers, generate=False, items=False)
            return _Measured(coherence=found, fired={name: one.share for name, one in counts.layers.items()})

        stage = Stage("economy-point", title, {**self.common, "limits": limits, "reference": self.digest})
        return self.work.stages.record(stage, _Measured, make)[0]

    def blocks(self, share: float, allotment: Allotment | None) -> list[float]:
        """KL divergence in nats with one block alone gated so, from the same model whole."""
        layers = self.work.checkpoint.spec.layers
        title = f"economy: {layers} blocks, one by one, {share:.3g} of the connections left out"
        limits = self.limits(share, allotment)

        def make() -> list[float]:
            probe = self.probe
            with self.work.progress.step(title) as advance:
                tick, found = counter(advance, layers), []
                for layer in range(layers):
                    found.append(probe.kl({t.hf: limits[t.hf] for t in self.linear if t.layer == layer}, layer))
                    tick(layer)
            return found

        stage = Stage("economy-blocks", title, {**self.common, "limits": limits, "text": self.sample_ids})
        return self.work.stages.record(stage, list[float], make)[0]


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
