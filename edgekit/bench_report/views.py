"""What a page says of one result, ready to be laid out: words and geometry, nothing left to decide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from edgekit.bench.disturbances import timed_windows
from edgekit.bench.figures import Named, figures, peak_mib
from edgekit.bench.judge import EngineJudgement, Facts
from edgekit.bench.result import BenchResult, DeviceCoherence, EngineRun, Kind, Loading, TracePoint
from edgekit.bench.verdicts import Check, Verdict
from edgekit.bench.words import Turned, turn_notes, turned
from edgekit.bench_report import plots, words
from edgekit.bench_report.words import Entry
from edgekit.bundle.paths import plain
from edgekit.report.plots import Divergence, DivergencePlot, LogAxis, Mark, log_axis
from edgekit.report.words import clean, number, percent
from edgekit.report.words import interval as kl_interval

ENGINES = 4
"""Runs of one result that are shown: there are two formats."""
_SAMPLES, _SAMPLE_LIMIT = 3, 1000
_PREFILLS, _SWEEPS = 16, 64


@dataclass(frozen=True)
class Row:
    """One figure of one engine."""

    title: str
    value: str
    interval: str
    n: str
    variation: str
    kind: Kind


@dataclass(frozen=True)
class Predicted:
    """A prediction of the build, beside what came true."""

    title: str
    predicted: str
    found: str
    source: str


@dataclass(frozen=True)
class Engine:
    """One format."""

    name: str
    engine: str
    verdict: Verdict
    sentences: list[str]
    """What the verdict rests on."""
    key: list[Named]
    cells: dict[str, str]
    """The same for a fleet's table, by column."""
    checks: tuple[Check, ...]
    rows: list[Row]
    settings: str
    bits: str
    """Requested, and what the files hold."""
    notes: list[str]
    """Plausibility."""
    coherence: list[tuple[str, str]]
    samples: list[str]
    predicted: list[Predicted]
    predicted_for: str
    turned: list[Turned]
    turn_notes: list[str]


@dataclass(frozen=True)
class View:
    """One result."""

    id: str
    entry: Entry
    kind: Kind
    engines: list[Engine]
    disturbances: list[str]
    facts: list[tuple[str, str]]
    preflight: list[tuple[str, str]]
    notes: list[str]
    divergence: DivergencePlot | None
    speeds: list[plots.Bars]
    tokens: plots.Chart | None
    memory: plots.Bars | None
    traces: list[plots.Chart]
    against: str
    """The bundle that this one was measured in turns with."""


def view(entry: Entry, name: str) -> View:
    """Everything of one result; `name` sets its anchors apart from those of others on the page."""
    result, judgement = entry.result, entry.judgement
    runs = result.runs[:ENGINES]
    judged = {engine.format: engine for engine in judgement.engines}
    engines = [_engine(run, judged[run.format]) for run in runs if run.format in judged]
    disturbed = list(judgement.disturbances)
    disturbed += [f"{engine.format.upper()}: {said}" for engine in judgement.engines for said in engine.disturbances]
    return View(
        id=name, entry=entry, kind=result.measured_on, engines=engines, disturbances=words.lines(disturbed),
        facts=words.facts(result), preflight=words.rows(result.preflight.items()), notes=words.lines(result.notes),
        divergence=_divergence(runs, judgement.engines), speeds=[one for one in _speeds(runs) if one],
        tokens=_tokens(runs, result.measured_on), memory=_memory(runs), traces=list(_traces(result)),
        against=plain(result.against.name, 60) if result.against else "another bundle",
    )  # fmt: skip


# --- one engine ------------------------------------------------------------------------------------------------------


def _engine(run: EngineRun, judged: EngineJudgement) -> Engine:
    found = figures(run)
    key = words.key_figures(found, peak_mib(run))
    order = ("FAIL", "INVALID", "NOT JUDGED")
    told = sorted((check for check in judged.checks if check.verdict in order), key=lambda c: order.index(c.verdict))
    return Engine(
        name=run.format.upper(), engine=plain(f"{run.engine} {run.version}", 80), verdict=judged.verdict,
        sentences=words.lines([check.sentence for check in told], 8), key=key,
        cells={_column(one): words.said(one) for one in key if words.beside_others(one)},
        checks=judged.checks[:100], rows=[_row(one) for one in found[:60]] + list(_percentiles(run)),
        settings=words.settings(run), bits=words.bits(run), notes=words.lines([*judged.notes, *run.notes]),
        coherence=list(_coherence(run.coherence)), samples=_samples(run.coherence),
        predicted=list(_predicted(run, judged.facts)), predicted_for=plain(judged.facts.target) if judged.facts else "",
        turned=turned(run), turn_notes=words.lines(turn_notes(run)),
    )  # fmt: skip


