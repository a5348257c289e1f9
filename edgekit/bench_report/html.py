"""bench.html: one file without network or scripts that says what a board does with a bundle; several make a fleet.

Names, sentences and samples come from strangers: everything is autoescaped, stripped of control characters and bounded
in length, and the page's own content policy forbids scripts, images and any request.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from edgekit.bench.verdicts import Absent
from edgekit.bench_report import words
from edgekit.bench_report.views import view
from edgekit.bench_report.words import Entry
from edgekit.report.words import clean

RESULTS = 100
"""Results on one page."""
_STYLES = {"PASS": "pass", "FAIL": "fail", "INVALID": "invalid", "NOT JUDGED": "unjudged"}
_FOUND_IN = {"style.css": "edgekit.report", "plots.html.j2": "edgekit.report"}


def render(entries: Sequence[Entry], absent: Sequence[Absent] = ()) -> str:
    """The page as HTML 5 text; equal results give equal pages."""
    views = [view(entry, f"r{index}") for index, entry in enumerate(entries[:RESULTS], start=1)]
    left = max(0, len(entries) - RESULTS) + max(0, len(absent) - RESULTS)
    return page("bench.html.j2", views=views, absent=absent[:RESULTS], left_out=left)


def page(template: str, **values: Any) -> str:
    """A template of this package as text."""
    return _environment().get_template(template).render(**values)


def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals.update(
        said=words.said, interval=words.interval, limit=words.limit, measured_text=words.measured,
        style=_STYLES.__getitem__, mark=words.MARKS.__getitem__, kind_words=words.KINDS.__getitem__,
        device=words.device, reason=words.reason, absent_title=words.absent_title,
    )  # fmt: skip
    return made


def _source(name: str) -> str:
    return (files(_FOUND_IN.get(name, "edgekit.bench_report")) / name).read_text(encoding="utf8")


def _finalize(value: object) -> object:
    """The last gate before the page, for every expression of the templates: no string gets past it uncleaned."""
    return clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
