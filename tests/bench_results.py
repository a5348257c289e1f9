"""Results as boards would give them, for tests of what is made of them. The figures are made up."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from edgekit.bench import plan
from edgekit.bench.judge import Facts
from edgekit.bench.memory import Resident
from edgekit.bench.result import (
    AgainstHost,
    BenchResult,
    BundleRef,
    Decode,
    Device,
    DeviceCoherence,
    EngineRun,
    Failure,
    Figure,
    Kind,
    Loading,
    Percentiles,
    Prefill,
    Ratio,
    Settings,
    SweepPoint,
    Talk,
    TargetRef,
    TracePoint,
    Turns,
    Window,
    figure,
)
from edgekit.coherence.generation import Generation, Habits
from edgekit.coherence.metrics import Coherence
from edgekit.devices.boards.base import BoardFacts

FACTS = Facts(
    requested_bits=4, types=("IQ4_NL", "F32"), parameters=494_032_768, target="rpi5", predicted_tok_s=34.0,
    predicted_ram_mib=812.0, predicted_from="bandwidth / bytes per token, 11.82 GB/s (measured)",
)  # fmt: skip
KNOWN = {"gguf": FACTS, "onnx": msgspec.structs.replace(FACTS, types=("int4-sym-b32",))}


def coherence(**changes: Any) -> Coherence:
    quiet = Habits(seq_rep_4=0.02, loop_rate=0.0, eot_rate=0.4)
    made = Generation(
        prompts=12, token_limit=64, first_divergent_token=(None,) * 3 + (7,) * 9, first_divergent_median=7,
        identical_share=0.25, engine=quiet, reference=quiet, seq_rep_4_rise=0.0, loop_rate_rise=0.0, eot_rate_rise=0.0,
    )  # fmt: skip
    found: dict[str, Any] = {
        "engine": "llama.cpp", "model": "toy", "text": "self-generated", "sequences": 16, "positions": 2032, "k": 64,
        "tail_mass_mean": 0.04, "kl_mean": 0.052, "kl_mean_coarse": 0.043, "kl_mean_low": 0.047, "kl_mean_high": 0.059,
        "kl_median": 0.017, "kl_p99": 0.49, "kl_p999": 1.5, "kl_max": 4.2, "same_top": 0.899, "delta_p_rms": 0.05,
        "ppl_reference": 15.31, "ppl_engine": 15.98, "ppl_ratio": 1.0438, "ppl_ratio_se": 0.006,
        "entropy_reference": 2.7, "entropy_engine": 2.75, "generation": made,
    }  # fmt: skip
    return Coherence(**(found | changes))


def repeated(value: float, unit: str, kind: Kind = "measured", spread: float = 0.01, n: int = 8) -> Figure:
    """n repetitions within ± spread of `value`."""
    return figure([value * (1 + spread * math.sin(3 * i + 1)) for i in range(n)], unit, kind)


def window(begin: float, *disturbances: str, temp: float = 52.0, sensors: bool = True) -> Window:
    """Twenty seconds."""
    trace = tuple(
        TracePoint(t=begin + i / 2, temp_c=round(temp + 0.3 * i, 1), clock_mhz=2400.0, power_w=5 + math.sin(i) / 3)
        for i in range(41)
    )
    return Window(begin=begin, end=begin + 20, trace=trace if sensors else (), disturbances=disturbances)


def _percentiles(kind: Kind) -> Percentiles:
    return Percentiles(p50=29.3, p95=31.2, p99=36.0, n=504, kind=kind)


def _loading(mode: Any, kind: Kind, begin: float, *disturbances: str) -> Loading:
    def state(peak: float) -> Resident:
        return Resident(peak_mib=peak, resident_mib=peak - 4, anonymous_mib=peak / 2, file_mib=peak / 2 - 4)

    return Loading(
        mode=mode, context=1024, seconds=repeated(1.3, "s", kind, n=3), empty=state(92), ran_tokens=512,
        loaded=state(701 if mode == "mmap" else 420), ran=state(744 if mode == "mmap" else 461),
        window=window(begin, *disturbances),
    )  # fmt: skip


def run(
    form: Any = "gguf", kind: Any = "measured", *, speed: float = 34.2, spread: float = 0.01,
    disturbances: tuple[str, ...] = (), seen: Coherence | None = None, n: int = 8, begin: float = 0.0, **changes: Any,
) -> EngineRun:  # fmt: skip
    """A whole run; `speed` of decoding in tokens/s."""
    power = kind == "measured"
    found: dict[str, Any] = {
        "format": form, "engine": "llama.cpp" if form == "gguf" else "onnxruntime", "version": "0.3.36",
        "artefact": f"{form}/model", "bytes": 351_000_000,
        "settings": Settings(
            prefill_threads=4, decode_threads=2, context=1024, by="sweep", mode="mmap" if form == "gguf" else None
        ),
        "sweep": tuple(
            SweepPoint(
                threads=threads, affinity=(), prefill_tokens=128, prefill=repeated(70.0 * threads, "tokens/s", n=3),
                decode_tokens=64, decode=repeated(speed * share, "tokens/s", n=3), window=window(begin),
            )
            for threads, share in ((1, 0.82), (2, 1.0), (3, 0.93), (4, 0.79))
        ) if kind == "measured" else (),
        "loading": tuple(
            _loading(mode, kind, begin + 20 * i, *disturbances)
            for i, mode in enumerate(("mmap", "copy") if form == "gguf" else (None,))
        ),
        "prefill": tuple(
            Prefill(
                tokens=tokens, speed=repeated(speed * 7, "tokens/s", kind, spread, n),
                ttft=repeated(tokens * 150 / speed + 40, "ms", kind, spread, n),
                energy=repeated(tokens * 0.03, "J", kind, spread, n) if power else None,
                window=window(begin + 60 + i * 20, *disturbances, temp=58),
            )
            for i, tokens in enumerate((32, 128, 512))
        ),
        "decode": Decode(
            tokens=64, speed=repeated(speed, "tokens/s", kind, spread, n), inter_token=_percentiles(kind),
            token_ms=tuple(1000 / speed * (1 + 0.002 * i + (0.25 if i % 21 == 20 else 0)) for i in range(63)),
            energy=repeated(146.0, "mJ/token", kind, spread, n) if power else None,
            window=window(begin + 150, *disturbances, temp=66),
        ),
        "talk": Talk(
            prompt_tokens=31, tokens=64, speed=repeated(speed * 0.9, "tokens/s", kind, spread, n),
            first_text=repeated(190, "ms", kind, spread, n), inter_token=_percentiles(kind), energy=None,
            window=window(begin + 180, *disturbances, temp=68),
        ),
        "coherence": DeviceCoherence(
            here=seen or coherence(), whole=False, recorded_kl=0.0519, kind=kind,
            against_host=AgainstHost(
                prompts=12, first_divergent_token=(None,) * 11 + (31,), compared_tokens=(64,) * 12,
                identical_share=11 / 12,
            ),
            texts=("The capital of France is Paris. It lies on the Seine.", "One, two, three, four, five."),
            window=window(begin + 210, temp=69),
        ),
    }  # fmt: skip
    return EngineRun(**(found | changes))


def result(*runs: EngineRun, kind: Any = "measured", **changes: Any) -> BenchResult:
    """Of a Raspberry Pi 5."""
    runs = runs or (run(kind=kind),)
    found: dict[str, Any] = {
        "edgekit": "0.1.0",
        "bundle": BundleRef(
            name="qwen2.5-0.5b.rpi5", model="Qwen2.5-0.5B-Instruct", manifest_sha256="ab" * 32, target="rpi5"
        ),
        "target": TargetRef(id="rpi5", title="Raspberry Pi 5"),
        "device": Device(
            url="ssh://pi@board" if kind == "measured" else "emulated:rpi5", kind=kind,
            machine={"machine": "aarch64", "system": "Linux 6.12", "cpu": "CPU part 0xd0b", "cores": "4"},
            board=BoardFacts(
                adapter="raspberry_pi", model="Raspberry Pi 5 Model B Rev 1.0", governor="ondemand", firmware="2026/01"
            ),
            versions={"llama-cpp-python": "0.3.36", "onnxruntime": "1.31.1"},
        ),
        "protocol": plan.protocol("standard"), "measured_on": kind, "started": "2026-11-22T05:51:05+00:00", "parts": 1,
        "seconds": 612.0, "preflight": {"system": "note: the system is Debian 13; expected Debian 12 or newer"},
        "notes": ("power: sum of 12 rails of the PMIC, without USB devices",), "runs": runs,
        "environment": tuple(
            point for one in runs for part in [*one.loading, *one.prefill, one.decode, one.talk, one.coherence] if part
            for point in part.window.trace
        ),
    }  # fmt: skip
    return BenchResult(**(found | changes))


OTHER = BundleRef(name="old|<script>\x1b[2J", model="x", manifest_sha256="cd" * 32, target="rpi5")
"""What :func:`turned` was measured in turns with."""


def turned(
    ratio: float, kind: Any = "measured", failure: Failure | None = None, rounds: int = 6, *,
    disturbances: tuple[str, ...] = ("throttled <b>",), energy: float | None = None, more: dict[str, Any] | None = None,
) -> BenchResult:  # fmt: skip
    """A result whose decode speed and first token are `ratio` times the other's; `more` is of its run."""

    def one(name: Any, tokens: int, unit: str, ratio: float = ratio) -> Ratio:
        spread = [ratio * share for share in (0.98, 1.02, 1, 1, 0.98, 1.02)[:rounds]]
        return Ratio(
            name=name, tokens=tokens, ratio=figure(spread, "ratio", kind), ours=figure([10.0] * rounds, unit, kind),
            theirs=figure([10 / ratio] * rounds, unit, kind),
        )  # fmt: skip

    turns = Turns(
        ratios=() if failure else (one("decode", 64, "tokens/s"), one("ttft", 32, "ms")), failure=failure,
        window=window(500.0, *disturbances, temp=80),
        energy=None if energy is None else one("energy", 64, "mJ/token", energy),
    )  # fmt: skip
    return result(run("gguf", kind=kind, turns=turns, **(more or {})), kind=kind, against=OTHER)


def other(*runs: EngineRun, **changes: Any) -> BenchResult:
    """A result of the bundle that :func:`turned` was measured in turns with."""
    return result(*runs, **({"bundle": OTHER} | changes))
