"""What `edgekit bench` writes: found writable before, safe afterwards, with every device that was asked for."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
from bench_results import coherence, result, run
from bench_toys import toy_bundle
from conftest import Cli
from test_junit import EVIL, parsed

from edgekit.bench import remote
from edgekit.bench.fleet import Outcome
from edgekit.bench.judge import from_json as judgements
from edgekit.bench.kept import Keeper
from edgekit.bench.result import BenchResult, from_json, to_json
from edgekit.bench.verdicts import Absent
from edgekit.bench_report.html import render
from edgekit.bench_report.junit import junit
from edgekit.bench_report.summary import markdown
from edgekit.bundle.bundle import Bundle
from edgekit.cli.bench_devices import Measured
from edgekit.cli.bench_outputs import Outputs
from edgekit.errors import (
    DeviceError,
    EdgekitError,
    GateError,
    InterruptError,
    InvalidMeasurementError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    OutputExistsError,
)
from edgekit.progress import Quiet
from edgekit.targets import load

RPI5 = load("rpi5")
GOOD, BAD = result(run("onnx")), result(run("onnx", seen=coherence(kl_mean=3.0)))
HOT = result(run("onnx", disturbances=("throttling",)))
BUSY = DeviceError("board-b is busy", remedy="wait")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    return toy_bundle(tmp_path_factory.mktemp("bench") / "toy")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(*results: BenchResult) -> Keeper:
    made = Keeper(Quiet())
    for one in results:
        made.keep(one)
    return made


def finish(
    outputs: Outputs, bundle: Bundle, found: Measured, places: dict[str, Path] | None = None, **more: Any
) -> Keeper:
    """As the command does: everything was measured, and the results are kept."""
    ready = outputs.before(False, list((places or {}).values()))
    safe = kept(*found.results.values())
    more.get("meanwhile", lambda: None)()
    with pytest.raises(more["stops"]) if "stops" in more else nullcontext() as caught:
        ready.finish(found, bundle, RPI5, places or {}, safe)
    assert caught is None or type(caught.value) is more["stops"]
    return safe


# --- before anything is measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--junit", "--html", "--judgement", "--summary"])
@pytest.mark.parametrize("place", ["file/x", "x" * 250, "/proc/nothing/x"])
def test_an_output_that_cannot_be_written_is_found_before_a_bundle_is_opened(
    option: str, place: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file is no folder")
    cli("bench", tmp_path / "no-bundle", option, tmp_path / place).refused(27, "cannot be written")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "the try leaves nothing behind"


@pytest.mark.parametrize("other", ["o", "link/o", "link/../real/o"])
def test_two_outputs_in_one_file_are_refused(other: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    first = tmp_path / ("o" if other == "o" else "real/o")
    for options in (("--json", "--junit"), ("--json", "--summary"), ("--html", "--judgement")):
        cli("bench", tmp_path / "no-bundle", options[0], first, options[1], tmp_path / other, "--force").refused(
            29, "two outputs"
        )


def test_what_is_there_is_refused_and_stays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "o").write_text("mine")
    for option in ("--json", "--junit", "--html", "--judgement"):
        cli("bench", tmp_path / "no-bundle", option, tmp_path / "o").refused(18, "--force")
    assert (tmp_path / "o").read_text() == "mine"
    assert cli("bench", tmp_path / "no-bundle", "--summary", tmp_path / "o").code == 10, "it is appended to"


# --- afterwards ------------------------------------------------------------------------------------------------------


def test_a_failing_report_loses_neither_the_result_nor_the_other_reports(bundle: Bundle, tmp_path: Path) -> None:
    outputs = Outputs(junit=tmp_path / "j.xml", html=tmp_path / "h.html", summary=tmp_path / "s.md")
    left = finish(
        outputs, bundle, Measured({"a": GOOD}), {"a": tmp_path / "o.json"}, stops=OutputExistsError,
        meanwhile=lambda: (tmp_path / "j.xml").mkdir(),
    )  # fmt: skip
    assert from_json((tmp_path / "o.json").read_bytes()) == from_json(to_json(GOOD))
    assert (tmp_path / "h.html").is_file()
    assert (tmp_path / "s.md").is_file()
    assert not left.paths, "the result stands where it was asked for"


@pytest.mark.parametrize("with_json", [True, False])
def test_a_result_that_stands_nowhere_is_kept_and_named(with_json: bool, bundle: Bundle, tmp_path: Path) -> None:
    outputs = Outputs(junit=tmp_path / "j.xml")
    places = {"a": tmp_path / "o.json"} if with_json else {}

    def spoil() -> None:
        (tmp_path / ("o.json" if with_json else "j.xml")).mkdir()

    ready, safe = outputs.before(False, list(places.values())), kept(GOOD)
    spoil()
    with pytest.raises(OutputError) as caught:
        ready.finish(Measured({"a": GOOD}), bundle, RPI5, places, safe)
    (path,) = safe.paths
    assert str(path) in caught.value.remedy
    assert from_json(path.read_bytes()) == from_json(to_json(GOOD))


def test_what_is_kept_goes_when_everything_is_written(bundle: Bundle, tmp_path: Path, own_cache: Path) -> None:
    left = finish(Outputs(junit=tmp_path / "j.xml"), bundle, Measured({"a": GOOD}))
    assert not left.paths
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_what_is_kept_is_in_the_cache_s_list_and_can_be_cleaned(cli: Cli, own_cache: Path) -> None:
    (path,) = kept(GOOD).paths
    (entry,) = json.loads(cli("cache", "list", "--json").out)["entries"]
    assert (entry["kind"], Path(entry["path"])) == ("results", path.parent)
    assert cli("cache", "clean", "--all").code == 0
    assert not path.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), InterruptError("interrupted"), DeviceError("gone")])
def test_ctrl_c_names_what_is_kept(
    stop: BaseException, bundle: Bundle, cli: Cli, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    def far_away(_devices: Any, _bundle: Any, _target: Any, _words: Any, _progress: Any, kept: Keeper, *_: Any) -> None:
        kept.keep(GOOD)
        raise stop

    monkeypatch.setattr("edgekit.cli.bench_devices.far_away", far_away)
    said = cli("bench", bundle.root, "--device", "ssh://a", "--device", "ssh://b").err
    (path,) = own_cache.glob("bench/*/bench.json")
    named = f"what was measured is kept in {path}" in "".join(said.splitlines())
    assert named == (not isinstance(stop, DeviceError)), said


def test_a_cache_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file/cache"))
    assert not kept(GOOD).paths


def test_a_terminal_that_is_gone_loses_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(click, "echo", gone)
    with pytest.raises(BrokenPipeError):
        finish(Outputs(junit=tmp_path / "j.xml"), bundle, Measured({"a": GOOD}), {"a": tmp_path / "o.json"})
    assert (tmp_path / "o.json").is_file()
    assert (tmp_path / "j.xml").is_file()


def test_a_result_that_cannot_be_judged_loses_neither_itself_nor_another(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*_: Any) -> Any:
        raise RuntimeError

    ready, safe = Outputs().before(False), kept(GOOD, HOT)
    monkeypatch.setattr("edgekit.bench.judge.judge", spoiled)
    places = {"a": tmp_path / "a.json", "b": tmp_path / "b.json"}
    with pytest.raises(RuntimeError):
        ready.finish(two(GOOD, HOT), bundle, RPI5, places, safe)
    assert from_json(places["a"].read_bytes()) == from_json(to_json(GOOD))
    assert from_json(places["b"].read_bytes()) == from_json(to_json(HOT))
    assert all(path.is_file() for path in safe.paths)


def test_a_baseline_that_the_result_replaces_is_the_old_one(bundle: Bundle, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    base.write_bytes(to_json(result(run("onnx", speed=60))))
    outputs = Outputs(gate=True, baseline=base)
    ready = outputs.before(True, [base])
    with pytest.raises(GateError, match="is worse"):
        ready.finish(Measured({"a": GOOD}), bundle, RPI5, {"a": base}, kept(GOOD))
    assert from_json(base.read_bytes()) == from_json(to_json(GOOD))


def test_a_board_forgets_a_result_only_when_it_is_kept(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def bench_on(*_: Any, decode: Any, **__: Any) -> BenchResult:
        found: BenchResult = decode(b"")
        events.append("forgotten")
        return found

    monkeypatch.setattr(remote, "bench_on", bench_on)
    monkeypatch.setattr(remote, "decoder", lambda *_: lambda _: GOOD)
    monkeypatch.setattr(remote, "on_all", lambda names, work, told: tuple(Outcome(n, work(n, told)) for n in names))
    remote.bench_all(["a", "b"], bundle, RPI5, (), Quiet(), lambda _: events.append("kept"))
    assert events == ["kept", "forgotten"] * 2


# --- one exit code of several reasons --------------------------------------------------------------------------------


def two(first: BenchResult, second: BenchResult, **errors: EdgekitError) -> Measured:
    return Measured({"a": first, "b": second}, dict(errors))


@pytest.mark.parametrize(
    ("found", "stops"),
    [
        (two(HOT, BAD), GateError),  # with 39 a pipeline may go on: a broken limit must not hide behind it
        (two(HOT, GOOD), InvalidMeasurementError),
        (two(BAD, HOT, c=BUSY), DeviceError),
        (two(GOOD, GOOD, c=BUSY), DeviceError),
        (two(GOOD, GOOD, c=OutOfMemoryError("it was killed"), d=BUSY), OutOfMemoryError),
        (Measured(errors={"c": BUSY}), DeviceError),
    ],
)
def test_the_gravest_reason_decides(found: Measured, stops: type[EdgekitError], bundle: Bundle, tmp_path: Path) -> None:
    outputs = Outputs(gate=True, junit=tmp_path / "j.xml")
    finish(outputs, bundle, found, stops=stops)
    assert len(ET.parse(tmp_path / "j.xml").getroot()) == len(found.results) + len(found.errors)


def test_without_a_gate_a_device_without_a_result_stops_all_the_same(bundle: Bundle) -> None:
    finish(Outputs(), bundle, two(BAD, HOT))
    finish(Outputs(), bundle, two(BAD, HOT, c=BUSY), stops=DeviceError)


def test_an_unfit_baseline_comes_before_the_gate_and_after_a_device(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_bytes(to_json(result(kind="emulated")))
    outputs = Outputs(gate=True, baseline=tmp_path / "base.json")
    finish(outputs, bundle, two(BAD, HOT), stops=OptionError)
    finish(outputs, bundle, two(BAD, HOT, c=BUSY), stops=DeviceError)


def test_every_device_is_named_on_the_terminal(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    finish(Outputs(), bundle, two(GOOD, GOOD, c=BUSY, d=OutOfMemoryError("killed at 3 GiB")), stops=DeviceError)
    err = capsys.readouterr().err
    assert "c: board-b is busy" in err
    assert "d: killed at 3 GiB" in err


# --- devices without a result ----------------------------------------------------------------------------------------

LOST = Absent(device="ssh://pi@b", bundle="toy.rpi5", error="DeviceError", sentence="b is busy — wait.", exit_code=37)


def odd(text: str) -> Absent:
    return Absent(device=text, bundle=text, error=text, sentence=text, exit_code=37)


def test_a_device_without_a_result_stands_beside_the_others(bundle: Bundle, tmp_path: Path) -> None:
    outputs = Outputs(
        junit=tmp_path / "j.xml", html=tmp_path / "h.html", summary=tmp_path / "s.md", judgement=tmp_path / "v.json"
    )
    finish(outputs, bundle, Measured({"a": GOOD}, {"ssh://pi@b": BUSY}), stops=DeviceError)
    root = ET.parse(tmp_path / "j.xml").getroot()
    assert [suite.attrib["errors"] for suite in root] == ["1", "0"]
    error = root[0].find("testcase/error")
    assert error is not None
    assert error.attrib == {"message": "board-b is busy — wait.", "type": "DeviceError"}
    page = (tmp_path / "h.html").read_text()
    row = re.search(r"<tbody><tr><th[^>]*>[^<]* on ssh://pi@b</th>.*?</tr>", page)
    assert row is not None
    assert "ERROR" in row[0]
    assert "board-b is busy — wait." in row[0]
    assert "1 result, 1 device without one" in page
    summary = (tmp_path / "s.md").read_text()
    assert summary.count("ERROR") == 2
    assert "board-b is busy" in summary
    (lost,) = judgements((tmp_path / "v.json").read_bytes()).absent
    assert (lost.device, lost.exit_code, lost.error) == ("ssh://pi@b", 37, "DeviceError")


def test_a_page_of_nothing_but_a_failed_device() -> None:
    page = render([], [LOST])
    assert "<title>toy.rpi5 on ssh://pi@b: ERROR</title>" in page
    assert "b is busy — wait." in page
    assert "All results" not in page


@pytest.mark.parametrize("text", [EVIL, EVIL * 10_000, "x | y"])
def test_a_stranger_s_sentence_changes_no_structure(text: str) -> None:
    assert ET.fromstring(junit([], [odd(text)])).attrib["errors"] == "1"
    page, plain = markdown([], [odd(text)]), markdown([], [odd("x")])
    assert [line.count("|") for line in page.splitlines()] == [line.count("|") for line in plain.splitlines()]
    html = render([], [odd(text), LOST])
    assert "<script" not in html
    assert len(html) < 40_000


def test_many_failed_devices_are_bounded() -> None:
    many = [replace_device(f"d{i}") for i in range(3000)]
    assert len(junit([], many)) < 1_000_000
    assert "further results are not shown" in markdown([], many)
    assert "2900 further results are not shown" in render([], many)


def replace_device(name: str) -> Absent:
    return Absent(device=name, bundle="toy", error="DeviceError", sentence="gone.", exit_code=37)


def test_the_document_keeps_the_format() -> None:
    assert len(parsed(absent=[LOST])) == 1
