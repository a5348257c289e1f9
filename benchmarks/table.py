"""Write the tables of docs/benchmarks.md: `python -m benchmarks.table`.

What was measured is read from benchmarks/results; what is predicted is computed anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import prediction
from benchmarks._result import load, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin, written by python -m benchmarks.table -->", "<!-- figures: end -->"
PREDICTED = "<!-- prediction: begin, written by python -m benchmarks.table -->", "<!-- prediction: end -->"
NOTHING = "No figures are committed yet."


def tables(folder: Path) -> str:
    """All results of a folder as markdown, in the order of their file names."""
    return "\n".join(markdown(load(path)) for path in sorted(folder.glob("*.json"))) or NOTHING + "\n"


def filled(document: str, figures: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with `figures` between two markers.

    Raises:
        ValueError: a marker is missing, or there are two of it.
    """
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError("the document must have both markers once")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{figures}\n{end}{rest.partition(end)[2]}"


def written(document: str) -> str:
    """The document with all of its tables as they have to be."""
    return filled(filled(document, tables(RESULTS)), prediction.figures() + "\n", *PREDICTED)


def main(arguments: Sequence[str]) -> None:
    """Write the document, or with --check only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the tables are out of date")
    options = parser.parse_args(arguments)
    old = DOCUMENT.read_text(encoding="utf8")
    new = written(old)
    if options.check and new != old:
        raise SystemExit(f"{DOCUMENT} is out of date: python -m benchmarks.table")
    if not options.check:
        DOCUMENT.write_text(new, encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1:])
