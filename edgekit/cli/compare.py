"""`edgekit compare`: two runs side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("compare")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write a page for people."
)
@click.option("--force", is_flag=True, help="Replace that file.")
def command(first: Path, second: Path, html: Path | None, force: bool) -> None:
    """Show two results of `edgekit bench --json` side by side: two runs, two models or two boards.

    A change is called better or worse only where the intervals of both figures have no value in common. Figures of an
    emulated board are never compared with measured speeds.
    """
    from edgekit.bench.result import from_json
    from edgekit.bench_report.compare import compare
    from edgekit.bench_report.compare import html as as_html
    from edgekit.bench_report.terminal import show_comparison
    from edgekit.cli.bench_outputs import read
    from edgekit.files import refuse_existing, whole_file

    if html is not None:
        refuse_existing(html, force)
    found = compare(*(from_json(read(path), str(path)) for path in (first, second)))
    show_comparison(found)
    if html is not None:
        with whole_file(html, force=force) as fresh:
            fresh.write_text(as_html(found), encoding="utf8")
