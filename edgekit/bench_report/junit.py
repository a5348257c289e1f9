"""JUnit XML as GitHub's and GitLab's viewers read it: a suite a device, a case a check.

INVALID is an error, FAIL a failure, NOT JUDGED is skipped. Every engine also has the cases "runs to its end" and
"undisturbed", so that a throttled board shows even where no limit of speed was set. A device without a result is a
suite with one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from edgekit.bench.figures import figures
from edgekit.bench.judge import EngineJudgement
from edgekit.bench.result import BenchResult
from edgekit.bench.verdicts import Absent, Verdict
from edgekit.bench.words import turn_lines, turned
from edgekit.bench_report import words
from edgekit.bench_report.words import Entry
from edgekit.bundle.paths import plain

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML 1.0 document may hold, escaped or not."""
_ELEMENTS: dict[Verdict, tuple[str, str]] = {
    "FAIL": ("failure", "GateError"), "INVALID": ("error", "InvalidMeasurementError"), "NOT JUDGED": ("skipped", ""),
}  # fmt: skip
_MOST = 1000
"""Characters of a message, and entries of a list."""
_RUNS = 4
"""Of one result whose ratios are shown: there are two formats."""


@dataclass(frozen=True)
class _Case:
    name: str
    verdict: Verdict
    sentence: str
    out: str = ""
    """What is beside it: the ratio of the same figure in turns with another bundle."""


def junit(entries: Sequence[Entry], absent: Sequence[Absent] = ()) -> bytes:
    """The document in UTF-8."""
    root = ET.Element("testsuites", name="edgekit bench")
    for one in absent[:_MOST]:
        root.append(_missing(one))
    for entry in entries[:_MOST]:
        root.append(_suite(entry))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    document: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{document}\n'.encode()


def text(value: str, limit: int = _MOST) -> str:
    """A stranger's text in one line that XML can hold."""
    return _NOT_XML.sub("\ufffd", plain(value, limit))


def _missing(absent: Absent) -> ET.Element:
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0", "time": "0.000"}
    suite = ET.Element("testsuite", counts, name=text(words.absent_title(absent), 300))
    name = f"edgekit.bench.{text(absent.bundle, 200)}"
    case = ET.SubElement(suite, "testcase", classname=name, name="gives a result", time="0")
    found = ET.SubElement(case, "error", message=text(absent.sentence), type=text(absent.error, 100))
    found.text = text(f"{absent.sentence} (exit code {absent.exit_code})")
    return suite


def _suite(entry: Entry) -> ET.Element:
    result = entry.result
    groups = [(engine.format, list(_cases(entry, engine))) for engine in entry.judgement.engines]
    suite = ET.Element("testsuite", name=text(entry.title, 300))
    for key, count in _counts(case for _, cases in groups for case in cases).items():
        suite.set(key, count)
    suite.set("time", f"{min(max(result.seconds, 0.0), 1e9):.3f}")
    suite.set("timestamp", text(result.started[:19], 19))
    properties = ET.SubElement(suite, "properties")
    for name, value in [("figures", result.measured_on), *words.facts(result), *_ratios(result)]:
        ET.SubElement(properties, "property", name=text(name, 80), value=text(value))
    for form, cases in groups:
        for case in cases:
            suite.append(_element(case, f"edgekit.bench.{form}.{text(result.bundle.name, 200)}"))
    said = [entry.judgement.sentence, *(f"{e.format}: {note}" for e in entry.judgement.engines for note in e.notes)]
    said += [f"{run.format}: {line}" for run in result.runs[:_RUNS] for line in turn_lines(run, result)]
    ET.SubElement(suite, "system-out").text = "\n".join(text(line) for line in said[:_MOST])
    return suite


def _cases(entry: Entry, engine: EngineJudgement) -> Iterator[_Case]:
    ended = [check for check in engine.checks if check.group == "run"]
    if not ended:
        yield _Case("runs to its end", "PASS", "")
    disturbed = [*entry.judgement.disturbances, *engine.disturbances]
    yield _Case("undisturbed", "INVALID" if disturbed else "PASS", "; ".join(disturbed))
    names: set[str] = set()
    beside = _beside(entry.result, engine.format)
    for check in engine.checks[:_MOST]:
        name = check.title if check.group != "run" else "runs to its end"
        name = f"{name} ({words.limit(check)})" if check.limit is not None else name
        out = beside.get(check.title.partition(", against")[0], "")
        yield _Case(name if name not in names else f"{name} [{check.name}]", check.verdict, check.sentence, out)
        names.add(name)


def _counts(cases: Iterable[_Case]) -> dict[str, str]:
    said = [case.verdict for case in cases]
    found = {"failures": "FAIL", "errors": "INVALID", "skipped": "NOT JUDGED"}
    return {"tests": str(len(said)), **{name: str(sum(v == verdict for v in said)) for name, verdict in found.items()}}


def _beside(result: BenchResult, form: str) -> dict[str, str]:
    """Ratios in turns of one format, by the title of the figure that they are of."""
    run = next((one for one in result.runs if one.format == form), None)
    if run is None:
        return {}
    titles = {one.key: one.title for one in figures(run)}
    lines = zip((one.key for one in turned(run)), turn_lines(run, result), strict=False)
    return {titles[key]: line for key, line in lines if key in titles}


def _ratios(result: BenchResult) -> Iterator[tuple[str, str]]:
    """As properties of a suite, whether or not a case is about their figure."""
    for run in result.runs[:_RUNS]:
        for one, line in zip(turned(run), turn_lines(run, result), strict=False):
            yield f"{run.format.upper()} in turns: {one.title}", line


def _element(case: _Case, classname: str) -> ET.Element:
    made = ET.Element("testcase", classname=classname, name=text(case.name, 300), time="0")
    shown = [case.out]
    if case.verdict in _ELEMENTS:
        tag, kind = _ELEMENTS[case.verdict]
        found = ET.SubElement(made, tag, message=text(case.sentence))
        if kind:
            found.set("type", kind)
            found.text = text(case.sentence)
    else:
        shown.insert(0, case.sentence)
    if lines := [text(line) for line in shown if line]:
        ET.SubElement(made, "system-out").text = "\n".join(lines)
    return made
