"""All that a board's Python installs, as files beside a pinned and hashed requirements.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from edgekit import requirements
from edgekit.crossbuild import closure, wheel_files
from edgekit.crossbuild.closure import Part
from edgekit.crossbuild.llama_wheel import llama_wheel
from edgekit.crossbuild.model import Native
from edgekit.crossbuild.own_wheel import own_wheel
from edgekit.crossbuild.runtime_record import Excluded, Wheel
from edgekit.crossbuild.source import sdist
from edgekit.crossbuild.wheel_cache import Wanted, obtain
from edgekit.crossbuild.wheel_platform import Platform, glibc_of, platform_of
from edgekit.errors import WheelError
from edgekit.files import sha256
from edgekit.options import Container
from edgekit.progress import Progress
from edgekit.targets import Target

WHEELS, REQUIREMENTS = "wheels", "requirements.txt"


@dataclass(frozen=True)
class Wheelhouse:
    """What lies in the folder now."""

    platform: Platform
    wheels: tuple[Wheel, ...]
    excluded: tuple[Excluded, ...]
    glibc: str
    """Oldest C library on which all of them run."""

    def file_of(self, name: str) -> str:
        """File name of a package's wheel."""
        return next(wheel.file for wheel in self.wheels if wheel.name == name)


def wheelhouse(
    target: Target,
    native: Native | None,
    formats: Sequence[Container],
    out: Path,
    *,
    offline: bool,
    progress: Progress,
    operators: Path | None = None,
) -> Wheelhouse:
    """Write `out`/wheels/*.whl and `out`/requirements.txt for the target's Python.

    Args:
        target: the board.
        native: llama.cpp compiled for it; needed when `formats` has "gguf".
        formats: of the bundle's artefacts: an engine is shipped for these alone.
        out: a folder that is there.
        offline: take what is in the cache and download nothing.
        progress: where the downloads show.
        operators: folder with the library of edgekit's operators for ONNX Runtime, where the artefacts need it.

    Raises:
        WheelError: there is no wheel for that Python, C library or machine; a wheel or source archive is missing
            (`offline`), damaged or unsafe; or something shipped needs something that is not.
        OptionError: the target has no toolchain.
        MissingDependencyError: there is no pip.
    """
    platform = platform_of(target)
    folder = out / WHEELS
    folder.mkdir(parents=True)
    parts = closure.parts(formats)
    found = dict(
        obtain([_wanted(part) for part in parts if not part.made], platform, folder, offline=offline, progress=progress)
    )
    found[closure.EDGEKIT] = own_wheel(folder, operators)
    if "gguf" in formats:
        found[closure.LLAMA] = _llama(native, folder, offline, progress)
    facts = {part.name: wheel_files.facts(found[part.name]) for part in parts}
    _check(facts, platform, formats)
    wheels = tuple(_entry(part, found[part.name], facts[part.name]) for part in parts)
    installed = {part.name for part in parts if part.installed}
    lines = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}" for w in wheels if w.name in installed]
    (out / REQUIREMENTS).write_text("\n".join([*lines, ""]), encoding="ascii")
    floor = max(glibc_of(each.tags) for each in facts.values())
    return Wheelhouse(platform, wheels, closure.excluded(formats), ".".join(map(str, floor)))


def _wanted(part: Part) -> Wanted:
    return Wanted(part.name, host_version(part.name), _bounds(part.name), part.same)


def host_version(name: str) -> str:
    """The version of a package that this machine runs; the tested one where it is not installed.

    Raises:
        WheelError: it is neither installed nor in constraints.txt.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        tested = {str(canonicalize_name(each)): version for each, version in requirements.tested().items()}
        if name not in tested:
            raise WheelError(
                f"{name}, which the board needs, is not installed here, so its version is not known",
                remedy="pip install 'edgekit[gguf,onnx,cross]'",
            ) from None
        return tested[name]


def _bounds(name: str) -> str:
    """What edgekit's own metadata ask of a package, such as ">=8.1"; empty when they do not name it."""
    for line in metadata.requires(closure.EDGEKIT) or []:
        asked = Requirement(line)
        if canonicalize_name(asked.name) == name and not asked.extras:
            return str(asked.specifier)
    return ""


def _llama(native: Native | None, folder: Path, offline: bool, progress: Progress) -> Path:
    if native is None:
        raise WheelError("llama.cpp was not compiled for the board", expected="a native runtime for GGUF artefacts")
    release, here = native.record.llama_cpp_python, host_version(closure.LLAMA)
    if release != here:
        raise WheelError(
            f"llama-cpp-python {here} runs on this machine and {release} was compiled for the board",
            expected="one release, so that host and board compute alike",
            remedy=f"pip install llama-cpp-python=={release}, or compile the runtime again",
        )
    return llama_wheel(sdist(progress, offline).folder, native.folder, folder, release=release)


def _check(facts: Mapping[str, wheel_files.Facts], platform: Platform, formats: Sequence[Container]) -> None:
    """Every wheel installs there, and nothing that any of them needs is missing."""
    for name, each in facts.items():
        if not platform.accepts(each.tags):
            tags = ", ".join(sorted(map(str, each.tags)))
            raise WheelError(f"the wheel of {name} is for {tags}", expected=f"one for {platform}")
        if not _specifier(name, each.python).contains(platform.python):
            raise WheelError(
                f"{name} {each.version} needs Python {each.python}, and the board has {platform.python}",
                remedy="give the target another [runtime] python",
            )
    shipped = {name: (each.version, each.requires) for name, each in facts.items()}
    closure.check(shipped, platform.markers, formats)


def _entry(part: Part, path: Path, facts: wheel_files.Facts) -> Wheel:
    here = facts.version if part.made else host_version(part.name)
    return Wheel(
        file=path.name, name=part.name, version=facts.version, sha256=sha256(path), size=path.stat().st_size,
        licence=facts.licence, why=part.why, mismatch="" if here == facts.version else here,
    )  # fmt: skip


def _specifier(name: str, python: str) -> SpecifierSet:
    try:
        return SpecifierSet(python)
    except InvalidSpecifier as error:
        raise WheelError(
            f"the wheel of {name} asks for Python {python!r}", expected="a version specifier (PEP 440)",
            remedy="report this to who made that wheel",
        ) from error  # fmt: skip
