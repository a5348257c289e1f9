"""What `edgekit bench` does with its results: judge them, write them for people and machines, stop a pipeline."""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import EdgekitError, InputNotFoundError, InvalidMeasurementError, OptionError, OutputError

if TYPE_CHECKING:
    from edgekit.bench.judge import Overrides
    from edgekit.bench.kept import Keeper
    from edgekit.bench.result import BenchResult
    from edgekit.bench.verdicts import Absent
    from edgekit.bench_report.words import Entry
    from edgekit.bundle.bundle import Bundle
    from edgekit.cli.bench_devices import Measured
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

    def before(self, force: bool, results: Sequence[Path] = ()) -> Ready:
        """Find out, before anything is measured, what could not be written or compared afterwards.

        Args:
            force: replace what is there.
            results: files that the results themselves go to.

        Raises:
            OutputExistsError, OutputError: an output is there already, or cannot be written.
            OptionError: two outputs are one file.
            InputNotFoundError, FileFormatError: the baseline cannot be read.
        """
        from edgekit.files import refuse_existing

        whole = [path for path in (*results, self.junit, self.html, self.judgement) if path is not None]
        for path in whole:
            refuse_existing(path, force)
        refuse_clashes([*whole, *([self.summary] if self.summary else [])])
        for path in whole:
            refuse_unwritable(path)
        if self.summary is not None:
            refuse_unwritable(self.summary, appended=True)
        return Ready(self, force, self._baseline())

    def write(self, entries: Sequence[Entry], force: bool, absent: Sequence[Absent] = ()) -> list[EdgekitError]:
        """Write the files that were asked for, all that can be; returns what went wrong."""
        from edgekit.bench.judge import to_json
        from edgekit.bench_report.junit import junit
        from edgekit.bench_report.summary import markdown

        failed: list[EdgekitError | None] = []
        if self.judgement is not None:
            failed.append(written(self.judgement, to_json([entry.judgement for entry in entries], absent), force))
        if self.junit is not None:
            failed.append(written(self.junit, junit(entries, absent), force))
        if self.summary is not None:
            failed.append(_appended(self.summary, markdown(entries, absent)))
        if self.html is not None:
            from edgekit.bench_report.html import render

            failed.append(written(self.html, render(entries, absent).encode(), force))
        return [error for error in failed if error is not None]

    def overrides(self) -> Overrides:
        """Limits of the command line."""
        from edgekit.bench.judge import Overrides

        return Overrides(**self.limits)  # type: ignore[arg-type]

    def _baseline(self) -> BenchResult | None:
        from edgekit.bench.result import from_json

        return None if self.baseline is None else from_json(read(self.baseline), str(self.baseline))


