"""The switch of a whole board: what is said to QEMU's monitor, and what becomes of one that refuses or is gone."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from edgekit import targets
from edgekit.emulator import monitor
from edgekit.emulator.board import Board
from edgekit.emulator.sensors import Sensors
from edgekit.errors import EmulatorError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
EVENT = b'{"event": "RESET", "data": {"guest": false}, "timestamp": {"seconds": 1, "microseconds": 0}}\n'
DONE = b'{"return": {}}\n'


class Fake:
    """A monitor that answers each request with the next of `answers`, and hangs up when there is none."""

    def __init__(self, path: Path, *answers: bytes) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._answers, self._server = answers, socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        line, _ = self._server.accept()
        with self._server, line, line.makefile("rwb") as stream:
            stream.write(GREETING)
            stream.flush()
            for answer in self._answers:
                request = json.loads(stream.readline())
                self.asked.append((request["execute"], request["arguments"]))
                stream.write(answer)
                stream.flush()


@pytest.mark.parametrize(
    "answers",
    [
        (b"",), (b'{"error": {"class": "GenericError", "desc": "no"}}\n',), (b"?\n",),
        (DONE, b'{"error": {"desc": "no"}}\n'), (b"[]\n",), (b'{"error": 3}\n',),
    ],
)  # fmt: skip
def test_what_does_not_answer_is_told(tmp_path: Path, answers: tuple[bytes, ...]) -> None:
    Fake(tmp_path / "m", *answers)
    with pytest.raises(EmulatorError, match="cannot be switched"):
        monitor.reset(tmp_path / "m")


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="cannot be switched"):
        monitor.reset(tmp_path / "none")


def test_this_restart_is_let_through_and_the_machines_own_is_not(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "m", DONE, DONE, EVENT + DONE, DONE)
    monitor.reset(tmp_path / "m")
    fake.thread.join(20)
    assert fake.asked == [
        ("qmp_capabilities", {}), ("set-action", {"reboot": "reset"}), ("system_reset", {}),
        ("set-action", {"reboot": "shutdown"}),
    ]  # fmt: skip


def test_a_board_without_a_disk_has_no_switch(tmp_path: Path) -> None:
    target = targets.load("rpi5")
    board = Board(target, 1, tmp_path, tmp_path, Sensors(target, lambda _: None))
    with pytest.raises(EmulatorError, match="has no power switch; expected a whole one with a disk"):
        board.lose_power()
