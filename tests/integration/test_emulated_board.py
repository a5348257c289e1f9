"""The fast emulated board: the right CPU, a plain user, sensors that a test drives, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated import PLAIN, SDOT, board, demand, program, system

from edgekit import targets
from edgekit.board_files import cpuinfo
from edgekit.doctor import cpu
from edgekit.emulator import userland
from edgekit.emulator.board import Board, emulated
from edgekit.errors import EmulatorError

pytestmark = pytest.mark.integration
PATIENCE = 60.0
OWNER = """
import sys, time
from pathlib import Path
from edgekit.emulator.board import emulated
from edgekit.targets import load
with emulated(load("rpi5"), system=Path(sys.argv[1])) as board:
    print(board.port, board.key.parent, flush=True)
    board.run(["sleep", "600"])
"""


@pytest.fixture(scope="module")
def pi5() -> Iterator[Board]:
    with board("rpi5") as running:
        yield running


@pytest.fixture(scope="module")
def pi4() -> Iterator[Board]:
    with board("rpi4") as running:
        yield running


def test_a_target_without_a_processor_is_refused() -> None:
    with pytest.raises(EmulatorError, match="names no CPU"), emulated(targets.load("host")):
        pass


def test_it_is_an_arm64_board_with_the_targets_name_and_processor(pi5: Board) -> None:
    target = targets.load("rpi5")
    assert pi5.run(["uname", "-nm"], check=True).stdout == "rpi5 aarch64\n"
    text = pi5.run(["cat", "/proc/cpuinfo"], check=True).stdout
    assert text == cpuinfo(target)
    for place in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        assert pi5.run(["cat", place], check=True).stdout == "Raspberry Pi 5 Model B Rev 1.0\0"
    assert target.probe.model_match in cpu(text, "Raspberry Pi 5 Model B Rev 1.0\0")
    assert pi5.run(["cat", "/sys/devices/system/cpu/online"], check=True).stdout == "0-3\n"


def test_it_has_python_and_nothing_that_installs_or_compiles(pi5: Board) -> None:
    asked = "import sys, venv, ssl, ctypes; print(sys.version_info[:2], sys.platform)"
    assert pi5.run(["python3", "-c", asked], check=True).stdout == "(3, 11) linux\n"
    assert pi5.run(["python3", "-m", "venv", "--without-pip", "made"], check=True).returncode == 0
    assert pi5.run(["python3", "-c", "import pip"]).returncode == 1
    for name in ("pip", "pip3", "gcc", "cc", "apt-get", "sudo"):
        assert pi5.run(["sh", "-c", f"command -v {name}"]).returncode == 127, name


def test_the_user_is_not_root_and_cannot_become_it(pi5: Board) -> None:
    assert pi5.run(["id", "-un"], check=True).stdout == "pi\n"
    assert pi5.run(["touch", "/etc/new"]).returncode == 1
    assert pi5.run(["su", "-c", "true"]).returncode
    root = [*pi5.ssh_command(), "root@127.0.0.1", "true"]
    assert subprocess.run(root, capture_output=True, check=False).returncode == 255


def test_it_lets_nobody_in_without_the_key(pi5: Board, tmp_path: Path) -> None:
    other = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    command = [str(other) if part == str(pi5.key) else part for part in pi5.ssh_command()]
    refused = subprocess.run([*command, pi5.host, "true"], capture_output=True, text=True, check=False)
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_its_only_network_is_itself(pi5: Board) -> None:
    asked = "import socket; s = socket.create_connection(('192.0.2.1', 80), 5)"
    done = pi5.run(["python3", "-c", asked])
    assert "Network is unreachable" in done.stderr
    own = "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname(), 5)"
    pi5.run(["python3", "-c", own], check=True)
    listening = Path("/proc/net/tcp").read_text(encoding="ascii")
    assert f"0100007F:{pi5.port:04X} " in listening
    assert f"00000000:{pi5.port:04X} " not in listening


def test_the_processor_is_the_targets(pi5: Board, pi4: Board, tmp_path: Path) -> None:
    dot, plain = program(tmp_path / "dot", SDOT), program(tmp_path / "plain", PLAIN)
    for pi in (pi5, pi4):
        for path in (dot, plain):
            pi.copy(path)
    assert [pi5.run(["./dot"]).returncode, pi5.run(["./plain"]).returncode] == [0, 0]
    assert [pi4.run(["./dot"]).returncode, pi4.run(["./plain"]).returncode] == [128 + signal.SIGILL, 0]


def test_two_boards_share_nothing_they_write(pi5: Board, pi4: Board) -> None:
    assert pi5.port != pi4.port
    pi5.run(["sh", "-c", "echo 5 > mine"], check=True)
    assert pi4.run(["cat", "mine"]).returncode == 1
    assert pi4.run(["hostname"], check=True).stdout == "rpi4\n"


def test_files_and_folders_go_there_and_back(pi5: Board, tmp_path: Path) -> None:
    folder = tmp_path / "a folder's name"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(os.urandom(3_000_000))
    (folder / "run.sh").write_text("#!/bin/sh\necho started\n", encoding="ascii")
    (folder / "run.sh").chmod(0o755)
    assert pi5.copy(folder, "new/place") == "new/place/a folder's name"
    assert pi5.run(["new/place/a folder's name/run.sh"], check=True).stdout == "started\n"
    (tmp_path / "back").mkdir()
    back = pi5.fetch("new/place/a folder's name", tmp_path / "back")
    assert (back / "deep" / "file").read_bytes() == (folder / "deep" / "file").read_bytes()
    assert pi5.run_bytes(["cat"], stdin=bytes(range(256))).stdout == bytes(range(256))


def test_what_fails_or_hangs_is_told(pi5: Board, tmp_path: Path) -> None:
    assert pi5.run(["sh", "-c", "echo no >&2; exit 7"]).returncode == 7
    with pytest.raises(EmulatorError, match=r"ended with 7 on the emulated board \(no\)"):
        pi5.run(["sh", "-c", "echo no >&2; exit 7"], check=True)
    with pytest.raises(EmulatorError, match=r"did not end within 0.5 s"):
        pi5.run(["sleep", "60"], timeout=0.5)
    with pytest.raises(EmulatorError, match="scp with the emulated board failed"):
        pi5.copy(tmp_path / "missing")
    assert pi5.run(["env"], environment={"A": "b c"}, check=True).stdout.count("A=b c\n") == 1


def test_sensors_say_what_the_test_says(pi4: Board) -> None:
    def ask(*words: str) -> str:
        return pi4.run(["vcgencmd", *words]).stdout

    pi4.sensors.restart()
    assert (ask("get_throttled"), ask("measure_temp")) == ("throttled=0x0\n", "temp=45.0'C\n")
    pi4.sensors.set("throttled")
    assert (ask("get_throttled"), ask("measure_temp")) == ("throttled=0x60006\n", "temp=85.2'C\n")
    assert ask("measure_clock", "arm") == "frequency(48)=1500000000\n"
    assert pi4.run(["cat", "/sys/class/thermal/thermal_zone0/temp"]).stdout == "85200\n"
    pi4.sensors.set("cool")
    assert ask("get_throttled") == "throttled=0x60000\n"
    pi4.sensors.restart()
    assert ask("get_throttled") == "throttled=0x0\n"
    missing = pi4.run(["vcgencmd", "pmic_read_adc"])
    assert (missing.returncode, missing.stdout) == (255, 'error=1 error_msg="Command not registered"\n')


def test_a_jetson_has_its_power_monitor_and_no_vcgencmd() -> None:
    demand("board")
    with emulated(targets.load("jetson-orin-nano"), system=system("bookworm")) as jetson:
        jetson.sensors.set("hot")
        monitor = "cat /sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/{in1_label,in1_input,curr1_input}"
        assert jetson.run(["bash", "-c", monitor], check=True).stdout == "VDD_IN\n5000\n1400\n"
        assert jetson.run(["vcgencmd", "get_throttled"]).returncode == 127
        assert "Orin Nano" in jetson.run(["cat", "/proc/device-tree/model"]).stdout


def test_nothing_is_left_after_the_block(tmp_path: Path) -> None:
    demand("board")
    folder = system("bookworm")
    home = folder / "home" / "pi"
    before = sorted(home.iterdir())
    with board("rpi5") as running:
        running.run(["sh", "-c", "echo x > left; sleep 600 >/dev/null 2>&1 &"], check=True)
        state, port = running.key.parent, running.port
    assert_gone(state, port)
    assert sorted(home.iterdir()) == before, "the shared system is only read"


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    demand("board")
    folder = system(userland.RELEASES["3.11"])
    with subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        port, _, state = owner.stdout.readline().strip().partition(" ")
        assert Path(state).is_dir()
        owner.kill()
    assert_gone(Path(state), int(port))


def assert_gone(state: Path, port: int) -> None:
    """Within a minute no process has the board's folder in its arguments, nobody listens, and the folder is away."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (state.exists() or _processes(str(state)) or _listens(port)):
        time.sleep(0.1)
    assert (state.exists(), _processes(str(state)), _listens(port)) == (False, [], False)
    mounts = Path("/proc/self/mounts").read_text(encoding="utf8")
    assert str(state) not in mounts
    assert "/run/board" not in mounts


def _processes(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf8", "replace"))
        except OSError:
            continue
    return [line for line in found if word in line]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