@dataclass(frozen=True)
class Ready:
    """Outputs that were found writable, and the baseline as it was before anything was replaced."""

    outputs: Outputs
    force: bool
    baseline: BenchResult | None

    def finish(self, found: Measured, bundle: Bundle, target: Target, places: Mapping[str, Path], kept: Keeper) -> None:
        """Write the results, judge and show, write what is made of them, and say with one error what stops a pipeline.

        Args:
            found: results and errors, by device.
            bundle: that was measured.
            target: whose limits hold.
            places: device → file of its result.
            kept: what is forgotten when everything is written.

        Raises:
            EdgekitError: the first of: a device without a result; an output that could not be written; a baseline that
                cannot be compared; with --gate, FAIL or NOT JUDGED; with --gate, INVALID.
        """
        lost = self._results(found, places)
        entries, unfit = self._judged(found.results.values(), bundle, target)
        try:
            _show(found, entries)
        finally:  # a terminal that is gone is no reason to lose a report
            absent = [_absent(bundle.manifest.name, *one) for one in found.errors.items()]
            reports = self.outputs.write(entries, self.force, absent)
            safe = not lost and (not reports or not found.results.keys().isdisjoint(places))
            unwritten = _forgotten([*lost, *reports], kept, safe=safe)
        stops = [*found.errors.values(), *unwritten, *unfit, *self._closed(entries)]
        if stops:
            raise stops[0]

    def _judged(
        self, results: Iterable[BenchResult], bundle: Bundle, target: Target
    ) -> tuple[list[Entry], list[OptionError]]:
        """What was measured is judged without a baseline that cannot be compared."""
        from edgekit.bench.baseline import refuse
        from edgekit.bench.judge import facts, judge
        from edgekit.bench_report.words import Entry

        known, limits = facts(bundle.manifest), self.outputs.overrides()
        entries, unfit = list[Entry](), list[OptionError]()
        for result in results:
            against = self.baseline
            try:
                if against is not None:
                    refuse(result, against)
            except OptionError as fault:
                unfit.append(fault)
                against = None
            entries.append(Entry(result, judge(result, target, limits, known, against)))
        return entries, unfit

    def _results(self, found: Measured, places: Mapping[str, Path]) -> list[EdgekitError]:
        """Written before anything is made of them: a result that cannot be judged loses neither itself nor another."""
        from edgekit.bench.result import to_json

        wanted = [(places[device], result) for device, result in found.results.items() if device in places]
        return [error for path, one in wanted if (error := written(path, to_json(one), self.force))]

    def _closed(self, entries: Sequence[Entry]) -> list[EdgekitError]:
        """With --gate, what a verdict but PASS raises: a broken limit is never hidden by a disturbance elsewhere."""
        from edgekit.bench.judge import error

        found = [one for entry in entries if (one := error(entry.judgement))] if self.outputs.gate else []
        return sorted(found, key=lambda one: isinstance(one, InvalidMeasurementError))


def _forgotten(failed: list[EdgekitError], kept: Keeper, *, safe: bool) -> list[EdgekitError]:
    """What could not be written; when no result is safe with the user, with the place where it is kept."""
    if safe:
        kept.forget()
        return failed
    there = ", ".join(map(str, kept.paths))
    remedy = f"what was measured is kept in {there}, which `edgekit report` takes" if there else ""
    return [OutputError(one.found, remedy=remedy or one.remedy) for one in failed]


def _show(found: Measured, entries: Sequence[Entry]) -> None:
    from edgekit.bench.words import lines
    from edgekit.bench_report.terminal import show

    for result in found.results.values():
        for line in lines(result):
            click.echo(line)
    for entry in entries:
        show(entry)
    if len(found.results) + len(found.errors) > 1:
        for device, error in found.errors.items():
            click.echo(f"{device}: {error.sentence()}", err=True)


def _absent(bundle: str, device: str, error: EdgekitError) -> Absent:
    from edgekit.bench.verdicts import Absent

    return Absent(
        device=device, bundle=bundle, error=type(error).__name__, sentence=error.sentence(), exit_code=error.exit_code
    )


def refuse_clashes(paths: Sequence[Path]) -> None:
    """Two outputs in one file would leave only one of them.

    Raises:
        OptionError: two outputs are one file.
    """
    places = [Path(os.path.realpath(path.absolute().parent), path.name) for path in paths]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise OptionError(f"two outputs go to {twice}", remedy="give each a name of its own")


def refuse_unwritable(path: Path, *, appended: bool = False) -> None:
    """Write something of that name's length beside it, as the measurement's end will, and remove it.

    Raises:
        OutputError: that cannot be done.
    """
    try:
        if appended and path.exists():
            path.open("ab").close()
            return
        there = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(dir=there, prefix=f".{path.name}.tmp-"):
            return
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})", remedy="choose another folder") from error


def written(path: Path, data: bytes, force: bool) -> EdgekitError | None:
    """Write a whole file; what went wrong instead of raising it, so that the next one is written all the same."""
    from edgekit.files import whole_file

    try:
        with whole_file(path, force=force) as fresh:
            fresh.write_bytes(data)
    except EdgekitError as error:
        return error
    except OSError as error:
        return OutputError(f"{path} cannot be written ({error.strerror})")
    return None


def _appended(path: Path, text: str) -> EdgekitError | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf8") as page:
            page.write(text)
    except OSError as error:
        return OutputError(f"{path} cannot be written ({error.strerror})")
    return None


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
