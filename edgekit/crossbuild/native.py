"""Makes a CPU's native runtime, or takes it from the cache."""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import cache
from edgekit.crossbuild import recipe
from edgekit.crossbuild.model import Cpu, Native, NativeRecord, Setup, Toolchain, cpu_of, same_glibc
from edgekit.crossbuild.source import Source, sdist
from edgekit.crossbuild.toolchains import chosen
from edgekit.files import cache_dir, whole_folder
from edgekit.machine import cores
from edgekit.making import making
from edgekit.progress import Progress
from edgekit.targets import Target

RECORD = "native.json"
_MAX_RECORD = 1 << 20


@dataclass(frozen=True)
class _Job:
    """One runtime to make."""

    source: Source
    cpu: Cpu
    toolchain: Toolchain
    version: str
    """Of the toolchain."""

    def name(self) -> str:
        """Of its unfinished compile: the same for all revisions of the recipe, which so share what is compiled."""
        parts = (self.source.sha256, self.cpu, self.toolchain.name, self.version)
        core = re.sub(r"[^a-z0-9.+-]", "_", (self.cpu.mtune or self.cpu.march).lower())[:40]
        return f"{core}-{self.toolchain.name}-{_digest(parts)}"


def build_native(
    target: Target, *, toolchain: str = "zig", accel: str = "none", offline: bool = False, progress: Progress,
    force: bool = False,
) -> Native:  # fmt: skip
    """llama.cpp compiled for a target's CPU: shared libraries, native tools, licences.

    Finished runtimes are kept by sources, CPU, toolchain and flags, and shared by all targets with the same CPU. A
    compile that was killed goes on where it stopped.

    Args:
        target: a board.
        toolchain: name in TOOLCHAINS.
        accel: "cuda" compiles for the target's GPU too, with NVIDIA's compiler in a container.
        offline: download nothing.
        progress: where the compile shows how far it is.
        force: compile and link again what the cache has.

    Raises:
        OptionError: the target is compiled for by nobody or has no such accelerator, or the toolchain is unknown.
        MissingDependencyError: the compiler, cmake or ninja is not installed.
        ToolchainError: the compiler is too old, does not know the CPU, cannot reach the target's glibc, or failed.
        WheelError: the sources cannot be got, or are not what they should be.
        OutputError: the disk is full or the cache cannot be written.
    """
    compiler, cpu = chosen(toolchain, target, accel), cpu_of(target)
    job = _Job(sdist(progress, offline), cpu, compiler, compiler.version())
    work = cache_dir() / cache.COMPILES / job.name()
    with making(work) as lock, cache.using(job.source.folder), recipe.tidied(work):
        setup = _setup(job, target, work)
        key = _digest((setup.flags, *recipe.revision()))
        place = cache_dir() / cache.RUNTIMES / f"{job.name()}-{key}"
        if not force and (found := finished(place)) is not None:
            cache.mark_used(place)
            return found
        _forget_other(work, key, force)
        return _make(job, setup, work, place, lock, progress)


def finished(place: Path) -> Native | None:
    """The runtime in a folder; None when there is none, or its files are not those of its record, byte for byte."""
    try:
        path = place / RECORD
        if path.stat().st_size > _MAX_RECORD:
            return None
        record = msgspec.json.decode(path.read_bytes(), type=NativeRecord)
        whole = {name: file for name, file in cache.sums(place).items() if name != RECORD} == record.files
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Native(place, record) if whole and set(recipe.PRODUCTS) <= record.files.keys() else None


def _forget_other(work: Path, key: str, force: bool) -> None:
    """A compile that was begun with other flags, or that is to be made anew, is not gone on with."""
    begun = work / "key"
    if force or not begun.is_file() or begun.read_text(encoding="ascii", errors="replace") != key:
        shutil.rmtree(work / "tree", ignore_errors=True)
        begun.write_text(key, encoding="ascii")


def _setup(job: _Job, target: Target, work: Path) -> Setup:
    folder = work.absolute() / "toolchain"
    folder.mkdir(exist_ok=True)
    setup = job.toolchain.setup(job.cpu, folder)
    same_glibc(setup, target, job.toolchain.name)
    return setup


def _make(job: _Job, setup: Setup, work: Path, place: Path, lock: int, progress: Progress) -> Native:
    tree = recipe.Tree(work.absolute(), job.source.llama_cpp.absolute())
    before = _child_seconds()
    resumed = tree.build.exists()
    progress.note(
        f"The runtime for {job.cpu.mtune or job.cpu.march} is compiled once: "
        + ("an earlier compile goes on." if resumed else "about 10 to 20 minutes of CPU time; then it is cached.")
    )
    with in_use(setup):
        if setup.first_use and not resumed:
            progress.note(setup.first_use)
        with progress.step("Configure llama.cpp"):
            recipe.configure(tree, setup, lock)
        with progress.step("Compile llama.cpp") as advance:
            recipe.compile_all(tree, setup, lock, cores(), advance)
    with whole_folder(place, force=True) as fresh:
        recipe.collect(tree, setup, fresh)
        record = _record(job, setup, fresh, round(_child_seconds() - before, 1) if setup.local else None)
        (fresh / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    shutil.rmtree(tree.build, ignore_errors=True)
    tree.log.unlink()
    return Native(place, record)


@contextmanager
def in_use(setup: Setup) -> Iterator[None]:
    """Nobody cleans the compiler's own cache while this is held."""
    with ExitStack() as held:
        for folder in setup.caches:
            held.enter_context(cache.using(folder))
        yield


def _record(job: _Job, setup: Setup, folder: Path, seconds: float | None) -> NativeRecord:
    return NativeRecord(
        llama_cpp_python=job.source.release,
        source_sha256=job.source.sha256,
        ggml=recipe.ggml_version(job.source.llama_cpp),
        toolchain=job.toolchain.name,
        toolchain_version=job.version,
        march=job.cpu.march,
        mtune=job.cpu.mtune,
        features=job.cpu.features,
        glibc=setup.glibc or job.cpu.glibc,
        flags=(*setup.flags, *recipe.DEFINITIONS),
        seconds=seconds,
        files=cache.sums(folder),
    )


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
