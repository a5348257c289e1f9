"""Emulated boards as devices: what they say they are, and a measurement of the stub from its sending to its result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import emulated
import fake_board
import pytest
from fake_board import STEPS

from edgekit import targets
from edgekit.bench.preflight import check, recognised
from edgekit.bench.probe import probe
from edgekit.bench.remote import bench_on
from edgekit.bundle.bundle import Bundle
from edgekit.devices import home
from edgekit.devices.emulated import device_of
from edgekit.devices.shell import ShellDevice
from edgekit.errors import WrongBoardError
from edgekit.progress import Quiet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["rpi5", "rpi4"])
def device(request: pytest.FixtureRequest) -> Iterator[ShellDevice]:
    with emulated.board(request.param) as board:
        made = device_of(board)
        yield made
        made.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_board, "_PYTHON", fake_board.stub_python("/usr/bin/python3"))
        return fake_board.bundle(tmp_path_factory.mktemp("bundle") / "tiny.rpi5", target="rpi5", size=1_000_000)


def test_a_board_is_recognised(device: ShellDevice) -> None:
    name = device.url.partition(":")[2]
    assert device.kind == "emulated"
    found = probe(device)
    assert recognised(found)[0] == name
    assert not [f for f in check(targets.load(name), found) if f.level in ("wrong", "unfit")]
    assert found.missing == ()


def test_a_bundle_for_a_pi_5_is_measured_there_and_refused_elsewhere(
    device: ShellDevice, bundle: Bundle, tmp_path: Path
) -> None:
    target = targets.load("rpi5")
    if device.url != "emulated:rpi5":
        with pytest.raises(WrongBoardError, match="0xd08"):
            bench_on(device, bundle, target, [], decode=json.loads, progress=Quiet())
        assert device.run(["ls"], timeout=60).out == b"", "something was sent"
        return
    result = bench_on(device, bundle, target, ["--protocol", "smoke"], decode=json.loads, progress=Quiet())
    assert result["steps"] == [str(step) for step in range(STEPS)]
    assert "--emulated" in result["arguments"], "the board must know that its figures are none"
    assert home.clean(device, home.home_in("/home/pi/.local/share/edgekit")) > 0
    assert device.run(["ls"], timeout=60).out == b"parts\n", "something is left, or was put elsewhere"
