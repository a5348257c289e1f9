"""The measurements of one engine: from single repetitions in the measuring process to figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec

from edgekit.bench import plan
from edgekit.bench.child import Generate, Judge, Look, Open, Opened, Read
from edgekit.bench.child import Talk as TalkRequest
from edgekit.bench.coherence import Judged
from edgekit.bench.latency import Generating, Reading, Talking
from edgekit.bench.memory import Resident
from edgekit.bench.plan import Protocol, Repeated, repeat
from edgekit.bench.result import (
    Decode,
    DeviceCoherence,
    DeviceKind,
    Figure,
    Loading,
    Mode,
    Percentiles,
    Prefill,
    SweepPoint,
    Talk,
    Window,
    figure,
)
from edgekit.bench.sensors import Sensors
from edgekit.bench.stats import percentiles
from edgekit.bench.worker import Start, Tell, Worker

_TOKEN_TIMES = 1024


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run share."""

    protocol: Protocol
    kind: DeviceKind
    sensors: Sensors

    def figure(self, values: Sequence[float], unit: str, stopped: plan.Stop = "repeats") -> Figure:
        """A figure of this device."""
        return figure(values, unit, self.kind, stopped)

    def energy(self, stretches: Sequence[tuple[float, float]], unit: str, share: float) -> Figure | None:
        """Joules of each stretch times `share`."""
        joules = self.sensors.joules(stretches)
        return self.figure([share * value for value in joules], unit) if joules else None

    def window(self, stretches: Sequence[tuple[float, float]]) -> Window:
        """From the beginning of the first to the end of the last."""
        return self.sensors.window(stretches[0][0], stretches[-1][1])


def loading(bench: Bench, start: Start, request: Open, mode: Mode | None, text: Callable[[int], str]) -> Loading:
    """Load in fresh processes, as many as the protocol says; in the last one the model also works.

    `text` gives a text of at least so many tokens.
    """
    opened: list[Opened] = []
    for index in range(bench.protocol.loads):
        worker = start()
        try:
            opened.append(worker.ask(request, Opened))
            if index + 1 == bench.protocol.loads:
                context = opened[-1].max_context
                tokens = max(fitting(bench.protocol, context))
                worker.ask(Read(text=text(tokens), tokens=tokens), Reading)
                worker.ask(Generate(tokens=min(bench.protocol.decode_tokens, context)), Generating)
                ran = worker.ask(Look(), Resident)
        finally:
            worker.close()
    return Loading(
        mode=mode, processor=opened[-1].processor, context=context,
        seconds=bench.figure([one.seconds for one in opened], "s"), empty=opened[-1].empty, loaded=opened[-1].loaded,
        ran=ran, ran_tokens=tokens,
        window=bench.window([(one.begin, one.end) for one in opened]),
    )  # fmt: skip


def fitting(protocol: Protocol, context: int) -> list[int]:
    """Lengths of the protocol's prompts that fit; the whole context where none does."""
    return [tokens for tokens in protocol.prompt_lengths if tokens <= context] or [context]


def prefill(bench: Bench, worker: Worker, text: str, tokens: int) -> Prefill:
    """Read one prompt again and again."""
    done = repeat(lambda: worker.ask(Read(text=text, tokens=tokens), Reading), lambda run: run.prefill, bench.protocol)
    stretches = [(run.begin, run.end) for run in done.runs]
    return Prefill(
        tokens=tokens, speed=bench.figure([tokens / run.prefill for run in done.runs], "tokens/s", done.stopped),
        ttft=bench.figure([1000 * (run.encode + run.prefill + run.choose) for run in done.runs], "ms", done.stopped),
        energy=bench.energy(stretches, "J", 1.0), window=bench.window(stretches),
    )  # fmt: skip


