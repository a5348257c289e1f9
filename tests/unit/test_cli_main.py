"""The command line as a whole: sentences and exit codes, and nothing heavy behind --help."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence

import click
import pytest
from conftest import Cli

from edgekit import errors
from edgekit.cli import main as main_module
from edgekit.cli.main import VERBS


def python(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-h"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """What makes a start slow is imports: none of these may be loaded to print a help text."""
    heavy = (
        "{'numpy', 'rich', 'torch', 'transformers', 'gguf', 'onnx', 'onnxruntime', 'msgspec', 'jinja2', 'tokenizers'}"
    )
    ran = python(
        "import sys", "from edgekit.cli.main import main",
        f"try: main({arguments!r})", "except SystemExit as stop: assert stop.code == 0, stop.code",
        f"found = {heavy} & sys.modules.keys()", "assert not found, found",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_no_framework(verb: str) -> None:
    ran = python(
        "import sys", "from edgekit.cli.main import main",
        f"try: main([{verb!r}, '--help'])", "except SystemExit as stop: assert stop.code == 0, stop.code",
        "found = {'torch', 'transformers', 'onnxruntime', 'onnx', 'llama_cpp'} & sys.modules.keys()",
        "assert not found, found",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "Usage:" in ran.stdout


def test_help_lists_every_verb(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert all(f"  {verb} " in result.out for verb in VERBS)


def test_version(cli: Cli) -> None:
    from edgekit import __version__

    assert cli("--version").out.split()[-1] == __version__


def test_unknown_verb_and_option(cli: Cli) -> None:
    for arguments in (["bild"], ["plan", "--bit", "4"], ["plan", "--bits", "four"], ["plan", "--bits", "99"]):
        result = cli(*arguments)
        assert result.code == 2, "click's code for a wrong call"
        assert arguments[-1] in result.err or arguments[-2] in result.err
        assert "Traceback" not in result.err


def test_every_error_has_an_exit_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EdgekitError)]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) > 15
    assert 2 not in codes, "click's own"
    assert all(0 < code < 126 or code == 130 for code in codes), "the rest has a meaning in the shell"


class Raises:
    """Stands in for the whole command line."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, args: Sequence[str] | None, standalone_mode: bool) -> None:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.exceptions.Abort()], ids=repr)
def test_interrupt(error: BaseException, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "cli", Raises(error))
    cli().refused(130, "interrupted", "nothing half-written was left")


def test_sentence_on_standard_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.ParityError("tensor x differs", expected="equality", remedy="report this.")
    monkeypatch.setattr(main_module, "cli", Raises(error))
    result = cli()
    result.refused(21)
    assert result.err == "edgekit: tensor x differs; expected equality — report this.\n"
    assert result.out == ""


def test_reader_that_went_away(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "cli", Raises(BrokenPipeError(errno.EPIPE, "x")))
    assert cli().code == 0


def test_our_own_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "cli", Raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main_module.main([])


def test_module_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "edgekit", "plan", "/no/such/model"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (10, "")
    assert ran.stderr.count("\n") == 1
