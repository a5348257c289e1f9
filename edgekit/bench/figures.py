"""The figures of one engine's run by name, the same for gates, baselines, comparisons and reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgekit.bench.result import DeviceCoherence, EngineRun, Figure, Instructions, Kind, Loading
from edgekit.bundle.paths import plain

Group = Literal["speed", "energy", "memory", "coherence", "instructions"]
"""Heat and other load spoil speed and energy; nothing else. Instructions are counted by an emulator."""
_Z95 = 1.96
"""Standard errors on either side of a 95 % interval."""


@dataclass(frozen=True)
class Named:
    """One figure with its name."""

    key: str
    title: str
    unit: str
    group: Group
    more_is_better: bool
    value: float
    low: float | None
    """None: it is known without an interval."""
    high: float | None
    kind: Kind
    n: int | None = None
    """Repetitions."""
    variation: float | None = None
    """Coefficient of variation of the repetitions."""
    interval: str = ""
    """How low and high were found."""


def figures(run: EngineRun) -> tuple[Named, ...]:
    """All that a run holds, in the order in which a reader wants them. An emulated time is no latency: left out."""
    return (*_coherence(run.coherence), *_instructions(run.instructions), *_speeds(run), *_memory(run))


def by_key(run: EngineRun) -> Mapping[str, Named]:
    """:func:`figures` by their keys."""
    return {one.key: one for one in figures(run)}


def peak_mib(run: EngineRun) -> float | None:
    """Largest resident memory of loading and running, loaded as the settings say; None when the kernel did not say."""
    return max((value for one in used_loadings(run) for value in _peaks(one)), default=None)


def used_loadings(run: EngineRun) -> tuple[Loading, ...]:
    """Loadings in the mode that was measured with; all of them where the engine decides."""
    return tuple(one for one in run.loading if run.settings.mode in (None, one.mode)) or run.loading


def _peaks(one: Loading) -> Iterator[float]:
    yield from (state.peak_mib for state in (one.loaded, one.ran) if state.peak_mib is not None)


def _coherence(found: DeviceCoherence | None) -> Iterator[Named]:
    if found is None:
        return
    here, kind = found.here, found.kind
    how = "bootstrap 95 %" if here.kl_mean_low is not None else ""
    yield Named(
        "kl_mean", "Mean KL divergence", "nats", "coherence", False, here.kl_mean, here.kl_mean_low, here.kl_mean_high,
        kind, interval=how,
    )  # fmt: skip
    yield Named("kl_p999", "99.9 % KL divergence", "nats", "coherence", False, here.kl_p999, None, None, kind)
    yield Named("same_top", "Same top token", "share", "coherence", True, here.same_top, None, None, kind)
    spread = None if here.ppl_ratio_se is None else _Z95 * here.ppl_ratio_se
    low, high = (None, None) if spread is None else (here.ppl_ratio - spread, here.ppl_ratio + spread)
    how = "" if spread is None else "± 1.96 standard errors"
    yield Named("ppl_ratio", "Perplexity ratio", "", "coherence", False, here.ppl_ratio, low, high, kind, interval=how)


def _instructions(found: Instructions | None) -> Iterator[Named]:
    if found is not None:
        yield named("instructions/decode", "Instructions, a decoded token", found.decode, "instructions")
        yield named("instructions/prefill", "Instructions, a token of a prompt", found.prefill, "instructions")


def _speeds(run: EngineRun) -> Iterator[Named]:
    if run.decode:
        yield named("decode", "Decode", run.decode.speed, more=True)
    for one in run.prefill:
        yield named(f"prefill/{one.tokens}", f"Prefill of {one.tokens}", one.speed, more=True)
    for one in run.prefill:
        if one.ttft.quantity.kind == "measured":
            yield named(f"ttft/{one.tokens}", f"First token after {one.tokens}", one.ttft)
    if run.talk:
        yield named("talk", "Answer, end to end", run.talk.speed, more=True)
    if run.decode and run.decode.energy:
        yield named("decode_energy", "Energy per token", run.decode.energy, "energy")
    for one in run.prefill:
        if one.energy:
            yield named(f"prefill_energy/{one.tokens}", f"Energy of a prompt of {one.tokens}", one.energy, "energy")
    for loaded in run.loading:
        mode = loaded.mode or "own"
        yield named(f"load/{mode}", f"Loading{f' ({mode})' if loaded.mode else ''}", loaded.seconds)


def named(key: str, title: str, figure: Figure, group: Group = "speed", *, more: bool = False) -> Named:
    """A figure under a key."""
    found = figure.quantity
    return Named(
        key, title, plain(found.unit, 40), group, more, found.value, min(found.low, found.high),
        max(found.low, found.high), found.kind, found.n, figure.variation, plain(found.interval, 40),
    )  # fmt: skip


def _memory(run: EngineRun) -> Iterator[Named]:
    for one in run.loading:
        mode = f" ({one.mode})" if one.mode else ""
        kind, key = one.seconds.quantity.kind, one.mode or "own"
        for name, title, state in (("loaded", "loaded", one.loaded), ("ran", "run", one.ran)):
            if state.peak_mib is not None:
                words = f"Peak memory, {title}{mode}"
                yield Named(f"rss_{name}/{key}", words, "MiB", "memory", False, state.peak_mib, None, None, kind)
