"""JUnit XML and the Markdown of a job's page: what viewers accept, whatever a stranger wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from bench_results import KNOWN, coherence, result, run
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench.judge import Overrides, judge
from edgekit.bench.result import BenchResult, Failure
from edgekit.bench.verdicts import Absent
from edgekit.bench_report.junit import junit
from edgekit.bench_report.summary import MAX_CHARACTERS, escaped, markdown
from edgekit.bench_report.words import Entry
from edgekit.targets import load

RPI5 = load("rpi5")
EVIL = "]]>\x00\x1b[31m\x85\u2028\ufffe<script>|`@all`\n# x"
# What Jenkins's junit-10.xsd allows, which GitHub's and GitLab's readers take a part of.
ALLOWED = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname", "time"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": ({"type", "message"}, set()),
    "error": ({"type", "message"}, set()),
    "skipped": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}


def entry(found: BenchResult, **limits: Any) -> Entry:
    return Entry(found, judge(found, RPI5, Overrides(**limits), KNOWN))


def strange(text: str) -> BenchResult:
    """Everything that a board or a bundle may choose is `text`."""
    found = result(
        run(engine=text, version=text, notes=(text,), disturbances=(text,)),
        run("onnx", failure=Failure(kind="crash", sentence=text, exit_code=1)),
        preflight={text: f"disturb: {text}"}, notes=(text,), started=text, edgekit=text,
    )  # fmt: skip
    device = msgspec.structs.replace(found.device, url=text, machine={text: text}, versions={text: text})
    bundle = msgspec.structs.replace(found.bundle, name=text, model=text, target=text)
    return msgspec.structs.replace(found, device=device, bundle=bundle)


def parsed(*entries: Entry, absent: Sequence[Absent] = ()) -> ET.Element:
    """The document, checked against the format."""
    root = ET.fromstring(junit(entries, absent))
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = ALLOWED[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children
    for suite in root:
        assert {"name", "tests", "failures", "errors"} <= set(suite.attrib)
        assert re.fullmatch(r"[0-9]+\.[0-9]{3}", suite.attrib["time"])
        for tag, count in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.attrib[count]) == len(list(suite.iter(tag)))
        names = [(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")]
        assert len(names) == len(set(names)), "a viewer shows one of two equal names"
    return root


def case(root: ET.Element, name: str) -> ET.Element:
    return next(found for found in root.iter("testcase") if found.attrib["name"].startswith(name))


def test_a_pass() -> None:
    root = parsed(entry(result(), tok_s_min=30))
    assert root.attrib["tests"] == "8"
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "0")
    assert case(root, "Decode").attrib["name"] == "Decode (≥ 30 tokens/s)"
    assert [child.tag for child in case(root, "undisturbed")] == []


def test_a_fail_is_a_failure_an_invalid_one_an_error_and_an_unjudged_one_skipped() -> None:
    bad = coherence(kl_mean=1.0)
    failure = case(parsed(entry(result(run(seen=bad)))), "Mean KL").find("failure")
    assert failure is not None
    assert "above the limit" in failure.attrib["message"]
    throttled = parsed(entry(result(run(disturbances=("throttling",))), tok_s_min=30))
    for name in ("undisturbed", "Decode"):
        error = case(throttled, name).find("error")
        assert error is not None
        assert error.attrib["type"] == "InvalidMeasurementError"
    assert case(parsed(entry(result(kind="emulated"), tok_s_min=30)), "Decode").find("skipped") is not None


def test_an_engine_that_ended_early() -> None:
    dead = Failure(kind="out of memory", sentence="killed at 3,900 MiB", exit_code=31)
    failure = case(parsed(entry(result(run(failure=dead)))), "runs to its end").find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "killed at 3,900 MiB"


def test_several_devices_are_several_suites() -> None:
    assert len(parsed(entry(result()), entry(result(kind="emulated")))) == 2


def test_hostile_text_stays_text() -> None:
    root = parsed(entry(strange(EVIL)))
    assert "<script>" in root[0].attrib["name"]
    assert len(junit([entry(strange(EVIL * 100_000))])) < 200_000


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), min_size=1) | st.text("<>&\"'|`\\[]@#:/.w\n\x0b\x00 ", min_size=1))
def test_whatever_a_stranger_writes_is_one_document_of_one_shape(text: str) -> None:
    root, plain = parsed(entry(strange(text))), parsed(entry(strange("x")))
    assert [element.tag for element in root.iter()] == [element.tag for element in plain.iter()]
    page, simple = markdown([entry(strange(text))]), markdown([entry(strange("x"))])
    assert page.count("\n") == simple.count("\n")
    assert [line.count("|") for line in page.splitlines()] == [line.count("|") for line in simple.splitlines()]
    assert not re.search(r"[<>`@*\[\]]", page)


@pytest.mark.parametrize(
    "text", ["|", "<b>", "`x`", "[a](http://b)", "@all", "#1", "a_b_c", "**", "~~x~~", "\\|", ":tada:", "www.evil"]
)
def test_markdown_of_a_stranger_is_shown_literally(text: str) -> None:
    assert not re.search(r"[|<>`\[\]@*_~\\]|(?<!&)#|:\S|www\.", escaped(text))


def test_a_job_s_page_names_what_failed() -> None:
    page = markdown([entry(result(run(seen=coherence(kl_mean=1.0)))), entry(result(kind="emulated"))])
    assert "❌ FAIL" in page
    assert "✅ PASS" in page
    assert "mean KL divergence 1 nats is above the limit" in page
    assert "| emulated |" in page


def test_a_job_s_page_is_bounded() -> None:
    page = markdown([entry(strange("long " * 10_000))] * 2000)
    assert len(page) < MAX_CHARACTERS + 100
    assert page.endswith(("left out.\n", "not shown.\n"))
