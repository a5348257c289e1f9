"""report.html: one file without network or scripts that lets an engineer decide whether to ship.

Samples and names come from strangers: everything is autoescaped, stripped of control characters and bounded in length,
and the page's own content policy forbids scripts, images and any request.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from edgekit.coherence.scoring import CategoryScores, ItemScores
from edgekit.report import compared, plots, rows, words
from edgekit.report.model import FlippedItem, Report, Sample

SAMPLE_LIMIT = 3000
"""Characters of one sample."""


def render(report: Report) -> str:
    """The page as HTML 5 text; equal reports give equal pages."""
    template = _environment().get_template("template.html.j2")
    return template.render(
        report=report,
        outcome=rows.outcome(report),
        gates=_gates(report),
        answers=_answers(report),
        trained=[artefact for artefact in report.artefacts if artefact.dispersed is not None],
        samples=[_sample(sample) for sample in report.samples],
        files=rows.FILES,
        coherence=rows.COHERENCE,
        parity=rows.PARITY,
        predicted=rows.PREDICTED,
        divergence=plots.divergence(report),
        shares=plots.shares(report),
        perplexities=plots.perplexities(report),
        same_top=plots.same_top(report),
        times=plots.times(report),
    )


def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        name=rows.name,
        answered=words.answers,
        verdict_word=rows.verdict_word,
        millions=words.millions,
        runtime=words.runtime,
        compared=compared.lines,
        trained_how=compared.sentence,
    )
    return made


def _source(name: str) -> str:
    return (files("edgekit.report") / name).read_text(encoding="utf8")


def _finalize(value: object) -> object:
    """The last gate before the page, for every expression of the templates: no string gets past it uncleaned."""
    return words.clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@dataclass(frozen=True)
class _Text:
    """What one engine says, split where it leaves the original's text."""

    title: str
    same: str
    differs: str


@dataclass(frozen=True)
class _Sides:
    """The continuations of one prompt."""

    prompt: str
    texts: list[_Text]


def _sample(sample: Sample) -> _Sides:
    original = words.clean(sample.original, SAMPLE_LIMIT)
    texts = [_text("Original", original, original)]
    for name, said in sample.artefacts.items():
        if name in sample.plain:
            plain = words.clean(sample.plain[name], SAMPLE_LIMIT)
            texts.append(_text(f"{name.upper()} without training", plain, original))
        texts.append(_text(name.upper(), words.clean(said, SAMPLE_LIMIT), original))
    return _Sides(words.clean(sample.prompt, SAMPLE_LIMIT), texts)


def _text(title: str, said: str, original: str) -> _Text:
    same = words.common_length(said, original)
    return _Text(title, said[:same], said[same:])


@dataclass(frozen=True)
class _Answers:
    """How one artefact answers the fixed questions."""

    name: str
    sentence: str
    total: CategoryScores
    categories: tuple[CategoryScores, ...]
    flipped: tuple[FlippedItem, ...]
    flips: int


def _answers(report: Report) -> list[_Answers]:
    found = [(artefact, artefact.coherence.items) for artefact in report.artefacts]
    return [
        _Answers(
            rows.name(artefact), words.answers(scores), _total(scores), scores.categories, artefact.flipped,
            scores.flips,
        )
        for artefact, scores in found if scores is not None
    ]  # fmt: skip


def _total(scores: ItemScores) -> CategoryScores:
    return CategoryScores(
        name="all", items=scores.items, right_reference=scores.right_reference, right_engine=scores.right_engine,
        lost=scores.lost, gained=scores.gained, flips=scores.flips,
    )  # fmt: skip


def _gates(report: Report) -> list[tuple[str, list[rows.Gate]]]:
    return [
        (rows.name(artefact), [rows.gate(check) for check in artefact.verdict.checks])
        for artefact in report.artefacts
        if artefact.verdict.checks
    ]
