"""`edgekit report`: one page of the results of many boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.bench_outputs import Outputs, file_options, read
from edgekit.errors import OptionError

if TYPE_CHECKING:
    from edgekit.bench.judge import Judgement
    from edgekit.bench.result import BenchResult
    from edgekit.bench.verdicts import Absent
    from edgekit.bench_report.words import Entry
    from edgekit.targets import Target


@click.command("report")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="HTML", help="The page."
)
@click.option("--target", "targets", multiple=True, help="Target file of results for a board that is not shipped.")
@file_options
@click.option("--force", is_flag=True, help="Replace what is there.")
def command(
    files: tuple[Path, ...], out: Path, targets: tuple[str, ...], junit: Path | None, summary: Path | None, force: bool
) -> None:
    """Write one page of FILES: results of `edgekit bench --json`, and the files of --judgement that belong to them.

    A result without its judgement is judged by its target's limits. Devices that gave no result stand in the judgement.
    """
    outputs = Outputs(html=out, junit=junit, summary=summary)
    outputs.before(force)
    entries, absent = _read(files, targets)
    for error in outputs.write(entries, force, absent):
        raise error


def _read(files: Sequence[Path], targets: Sequence[str]) -> tuple[list[Entry], list[Absent]]:
    """Results with their judgements, and the devices that gave no result."""
    from edgekit.bench import judge, result
    from edgekit.bench.baseline import digest
    from edgekit.bench_report.words import Entry
    from edgekit.targets import load

    results: list[BenchResult] = []
    known: dict[str, Judgement] = {}
    absent: dict[Absent, None] = {}
    for path in files:
        data = read(path)
        if judge.looks_like(data):
            said = judge.from_json(data, str(path))
            known |= {one.result_sha256: one for one in said.judgements}
            absent |= dict.fromkeys(said.absent)
        else:
            results.append(result.from_json(data, str(path)))
    if not results and not absent:
        raise OptionError("none of the files is a result", expected="what edgekit bench --json wrote")
    own = {target.name: target for target in map(load, targets)}
    entries = [Entry(one, known.get(digest(one)) or judge.judge(one, _target(one, own))) for one in results]
    return entries, list(absent)


def _target(result: BenchResult, own: Mapping[str, Target]) -> Target:
    """Of a result; its id comes from a stranger, so it is looked up among names and never taken for a path."""
    from edgekit.bundle.paths import plain
    from edgekit.targets import load, names

    name = result.target.id
    if name in own:
        return own[name]
    if name in names():
        return load(name)
    raise OptionError(
        f"there is no target '{plain(name)}', whose limits hold for {plain(result.bundle.name)}",
        expected="one of `edgekit targets`", remedy="give its file with --target, or the file of --judgement",
    )  # fmt: skip
