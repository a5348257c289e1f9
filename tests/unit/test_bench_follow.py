"""How a measurement that runs on a board by itself is stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_board import Board

from edgekit.bench.follow import LAUNCHER, Follower
from edgekit.errors import DeviceError, InterruptError
from edgekit.progress import Quiet


@pytest.mark.parametrize("code", [-15, InterruptError.exit_code])
def test_an_end_from_outside_is_told(code: int) -> None:
    device: Any = SimpleNamespace(title="pi")
    follower = Follower(device, "", "1.1.0", Quiet(), ["edgekit: interrupted"], ended=(code, 0, 0))
    with pytest.raises(DeviceError, match="measurement on pi was ended from outside"):
        follower.judge(None)


def test_a_stop_waits_for_what_the_measurement_cleans_up(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    command = 'trap "sleep 1; echo clean >$0/clean; exit 3" TERM; echo >"$0/ready"; while :; do sleep 0.05; done'
    handle = board.device().start(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, str(board.home), "/bin/sh", "-c", command, str(board.home)],
        f"{board.home}/log",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (board.home / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    board.device().stop(handle)
    assert (board.home / "clean").read_text() == "clean\n"
    assert (board.home / "ended").read_text().startswith("3 ")


def test_the_disk_is_brought_up_to_date_before_the_measurement_and_before_its_end_is_told(tmp_path: Path) -> None:
    """A power cut shall find what was sent and installed, and no end without its result."""
    program = (
        "import os, sys\n"
        "def sync():\n"
        "    seen = sorted(name for name in os.listdir(sys.argv[1]) if not name.startswith('.'))\n"
        "    print(*seen, flush=True)\n"
        "os.sync = sync\n"
        f"exec({LAUNCHER!r})"
    )
    command = ["/bin/sh", "-c", 'echo 1 >"$0/bench.json"', str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(tmp_path), *command], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\nbench.json\n"
    assert (tmp_path / "ended").read_text().startswith("0 ")
