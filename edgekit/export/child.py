"""Runs other people's exporters in a process of their own, offline, which cannot outlive edgekit."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import OutputError

_PRELUDE = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
kind, name = sys.argv[1:3]
del sys.argv[1:3]
if kind == "module":
    runpy.run_module(name, run_name="__main__", alter_sys=True)
else:
    runpy.run_path(name, run_name="__main__")
"""
"""Runs until its standard input closes, which happens however edgekit ends."""
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",  # else what it printed long ago comes after what it said of its end
}
_LAST_WORDS = 1 << 16
_LONGEST_LINE = 300


def complaint(
    python: Path,
    program: Path | str,
    arguments: Sequence[str],
    *,
    output: Path,
    environment: Mapping[str, str] | None = None,
) -> str | None:
    """Run a Python program to its end; what it prints is kept out of sight.

    Args:
        python: the interpreter.
        program: a script's path, or a module's name (str).
        arguments: of the program.
        output: what it is to make, for the message about a full disk.
        environment: set on top of edgekit's own; the hub is switched off in any case.

    Returns:
        None when it ended well, else the last line it said, at most 300 characters.

    Raises:
        OutputError: that line says that the disk is full.
    """
    kind = "path" if isinstance(program, Path) else "module"
    # -P: a folder named like a package in the current folder must not be taken for it.
    command = [str(python), "-P", "-c", _PRELUDE, kind, str(program), *arguments]
    with tempfile.TemporaryFile() as said:
        code = _run(command, {**os.environ, **(environment or {}), **_QUIET}, said.fileno())
        if code == 0:
            return None
        said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST_WORDS))
        lines = said.read().decode("utf8", "replace").strip().splitlines() or [f"it ended with status {code}"]
    last = "".join(c if c.isprintable() else " " for c in lines[-1].strip())[:_LONGEST_LINE]
    if os.strerror(errno.ENOSPC) in last:
        raise OutputError(
            f"no space left on the disk while writing {output}",
            remedy="free some space and run again; nothing was left half-written",
        )
    return last


def _run(command: list[str], environment: dict[str, str], said: int) -> int:
    read, write = os.pipe()
    try:
        child = subprocess.Popen(command, stdin=read, stdout=said, stderr=said, env=environment)  # noqa: S603
        try:
            return child.wait()
        finally:
            child.kill()  # nothing happens to one that has ended
            child.wait()
    finally:
        os.close(read)
        os.close(write)
