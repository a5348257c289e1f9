"""A bundle on the machine this runs on: every engine, every figure of a protocol, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.bench import ab, site
from edgekit.bench.engine_run import Against, Job, run_engine
from edgekit.bench.journal import Identity, Journal, open_journal
from edgekit.bench.measure import Bench
from edgekit.bench.plan import Protocol, digest
from edgekit.bench.result import (
    BenchResult,
    BundleRef,
    Device,
    DeviceKind,
    EngineRun,
    Format,
    TargetRef,
)
from edgekit.bench.sensors import Sensors
from edgekit.bench.worker import Process, Start
from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import REFERENCE, identity
from edgekit.bundle.paths import read_bounded
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.cache import MEASUREMENTS
from edgekit.coherence.container import load
from edgekit.coherence.reference import Reference
from edgekit.files import cache_dir
from edgekit.progress import Progress
from edgekit.report.model import Report, from_json
from edgekit.targets import Target

_MAX_REPORT = 64 << 20


@dataclass(frozen=True)
class Asked:
    """What is asked of a measurement on this machine."""

    protocol: Protocol
    """What is measured, how often."""
    formats: Sequence[Format] = ()
    """All of the bundle's when empty."""
    threads: int = 0
    """For both phases; 0: the target's, then the sweep's."""
    against: Bundle | None = None
    """Opened and checked; each format that both bundles have is also measured in turns, see :mod:`edgekit.bench.ab`."""
    conditions: str = ""
    """In words, what else was asked for that changes figures; part of what makes it the same run."""
    kind: DeviceKind = "measured"
    """Emulated when this machine is an emulated board; every figure says so."""
    url: str = "local"
    """What the user called the device."""
    preflight: Mapping[str, str] = field(default_factory=dict)
    """What was asked before, for the record."""
    sensors: Sensors = field(default_factory=Sensors)
    """Of the board, while it works."""
    journal: Path | None = None
    """Folder in which the run's journal stays; None: one of the cache, removed when the run is finished."""
    fresh: bool = False
    """Forget what an earlier run with this journal measured."""
    start: Start = Process
    """Makes a fresh measuring process."""
    keep: Callable[[BenchResult], None] = lambda _: None
    """Given the result before the journal is removed."""


def bench_here(bundle: Bundle, target: Target, asked: Asked, progress: Progress) -> BenchResult:
    """Measure what is asked; what an interrupted run with the same journal measured is not measured again.

    Args:
        bundle: opened and checked, so its files are in the page cache.
        target: whose settings are the first guess.
        asked: what, how often and with what beside it.
        progress: told what is going on.

    Returns:
        The result; an engine that failed has a `failure`, and the figures that were there before.

    Raises:
        BundleError: the bundle has none of a format.
        OptionError: there is no format that `asked.against` has too.
        DeviceError, FileFormatError, OutputError: see :func:`edgekit.bench.journal.open_journal`.
    """
    chosen = [bundle.artefact(form) for form in dict.fromkeys(asked.formats)] or list(bundle.manifest.artefacts)
    if asked.against is not None:
        ab.shared(bundle, asked.against, asked.formats)
    facts, found = site.machine_facts(), site.versions()
    same = Identity(
        bundle=identity(bundle.manifest), protocol=digest(asked.protocol), options=_options(target, asked),
        machine=site.machine_key(facts, found, asked.kind),
    )  # fmt: skip
    with open_journal(asked.journal or cache_dir() / MEASUREMENTS, same, fresh=asked.fresh) as book:
        job = _job(bundle, target, asked, site.take_up(book), progress)
        runs = tuple(_said_where(run_engine(job, artefact)) for artefact in chosen)
        device = Device(url=asked.url, kind=asked.kind, machine=facts, board=asked.sensors.facts, versions=found)
        result = _result(job, book, device, dict(asked.preflight), runs)
        asked.keep(result)
        if asked.journal is None and not result.failures and not ab.failures(result):
            book.remove()
        return result


def _job(bundle: Bundle, target: Target, asked: Asked, run: site.Run, progress: Progress) -> Job:
    bench = Bench(asked.protocol, asked.kind, run.sensors(asked.sensors))
    return Job(
        bundle, target, bench, run, progress, asked.start, asked.threads, load_tokenizer(bundle.tokenizer),
        _reference(bundle), _report(bundle), _against(asked.against),
    )  # fmt: skip


def _said_where(run: EngineRun) -> EngineRun:
    """With the accelerator as a field of its own."""
    return msgspec.structs.replace(run, accelerator=run.computed_on)


def _options(target: Target, asked: Asked) -> str:
    """What else decides how engines are run."""
    settings = hashlib.sha256(msgspec.json.encode(target.runtime)).hexdigest()
    turns = f"in turns with {identity(asked.against.manifest)}" if asked.against else ""
    return ", ".join(
        filter(None, (f"target {target.name} {settings}", f"threads {asked.threads}", asked.conditions, turns))
    )


def _result(
    job: Job, book: Journal, device: Device, preflight: dict[str, str], runs: tuple[EngineRun, ...]
) -> BenchResult:
    return BenchResult(
        edgekit=__version__, bundle=_ref(job.bundle), against=_ref(job.against.bundle) if job.against else None,
        target=TargetRef(id=job.target.name, title=job.target.title),
        device=device, protocol=job.bench.protocol, measured_on=device.kind, started=book.started.isoformat(),
        parts=job.run.parts, seconds=job.run.now(), preflight=preflight, notes=job.bench.sensors.notes(), runs=runs,
        environment=tuple(point for run in runs for window in _windows(run) for point in window.trace),
    )  # fmt: skip


def _ref(bundle: Bundle) -> BundleRef:
    manifest = bundle.manifest
    return BundleRef(
        name=manifest.name, model=manifest.model.name, manifest_sha256=identity(manifest), target=manifest.target.id
    )


def _against(other: Bundle | None) -> Against | None:
    return None if other is None else Against(other, load_tokenizer(other.tokenizer), _reference(other))


def _windows(run: EngineRun) -> Iterator[Any]:
    parts = [*run.sweep, *run.loading, *run.prefill, run.decode, run.talk, run.coherence, run.turns]
    return (part.window for part in parts if part is not None and part.window is not None)


def _reference(bundle: Bundle) -> Reference | None:
    return load(bundle.reference) if REFERENCE in bundle.manifest.files else None


def _report(bundle: Bundle) -> Report | None:
    if "report.json" not in bundle.manifest.reports:
        return None
    return from_json(read_bounded(bundle.root, "report.json", _MAX_REPORT))
