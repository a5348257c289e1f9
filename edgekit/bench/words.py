"""A result in lines for a terminal. Emulated figures are called what they are, and none of them a latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.bench import ratios
from edgekit.bench.result import BenchResult, DeviceCoherence, EngineRun, Figure, Kind, Loading, Quantity, Ratio
from edgekit.bench.stats import ENOUGH
from edgekit.bundle.paths import plain

EMULATED = (
    "Computed on an emulated board: what it says is what the board would say; how fast it was says nothing about the "
    "board."
)


_TITLES = {
    "decode": "Decode of", "prefill": "Prefill of", "ttft": "First token after", "load": "Loading",
    "energy": "Energy per token of",
}  # fmt: skip
_TIMES = ("ttft", "load")
"""Less of these is faster."""
ACCELERATORS = {"cpu": "CPU", "cuda": "GPU (CUDA)"}
_MOST = 16


@dataclass(frozen=True)
class Turned:
    """One figure that was measured in turns with another bundle, in words."""

    key: str
    """Of the figure that it is a ratio of."""
    title: str
    ours: str
    theirs: str
    ratio: str
    interval: str
    n: str
    says: str
    kind: Kind

    @property
    def line(self) -> str:
        """All of it."""
        kind = "" if self.kind == "measured" else f" {self.kind}"
        how = f"{self.ratio}{kind} ({self.interval}, n = {self.n})"
        return f"{self.title}: {how}, {self.ours} against {self.theirs}: {self.says}"


def lines(result: BenchResult) -> Iterator[str]:
    """What was found, engine by engine."""
    yield (
        f"{plain(result.bundle.name)} on {plain(result.device.url)} ({plain(result.device.machine.get('cpu', '?'))}), "
        f"settings of {plain(result.target.title)}, protocol {plain(result.protocol.name)}"
    )
    if result.measured_on == "emulated":
        yield EMULATED
    for run in result.runs:
        yield from (f"  {line}" if index else line for index, line in enumerate(_run(run)))
        yield from (f"  {line}" for line in turn_lines(run, result))
    yield from map(plain, result.notes)
    if result.parts > 1:
        yield f"Taken up {result.parts - 1} × after an interruption."


def shown(quantity: Quantity) -> str:
    """As "12.3 tokens/s (12.1 – 12.4, n = 5)", with "emulated" where it is."""
    kind = "" if quantity.kind == "measured" else f" {quantity.kind}"
    value = f"{quantity.value:.4g} {plain(quantity.unit, 40)}{kind}"
    return f"{value} ({quantity.low:.4g} – {quantity.high:.4g}, n = {quantity.n})"


def turned(run: EngineRun) -> list[Turned]:
    """What was measured in turns; the time to a first token of an emulated board is none, and left out."""
    found = ratios.ratios(run)
    shown = [one for one in found if one.ratio.quantity.kind == "measured" or one.name != "ttft"]
    return [_turned(one, run) for one in shown[:_MOST]]


def turn_notes(run: EngineRun) -> list[str]:
    """What a reader of the figures that were measured in turns has to know."""
    if run.turns is None:
        return []
    spoiled = run.turns.window.disturbances[:_MOST] if run.turns.window else ()
    ended = (f"it ended here: {plain(run.turns.failure.sentence, 500)}",) if run.turns.failure else ()
    return [*(f"disturbed: {plain(words)}" for words in spoiled), *ended]


def turn_lines(run: EngineRun, result: BenchResult) -> Iterator[str]:
    """Everything of a run that was measured in turns with another bundle."""
    name = plain(result.against.name, 60) if result.against else "another bundle"
    yield from (f"in turns with {name}, {line}" for line in (*(one.line for one in turned(run)), *turn_notes(run)))


def _turned(one: Ratio, run: EngineRun) -> Turned:
    found, unit = one.ratio.quantity, plain(one.ours.quantity.unit, 20)
    ours, theirs = (f"{side.quantity.value:.4g} {unit}" for side in (one.ours, one.theirs))
    spread = f"{found.low:.4g} to {found.high:.4g}"
    title = f"{_TITLES[one.name]} {one.tokens}" if one.tokens else _TITLES[one.name]
    return Turned(
        ratios.key(one, run), title, ours, theirs, f"{found.value:.4g} ×", spread, f"{found.n:,}", _says(one),
        found.kind,
    )  # fmt: skip


def _says(one: Ratio) -> str:
    found = one.ratio.quantity
    if found.kind != "measured":
        return "says nothing about the board"
    if found.n < ENOUGH:
        return "too few rounds to say"
    if found.low <= 1 <= found.high:
        return "no sure difference"
    if one.name == "energy":
        return "more energy" if found.low > 1 else "less energy"
    return "faster" if (found.low > 1) != (one.name in _TIMES) else "slower"


def _run(run: EngineRun) -> Iterator[str]:
    at = run.settings
    pinned = f", CPUs {', '.join(map(str, at.affinity))}" if at.affinity else ""
    yield (
        f"{run.format.upper()} in {plain(run.engine)} {plain(run.version)}{computed_on(run, ' on the ')}: "
        f"threads {at.prefill_threads} for prompts, {at.decode_threads} for generating{pinned} (by the {at.by})"
    )
    if run.requested_bits is not None and run.effective_bits is not None:
        types = f" ({', '.join(plain(name, 40) for name in run.types[:4])})" if run.types else ""
        yield f"{run.requested_bits:g} bits requested, {run.effective_bits:.4g} per weight in the files{types}"
    for one in run.loading:
        yield from _loading(one)
    if run.instructions:
        counted = run.instructions
        yield f"instructions a decoded token: {shown(counted.decode.quantity)}"
        yield f"instructions a token of a prompt: {shown(counted.prefill.quantity)}"
    for read in run.prefill:
        first = f"; first token after {shown(read.ttft.quantity)}" if read.ttft.quantity.kind == "measured" else ""
        yield f"prompt of {read.tokens}: {shown(read.speed.quantity)}{first}{_energy(read.energy)}"
    if run.decode:
        yield f"generating {run.decode.tokens}: {shown(run.decode.speed.quantity)}{_energy(run.decode.energy)}"
        times = run.decode.inter_token
        if times.kind == "measured":
            spread = f"p50 {times.p50:.3g} ms, p95 {times.p95:.3g} ms, p99 {times.p99:.3g} ms"
            yield f"between tokens: {spread}, n = {times.n}"
    if run.talk:
        yield f"end to end, {run.talk.prompt_tokens} + {run.talk.tokens} tokens: {shown(run.talk.speed.quantity)}"
    if run.coherence:
        yield from _coherence(run.coherence)
    yield from map(plain, run.notes)
    if run.failure:
        yield f"ended here: {plain(run.failure.sentence)}"


def computed_on(run: EngineRun, before: str = "") -> str:
    """What computed a run, after `before`; empty where the result does not say."""
    return before + ACCELERATORS[run.computed_on] if run.computed_on else ""


def _energy(energy: Figure | None) -> str:
    return f"; {shown(energy.quantity)}" if energy else ""


def _loading(one: Loading) -> Iterator[str]:
    mode = f" ({one.mode})" if one.mode else ""
    yield f"loading{mode}: {shown(one.seconds.quantity)}, page cache {one.page_cache}"
    yield (
        f"memory{mode}: {_mib(one.empty.resident_mib)} before, at most {_mib(one.loaded.peak_mib)} when loaded, "
        f"at most {_mib(one.ran.peak_mib)} when it had run"
    )


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MiB"


def _coherence(found: DeviceCoherence) -> Iterator[str]:
    here = found.here
    yield (
        f"coherence: mean KL divergence {here.kl_mean:.4f} nats, same top token {100 * here.same_top:.1f} %, "
        f"perplexity ratio {here.ppl_ratio:.4f}, {here.positions} positions"
    )
    if found.recorded_kl is not None and found.whole:
        yield f"where it was built: mean KL divergence {found.recorded_kl:.4f} nats"
    if host := found.against_host:
        same = sum(index is None for index in host.first_divergent_token)
        yield f"continuations the same as where it was built: {same} of {host.prompts}"
