"""What a program or library must keep to so that it starts on a target; each rule yields its faults in words."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgekit.bundle.paths import names as listed
from edgekit.crossbuild.elf import Elf
from edgekit.crossbuild.isa import Found
from edgekit.crossbuild.model import numbers
from edgekit.target_schema import Toolchain

LOADER = "/lib/ld-linux-aarch64.so.1"
"""Dynamic loader of 64-bit ARM Linux with glibc: System V ABI for AArch64, IHI 0056."""

SYSTEM = {
    "ld-linux-aarch64.so.1": "libc6", "libc.so.6": "libc6", "libm.so.6": "libc6", "libdl.so.2": "libc6",
    "libpthread.so.0": "libc6", "librt.so.1": "libc6", "libutil.so.1": "libc6", "libresolv.so.2": "libc6",
    "libgcc_s.so.1": "libgcc-s1", "libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g",
}  # fmt: skip
"""Library → package. What a Debian system has by itself: libc6 is essential and brings libgcc-s1, apt needs libstdc++6
and dpkg zlib1g. libgomp1 is not among them: an image without a compiler lacks it."""

CUDA = re.compile(r"lib(cudart|cublas|cublasLt)\.so\.[0-9]+|libcuda\.so\.1")
"""What NVIDIA's system for a Jetson has besides: CUDA's runtime library, cuBLAS and the driver."""
_RELEASES = (
    # GLIBCXX, CXXABI, gcc: https://gcc.gnu.org/onlinedocs/libstdc++/manual/abi.html
    ("3.4.24", "1.3.11", 7), ("3.4.25", "1.3.11", 8), ("3.4.26", "1.3.12", 9), ("3.4.27", "1.3.12", 9),
    ("3.4.28", "1.3.12", 10), ("3.4.29", "1.3.13", 11), ("3.4.30", "1.3.13", 12), ("3.4.31", "1.3.14", 13),
    ("3.4.32", "1.3.14", 13), ("3.4.33", "1.3.15", 14), ("3.4.34", "1.3.16", 15),
)  # fmt: skip
_RELR = "GLIBC_ABI_DT_RELR"
"""Not a version but a feature of the loader, which came with glibc 2.36."""
_UNBOUND = frozenset({"CXXABI_TM_1"})
"""In every libstdc++ since gcc 4.7."""


@dataclass(frozen=True)
class Place:
    """Where a file stands among others that come with it."""

    path: str
    """From the root of its wheel or folder."""
    beside: frozenset[str] = field(default_factory=frozenset)
    """Paths of all files there, from the same root."""

    def finds(self, library: str, search: tuple[str, ...]) -> bool:
        """Whether the loader, following `search`, meets a file of that name that comes along."""
        folders = (self.inside(entry) for entry in search)
        return any(folder is not None and posixpath.join(folder, library) in self.beside for folder in folders)

    def inside(self, entry: str) -> str | None:
        """The folder that an $ORIGIN-relative search path means, from the root; None when it leads elsewhere."""
        match = re.fullmatch(r"\$(?:ORIGIN|\{ORIGIN\})(/.*)?", entry)
        if match is None:
            return None
        folder = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), "." + (match[1] or "")))
        return None if folder == ".." or folder.startswith("../") else "" if folder == "." else folder


# --- the system's libraries ------------------------------------------------------------------------------------------


def system_versions(elf: Elf, place: Place) -> tuple[tuple[str, str], ...]:
    """(library, version) of what it needs of the system's libraries: those that come along bring their own."""
    return tuple(pair for pair in elf.versions if not place.finds(pair[0], elf.search))


def highest(versions: tuple[tuple[str, str], ...], prefix: str) -> str:
    """The newest version of symbols of a family ("GLIBC", "GLIBCXX", "CXXABI", "GCC"); "" when none is needed."""
    found = ["2.36" if prefix == "GLIBC" and name == _RELR else _number(name, prefix) for _, name in versions]
    return max(filter(None, found), key=numbers, default="")


def _number(name: str, prefix: str) -> str:
    match = re.fullmatch(rf"{prefix}_(\d{{1,4}}(?:\.\d{{1,4}}){{0,3}})", name)
    return match[1] if match else ""


