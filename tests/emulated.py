"""Emulated boards for tests: `with board("rpi5") as pi: pi.run(["uname", "-m"])`.

A machine that cannot emulate skips visibly; with EDGEKIT_REQUIRE_EMULATOR=1 (continuous integration) it fails. The
system is the one that `make emulator` put into the user's cache; tests only read it. Without one it is made once a
session, in the session's cache.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgekit import targets
from edgekit.emulator import kernel, needs, userland
from edgekit.emulator.board import Board, emulated
from edgekit.emulator.machine import whole_board
from edgekit.errors import EmulatorError
from edgekit.files import cache_dir

REQUIRED = "EDGEKIT_REQUIRE_EMULATOR"
_USERS_CACHE = cache_dir()
"""Before any fixture points it elsewhere."""
SDOT = (0x4E829420, 0xD2800000, 0xD2800BA8, 0xD4000001)
"""sdot v0.4s, v1.16b, v2.16b; mov x0, 0; mov x8, 93 (exit); svc 0: runs with dot product, dies of SIGILL without."""
PLAIN = SDOT[1:]


@contextmanager
def board(name: str) -> Iterator[Board]:
    """A fast board of a target."""
    demand("board")
    target = targets.load(name)
    with emulated(target, system=system(userland.release_of(target))) as running:
        yield running


@contextmanager
def machine(name: str, **options: Any) -> Iterator[Board]:
    """A whole board of a target; `options` are those of :func:`whole_board`."""
    demand("machine")
    target = targets.load(name)
    release = userland.release_of(target)
    _share_kernel(release)
    with whole_board(target, system=system(release), **options) as running:
        yield running


def _share_kernel(release: str) -> None:
    """Let the session's cache have the kernel that the user's has."""
    wanted = kernel.place(release)
    made = _USERS_CACHE / wanted.relative_to(cache_dir())
    if made.is_dir() and not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.symlink_to(made)


def system(release: str) -> Path:
    """The folder of an arm64 system."""
    made = _USERS_CACHE / userland.place(release).relative_to(cache_dir())
    if made.is_dir():
        return made
    demand("userland")
    try:
        return userland.ready(release)
    except EmulatorError as error:  # no network
        unavailable(str(error))


def demand(use: needs.Use) -> None:
    """Skip, or fail, where this machine lacks something for `use`."""
    if faults := needs.missing(use):
        unavailable("; ".join(map(str, faults)))


def unavailable(reason: str) -> NoReturn:
    """Skip, unless the emulator is required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, and {reason}")
    pytest.skip(f"no emulated board here: {reason}", allow_module_level=True)


def installed(*modules: str) -> None:
    """Skip, or fail, where a Python package is missing that runtimes are compiled or read with."""
    if absent := [name for name in modules if find_spec(name) is None]:
        unavailable(f"{', '.join(absent)} is not installed (pip install 'edgekit[cross]')")


def program(path: Path, instructions: tuple[int, ...]) -> Path:
    """Write a static arm64 program that is these instructions and nothing else."""
    start, code = 0x400000, struct.pack(f"<{len(instructions)}I", *instructions)
    offset = 64 + 56
    size = offset + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, start + offset, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x10000)
    path.write_bytes(header + segment + code)
    path.chmod(0o755)
    return path
