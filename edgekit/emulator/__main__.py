"""Emulated boards by hand: `python -m edgekit.emulator install`, `setup`, `check`, `start --target rpi5`, `remove`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import get_args

from edgekit import cache
from edgekit.emulator import counting, kernel, needs, userland
from edgekit.emulator.board import Board, emulated
from edgekit.emulator.install import install
from edgekit.emulator.machine import whole_board
from edgekit.emulator.sudo import callers_cache
from edgekit.errors import EdgekitError, EmulatorError, InterruptError
from edgekit.files import cache_dir
from edgekit.progress import Bars
from edgekit.targets import load

_USES = {
    "userland": "making the arm64 system",
    "board": "fast boards",
    "machine": "whole boards",
    "count": "counting instructions",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    commands = {
        "install": install_packages, "setup": setup, "check": check, "start": start, "remove": remove,
        "packages": packages,
    }  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    try:
        with callers_cache():
            return commands[options.command](options)
    except EdgekitError as error:
        print(f"edgekit: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return InterruptError.exit_code


def install_packages(_options: argparse.Namespace) -> int:
    """Install the Debian packages of all this; no service of theirs is started."""
    install()
    return 0


def setup(options: argparse.Namespace) -> int:
    """Make what every board needs: the system, the registration with the kernel, the plugin; perhaps a kernel."""
    made = [userland.ready(options.release, Bars())]
    needs.require("board")
    if options.whole:
        made.append(kernel.ready(options.release, Bars()))
    if not needs.missing("count"):
        made.append(counting.plugin(1))
    print("\n".join(map(str, made)))  # noqa: T201
    return 0


def check(_options: argparse.Namespace) -> int:
    """Say what can be done here, and what is missing for the rest; fails when fast boards are among it."""
    for use in get_args(needs.Use):
        faults = needs.missing(use)
        print(f"{_USES[use]}: {'ok' if not faults else ''}")  # noqa: T201
        for fault in faults:
            print(f"  {fault}")  # noqa: T201
    return EmulatorError.exit_code if needs.missing("board") else 0


def start(options: argparse.Namespace) -> int:
    """Run a board until Ctrl-C and print how to log in."""
    with _board(options) as board:
        command = [*board.ssh_command(), board.host]
        print(f"{board.target.title}, emulated, until Ctrl-C. Log in with", flush=True)  # noqa: T201
        print(shlex.join(command), flush=True)  # noqa: T201
        signal.pause()
    return 0


def remove(_options: argparse.Namespace) -> int:
    """Remove the systems, which are root's, from the cache; boards that run keep theirs."""
    root = cache_dir()
    for entry in cache.entries(root):
        if entry.kind == cache.ENVIRONMENTS and entry.path.name.startswith(userland.SYSTEM):
            print(f"{'removed' if cache.remove(root, entry) else 'kept, in use:'} {entry.path}")  # noqa: T201
    return 0


def packages(_options: argparse.Namespace) -> int:
    """Print the Debian packages of all this, for apt."""
    print(" ".join(needs.packages()))  # noqa: T201
    return 0


def _board(options: argparse.Namespace) -> AbstractContextManager[Board]:
    target = load(options.target)
    if options.whole or options.deterministic:
        return whole_board(
            target, deterministic=options.deterministic, release=options.release or "", progress=Bars()
        )  # fmt: skip
    return emulated(target, release=options.release or "", progress=Bars())


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edgekit.emulator", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    releases = tuple(userland.RELEASES.values())
    setting_up = commands.add_parser("setup", help="make the arm64 system (root, about 60 MB of downloads)")
    setting_up.add_argument("--release", choices=releases, default="bookworm", help="of Debian; default: bookworm")
    setting_up.add_argument("--whole", action="store_true", help="also fetch the kernel of whole boards (30 MB)")
    starting = commands.add_parser("start", help="run a board until Ctrl-C")
    starting.add_argument("--target", required=True, help="name of a target, or its .toml file")
    starting.add_argument("--release", choices=releases, help="of Debian; default: the one with the target's Python")
    starting.add_argument("--whole", action="store_true", help="boot a kernel in a machine of its own")
    starting.add_argument("--deterministic", action="store_true", help="a whole board whose time counts instructions")
    commands.add_parser("install", help="install the Debian packages of all this (root); starts no service")
    commands.add_parser("remove", help="remove the systems from the cache (root)")
    commands.add_parser("check", help="say what is missing here")
    commands.add_parser("packages", help="print the Debian packages that are needed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