def _column(one: Named) -> str:
    return "ttft" if one.key.startswith("ttft/") else one.group if one.group == "memory" else one.key


def _row(one: Named) -> Row:
    return Row(
        one.title, words.said(one), words.interval(one.low, one.high, one.unit), "" if one.n is None else f"{one.n:,}",
        "" if one.variation is None else percent(one.variation), one.kind,
    )  # fmt: skip


def _percentiles(run: EngineRun) -> Iterator[Row]:
    if run.decode and (found := run.decode.inter_token).kind == "measured":
        value = f"{number(found.p50)} / {number(found.p95)} / {number(found.p99)} ms"
        yield Row("Between tokens, 50 / 95 / 99 %", value, "", f"{found.n:,}", "", found.kind)


def _coherence(found: DeviceCoherence | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    here = found.here
    yield "Mean KL divergence", f"{number(here.kl_mean)} nats ({kl_interval(here.kl_mean_low, here.kl_mean_high)})"
    if found.recorded_kl is not None:
        note = "" if found.whole else ", on more positions than here"
        yield "The same where it was built", f"{number(found.recorded_kl)} nats{note}"
    yield "99.9 % KL divergence", f"{number(here.kl_p999)} nats"
    yield "Same top token as the original", percent(here.same_top)
    yield "Perplexity, original → here", f"{number(here.ppl_reference, 4)} → {number(here.ppl_engine, 4)}"
    yield "Measured on", f"{here.positions:,} positions of {here.sequences:,} sequences"
    if here.generation:
        made = here.generation
        yield "Identical to the original's continuations", f"{percent(made.identical_share)} of {made.prompts:,}"
    if host := found.against_host:
        same = sum(token is None for token in host.first_divergent_token)
        yield "Identical to where it was built", f"{same:,} of {host.prompts:,} continuations"


def _samples(found: DeviceCoherence | None) -> list[str]:
    return [clean(text, _SAMPLE_LIMIT) for text in islice(found.texts, _SAMPLES)] if found else []


def _predicted(run: EngineRun, known: Facts | None) -> Iterator[Predicted]:
    if known is None:
        return
    if known.predicted_tok_s is not None:
        speed = run.decode.speed.quantity if run.decode else None
        real = speed is not None and speed.kind == "measured"
        found = _against(known.predicted_tok_s, speed.value, "tokens/s") if speed and real else "not measured"
        shown = words.amount(known.predicted_tok_s, "tokens/s")
        yield Predicted("Decode", shown, found, plain(known.predicted_from, 200))
    if known.predicted_ram_mib is not None:
        peak = peak_mib(run) if run.loading and run.loading[0].seconds.quantity.kind == "measured" else None
        found = "not measured" if peak is None else _against(known.predicted_ram_mib, peak, "MiB")
        yield Predicted("Memory", words.amount(known.predicted_ram_mib, "MiB"), found, "weights, KV cache and engine")


def _against(predicted: float, found: float, unit: str) -> str:
    share = f" ({100 * (found / predicted - 1):+.0f} %)" if predicted > 0 and math.isfinite(found) else ""
    return words.amount(found, unit) + share


# --- plots -----------------------------------------------------------------------------------------------------------


def _divergence(runs: Sequence[EngineRun], judged: Sequence[EngineJudgement]) -> DivergencePlot | None:
    found = [(run.format, run.coherence) for run in runs if run.coherence]
    limits = {one.format: {check.name: check.limit for check in one.checks} for one in judged}
    values: list[float | None] = []
    for form, one in found:
        values += [one.here.kl_median, one.here.kl_mean, one.here.kl_p99, one.here.kl_p999]
        values += [one.here.kl_mean_low, one.here.kl_mean_high, limits.get(form, {}).get("kl_mean_max")]
    axis = log_axis(values)
    rows = [_divergence_row(form.upper(), one, limits.get(form, {}), axis) for form, one in found]
    return DivergencePlot(axis.ticks, rows) if rows else None


def _divergence_row(name: str, one: DeviceCoherence, limits: dict[str, float | None], axis: LogAxis) -> Divergence:
    here = one.here
    kinds = (
        ("median", "median", here.kl_median, ""), ("mean", "mean", here.kl_mean, "kl_mean_max"),
        ("p99", "99 %", here.kl_p99, ""), ("p999", "99.9 %", here.kl_p999, "kl_p999_max"),
    )  # fmt: skip
    marks = tuple(
        Mark(kind, title, number(v), axis.at(v), axis.below(v), axis.at(limits.get(key)), number(limits.get(key)))
        for kind, title, v, key in kinds
    )
    places = [mark.x for mark in marks if mark.x is not None]
    low, high = axis.at(here.kl_mean_low), axis.at(here.kl_mean_high)
    said = ", ".join(f"{mark.title} {mark.value}" for mark in marks)
    return Divergence(
        name=name, marks=marks, range=(min(places), max(places)) if places else None,
        interval=None if low is None or high is None else (low, high),
        interval_value=kl_interval(here.kl_mean_low, here.kl_mean_high),
        summary=f"KL divergence of {name} in nats on a logarithmic axis: {said}",
    )  # fmt: skip


def _speeds(runs: Sequence[EngineRun]) -> Iterator[plots.Bars | None]:
    named = {run.format: figures(run) for run in runs}
    for title, caption, prefix in (
        ("Decode", "Tokens generated per second; longer is faster.", "decode"),
        ("Prefill", "Prompt tokens read per second, by the prompt's length; longer is faster.", "prefill/"),
        (
            "First token",
            "From the prompt's text to the first token, by the prompt's length; shorter is faster.",
            "ttft/",
        ),
        ("Energy per token", "While generating; shorter is less.", "decode_energy"),
    ):
        picked = [
            (form.upper() + (f", {one.key.split('/')[1]} tokens" if "/" in one.key else ""), one, "")
            for form, all_ in named.items() for one in all_[:_PREFILLS * 3]
            if one.key == prefix or (prefix.endswith("/") and one.key.startswith(prefix))
        ]  # fmt: skip
        yield plots.bars(title, caption, picked)
    for run in runs:
        yield _sweep(run, "decode")
        yield _sweep(run, "prefill")


def _sweep(run: EngineRun, phase: str) -> plots.Bars | None:
    at = run.settings
    chosen = at.decode_threads if phase == "decode" else at.prefill_threads
    items = []
    for point in run.sweep[:_SWEEPS]:
        cpus = f", CPUs {' '.join(map(str, point.affinity[:8]))}" if point.affinity else ""
        name = f"{point.threads} thread{'s' if point.threads != 1 else ''}{cpus}"
        figure = point.decode if phase == "decode" else point.prefill
        mark = "chosen" if point.threads == chosen and point.affinity == at.affinity else ""
        items.append((name, figure.quantity, mark))
    title = f"{run.format.upper()}: {phase} by number of threads"
    return plots.bars(title, "Tried before everything else, for decode and prefill apart.", items)


def _tokens(runs: Sequence[EngineRun], kind: Kind) -> plots.Chart | None:
    """An emulator's times would be taken for the board's: not drawn."""
    if kind != "measured":
        return None
    series = [(run.format.upper(), list(enumerate(run.decode.token_ms, start=1))) for run in runs if run.decode]
    return plots.chart(
        "Time of each token", "Median over the repetitions, by the token's place in the answer.",
        ("token", "ms"), series, kind,
    )  # fmt: skip


def _memory(runs: Sequence[EngineRun]) -> plots.Bars | None:
    items = [
        (f"{run.format.upper()}{f' ({one.mode})' if one.mode else ''}, {title}", figure, "")
        for run in runs for one in run.loading[:8] for title, figure in _states(one)
    ]  # fmt: skip
    caption = (
        "Most that the process held at once (peak resident set): Python and the engine's libraries, then the model."
    )
    return plots.bars("Peak memory", caption, items)


def _states(one: Loading) -> Iterator[tuple[str, Named]]:
    for title, state in (("before loading", one.empty), ("loaded", one.loaded), ("run", one.ran)):
        value = state.peak_mib if title != "before loading" else state.resident_mib
        if value is not None:
            yield title, Named("", "", "MiB", "memory", False, value, None, None, one.seconds.quantity.kind)


def _traces(result: BenchResult) -> Iterator[plots.Chart]:
    points = sorted((point for point in result.environment if math.isfinite(point.t)), key=lambda point: point.t)
    bands = [
        (window.begin, window.end, f"disturbed: {plain(window.disturbances[0])}")
        for run in result.runs[:ENGINES] for _, window in timed_windows(run) if window.disturbances
    ]  # fmt: skip
    for title, unit, values in _sensors(points):
        made = plots.chart(
            title, "Beside the measurement." + (" Shaded: disturbed." if bands else ""), ("s since the start", unit),
            [(title, values)], result.measured_on, bands=bands, from_zero=unit == "W",
            gap=plots.gap_of([t for t, _ in values]),
        )  # fmt: skip
        if made:
            yield made


def _sensors(points: Sequence[TracePoint]) -> Iterator[tuple[str, str, list[tuple[float, float | None]]]]:
    """Power is read more often than the rest: a point of another sensor is no gap in a line."""
    yield "Temperature", "°C", [(point.t, point.temp_c) for point in points if point.temp_c is not None]
    yield "Clock", "MHz", [(point.t, point.clock_mhz) for point in points if point.clock_mhz is not None]
    yield "Power", "W", [(point.t, point.power_w) for point in points if point.power_w is not None]
