"""`edgekit compare`, `edgekit report` and the outputs of `edgekit bench`: what a user meets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from bench_results import KNOWN, coherence, result, run
from bench_toys import toy_bundle
from conftest import Cli
from test_junit import EVIL, strange

from edgekit.bench.judge import from_json as judgements
from edgekit.bench.judge import judge
from edgekit.bench.judge import to_json as judgement_json
from edgekit.bench.result import BenchResult, TracePoint, from_json, to_json
from edgekit.bench_report.compare import MIXED, NONE_IN_COMMON, Comparison, compare, html
from edgekit.targets import load


def row(found: Comparison, title: str) -> Any:
    return next(one for one in found.groups[0].rows if one.title.startswith(title))


def write(path: Path, found: BenchResult) -> Path:
    path.write_bytes(to_json(found))
    return path


# --- two results -----------------------------------------------------------------------------------------------------


def test_a_change_beyond_both_intervals_has_a_direction() -> None:
    found = compare(result(), result(run(speed=30, seen=coherence(kl_mean=0.02, kl_mean_low=0.01, kl_mean_high=0.03))))
    assert row(found, "Decode").verdict == "worse"
    assert row(found, "Decode").change == "-12.3 % worse"
    assert row(found, "First token after 512").verdict == "worse"
    assert row(found, "Mean KL").verdict == "better"


def test_a_change_within_the_intervals_has_none() -> None:
    found = compare(result(run(spread=0.03)), result(run(speed=33.9, spread=0.03)))
    assert row(found, "Decode").verdict == "unclear"


def test_a_figure_without_an_interval_differs_and_no_more() -> None:
    assert row(compare(result(), result(run(seen=coherence(kl_p999=2.0)))), "99.9 %").verdict == "differs"


def test_emulated_speeds_are_never_compared_with_measured_ones() -> None:
    found = compare(result(), result(kind="emulated"))
    assert MIXED in found.notes
    assert ("Figures are", "measured", "emulated") in found.differences
    assert {one.verdict for one in found.groups[0].rows if "tokens/s" in one.title} == {"not compared"}
    assert row(found, "Peak memory").verdict == "not compared"
    assert row(found, "Mean KL").verdict == "same"


def test_what_differs_is_said() -> None:
    other = result()
    device = msgspec.structs.replace(other.device, url="ssh://b", versions={"onnxruntime": "1.30.0"})
    bundle = msgspec.structs.replace(other.bundle, name="other", manifest_sha256="cd" * 32)
    found = compare(result(), msgspec.structs.replace(other, device=device, bundle=bundle))
    assert {title for title, _, _ in found.differences} == {
        "Bundle", "Manifest", "Device", "Version of onnxruntime", "Version of llama-cpp-python"
    }  # fmt: skip
    assert compare(result(), result()).differences == []


def test_formats() -> None:
    both, gguf, onnx = result(run(), run("onnx")), result(), result(run("onnx"))
    assert [group.title for group in compare(both, gguf).groups] == ["GGUF"]
    assert [group.title for group in compare(gguf, onnx).groups] == ["GGUF and ONNX"]
    three = msgspec.structs.replace(onnx, runs=(*onnx.runs, *onnx.runs))
    assert NONE_IN_COMMON in compare(gguf, three).notes


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (result(run(speed=20, disturbances=("hot",))), "GGUF: hot (loading"),
        (result(run(speed=20), preflight={"load": "disturb: 1.2 cores"}), "load: 1.2 cores"),
        (result(run(speed=20), environment=(TracePoint(t=0, temp_c=84.0),)), "hot start: 84.0 °C"),
        (result(run(speed=20, spread=0.3)), "GGUF: the 8 repetitions vary"),
    ],
)
def test_a_disturbed_side_is_named_and_its_speeds_are_neither_better_nor_worse(other: BenchResult, words: str) -> None:
    found = compare(result(), other)
    assert any(note.startswith(f"B was disturbed, so its speeds say little: {words}") for note in found.notes)
    assert row(found, "Decode").verdict == "disturbed"
    assert row(found, "Mean KL").verdict == "same"


def test_a_stranger_s_target_is_only_a_name() -> None:
    odd = msgspec.structs.replace(result(), target=msgspec.structs.replace(result().target, id="/etc/passwd"))
    assert not [note for note in compare(odd, odd).notes if "disturbed" in note]


def test_bits_that_differ_are_said() -> None:
    four = run(requested_bits=4, effective_bits=4.97, types=("IQ4_NL", "Q8_0"))
    eight = run(requested_bits=8, effective_bits=8.6, types=("Q8_0",))
    (found,) = [row for row in compare(result(four), result(eight)).differences if row[0] == "GGUF bits"]
    assert found[1] == "4 bits requested, 4.97 per weight in the files (IQ4_NL, Q8_0)"


def test_compare_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", result()), write(tmp_path / "b.json", result(run(speed=30)))
    outcome = cli("compare", a, b, "--html", tmp_path / "c.html")
    assert outcome.code == 0
    assert "-12.3 % worse" in outcome.out
    assert "default-src 'none'" in (tmp_path / "c.html").read_text()
    cli("compare", a, b, "--html", tmp_path / "c.html").refused(18, "c.html")


def test_compare_refuses_what_is_no_result(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", result())
    (tmp_path / "b.json").write_text('{"schema_version": 1}')
    cli("compare", a, tmp_path / "b.json").refused(26, "b.json")
    cli("compare", a, tmp_path / "none.json").refused(10, "none.json")
    cli("compare", a, tmp_path).refused(10, str(tmp_path))


def test_compare_lets_nothing_through(cli: Cli, tmp_path: Path) -> None:
    found = compare(strange(EVIL), strange(EVIL * 1000))
    assert "<script" not in html(found)
    assert len(html(found)) < 100_000
    a = strange("\x1b]0;title\x07\u202e")
    outcome = cli("compare", write(tmp_path / "a.json", a), write(tmp_path / "b.json", result()))
    assert outcome.code == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", outcome.out)


# --- a fleet ---------------------------------------------------------------------------------------------------------


def test_a_fleet_takes_the_judgements_that_belong_to_it(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.json", result()), write(tmp_path / "b.json", result(kind="emulated"))
    judged = judge(from_json(a.read_bytes()), load("rpi5"), None, KNOWN)
    (tmp_path / "a.judgement.json").write_bytes(judgement_json([judged]))
    outcome = cli(
        "report", a, tmp_path / "a.judgement.json", b, "-o", tmp_path / "f.html", "--junit", tmp_path / "f.xml",
        "--summary", tmp_path / "f.md",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "f.html").read_text()
    assert "2 results" in page
    assert page.count("PASS") > 1
    assert "NOT JUDGED" in page, "without its judgement, coherence of b has no limits"
    assert len(ET.parse(tmp_path / "f.xml").getroot()) == 2
    assert "| emulated |" in (tmp_path / "f.md").read_text()


def test_a_target_s_id_is_never_a_path(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "evil.toml").write_text("schema_version = 1")
    evil = msgspec.structs.replace(result().target, id=str(tmp_path / "evil.toml"))
    found = write(tmp_path / "a.json", result(target=evil))
    cli("report", found, "-o", tmp_path / "f.html").refused(29, "there is no target")
    assert not (tmp_path / "f.html").exists()


def test_report_refuses_what_it_cannot_show(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text('{"schema_version": 1, "judgements": []}')
    cli("report", tmp_path / "j.json", "-o", tmp_path / "f.html").refused(29, "none of the files")
    (tmp_path / "k.json").write_text('{"schema_version": 1, "judgements": [1]}')
    cli("report", tmp_path / "k.json", "-o", tmp_path / "f.html").refused(26, "k.json")
    (tmp_path / "f.html").write_text("mine")
    a = write(tmp_path / "a.json", result())
    cli("report", a, "-o", tmp_path / "f.html").refused(18, "f.html")
    assert (tmp_path / "f.html").read_text() == "mine"


# --- edgekit bench ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [["--max-kl", "nan"], ["--max-kl", "-1"], ["--min-same-top", "2"], ["--min-tok-s", "inf"]]
)
def test_limits_are_finite_numbers_in_their_range(option: list[str], cli: Cli, tmp_path: Path) -> None:
    outcome = cli("bench", tmp_path, *option)
    assert outcome.code == 2
    assert option[0] in outcome.err


def test_outputs_are_refused_before_anything_is_measured(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "o.xml").write_text("mine")
    cli("bench", tmp_path / "no-bundle", "--junit", tmp_path / "o.xml").refused(18, "o.xml")
    (tmp_path / "base.json").write_text("{}")
    cli("bench", tmp_path / "no-bundle", "--baseline", tmp_path / "base.json").refused(26, "base.json")


def test_a_device_that_fails_is_in_every_output(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    outputs = [part for name in ("junit", "html", "summary", "judgement") for part in (f"--{name}", tmp_path / name)]
    outcome = cli(
        "bench", bundle, "--device", "nowhere:x", "--device", "nowhere:y", "--gate", "--json", tmp_path / "o.json",
        *outputs,
    )  # fmt: skip
    assert outcome.code == 37
    assert "Traceback" not in outcome.err
    root = ET.parse(tmp_path / "junit").getroot()
    assert (len(root), root.attrib["errors"]) == (2, "2")
    assert "2 devices without one" in (tmp_path / "html").read_text()
    assert (tmp_path / "summary").read_text().count("ERROR") == 4
    assert not list(tmp_path.glob("*.json"))
    fleet = cli("report", tmp_path / "judgement", "-o", tmp_path / "fleet.html")
    assert fleet.code == 0
    assert "nowhere:y" in (tmp_path / "fleet.html").read_text()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return toy_bundle(tmp_path_factory.mktemp("bench") / "toy").root


def bench(cli: Cli, bundle: Path, *more: Any) -> Any:
    return cli("bench", bundle, "--protocol", "smoke", "--threads", "1", *more)


def test_a_gate_opens_and_everything_is_written(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    names = {"--json": "o.json", "--junit": "o.xml", "--html": "o.html", "--judgement": "o.judgement.json"}
    (tmp_path / "page.md").write_text("# Job\n")
    outputs = [part for option, name in names.items() for part in (option, tmp_path / name)]
    outcome = bench(cli, bundle, "--emulated", "--gate", "--summary", tmp_path / "page.md", *outputs)
    assert outcome.code == 0, outcome.err
    assert "PASS" in outcome.out
    assert ET.parse(tmp_path / "o.xml").getroot().attrib["failures"] == "0"
    assert "emulated" in (tmp_path / "o.html").read_text()
    (judged,) = judgements((tmp_path / "o.judgement.json").read_bytes()).judgements
    assert judged.verdict == "PASS"
    assert judged.engines[0].facts is not None
    assert (tmp_path / "page.md").read_text().startswith("# Job\n## edgekit bench")
    assert json.loads((tmp_path / "o.json").read_text())["schema_version"] == 1
    fleet = cli("report", tmp_path / "o.json", tmp_path / "o.judgement.json", "-o", tmp_path / "fleet.html")
    assert fleet.code == 0
    assert "PASS" in (tmp_path / "fleet.html").read_text()


def test_a_closed_gate_leaves_what_was_found(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    outcome = bench(cli, bundle, "--gate", "--min-same-top", "1", "--max-kl", "0", "--junit", tmp_path / "o.xml")
    assert outcome.code == 23, outcome.err
    assert outcome.err.splitlines()[-1].startswith("edgekit: FAIL: ONNX: ")
    assert int(ET.parse(tmp_path / "o.xml").getroot().attrib["failures"]) > 0


def test_a_failed_verdict_without_a_gate_stops_nothing(cli: Cli, bundle: Path) -> None:
    outcome = bench(cli, bundle, "--emulated", "--max-kl", "0")
    assert outcome.code == 0
    assert "FAIL" in outcome.out


def test_a_baseline_of_another_kind_is_refused_after_everything_was_written(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    base = write(tmp_path / "base.json", result())
    outcome = bench(cli, bundle, "--emulated", "--baseline", base, "--json", tmp_path / "o.json")
    assert outcome.code == 29
    assert "the baseline cannot be compared" in outcome.err
    assert (tmp_path / "o.json").exists()
