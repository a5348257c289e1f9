"""How the time of `--effort good` grows with depth and width: `python -m benchmarks.rounding_growth`.

Random Llama-shaped models, two and four blocks deep, one and two times as wide as SmolLM2-135M; weights do not change
what rounding costs. Builds GGUF at 4 bits without the cache and reads off what the build itself says of each block.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks._measure import machine
from benchmarks._random_llama import SHAPES, Shape, write

_BLOCK = re.compile(r"round block \d+ of \d+: ([\d.]+) s")


def shapes() -> list[Shape]:
    """Two depths, two widths."""
    base = SHAPES["135m"]
    wide = replace(base, hidden=2 * base.hidden, ffn=2 * base.ffn, heads=2 * base.heads, kv_heads=2 * base.kv_heads)
    return [replace(base, layers=2), replace(base, layers=4), replace(wide, layers=2)]


def seconds(shape: Shape, scratch: Path) -> list[float]:
    """Of each block."""
    model = write(shape, scratch / f"{shape.hidden}-{shape.layers}")
    command = [sys.executable, "-m", "edgekit", "build", str(model), "--effort", "good", "--format", "gguf"]
    ran = subprocess.run(
        [*command, "--no-runtime", "--no-cache", "-o", str(scratch / "out")], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    return [float(found) for found in _BLOCK.findall(ran.stdout + ran.stderr)]


def main() -> None:
    """Print the table."""
    print("| hidden | feed-forward | blocks | seconds a block, median | all blocks |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes():
            found = seconds(shape, Path(folder))
            print(
                f"| {shape.hidden} | {shape.ffn} | {shape.layers} "
                f"| {statistics.median(found):.1f} | {sum(found):.1f} |",
                flush=True,
            )
    host = machine()
    print(f"\nOn {host.cpu}, {host.physical_cores} cores.")


if __name__ == "__main__":
    main()
