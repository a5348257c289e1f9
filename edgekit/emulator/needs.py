"""What the emulator needs of this machine, and what of it is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.emulator import binfmt
from edgekit.errors import EmulatorError

Use = Literal["userland", "board", "machine", "count"]
"""Making the arm64 system, the fast board, the whole board, and counting instructions."""


@dataclass(frozen=True)
class Tool:
    """A program and the Debian package that brings it."""

    program: str
    package: str
    uses: tuple[Use, ...]


TOOLS = (
    Tool("mmdebstrap", "mmdebstrap", ("userland",)),
    Tool("arch-test", "arch-test", ("userland",)),
    Tool("dpkg-deb", "dpkg", ("userland",)),
    Tool("apt-get", "apt", ("userland",)),
    Tool("qemu-aarch64-static", "qemu-user-static", ("board",)),
    Tool("unshare", "util-linux", ("board",)),
    Tool("mount", "mount", ("board",)),
    Tool("sshd", "openssh-server", ("board",)),
    Tool("ssh", "openssh-client", ("board", "machine")),
    Tool("scp", "openssh-client", ("board", "machine")),
    Tool("ssh-keygen", "openssh-client", ("board", "machine")),
    Tool("qemu-system-aarch64", "qemu-system-arm", ("machine",)),
    Tool("fdtput", "device-tree-compiler", ("machine",)),
    Tool("mke2fs", "e2fsprogs", ("machine",)),
    Tool("qemu-aarch64", "qemu-user", ("count",)),
    Tool("cc", "gcc", ("count",)),
)
_NOT_TOOLS = ("debian-archive-keyring", "g++-aarch64-linux-gnu", "libc6-arm64-cross", "libc6-dev")
"""Packages without a program of their own."""


def packages() -> tuple[str, ...]:
    """Debian packages of everything."""
    return tuple(sorted({tool.package for tool in TOOLS} | set(_NOT_TOOLS)))


def path_of(program: str) -> str | None:
    """Where a program is; daemons live where a plain user's PATH does not look."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=places)


def program(name: str) -> str:
    """The path of a tool.

    Raises:
        EmulatorError: it is not installed; names its package.
    """
    if (found := path_of(name)) is None:
        package = next(tool.package for tool in TOOLS if tool.program == name)
        raise EmulatorError(f"the emulator needs {name}, which is not installed", remedy=f"sudo apt install {package}")
    return found


def missing(use: Use) -> list[EmulatorError]:
    """What keeps this machine from `use`, each with its remedy; an empty list: nothing."""
    return [*_missing_tools(use), *_missing_rights(use)]


def require(use: Use) -> None:
    """Raise the first EmulatorError of :func:`missing`; registers arm64 programs with the kernel when that is all."""
    if faults := missing(use):
        raise faults[0]
    if use == "board":
        binfmt.register()


def _missing_tools(use: Use) -> Iterator[EmulatorError]:
    lacking = [tool for tool in TOOLS if use in tool.uses and path_of(tool.program) is None]
    if lacking:
        names = ", ".join(tool.program for tool in lacking)
        install = " ".join(dict.fromkeys(tool.package for tool in lacking))
        yield EmulatorError(f"the emulator needs {names}, not installed here", remedy=f"sudo apt install {install}")


def _missing_rights(use: Use) -> Iterator[EmulatorError]:
    if use not in ("board", "userland"):
        return
    if os.geteuid() != 0:
        what = "starting an emulated board" if use == "board" else "making an arm64 system"
        yield EmulatorError(f"{what} needs root", remedy="run the same command as root (sudo)")
    if use == "board":
        yield from _missing_kernel()


def _missing_kernel() -> Iterator[EmulatorError]:
    if platform.machine() == "aarch64":
        yield EmulatorError(
            "this machine is arm64 itself, so its programs would run on its own CPU and not on the target's",
            expected="an x86-64 machine",
        )
    if not Path("/proc/self/ns/pid").exists():
        yield EmulatorError("this kernel has no namespaces", expected="Linux with mount and process namespaces")
    yield from binfmt.faults()
