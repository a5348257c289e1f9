"""What `edgekit bench` does with its results: judge them, write them for people and machines, stop a pipeline."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import InputNotFoundError

if TYPE_CHECKING:
    from edgekit.bench.judge import Overrides
    from edgekit.bench.result import BenchResult
    from edgekit.bench_report.words import Entry
    from edgekit.bundle.bundle import Bundle
    from edgekit.targets import Target

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path, dir_okay=False)
"""A folder is never meant, and --force would replace it whole."""


class Limit(click.FloatRange):
    """A finite number that is not below zero; click lets NaN through any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_LIMITS = (
    ("--max-kl", "kl_mean_max", Limit(0), "Mean KL divergence in nats, at most."),
    ("--min-same-top", "same_top_min", Limit(0, 1), "Share of positions with the same top token, 0 to 1, at least."),
    ("--max-ppl-ratio", "ppl_ratio_max", Limit(0), "Perplexity ÷ the original's, at most."),
    ("--min-tok-s", "tok_s_min", Limit(0), "Decoded tokens/s, at least."),
    ("--max-ttft-ms", "ttft_ms_max", Limit(0), "Milliseconds to the first token, at most."),
    ("--ttft-tokens", "ttft_tokens", click.IntRange(1), "Prompt that limit is for; default: the longest measured."),
    ("--max-rss-mib", "rss_mib_max", Limit(0), "Peak resident memory in MiB, at most."),
    ("--max-mj-token", "mj_per_token_max", Limit(0), "Millijoules per decoded token, at most."),
    ("--max-cv", "cv_max", Limit(0), "Coefficient of variation above which a measurement is invalid."),
)
_FILES = (
    ("--junit", "junit", "JUnit XML: a suite a device, a case a check."),
    ("--html", "html", "Report for people, one file."),
    ("--summary", "summary", "Markdown, appended: for $GITHUB_STEP_SUMMARY."),
    ("--judgement", "judgement", "Verdicts and checks as JSON; `edgekit report` takes it beside the result."),
)


@dataclass(frozen=True)
class Outputs:
    """What was asked for."""

    gate: bool = False
    junit: Path | None = None
    html: Path | None = None
    summary: Path | None = None
    judgement: Path | None = None
    baseline: Path | None = None
    limits: dict[str, float | None] = field(default_factory=dict)

    def before(self, force: bool) -> None:
        """Refuse, before anything is measured, what would be refused afterwards."""
        from edgekit.files import refuse_existing

        for path in (self.junit, self.html, self.judgement):
            if path is not None:
                refuse_existing(path, force)
        refuse_clashes([path for path in (self.junit, self.html, self.judgement, self.summary) if path is not None])
        self._baseline()

    def finish(self, results: Sequence[BenchResult], bundle: Bundle, target: Target, force: bool) -> None:
        """Judge, show and write; everything is written before the gate closes.

        Raises:
            GateError, InvalidMeasurementError: with --gate, for the first result that is not a PASS.
            OptionError: the baseline cannot be compared.
        """
        from edgekit.bench.baseline import refuse
        from edgekit.bench.judge import error, facts, judge
        from edgekit.bench_report.terminal import show
        from edgekit.bench_report.words import Entry
        from edgekit.errors import OptionError

        if not results:  # no device could be measured: there is nothing to judge, and nothing passes
            return
        baseline, known, unfit, entries = self._baseline(), facts(bundle.manifest), list[OptionError](), list[Entry]()
        for result in results:
            against = baseline
            try:
                if baseline is not None:
                    refuse(result, baseline)
            except OptionError as fault:  # what was measured is written all the same
                unfit.append(fault)
                against = None
            entries.append(Entry(result, judge(result, target, self._overrides(), known, against)))
        for entry in entries:
            show(entry)
        self.write(entries, force)
        gated = [error(entry.judgement) for entry in entries] if self.gate else []
        for stop in (*unfit, *filter(None, gated)):
            raise stop

    def write(self, entries: Sequence[Entry], force: bool) -> None:
        """Write the files that were asked for."""
        from edgekit.bench.judge import to_json
        from edgekit.bench_report.junit import junit
        from edgekit.bench_report.summary import markdown
        from edgekit.files import output_errors

        if self.junit is not None:
            _write(self.junit, junit(entries), force)
        if self.html is not None:
            from edgekit.bench_report.html import render

            _write(self.html, render(entries).encode(), force)
        if self.judgement is not None:
            _write(self.judgement, to_json([entry.judgement for entry in entries]), force)
        if self.summary is not None:
            with output_errors(self.summary), self.summary.open("a", encoding="utf8") as page:
                page.write(markdown(entries))

    def _overrides(self) -> Overrides:
        from edgekit.bench.judge import Overrides

        return Overrides(**self.limits)  # type: ignore[arg-type]

    def _baseline(self) -> BenchResult | None:
        from edgekit.bench.result import from_json

        return None if self.baseline is None else from_json(read(self.baseline), str(self.baseline))


def refuse_clashes(paths: Sequence[Path]) -> None:
    """Find out before a measurement what would lose its figures afterwards.

    Raises:
        OptionError: two outputs are one file.
        OutputError: a folder cannot be written.
    """
    from edgekit.errors import OptionError, OutputError

    places = [path.absolute() for path in paths]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise OptionError(f"two outputs go to {twice}", remedy="give each a name of its own")
    for place in places:
        there = next(folder for folder in place.parents if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(f"{there} cannot be written", remedy="choose another folder")


def judged_outputs(command: F) -> F:
    """Add the options; the command gets them as `outputs`."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        own = {one.name: given.pop(one.name) for one in fields(Outputs) if one.name != "limits"}
        limits = {name: given.pop(name) for _, name, _, _ in _LIMITS}
        return command(outputs=Outputs(**own, limits=limits), **given)

    options = [
        click.option("--gate", is_flag=True, help="Fail unless the verdict is PASS: 23 for FAIL, 39 for INVALID."),
        *(click.option(name, key, type=_PATH, metavar="FILE", help=text) for name, key, text in _FILES),
        click.option("--baseline", type=_PATH, metavar="FILE", help="Earlier --json; a worse figure is a FAIL."),
        *(click.option(name, key, type=kind, help=text) for name, key, kind, text in _LIMITS),
    ]
    made: Any = wrapped
    for option in reversed(options):
        made = option(made)
    return made  # type: ignore[no-any-return]


def file_options(command: F) -> F:
    """The options that only write: what `edgekit report` shares with `edgekit bench`."""
    for name, key, text in reversed([one for one in _FILES if one[1] in ("junit", "summary")]):
        command = click.option(name, key, type=_PATH, metavar="FILE", help=text)(command)
    return command


def read(path: Path) -> bytes:
    """A file that somebody else may have written: bounded.

    Raises:
        InputNotFoundError: it cannot be read.
    """
    from edgekit.bench.result import MAX_BYTES

    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputNotFoundError(
            f"'{path}' cannot be read ({error.strerror})", expected="a file that edgekit bench --json wrote"
        ) from error


def _write(path: Path, data: bytes, force: bool) -> None:
    from edgekit.files import whole_file

    with whole_file(path, force=force) as fresh:
        fresh.write_bytes(data)
