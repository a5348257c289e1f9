"""A real board, measured as a user would. With a board on the network, type:

    EDGEKIT_BOARD=ssh://pi@raspberrypi.local EDGEKIT_BOARD_TARGET=rpi5 pytest -m hardware tests/hardware

EDGEKIT_BOARD is a device as `edgekit bench --device` takes it, EDGEKIT_BOARD_TARGET the target that the board is.
EDGEKIT_BOARD_BUNDLE is a bundle built for it; default: dist/smollm2-135m.TARGET, made by
`edgekit build --target TARGET --output dist`. docs/hardware-ci.md says more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.bench.result import BenchResult, EngineRun, Figure, from_json
from edgekit.errors import InvalidMeasurementError
from edgekit.targets import Target, load

COMMAND = "EDGEKIT_BOARD=ssh://pi@raspberrypi.local EDGEKIT_BOARD_TARGET=rpi5 pytest -m hardware tests/hardware"
SENSORS = {"pmic_read_adc", "ina3221"}
MINUTES = 60
pytestmark = [pytest.mark.hardware, pytest.mark.timeout(60 * MINUTES)]


@dataclass(frozen=True)
class Measured:
    """One `edgekit bench` and what it left behind."""

    code: int
    log: str
    folder: Path

    @property
    def result(self) -> BenchResult:
        path = self.folder / "bench.json"
        assert path.exists(), self.log
        return from_json(path.read_bytes())

    @property
    def runs(self) -> Iterator[EngineRun]:
        for run in self.result.runs:
            assert run.failure is None, run.failure
            yield run


def edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60 * MINUTES, check=False
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    return f"exit code {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"


@pytest.fixture(scope="session")
def url() -> str:
    if not (found := os.environ.get("EDGEKIT_BOARD")):
        pytest.skip(f"no board: {COMMAND}")
    return found


@pytest.fixture(scope="session")
def target() -> Target:
    if not (found := os.environ.get("EDGEKIT_BOARD_TARGET")):
        pytest.skip(f"no target: {COMMAND}")
    return load(found)


@pytest.fixture(scope="session")
def bundle(target: Target) -> Path:
    found = Path(os.environ.get("EDGEKIT_BOARD_BUNDLE") or f"dist/smollm2-135m.{target.name}")
    if not found.is_dir():
        pytest.fail(f"there is no bundle {found}: edgekit build --target {target.name} --output dist")
    return found


@pytest.fixture(scope="session")
def measured(url: str, target: Target, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("measured")
    done = edgekit(
        "bench", bundle, "--device", url, "--target", target.name, "--protocol", "smoke", "--gate",
        "--junit", folder / "junit.xml", "--json", folder / "bench.json", "--html", folder / "report.html",
        "--summary", folder / "summary.md",
    )  # fmt: skip
    return Measured(done.returncode, said(done), folder)


def test_the_board_is_the_target(url: str, target: Target) -> None:
    done = edgekit("devices", "probe", url, "--target", target.name, "--json")
    assert done.returncode == 0, said(done)
    answer = json.loads(done.stdout)
    if target.probe.cpu_parts:
        assert target.name in answer["targets"]
    assert not [finding for finding in answer["findings"] if finding["level"] in ("wrong", "unfit")]


def test_it_passes(measured: Measured) -> None:
    disturbed = measured.code == InvalidMeasurementError.exit_code
    assert measured.code == 0, f"{'disturbed, so measure again: ' if disturbed else ''}{measured.log}"


def test_figures_are_measured(measured: Measured, target: Target) -> None:
    result = measured.result
    assert (result.measured_on, result.device.kind) == ("measured", "measured")
    assert (result.target.id, result.protocol.name) == (target.name, "smoke")
    for run in measured.runs:
        assert run.loading
        assert run.prefill
        assert run.decode is not None
        assert run.decode.speed.quantity.value > 0
        assert run.decode.speed.quantity.kind == "measured"
        before, after = run.loading[0].empty.peak_mib, run.loading[0].ran.peak_mib
        assert before is not None
        assert after is not None
        assert after > before


def test_it_speaks_sense(measured: Measured) -> None:
    """The gates are in the exit code; this says that there was something to judge."""
    for run in measured.runs:
        assert run.coherence is not None
        assert run.coherence.kind == "measured"
        assert run.coherence.here.kl_mean >= 0
        assert any(text.strip() for text in run.coherence.texts)
        assert run.coherence.against_host is not None


def test_throttling_can_be_read(measured: Measured, target: Target) -> None:
    if target.thermal.provider == "none":
        pytest.skip(f"{target.name} has no sensor of heat")
    board, trace = measured.result.device.board, measured.result.environment
    assert board is not None
    assert any(point.temp_c is not None for point in trace)
    if target.thermal.provider == "vcgencmd":
        assert board.throttled is not None
        assert any(point.throttled is not None for point in trace)


def test_energy_is_measured_or_absent(measured: Measured, target: Target) -> None:
    """The protocol generates for a fraction of a second at a time: too short for two readings of some sensors.

    Where there is a sensor its readings are in the trace all the same; `test_energy_of_a_longer_measurement` has more.
    """
    board, trace = measured.result.device.board, measured.result.environment
    assert board is not None
    if target.power.provider in SENSORS:
        assert board.power_sensor is not None, board.notes
        assert any(point.power_w is not None and point.power_w > 0 for point in trace)
    for run in measured.runs:
        assert run.decode is not None
        if target.power.provider == "none":
            assert run.decode.energy is None, "there is no sensor"
        elif run.decode.energy is not None:
            right_energy(run.decode.energy)


def right_energy(found: Figure) -> None:
    assert found.quantity.unit == "mJ/token"
    assert found.quantity.value > 0


def test_energy_of_a_longer_measurement(url: str, target: Target, bundle: Path, tmp_path: Path) -> None:
    if target.power.provider not in SENSORS:
        pytest.skip(f"{target.name} has no sensor of power")
    out = tmp_path / "bench.json"
    done = edgekit(
        "bench", bundle, "--device", url, "--target", target.name, "--format", "gguf", "--threads", "1", "--json", out
    )
    assert done.returncode == 0, said(done)
    (run,) = from_json(out.read_bytes()).runs
    assert run.decode is not None
    assert run.decode.energy is not None, "64 tokens on one core take long enough for two readings"
    right_energy(run.decode.energy)


def test_reports_can_be_read(measured: Measured) -> None:
    suites = ElementTree.parse(measured.folder / "junit.xml").getroot()
    assert list(suites.iter("testcase"))
    assert (measured.folder / "summary.md").read_text(encoding="utf8").strip()
    page = (measured.folder / "report.html").read_text(encoding="utf8")
    assert "<html" in page
    assert 'http-equiv="refresh"' not in page


def test_the_board_is_left_clean(measured: Measured, url: str, target: Target) -> None:
    """Last, since it removes what the measurement used."""
    assert edgekit("devices", "clean", url, "--target", target.name).returncode == 0
    again = edgekit("devices", "clean", url, "--target", target.name)
    assert again.returncode == 0, said(again)
    assert "nothing" in again.stdout
