"""The command line: verbs are imported when they are called, so that --help is instant."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click

from edgekit import __version__
from edgekit.errors import EdgekitError, InputNotFoundError, InterruptError, OutputError, memory_shortage

VERBS = {
    "build": "Build a verified bundle for a board.",
    "plan": "Show what would be built: formats, sizes, predicted speed and memory.",
    "sensitivity": "Measure what each number format does to each tensor, for plans under a budget.",
    "imatrix": "Measure how much each input of each layer matters, as llama.cpp's importance matrix.",
    "condensation": "Measure how far a model's tokens point the same way, layer by layer.",
    "survive": "Measure what is left of a model at fewer and fewer bits.",
    "economy": "Count what a token needs: connections, bytes, energy, and what it can do without.",
    "disperse": "Train a model so that it survives few bits.",
    "verify": "Check a bundle: schema, checksums, tokenizer, coherence.",
    "inspect": "Show what a model folder, a bundle or a model file holds.",
    "bench": "Measure a bundle on a device: speed, memory, energy, coherence.",
    "compare": "Show two results of bench side by side.",
    "report": "Write one page of the results of many boards.",
    "devices": "List, ask, name and clean the devices that can be measured.",
    "run": "Let a bundle's model answer a prompt.",
    "runtime": "Cross-compile and audit the engines for a board.",
    "targets": "List, show and validate targets (boards).",
    "cache": "List or clean what builds keep to be used again.",
    "doctor": "Say what is missing on this machine and how to get it.",
}


_STOPS = (signal.SIGTERM, signal.SIGHUP)


class Verbs(click.Group):
    """A group whose commands live in edgekit.cli.<verb>, each as `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of a user's work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"edgekit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of verbs from their one-line texts, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """Quantize a small language model, ship it to an ARM board, and prove that it still speaks sense."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every failure a user can cause is one sentence on standard error and its own exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes, and a text letters, that it cannot encode
            stream.reconfigure(errors="backslashreplace")
    with _stoppable():
        _run(arguments)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and a terminal that closes end a verb as Ctrl-C does, so that what it started is ended with it.

    A signal that is ignored (nohup) stays ignored.
    """
    here = threading.current_thread() is threading.main_thread()
    ours = [number for number in _STOPS if here and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: Sequence[str] | None) -> None:
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except EdgekitError as error:
        _stop(memory_shortage(error) or error)
    except click.exceptions.Abort:
        _stop(InterruptError("interrupted", remedy="nothing half-written was left; run the same command again"))
    except KeyboardInterrupt:
        _stop(InterruptError("interrupted", remedy="nothing half-written was left; run the same command again"))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except Exception as error:
        told = memory_shortage(error) or (_disk_fault(error) if isinstance(error, OSError) else None)
        if told is None:
            raise
        _stop(told)


def _disk_fault(error: OSError) -> EdgekitError | None:
    """What the system refused, where no caller knew better: a read error, a missing permission, a full disk."""
    if error.errno is None:
        return None
    what = f"'{error.filename}'" if error.filename is not None else "a file, or standard output,"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return OutputError(f"{what} cannot be written ({error.strerror})", remedy="free some space and run again")
    return InputNotFoundError(f"{what} cannot be read or written ({error.strerror})", expected="access to it")


def _drop_output() -> None:
    """Forget what standard output did not take: Python would try again on its way out and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(error: EdgekitError) -> None:
    _drop_output()
    click.echo(f"edgekit: {error.sentence()}", err=True)
    sys.exit(error.exit_code)