def floor_faults(elf: Elf, place: Place, limits: Toolchain) -> Iterator[str]:
    """Versions of symbols that the target's C and C++ libraries do not have; libraries that come along have theirs."""
    versions = system_versions(elf, place)
    cxxabi, gcc = _cxx_release(limits.glibcxx_max)
    bounds = {"GLIBC": limits.glibc_max, "GLIBCXX": limits.glibcxx_max, "CXXABI": cxxabi, "GCC": gcc}
    for prefix, most in bounds.items():
        newest = highest(versions, prefix)
        if newest and numbers(newest) > numbers(most):
            yield f"needs {prefix}_{newest}, and the target has {prefix}_{most} at most"
    for library, name in versions:
        prefix = name.partition("_")[0]
        if prefix in bounds and name != _RELR and name not in _UNBOUND and not _number(name, prefix):
            yield f"needs {name} of {library}, which is no version that a program may rely on"


def _cxx_release(glibcxx: str) -> tuple[str, str]:
    """CXXABI and gcc's major version that come with a GLIBCXX; those of the next older release that is known."""
    older = [(cxxabi, f"{gcc}.99") for known, cxxabi, gcc in _RELEASES if numbers(known) <= numbers(glibcxx)]
    return older[-1] if older else ("1.3.9", "5.99")


def needed_faults(elf: Elf, place: Place, *, cuda: bool = False) -> Iterator[str]:
    """Libraries that neither the files that come along nor a plain Debian system provide, nor with `cuda` JetPack."""
    for library in elf.needed:
        if library in SYSTEM or (cuda and CUDA.fullmatch(library)) or place.finds(library, elf.search):
            continue
        there = [path for path in place.beside if posixpath.basename(path) == library]
        if there:
            yield f"needs {library}, and no RPATH or RUNPATH of it leads to {listed(there)}"
        else:
            yield f"needs {library}, which neither comes along nor is part of a plain Debian system"


def search_faults(elf: Elf, place: Place) -> Iterator[str]:
    """RPATH and RUNPATH may lead to what comes along and nowhere else."""
    for entry in elf.search:
        if place.inside(entry) is None:
            yield f"looks for libraries in '{entry}', which is not below its own root ($ORIGIN)"


def machine_faults(elf: Elf) -> Iterator[str]:
    """Another processor; another dynamic loader."""
    if not elf.is_aarch64:
        yield f"is for {elf.machine}, and the target is AArch64"
    elif elf.interpreter not in ("", LOADER):
        yield f"asks for the loader {elf.interpreter}, and the target has {LOADER}"


def layout_faults(elf: Elf, *, own: bool) -> Iterator[str]:
    """What hardened systems refuse to load, and dead weight in what edgekit compiled itself (`own`)."""
    if elf.executable_stack:
        yield "asks for an executable stack"
    if elf.text_relocations:
        yield "has relocations in its code (DT_TEXTREL), so it is not position-independent"
    if own and elf.debug_bytes:
        yield f"is not stripped: {elf.debug_bytes / 2**20:.1f} MiB of debug sections"


# --- instructions ----------------------------------------------------------------------------------------------------


def instruction_faults(
    elf: Elf, found: tuple[Found, ...], allowed: frozenset[str], forbidden: frozenset[str], core: str
) -> Iterator[str]:
    """One fault for each feature that code needs and the cores lack, and for each mnemonic that the target forbids.

    Args:
        elf: the file.
        found: of each of its stretches of code.
        allowed: features that the target has or that the file asks for at run time.
        forbidden: mnemonics.
        core: what to call the cores.
    """
    first: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for code, hits in zip(elf.code, found, strict=True):
        keys = [_fault_key(i.feature, i.mnemonic, allowed, forbidden) for i in hits.instructions]
        for at, which in zip(hits.at.tolist(), hits.which.tolist(), strict=True):
            key = keys[which]
            if key is None:
                continue
            if key not in first:
                instruction = hits.instructions[which]
                where = elf.symbols.place(code.address + 4 * at)
                first[key] = f"{instruction.mnemonic} {instruction.operands}".strip() + f" at {where}"
            counts[key] = counts.get(key, 0) + 1
    for (kind, name), example in sorted(first.items()):
        why = f"needs {name}, which {core} lacks" if kind == "feature" else f"holds {name}, which the target forbids"
        yield f"{why}: {example}" + _more(counts[kind, name])


def _fault_key(
    feature: str, mnemonic: str, allowed: frozenset[str], forbidden: frozenset[str]
) -> tuple[str, str] | None:
    if feature not in allowed:
        return "feature", feature
    return ("mnemonic", mnemonic) if mnemonic in forbidden else None


def _more(count: int) -> str:
    return "" if count == 1 else f", and {count - 1:,} more"
