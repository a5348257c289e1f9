"""Runs a command that ends when its owner does: `python leash.py COMMAND…`, with a pipe of the owner as its input.

The kernel closes the pipe however the owner ends. This file imports nothing of edgekit, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run the command until it ends or standard input is closed; returns its exit code."""
    libc, owner = ctypes.CDLL(None), os.getpid()

    def die_with_owner() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != owner:  # it was gone already
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_owner)  # noqa: S603
    while child.poll() is None:
        if select.select([sys.stdin], [], [], 0.2)[0] and not sys.stdin.buffer.read(1):
            child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
