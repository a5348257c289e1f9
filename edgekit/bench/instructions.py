"""`--protocol instructions`: instructions per token of a bundle's own llama-bench, counted by QEMU.

The deterministic measure of an emulated board: it is the same on every machine and in every run, so it finds
regressions of code, and it is never a time. Counted on the host, one thread, on the CPU that the device's target names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from edgekit import __version__
from edgekit.bench.held import number_formats
from edgekit.bench.plan import Protocol
from edgekit.bench.result import (
    BenchResult,
    BundleRef,
    Device,
    EngineRun,
    Figure,
    Instructions,
    Settings,
    TargetRef,
    figure,
)
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import identity
from edgekit.emulator.board import qemu_cpu
from edgekit.emulator.counting import LONG, MANY, SHORT, PerToken, per_token
from edgekit.errors import BundleError
from edgekit.progress import Progress
from edgekit.targets import Target

PROGRAM = "runtime/bin/llama-bench"
UNIT = "M instructions/token"
TIMES = 2
"""How often everything is counted; counts that differ fail the judgement."""
PROTOCOL = Protocol(
    name="instructions", title="Instructions",
    purpose="emulated devices: instructions per token of llama.cpp, to find regressions of code",
    prompt_lengths=(SHORT, LONG), decode_tokens=MANY, talk_tokens=2, warmups=0, repeats_min=TIMES, repeats_max=TIMES,
    relative_width=1.0, seconds_max=3600.0, loads=1, load_modes=False, sweep=False, sequences=0, sequence_tokens=2,
    prompts=0, continuation_tokens=1, items=False,
)  # fmt: skip


def count(
    bundle: Bundle, settings: Target, board: Target, progress: Progress,
    counter: Callable[[Path, Path, Target], PerToken] = per_token,
) -> BenchResult:  # fmt: skip
    """Count instructions per token of the bundle's GGUF artefact, :data:`TIMES` times.

    Args:
        bundle: opened with its checksums.
        settings: target whose limits hold.
        board: target whose CPU is emulated.
        progress: told how far it is.
        counter: of :func:`edgekit.emulator.counting.per_token`.

    Raises:
        BundleError: the bundle has no GGUF artefact, or no llama-bench for a board.
        EmulatorError: QEMU, a compiler or the C library for arm64 is missing, or llama-bench does not run on that CPU.
    """
    artefact, begun, started = bundle.artefact("gguf"), time.monotonic(), datetime.now(UTC)
    if PROGRAM not in bundle.manifest.files:
        raise BundleError(f"{bundle.root} holds no {PROGRAM}", remedy="build it without --no-runtime")
    program, model, found = bundle.root / PROGRAM, bundle.root / artefact.path, list[PerToken]()
    with progress.step("GGUF: instructions per token") as advance:
        for turn in range(TIMES):
            found.append(counter(program, model, board))
            advance(turn + 1, TIMES)
    versions, manifest, cpu = bundle.manifest.versions, bundle.manifest, qemu_cpu(board)
    run = EngineRun(
        format="gguf", engine=artefact.engine, version=versions.get("llama-cpp-python", "unknown"),
        artefact=artefact.path, bytes=bundle.manifest.files[artefact.path].size, types=number_formats(artefact)[:64],
        requested_bits=artefact.requested_bits, effective_bits=artefact.effective_bits,
        settings=Settings(prefill_threads=1, decode_threads=1, context=LONG, by="option"),
        instructions=Instructions(
            decode=_counts([one.decode for one in found]), prefill=_counts([one.prefill for one in found]), cpu=cpu,
            program=PROGRAM,
        ),
    )  # fmt: skip
    return BenchResult(
        edgekit=__version__, target=TargetRef(id=settings.name, title=settings.title),
        bundle=BundleRef(
            name=manifest.name, model=manifest.model.name, manifest_sha256=identity(manifest),
            target=manifest.target.id,
        ),
        device=Device(
            url=f"emulated:{board.name}", kind="emulated", machine={"machine": "aarch64", "cpu": cpu, "cores": "1"},
            versions=dict(versions),
        ),
        protocol=PROTOCOL, measured_on="emulated", started=started.isoformat(timespec="seconds"), parts=1,
        seconds=time.monotonic() - begun, runs=(run,),
        notes=("counted by QEMU with one thread: it says nothing about speed, heat or energy",),
    )  # fmt: skip


def _counts(values: list[float]) -> Figure:
    return figure([value / 1e6 for value in values], UNIT, "emulated")
