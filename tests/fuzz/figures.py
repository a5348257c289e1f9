"""Put the lines that `python -m tests.fuzz.run` printed, given as files, into the table of docs/security.md.

python -m tests.fuzz.run all --count 100000 > lines && python -m tests.fuzz.figures lines
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]

from parsers import PARSERS  # noqa: E402

from benchmarks.coherence_table import replace  # noqa: E402


def table(tallies: dict[str, dict[str, Any]]) -> str:
    """Markdown rows in the order of the parsers; one that was not run has none."""
    rows = [
        "| parser | inputs | accepted | refused | sentences | seconds | findings |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parser in PARSERS.items():
        if (tally := tallies.get(name)) is not None:
            cells = (parser.reads, *(f"{tally[key]:,}" for key in ("inputs", "accepted", "refused", "sentences")))
            rows.append(f"| {' | '.join(cells)} | {tally['seconds']:,.0f} | {len(tally['findings'])} |")
    total = sum(tally["inputs"] for tally in tallies.values())
    return "\n".join([*rows, "", f"{total:,} inputs on {date.today():%-d %B %Y}, two cores shared with other work."])


if __name__ == "__main__":
    lines = [line for file in sys.argv[1:] for line in Path(file).read_text(encoding="utf8").splitlines()]
    found = [json.loads(line) for line in lines if line.startswith('{"parser"')]
    replace(ROOT / "docs" / "security.md", "fuzz", table({tally["parser"]: tally for tally in found}))
