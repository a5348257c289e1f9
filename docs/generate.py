"""Writes the pages of the surface from the code: docs/cli.md from the commands, docs/errors.md from the errors.

    python docs/generate.py

tests/unit/test_docs_generated.py fails when a page is not what this makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from edgekit import errors
from edgekit.cli.main import cli
from edgekit.training import recipe

DOCS = Path(__file__).parent
_MADE = "<!-- made by `python docs/generate.py`; change the code instead -->"


def cli_page() -> str:
    """docs/cli.md: every verb with its arguments and options."""
    context = click.Context(cli, info_name="edgekit")
    lines = [
        "# Command line", "", _MADE, "",
        "Every failure that a user can cause is one sentence on standard error with its own exit code: see "
        "[errors](errors.md). Exit code 2 is a wrong option. `edgekit VERB --help` shows the same as this page.", "",
    ]  # fmt: skip
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None:
            lines += _command(command, f"edgekit {name}", 2)
    return "\n".join(lines).rstrip() + "\n"


def _command(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    yield from (f"{'#' * level} {path}", "", f"    {' '.join(command.get_usage(context).split()[1:])}", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield from (" ".join(paragraph.replace("\b", "").split()), "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option) and parameter.help]
    if options:
        yield from ("| option | meaning |", "|---|---|")
        yield from (_option(option, context) for option in options)
        yield ""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _command(child, f"{path} {name}", level + 1)


def _option(option: click.Option, context: click.Context) -> str:
    names, text = option.get_help_record(context) or ("", "")
    plain = " ".join(text.split()).replace("[", r"\[").replace("<", "&lt;").replace("|", r"\|")
    return f"| `{names.replace('|', chr(92) + '|')}` | {plain} |"


def errors_page() -> str:
    """docs/errors.md: every exit code with what it means and what to do."""
    lines = [
        "# Errors and exit codes", "", _MADE, "",
        "A failure that a user can cause ends in one sentence on standard error (what was found, what was expected, "
        "what to do), its own exit code and no traceback; nothing half-written is left. Anything else is a bug: please "
        "report it with its traceback. Exit code 0 is success, 2 a wrong option or argument (click's own).", "",
        "| code | error | meaning | what to do |", "|---|---|---|---|",
    ]  # fmt: skip
    for kind in kinds():
        meaning, remedy = meaning_and_remedy(kind)
        lines.append(f"| {kind.exit_code} | `{kind.__name__}` | {meaning} | {remedy} |")
    lines += [
        "", "From Python every one is a subclass of `edgekit.errors.EdgekitError`, with `found`, `expected`, `remedy` "
        "and `exit_code`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def kinds() -> list[type[errors.EdgekitError]]:
    """All errors, by exit code."""
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgekitError)]
    return sorted((kind for kind in found if kind is not errors.EdgekitError), key=lambda kind: kind.exit_code)


def meaning_and_remedy(kind: type[errors.EdgekitError]) -> tuple[str, str]:
    """The two paragraphs of an error's docstring."""
    meaning, _, remedy = inspect.cleandoc(kind.__doc__ or "").partition("\n\nRemedy: ")
    return " ".join(meaning.split()), " ".join(remedy.split())


_RECIPES = "<!-- recipes begin -->\n", "<!-- recipes end -->"


def training_page() -> str:
    """docs/training.md with the table of recipes as their files say."""
    before, rest = (DOCS / "training.md").read_text("utf8").split(_RECIPES[0])
    lines = ["| recipe | what it does | cost | what it gives |", "|---|---|---|---|"]
    for name in recipe.names():
        one = recipe.load(name)
        lines.append(f"| `{name}` | {one.about} | {one.cost} | {one.gives} |")
    return before + _RECIPES[0] + "\n".join(lines) + "\n" + _RECIPES[1] + rest.split(_RECIPES[1])[1]


PAGES = {"cli.md": cli_page, "errors.md": errors_page, "training.md": training_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf8")
