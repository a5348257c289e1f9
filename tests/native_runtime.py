"""Really compiled runtimes for tests: minutes the first time, so each is made once for all tests of a run.

With $EDGEKIT_TEST_RUNTIME_CACHE, a cache folder, each is made once for all runs. `python tests/native_runtime.py
TARGET` makes one ahead of the tests.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path

import pytest

from edgekit import cache, targets
from edgekit.crossbuild.model import Native
from edgekit.crossbuild.native import build_native
from edgekit.progress import Bars

CACHE = "EDGEKIT_TEST_RUNTIME_CACHE"


@functools.cache
def native(target: str, toolchain: str = "zig") -> Native:
    """The runtime for a target's CPU; needs the toolchain, cmake and ninja, and the network or a filled cache."""
    with pytest.MonkeyPatch.context() as patch:
        if kept := os.environ.get(CACHE):
            patch.setenv("EDGEKIT_CACHE", kept)
        return build_native(targets.load(target), toolchain=toolchain, progress=Bars())


def give(root: Path, target: str, toolchain: str = "zig") -> Native:
    """A copy of it in the cache folder `root`, for a test that has one of its own; links to the sources go along."""
    made = native(target, toolchain)
    place = root / cache.RUNTIMES / made.folder.name
    shutil.copytree(made.folder, place, dirs_exist_ok=True)
    sources = made.folder.parents[1] / cache.SOURCES
    shutil.copytree(
        sources, root / cache.SOURCES, copy_function=_link, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True
    )
    return Native(place, made.record)


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except FileExistsError:
        return
    except OSError:  # another disk
        shutil.copy2(source, place)


if __name__ == "__main__":
    native(sys.argv[1])
