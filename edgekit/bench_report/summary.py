"""A job's page in Markdown (GITHUB_STEP_SUMMARY): verdicts, key figures, what failed. Bounded and escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgekit.bench.figures import figures, peak_mib
from edgekit.bench.verdicts import Absent
from edgekit.bench.words import computed_on, turn_lines
from edgekit.bench_report import words
from edgekit.bench_report.words import Entry
from edgekit.bundle.paths import plain

MAX_CHARACTERS = 200_000
"""GitHub drops the page of a step above 1 MiB."""
_RESULTS = 50
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~$&@]|:(?=\S)|(?<=www)\.)", re.IGNORECASE)
"""Of Markdown, HTML, and what GitHub and GitLab turn into links, mentions and emoji."""
_ICONS = {"PASS": "✅", "FAIL": "❌", "INVALID": "⚠️", "NOT JUDGED": "\N{HEAVY MINUS SIGN}"}
_ERROR = "\N{OCTAGONAL SIGN} ERROR"


def markdown(entries: Sequence[Entry], absent: Sequence[Absent] = ()) -> str:
    """A table of all devices, then what each has to say beyond its figures."""
    shown, missing = entries[:_RESULTS], absent[:_RESULTS]
    lines = ["## edgekit bench", "", *_HEAD, *map(_empty_row, missing), *_table(shown), ""]
    for one in missing:
        lines += [f"### {_ERROR}: {escaped(words.absent_title(one))}", "", escaped(one.sentence, 1000), ""]
    for entry in shown:
        lines += _details(entry)
    if left := len(entries) - len(shown) + len(absent) - len(missing):
        lines.append(f"{left} further results are not shown.")
    whole = "\n".join(lines).rstrip() + "\n"
    if len(whole) <= MAX_CHARACTERS:
        return whole
    return whole[:MAX_CHARACTERS].rsplit("\n", 1)[0] + "\n\nThe rest was left out.\n"


def escaped(text: str, limit: int = 300) -> str:
    """A stranger's text as Markdown and HTML show it literally, in one line."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[1])};", plain(text, limit))


_HEAD = (
    "| bundle and device | format | result | mean KL | decode | first token | memory | energy | figures are |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _empty_row(absent: Absent) -> str:
    return f"| {escaped(words.absent_title(absent))} | | {_ERROR} {'| ' * 7}".rstrip()


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        runs = {run.format: run for run in entry.result.runs}
        for engine in entry.judgement.engines:
            if engine.format not in runs:
                continue
            run = runs[engine.format]
            found = filter(words.beside_others, words.key_figures(figures(run), peak_mib(run)))
            key = {one.key.removeprefix("instructions/").split("/")[0]: words.said(one) for one in found}
            memory = next((value for name, value in key.items() if name.startswith("rss")), "")
            cells = [key.get("kl_mean", ""), key.get("decode", ""), key.get("ttft", ""), memory]
            cells += [key.get("decode_energy", ""), entry.result.measured_on]
            verdict = f"{_ICONS[engine.verdict]} {engine.verdict}"
            name = engine.format.upper() + computed_on(run, ", ")
            yield f"| {' | '.join([escaped(entry.title), name, verdict, *map(escaped, cells)])} |"


def _details(entry: Entry) -> Iterator[str]:
    yield f"### {_ICONS[entry.judgement.verdict]} {escaped(entry.title)}"
    yield ""
    yield escaped(entry.judgement.sentence, 1000)
    yield ""
    for words_ in entry.judgement.disturbances[:20]:
        yield f"- disturbed: {escaped(words_)}"
    for engine in entry.judgement.engines:
        said = [f"disturbed: {text}" for text in engine.disturbances[:20]]
        said += [f"{c.verdict}: {c.sentence}" for c in engine.checks if c.verdict in ("FAIL", "INVALID")][:20]
        said += [f"note: {text}" for text in engine.notes[:10]]
        said += [
            text for run in entry.result.runs if run.format == engine.format for text in turn_lines(run, entry.result)
        ]
        yield from (f"- {engine.format.upper()}: {escaped(text, 500)}" for text in said)
    yield ""
