"""Render the README's coherence table from what was measured, and docs/quickstart.md's exit codes from the code.

    edgekit build --target rpi5 --bits 4 --force && edgekit build --target rpi5 --bits 3 --force
    python -m benchmarks.coherence_table dist/smollm2-135m.rpi5 dist/smollm2-135m.rpi5.bits3

No number in the table is typed by hand: it is read from the bundles' report.json.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from edgekit import errors
from edgekit.report import model as reports

ROOT = Path(__file__).parents[1]


def table(bundles: list[Path]) -> str:
    """Markdown table of all artefacts of the given bundles."""
    heads = (
        "asked", "format", "bits in the file", "MiB", "KL mean (95 %)", "KL 99 %", "same top token", "perplexity",
        "seq-rep-4 rise", "gate",
    )  # fmt: skip
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for bundle in bundles:
        report = reports.from_json((bundle / "report.json").read_bytes())
        rows += [_row(artefact) for artefact in report.artefacts]
    return "\n".join(rows)


def _row(artefact: reports.Artefact) -> str:
    c = artefact.coherence
    grid = max(artefact.shares, key=lambda name: artefact.shares[name])
    rise = "" if c.generation is None else f"{c.generation.seq_rep_4_rise:+.3f}"
    interval = "" if c.kl_mean_low is None else f" ({c.kl_mean_low:.3f}–{c.kl_mean_high:.3f})"
    cells = (
        f"{artefact.requested_bits} bits", f"{artefact.format.upper()}, mostly {grid}",
        f"{artefact.effective_bits:.2f}",
        f"{artefact.bytes / 2**20:.1f}", f"{c.kl_mean:.3f}{interval}", f"{c.kl_p99:.2f}", f"{c.same_top:.1%}",
        f"{c.ppl_engine:.1f} (original {c.ppl_reference:.1f})", rise, artefact.verdict.result,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def exit_codes() -> str:
    """Markdown rows of every user-facing error."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EdgekitError)]
    found = sorted((kind.exit_code, _meaning(kind)) for kind in kinds if kind is not errors.EdgekitError)
    return "\n".join(["| code | meaning |", "|---|---|", *(f"| {code} | {text} |" for code, text in found)])


def _meaning(kind: type[errors.EdgekitError]) -> str:
    """The first paragraph of its docstring; docs/errors.md has the remedy too."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n", maxsplit=1)[0].split())


def replace(path: Path, mark: str, text: str) -> None:
    """Put `text` between the mark's two comments in a Markdown file."""
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    old = path.read_text(encoding="utf8")
    if not pattern.search(old):
        raise SystemExit(f"{path} has no <!-- {mark} --> place")
    path.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", old), encoding="utf8")


if __name__ == "__main__":
    replace(ROOT / "docs" / "quickstart.md", "exit-codes", exit_codes())
    if len(sys.argv) > 1:
        replace(ROOT / "README.md", "coherence-table", table([Path(argument) for argument in sys.argv[1:]]))