def decode(bench: Bench, worker: Worker, tokens: int) -> Decode:
    """Generate again and again."""
    done = _generated(worker, tokens, bench.protocol)
    stretches = [(run.begin, run.end) for run in done.runs]
    by_place = [statistics.median(times) for times in zip(*(run.tokens for run in done.runs), strict=True)]
    return Decode(
        tokens=tokens, speed=bench.figure(_speeds(done), "tokens/s", done.stopped),
        inter_token=_percentiles([run.tokens for run in done.runs], bench.kind),
        token_ms=tuple(1000 * seconds for seconds in by_place[:_TOKEN_TIMES]),
        energy=bench.energy(stretches, "mJ/token", 1000 / tokens), window=bench.window(stretches),
    )  # fmt: skip


def talk(bench: Bench, worker: Worker) -> Talk:
    """Answer again and again."""
    request = TalkRequest(tokens=bench.protocol.talk_tokens)
    done = repeat(lambda: worker.ask(request, Talking), lambda run: run.end - run.begin, bench.protocol)
    stretches = [(run.begin, run.end) for run in done.runs]
    speeds = [(len(run.tokens) + 1) / (run.end - run.begin) for run in done.runs]
    return Talk(
        prompt_tokens=done.runs[0].prompt_tokens, tokens=len(done.runs[0].tokens) + 1,
        speed=bench.figure(speeds, "tokens/s", done.stopped),
        first_text=bench.figure([1000 * run.first_text for run in done.runs], "ms", done.stopped),
        inter_token=_percentiles([run.tokens for run in done.runs], bench.kind),
        energy=bench.energy(stretches, "J", 1.0), window=bench.window(stretches),
    )  # fmt: skip


def sweep_point(bench: Bench, worker: Worker, request: Open, text: str, tokens: int) -> SweepPoint:
    """Both speeds with one number of threads, less often repeated than the figures that are shown."""
    few = brief(bench.protocol)
    worker.ask(request, Opened)
    read = repeat(lambda: worker.ask(Read(text=text, tokens=tokens), Reading), lambda run: run.prefill, few)
    made = _generated(worker, few.decode_tokens, few)
    return SweepPoint(
        threads=request.threads, affinity=request.affinity, prefill_tokens=tokens, decode_tokens=few.decode_tokens,
        prefill=bench.figure([tokens / run.prefill for run in read.runs], "tokens/s", read.stopped),
        decode=bench.figure(_speeds(made), "tokens/s", made.stopped),
        window=bench.window([(read.runs[0].begin, made.runs[-1].end)]),
    )  # fmt: skip


def brief(protocol: Protocol) -> Protocol:
    """The same protocol with fewer repetitions, for a sweep of many points."""
    least = min(protocol.repeats_min, 3)
    return msgspec.structs.replace(
        protocol, repeats_min=least, repeats_max=max(least, min(protocol.repeats_max, 6)),
        seconds_max=protocol.seconds_max / 4, warmups=min(protocol.warmups, 1),
        decode_tokens=min(protocol.decode_tokens, 32),
    )  # fmt: skip


def coherence(bench: Bench, worker: Worker, request: Judge, recorded: float | None, tell: Tell) -> DeviceCoherence:
    """What the engine says here; `recorded` is the mean KL divergence of the bundle's report."""
    said = worker.ask(request, Judged, tell)
    return DeviceCoherence(
        here=said.coherence, whole=said.whole, recorded_kl=recorded, against_host=said.against_host, texts=said.texts,
        kind=bench.kind, window=bench.window([(said.begin, said.end)]),
    )  # fmt: skip


def _generated(worker: Worker, tokens: int, protocol: Protocol) -> Repeated[Generating]:
    return repeat(
        lambda: worker.ask(Generate(tokens=tokens), Generating), lambda run: run.end - run.begin, protocol
    )  # fmt: skip


def _speeds(done: Repeated[Generating]) -> list[float]:
    return [len(run.tokens) / (run.end - run.begin) for run in done.runs]


def _percentiles(runs: Sequence[Sequence[float]], kind: DeviceKind) -> Percentiles:
    times = list(chain.from_iterable(runs))
    p50, p95, p99 = percentiles([1000 * seconds for seconds in times] or [0.0])
    return Percentiles(p50=p50, p95=p95, p99=p99, n=len(times), kind=kind)
