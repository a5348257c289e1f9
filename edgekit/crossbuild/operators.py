"""Makes the library with edgekit's operators for a board's CPU (docs/int3.md), or takes it from the cache."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import cache
from edgekit.crossbuild import recipe
from edgekit.crossbuild.model import Cpu, Setup, cpu_of, same_glibc
from edgekit.crossbuild.native import in_use
from edgekit.crossbuild.toolchains import chosen
from edgekit.files import cache_dir, sha256, whole_folder
from edgekit.making import making
from edgekit.progress import Progress
from edgekit.targets import Target
from edgekit.threebit import headers, library

SUM, LICENCES = "SHA256", "LICENSES"
_NAMED = re.compile(r"[^a-z0-9.+-]")


@dataclass(frozen=True)
class Operators:
    """The library for one CPU."""

    folder: Path
    """In the cache: the library, :data:`SUM`, and in :data:`LICENCES` those of what is linked into it."""

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / library.LIBRARY


def build_operators(target: Target, *, toolchain: str = "zig", offline: bool = False, progress: Progress) -> Operators:
    """The library with edgekit's operators, compiled for a target's CPU as its llama.cpp is.

    Raises:
        OptionError: the target is compiled for by nobody, or the toolchain is unknown.
        MissingDependencyError: the compiler, cmake or ninja is not installed.
        DownloadError: ONNX Runtime's header is not to be had.
        ToolchainError: the compiler is too old, does not know the CPU, or failed.
        OutputError: the disk is full or the cache cannot be written.
    """
    compiler, cpu = chosen(toolchain, target, "none"), cpu_of(target)
    parts = (cpu, compiler.name, compiler.version(), library.source_digest())
    core = _NAMED.sub("_", (cpu.mtune or cpu.march).lower())[:40]
    work = cache_dir() / cache.COMPILES / f"ops-{core}-{compiler.name}-{_digest(parts)}"
    with (
        headers.header_in_use(offline=offline, progress=progress) as header,
        making(work) as lock,
        recipe.tidied(work),
    ):
        toolbox = work.absolute() / "toolchain"
        toolbox.mkdir(exist_ok=True)
        setup = compiler.setup(cpu, toolbox)
        same_glibc(setup, target, compiler.name)
        place = cache_dir() / cache.RUNTIMES / f"{work.name}-{_digest((setup.flags, definitions(cpu)))}"
        if not finished(place):
            asked = (*definitions(cpu), f"-DEDGEKIT_ORT_HEADERS={header}")
            with (
                progress.step(f"Operators for ONNX Runtime on {core}"),
                in_use(setup),
                whole_folder(place, force=True) as fresh,
            ):
                _compile(work.absolute(), setup, asked, lock, fresh)
        cache.mark_used(place)
        return Operators(place)


def finished(place: Path) -> bool:
    """Whether a folder holds a library that is, byte for byte, the one that was compiled."""
    try:
        return (place / SUM).read_text(encoding="ascii") == sha256(place / library.LIBRARY)
    except (OSError, UnicodeDecodeError):
        return False


def definitions(cpu: Cpu) -> tuple[str, ...]:
    """For cmake, the toolchain's and paths left aside. A core without dot products gets no code that has them."""
    dotprod = "ON" if "asimddp" in cpu.features else "OFF"
    return "-DCMAKE_BUILD_TYPE=Release", "-DEDGEKIT_WERROR=OFF", f"-DEDGEKIT_DOTPROD={dotprod}"


def _compile(work: Path, setup: Setup, asked: tuple[str, ...], lock: int, out: Path) -> None:
    """Compile in `work`, a container sees what is there; what comes of it goes to `out`."""
    tree, sources = recipe.Tree(work, work), work / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(library.SOURCES, sources)
    configure = ["cmake", "-G", "Ninja", "-S", str(sources), "-B", str(tree.build), *asked, *setup.definitions]
    recipe.run(configure, tree, setup, lock, done="configured", what="edgekit's operators")
    compiled = ["ninja", "-C", str(tree.build), "edgekit_ops"]
    recipe.run(compiled, tree, setup, lock, done="compiled", what="edgekit's operators")
    shutil.copyfile(tree.build / library.LIBRARY, out / library.LIBRARY)
    (out / SUM).write_text(sha256(out / library.LIBRARY), encoding="ascii")
    (out / LICENCES).mkdir()
    for name, path in setup.licences.items():
        shutil.copyfile(path, out / LICENCES / name)
    shutil.rmtree(tree.build, ignore_errors=True)
    tree.log.unlink()


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]
