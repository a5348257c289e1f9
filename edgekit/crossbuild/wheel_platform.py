"""What a wheel must fit: the board's Python, machine and C library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.tags import Tag, compatible_tags, cpython_tags

from edgekit.crossbuild.model import numbers
from edgekit.errors import OptionError
from edgekit.targets import Target

_OLD = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_OLDEST_AARCH64 = 17
"""Minor version of the first glibc that manylinux knows for aarch64."""
_PLATFORM = re.compile(r"(?:manylinux_(\d+)_(\d+)|(manylinux1|manylinux2010|manylinux2014))_(\w+)")


@dataclass(frozen=True)
class Platform:
    """The part of a board that decides which wheels run on it."""

    python: str
    """Such as "3.11"."""
    machine: str
    """As `uname -m` says it."""
    glibc: str
    """Newest that a wheel may need, such as "2.36"."""

    @property
    def interpreter(self) -> str:
        """Tag of the interpreter, such as "cp311"."""
        return "cp" + self.python.replace(".", "")

    @property
    def names(self) -> tuple[str, ...]:
        """Platform tags that fit, newest C library first."""
        major, minor = numbers(self.glibc)[:2]
        known = range(minor, min(_OLDEST_AARCH64, minor + 1) - 1, -1)
        return (*(f"manylinux_{major}_{each}_{self.machine}" for each in known), f"manylinux2014_{self.machine}")

    @property
    def markers(self) -> dict[str, str]:
        """The environment of PEP 508."""
        return {
            "implementation_name": "cpython", "implementation_version": f"{self.python}.0", "os_name": "posix",
            "platform_machine": self.machine, "platform_python_implementation": "CPython", "platform_release": "",
            "platform_system": "Linux", "platform_version": "", "python_full_version": f"{self.python}.0",
            "python_version": self.python, "sys_platform": "linux",
        }  # fmt: skip

    def accepts(self, tags: Iterable[Tag]) -> bool:
        """Whether a wheel with these tags installs there."""
        version, names = numbers(self.python), list(self.names)
        fits = {
            *cpython_tags(python_version=version, abis=[self.interpreter], platforms=names),
            *compatible_tags(python_version=version, interpreter=self.interpreter, platforms=names),
        }
        return not fits.isdisjoint(tags)

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine} with glibc {self.glibc}"


def platform_of(target: Target) -> Platform:
    """The platform of a target.

    Raises:
        OptionError: the target has no toolchain, so nothing is built for it.
    """
    if target.toolchain is None:
        raise OptionError(
            f"no runtime is made for the target {target.name}, which has no [toolchain]",
            remedy="choose a board, or build with --no-runtime",
        )
    return Platform(target.runtime.python, target.toolchain.triple.partition("-")[0], target.toolchain.glibc_max)


def glibc_of(tags: Iterable[Tag]) -> tuple[int, ...]:
    """The oldest C library on which a wheel with these tags runs; (0,) when it has nothing native."""
    return min((_floor(tag.platform) for tag in tags), default=(0,))


def _floor(name: str) -> tuple[int, ...]:
    match = _PLATFORM.fullmatch(name)
    if match is None:
        return (0,)
    return _OLD[match[3]] if match[3] else (int(match[1]), int(match[2]))
