"""Lets the kernel start arm64 programs through QEMU (binfmt_misc), also inside a chroot."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EmulatorError

PLACE = Path("/proc/sys/fs/binfmt_misc")
NAME = "qemu-aarch64"
_DEBIAN = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_MAGIC = r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
"""An ELF file of 64 bits, little-endian, executable or position-independent, machine 183 (AArch64)."""
_REMEDY = f"remove it with `echo -1 > {PLACE / NAME}` as root, and run again"


def faults(place: Path = PLACE) -> Iterator[EmulatorError]:
    """What is wrong with a registration that is there; none is no fault, as :func:`register` makes one."""
    if not place.is_dir():
        yield EmulatorError(
            f"this kernel has no binfmt_misc ({place} is missing)",
            remedy="load it with `modprobe binfmt_misc` as root; a container needs it from its host",
        )
        return
    entry = place / NAME
    if not entry.exists():
        return
    lines = entry.read_text(encoding="utf8").splitlines()
    flags = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("flags:")), "")
    if "enabled" not in lines:
        yield EmulatorError(f"{entry} is disabled", remedy=_REMEDY)
    elif "F" not in flags:
        yield EmulatorError(
            f"{entry} has the flags {flags!a}", expected="F among them, which makes it work in a chroot", remedy=_REMEDY
        )


def register(place: Path = PLACE) -> None:
    """Register QEMU for arm64 programs, unless that is done; stays until the machine restarts, as Debian's own does.

    Raises:
        EmulatorError: the kernel refuses, or a registration is there that does not work in a chroot.
    """
    if not (place / "register").exists():
        _mount(place)
    for fault in faults(place):
        raise fault
    if (place / NAME).exists():
        return
    try:
        (place / "register").write_text(_line(), encoding="ascii")
    except FileExistsError:  # another process was faster
        return
    except OSError as error:
        raise EmulatorError(
            f"the kernel does not take a registration of arm64 programs ({error.strerror})",
            remedy="run as root; a container needs the registration from its host",
        ) from error


def _mount(place: Path) -> None:
    command = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode and not (place / "register").exists():
        raise EmulatorError(
            f"binfmt_misc cannot be mounted ({done.stderr.strip()})",
            remedy="load it with `modprobe binfmt_misc` as root; a container needs it from its host",
        )


def _line() -> str:
    """Debian's own registration, which also keeps argv[0]; elsewhere the same without that.

    qemu-user-binfmt brings one of that name, too: without F, and for an interpreter that no chroot has.
    """
    known = _DEBIAN.read_text(encoding="ascii").strip() if _DEBIAN.is_file() else ""
    if "F" in known.rpartition(":")[2]:
        return known
    return f":{NAME}:M::{_MAGIC}:{_MASK}:{shutil.which('qemu-aarch64-static')}:F"
