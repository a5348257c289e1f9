"""What a plan promises on a target, before anything runs there. Every figure here is predicted, never measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.checkpoint.spec import Spec
from edgekit.errors import DoesNotFitError
from edgekit.quantize.plan import Plan, read_per_token
from edgekit.targets import Target, ram_mib, usable_mib

CONTEXT = 2048
_ENGINE_MIB = 64
"""Code, tokenizer, graph and scratch buffers of either engine, rounded up."""


@dataclass(frozen=True)
class Prediction:
    """Predicted figures of one artefact on one target."""

    file_mib: float
    ram_mib: float
    usable_mib: int
    board_mib: int
    bytes_per_token: int
    tokens_per_second: float | None
    """None where the target file has no decode bandwidth."""
    basis: str
    """Where the bandwidth comes from."""

    @property
    def fits(self) -> bool:
        """Whether the model is predicted to fit into the target's memory."""
        return self.ram_mib <= self.usable_mib


def predict(spec: Spec, plan: Plan, target: Target, *, context: int = CONTEXT) -> Prediction:
    """Memory and decode speed of `plan` on `target`.

    Memory is loaded weights times the engine's multiplier (repacking, prepacking; edgekit's own operators read the file
    where it is mapped, without a second copy), plus the key-value cache of `context` tokens (float16 in llama.cpp,
    float32 in onnxruntime), plus a fixed part for the engine. Decode speed is that of :func:`decode_speed` at the
    target's own number of threads, each tensor at its own format's efficiency.
    """
    cache = spec.kv_bytes_per_token(2 if plan.container == "gguf" else 4) * min(context, spec.context_length)
    needed = _held(plan, target) + cache
    return Prediction(
        file_mib=plan.nbytes / 2**20,
        ram_mib=needed / 2**20 + _ENGINE_MIB,
        usable_mib=usable_mib(target),
        board_mib=ram_mib(target),
        bytes_per_token=plan.bytes_per_token,
        tokens_per_second=decode_speed(target, streamed(plan, target)),
        basis=_basis(target, plan),
    )


def streamed(plan: Plan, target: Target) -> float:
    """Bytes that decoding one token reads, those of a format with efficiency 0.5 on the target counted twice."""
    return sum(read_per_token(plan, entry) / efficiency(target, entry.grid) for entry in plan.entries)


def efficiency(target: Target, grid: str) -> float:
    """Share of the target's decode bandwidth that a format reaches; 1 where nobody has measured it."""
    return target.runtime.gguf.efficiency.get(grid, 1.0)


def decode_speed(
    target: Target, bytes_per_token: int | float, grid: str | None = None, threads: int | None = None
) -> float | None:
    """Predicted decode speed in tokens/s; None where the target file has no decode bandwidth.

    The target's streaming bandwidth over the bytes of weights that one token reads, times the format's efficiency
    there: decoding on a CPU is bound by memory (Arm Learning Path "llm-decode-roofline": R² 0.9996 on a Pi 5).

    Args:
        target: the board.
        bytes_per_token: weights that decoding one token reads.
        grid: GGUF type of most linear layers, whose efficiency counts; None: another engine's, with none known.
        threads: None: the target's own number. For another one the bandwidth changes as the target's read test does.
    """
    rate = target.memory.decode_gbps
    if rate is None:
        return None
    efficiency = 1.0 if grid is None else target.runtime.gguf.efficiency.get(grid, 1.0)
    return rate * 1e9 * efficiency * _thread_factor(target, threads) / bytes_per_token


def _thread_factor(target: Target, threads: int | None) -> float:
    """Read bandwidth at `threads` over that at the target's own number; 1 where it is not known.

    Never above 1: one thread may read faster than two, but it also computes alone.
    """
    rates, own = target.memory.read_gbps, target.runtime.gguf.threads.decode
    if threads is None or threads == own or rates is None:
        return 1.0
    known = [(count, rate) for count, rate in ((1, rates.t1), (2, rates.t2), (4, rates.t4)) if rate is not None]
    if not known or not known[0][0] <= own <= known[-1][0]:
        return 1.0
    counts, speeds = zip(*known, strict=True)
    return min(1.0, float(np.interp(threads, counts, speeds) / np.interp(own, counts, speeds)))


def _basis(target: Target, plan: Plan) -> str:
    if target.memory.decode_gbps is None:
        return "no bandwidth in the target file"
    # Published decode bandwidths are llama.cpp's.
    engine = "" if plan.container == "gguf" else ", with llama.cpp"
    return f"{target.memory.decode_gbps} GB/s ({target.memory.decode_basis} there{engine})"


def refuse_too_big(spec: Spec, plan: Plan, target: Target) -> Prediction:
    """The prediction, or DoesNotFitError that says by how much it is too big and how many parameters would fit."""
    figures = predict(spec, plan, target)
    if figures.fits:
        return figures
    over = figures.ram_mib - figures.usable_mib
    share = max(0.0, 1 - over / max(_held(plan, target) / 2**20, 1e-9))
    raise DoesNotFitError(
        f"the {plan.container} model needs about {figures.ram_mib:,.0f} MiB on {target.name}, {over:,.0f} MiB more "
        f"than the {figures.usable_mib:,} MiB usable of {figures.board_mib:,} MiB (predicted)",
        expected=f"at most about {spec.parameters * share / 1e6:,.0f} million parameters at these bits",
        remedy="ask for fewer bits, another format, a smaller model or a bigger board",
    )


def _held(plan: Plan, target: Target) -> float:
    """Bytes of weights in memory while the engine loads them."""
    runtime = target.runtime.gguf if plan.container == "gguf" else target.runtime.onnx
    mapped = sum(entry.loaded_nbytes for entry in plan.own_operators)
    return mapped + (plan.loaded_nbytes - mapped) * runtime.ram_multiplier
