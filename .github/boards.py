"""Choose the boards of a hardware run: `edgekit targets list --json | python .github/boards.py "rpi5 rpi4"`.

Prints `boards=["rpi5", "rpi4"]`, a line for $GITHUB_OUTPUT. A board's name is a target's, its runner's label, and the
name of the device in that runner's inventory.
"""

from __future__ import annotations

import json
import sys


def chosen(listing: str, wanted: str) -> list[str]:
    """The wanted boards, each once, in their order.

    Raises:
        SystemExit: none is wanted, or one that is not in the listing.
    """
    known = [target["name"] for target in json.loads(listing)]
    boards = list(dict.fromkeys(wanted.replace(",", " ").split()))
    if not boards:
        raise SystemExit("no board is wanted")
    unknown = [board for board in boards if board not in known]
    if unknown:
        raise SystemExit(f"no target is called {unknown[0]!a}; there are: {', '.join(known)}")
    return boards


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.stdout.write(f"boards={json.dumps(chosen(sys.stdin.read(), sys.argv[1]))}\n")
