"""How long `edgekit --help` takes, against an empty Python process: `python -m benchmarks.cli_start`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks._measure import begin, pairs, parser, run, versions
from benchmarks._result import Limit, Row

LIMIT = 0.3
METHOD = "Wall time of a fresh process, from its start to its end; every run must keep the limit."


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=20).parse_args(arguments)
    session = begin("cli_start", arguments)
    script = Path(sys.executable).with_name("edgekit")
    command = [str(script), "--help"] if script.is_file() else [sys.executable, "-m", "edgekit", "--help"]
    empty = [sys.executable, "-c", "pass"]
    found = pairs(lambda: run(command).seconds, lambda: run(empty).seconds, options.pairs, options.warmup)
    row = Row(
        title="`edgekit --help`", peer="`python -c pass`", unit="s", ours=tuple(own for own, _ in found),
        peers=tuple(other for _, other in found), limit=Limit(measure="ours_below", value=LIMIT),
    )  # fmt: skip
    session.finish([row], versions("edgekit", "click"), METHOD, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
