"""The whole emulated board: a kernel, a device tree with the board's name, and time that counts instructions."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated import PLAIN, SDOT, machine, program

from edgekit.emulator.board import Board

pytestmark = [pytest.mark.integration, pytest.mark.nightly]
PATIENCE = 60.0
SPREAD = 0.001
"""Of two emulated times, relative."""
TIMED = (
    "import time, hashlib; data = bytes(30_000_000); begin = time.perf_counter(); hashlib.sha256(data).digest(); "
    "print(time.perf_counter() - begin)"
)


@pytest.fixture(scope="module")
def pi5() -> Iterator[Board]:
    with machine("rpi5") as running:
        yield running


def test_it_boots_a_kernel_on_the_boards_processor(pi5: Board) -> None:
    assert pi5.run(["cat", "/proc/device-tree/model"], check=True).stdout == "Raspberry Pi 5 Model B Rev 1.0\0"
    assert pi5.run(["uname", "-nms"], check=True).stdout == "Linux rpi5 aarch64\n"
    assert "CPU part\t: 0xd0b" in pi5.run(["cat", "/proc/cpuinfo"], check=True).stdout
    assert pi5.run(["id", "-un"], check=True).stdout == "pi\n"
    assert pi5.run(["python3", "-c", "print(6 * 7)"], check=True).stdout == "42\n"


def test_it_reaches_no_network(pi5: Board) -> None:
    for host, port in (("10.0.2.2", 22), ("192.0.2.1", 80)):
        asked = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
        assert pi5.run(["python3", "-c", asked]).returncode == 1


def test_sensors_say_what_the_test_says(pi5: Board) -> None:
    pi5.sensors.set("under-voltage")
    assert pi5.run(["vcgencmd", "get_throttled"]).stdout == "throttled=0x30003\n"
    assert "EXT5V_V volt(24)=4.60000000V" in pi5.run(["vcgencmd", "pmic_read_adc"]).stdout
    pi5.sensors.restart()
    assert pi5.run(["vcgencmd", "get_throttled"]).stdout == "throttled=0x0\n"
    assert pi5.run(["cat", "/sys/class/thermal/thermal_zone0/temp"]).stdout == "45000\n"


def test_programs_come_over_ssh_and_run(pi5: Board, tmp_path: Path) -> None:
    pi5.copy(program(tmp_path / "dot", SDOT), "programs")
    assert pi5.run(["programs/dot"]).returncode == 0


def test_a_pi4_dies_of_an_instruction_it_lacks(tmp_path: Path) -> None:
    with machine("rpi4") as pi4:
        for name, words in (("dot", SDOT), ("plain", PLAIN)):
            pi4.copy(program(tmp_path / name, words))
        assert [pi4.run(["./dot"]).returncode, pi4.run(["./plain"]).returncode] == [128 + signal.SIGILL, 0]


def test_deterministic_time_repeats_across_boots() -> None:
    seconds = []
    for _ in range(2):
        with machine("rpi5", deterministic=True) as pi5:
            pi5.run(["python3", "-c", TIMED], check=True)  # reads everything into the page cache
            seconds.append(min(float(pi5.run(["python3", "-c", TIMED], check=True).stdout) for _ in range(3)))
    assert abs(seconds[0] - seconds[1]) <= SPREAD * seconds[0], seconds


def test_nothing_is_left_after_the_block() -> None:
    with machine("rpi5") as pi5:
        state = pi5.key.parent
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and _running(str(state)):
        time.sleep(0.1)
    assert not state.exists()
    assert not _running(str(state))


def _running(word: str) -> bool:
    found = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return word in found
