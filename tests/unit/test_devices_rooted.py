"""Settings that need root: refused in one sentence, set as asked, and back however the measurement ends.

The board is a folder, whose sudo is a script that lets everything through, or asks for a password.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fake_board
import msgspec
import pytest
from fake_board import Board, read_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bench import ready as ready_module
from edgekit.bench.probe import Probed, probe
from edgekit.bench.ready import ready
from edgekit.bench.remote import Patience, bench_on
from edgekit.devices import home, rooted
from edgekit.devices.boards.base import BoardFacts
from edgekit.devices.home import Home
from edgekit.devices.rooted import Wanted
from edgekit.errors import DeviceError, InterruptError
from edgekit.progress import Quiet
from edgekit.targets import load

SUDO = """\
[ "$1" = -n ] || exit 99
shift
echo "$*" >>"$BOARD/sudo.log"
[ ! -f "$BOARD/ask" ] || { echo "sudo: a password is required" >&2; exit 1; }
exec "$@"
"""
NVPMODEL = """\
case $1 in
    -q) printf 'NV Power Mode: %s\\n%s\\n' $(cat "$BOARD/mode") ;;
    -m)
        read -r answer && exit 9
        [ ! -f "$BOARD/asks" ] || [ "$2" = 0 ] || { echo "DO YOU WANT TO REBOOT NOW? enter YES/yes:"; exit 1; }
        [ ! -f "$BOARD/restart" ] || { echo "NVPM WARN: Reboot required"; exit 0; }
        case $2 in 0) echo "15W 0" ;; 2) echo "MAXN_SUPER 2" ;; *) exit 1 ;; esac >"$BOARD/mode" ;;
esac
"""
MODES = """\
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""


class Notes(Quiet):
    """Remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """Four cores in two policies, and power modes as a Jetson has them."""
    made = Board(tmp_path / "board")
    monkeypatch.setattr(rooted, "ROOT", str(made.folder))
    for number, governor in ((0, "ondemand"), (4, "schedutil")):
        policy = made.folder / f"sys/devices/system/cpu/cpufreq/policy{number}"
        policy.mkdir(parents=True)
        (policy / "scaling_governor").write_text(f"{governor}\n")
        (policy / "scaling_available_governors").write_text("ondemand performance schedutil\n")
    (made.folder / "etc").mkdir()
    (made.folder / "etc/nvpmodel.conf").write_text(MODES)
    (made.folder / "mode").write_text("15W 0\n")
    for name, text in (("sudo", SUDO), ("nvpmodel", NVPMODEL), ("id", "echo 1000\n")):
        program(made, name, text)
    return made


def program(board: Board, name: str, text: str) -> None:
    (board.folder / "bin" / name).write_text(f"#!/bin/sh\n{text}")
    (board.folder / "bin" / name).chmod(0o755)


@pytest.fixture
def ours(board: Board) -> Home:
    made = home.home_in(f"{board.home}/edgekit")
    home.prepare(board.device(), made)
    return made


def state(board: Board) -> tuple[str, ...]:
    files = sorted((board.folder / "sys").rglob("scaling_governor"))
    return (*(path.read_text().strip() for path in files), (board.folder / "mode").read_text().split()[0])


BEFORE = ("ondemand", "schedutil", "15W")


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(governor="warp"), "no governor 'warp'; expected ondemand, performance, schedutil"),
        (Wanted(governor="$(id)"), "no governor"),
        (Wanted(power_mode="99W"), "no power mode '99W'; expected 15W, MAXN_SUPER"),
        (Wanted(power_mode="-q"), "no power mode"),
        (Wanted(power_mode="\x1b[31m"), "no power mode"),
    ],
)
def test_what_the_board_does_not_have(board: Board, ours: Home, wanted: Wanted, words: str) -> None:
    with pytest.raises(DeviceError) as caught, rooted.settings(board.device(), ours.restore, wanted, Quiet()):
        pytest.fail("set")
    assert words in caught.value.sentence()
    assert caught.value.sentence().isprintable()
    assert state(board) == BEFORE
    assert not (board.folder / "sudo.log").exists()


def test_a_board_without_any_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path / "bare")
    monkeypatch.setattr(rooted, "ROOT", str(board.folder))
    for wanted in (Wanted(governor="performance"), Wanted(power_mode="15W")):
        with (
            pytest.raises(DeviceError, match="expected none: leave --(governor|power-mode) out"),
            rooted.settings(board.device(), f"{board.home}/restore", wanted, Quiet()),
        ):
            pytest.fail("set")


@pytest.mark.parametrize("wanted", [Wanted(governor="performance"), Wanted(power_mode="MAXN_SUPER")])
def test_a_password_is_never_asked_for(board: Board, ours: Home, wanted: Wanted) -> None:
    (board.folder / "ask").touch()
    with pytest.raises(DeviceError) as caught, rooted.settings(board.device(), ours.restore, wanted, Quiet()):
        pytest.fail("set")
    said = caught.value.sentence()
    assert "does not let us set the" in said
    assert "sudo: a password is required" in said
    assert "sudoers" in said
    assert state(board) == BEFORE


@pytest.mark.parametrize("how", ["restart", "asks"])
def test_a_mode_that_needs_a_restart_is_refused(board: Board, ours: Home, how: str) -> None:
    (board.folder / how).touch()
    wanted = Wanted(power_mode="MAXN_SUPER")
    with (
        pytest.raises(DeviceError, match="stays in the power mode 15W: MAXN_SUPER needs a restart"),
        rooted.settings(board.device(), ours.restore, wanted, Quiet()),
    ):
        pytest.fail("set")


def test_a_mode_that_is_not_told_afterwards_is_refused(board: Board, ours: Home) -> None:
    program(board, "nvpmodel", NVPMODEL.replace('2) echo "MAXN_SUPER 2"', "2) echo"))
    with (
        pytest.raises(DeviceError, match="does not say its power mode after it was set to MAXN_SUPER"),
        rooted.settings(board.device(), ours.restore, Wanted(power_mode="MAXN_SUPER"), Quiet()),
    ):
        pytest.fail("set")
    assert state(board) == BEFORE


def test_a_governor_that_does_not_stay_is_refused_and_the_others_go_back(board: Board, ours: Home) -> None:
    program(board, "tee", 'case $* in *policy4*) cat >/dev/null ;; *) exec /usr/bin/tee "$@" ;; esac\n')
    with (
        pytest.raises(DeviceError, match="does not let us set the governor"),
        rooted.settings(board.device(), ours.restore, Wanted(governor="performance"), Quiet()),
    ):
        pytest.fail("set")
    assert state(board) == BEFORE
    assert not Path(ours.restore).exists()


# --- set, and back ---------------------------------------------------------------------------------------------------

BOTH = Wanted(governor="performance", power_mode="MAXN_SUPER")


def test_set_and_set_back(board: Board, ours: Home) -> None:
    with rooted.settings(board.device(), ours.restore, BOTH, Quiet()) as changed:
        assert state(board) == ("performance", "performance", "MAXN_SUPER")
        assert changed == {"governor": "ondemand, schedutil → performance", "power mode": "15W → MAXN_SUPER"}
    assert state(board) == BEFORE
    assert not Path(ours.restore).exists()


def test_nothing_is_asked_of_root_when_nothing_is_wanted(board: Board, ours: Home) -> None:
    with rooted.settings(board.device(), ours.restore, Wanted(), Quiet()) as changed:
        assert changed == {}
    assert not (board.folder / "sudo.log").exists()


def test_root_needs_no_sudo(board: Board, ours: Home) -> None:
    program(board, "id", "echo 0\n")
    with rooted.settings(board.device(), ours.restore, BOTH, Quiet()):
        assert state(board) == ("performance", "performance", "MAXN_SUPER")
    assert not (board.folder / "sudo.log").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InterruptError("interrupted"), ValueError()])
def test_it_goes_back_when_the_measurement_fails(board: Board, ours: Home, error: BaseException) -> None:
    with pytest.raises(type(error)), rooted.settings(board.device(), ours.restore, BOTH, Quiet()):
        board.cancel.set()
        raise error
    assert state(board) == BEFORE


def test_after_a_crash_the_next_measurement_sets_it_back(board: Board, ours: Home) -> None:
    left(board, ours)
    notes = Notes()
    with rooted.settings(board.device(), ours.restore, Wanted(), notes):
        assert state(board) == BEFORE
    assert notes.said == ["ssh://board: set back what an interrupted measurement had changed"]


def left(board: Board, ours: Home) -> None:
    """What a measurement leaves that is killed."""
    held = rooted.settings(board.device(), ours.restore, BOTH, Quiet())
    held.__enter__()
    saved = Path(ours.restore).read_text()
    held.__exit__(None, None, None)
    Path(ours.restore).write_text(saved)
    for path in (board.folder / "sys").rglob("scaling_governor"):
        path.write_text("performance\n")
    (board.folder / "mode").write_text("MAXN_SUPER 2\n")


def test_cleaning_sets_it_back(board: Board, ours: Home) -> None:
    left(board, ours)
    assert home.clean(board.device(), ours) > 0
    assert state(board) == BEFORE
    assert not Path(ours.base).exists()


def test_cleaning_does_not_forget_what_cannot_be_set_back_unless_told(board: Board, ours: Home) -> None:
    left(board, ours)
    (board.folder / "ask").touch()
    with pytest.raises(DeviceError, match=r"cannot be set back \(sudo: a password is required\).*--force"):
        home.clean(board.device(), ours)
    assert Path(ours.restore).exists()
    assert home.clean(board.device(), ours, force=True) > 0


def test_what_cannot_be_set_back_at_the_end_is_told_and_kept(board: Board, ours: Home) -> None:
    notes = Notes()
    with rooted.settings(board.device(), ours.restore, Wanted(governor="performance"), notes):
        (board.folder / "ask").touch()
    assert "cannot be set back" in notes.said[0]
    (board.folder / "ask").unlink()
    assert rooted.set_back(board.device(), ours.restore)
    assert state(board) == BEFORE


def test_a_policy_that_has_gone_is_no_reason_to_stop(board: Board, ours: Home) -> None:
    left(board, ours)
    gone = board.folder / "sys/devices/system/cpu/cpufreq/policy4"
    for path in gone.iterdir():
        path.unlink()
    assert rooted.set_back(board.device(), ours.restore)
    assert state(board) == ("ondemand", "15W")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
        st.sampled_from(
            (
                "governor ../../../x y", "governor 0 $(touch$IFS/tmp/x)", "mode -q", "mode 2;reboot", "governor 0 a/b",
                "mode 2 extra", "governor 0", "governor 0 powersave more", "mode", "governor * performance",
            )
        ),
    )
)  # fmt: skip
def test_a_file_of_any_text_does_no_more_than_the_two_things(board: Board, ours: Home, text: str) -> None:
    Path(ours.restore).write_text(text + "\n", encoding="utf8")
    read_or_refused(rooted.set_back, board.device(), ours.restore)
    log = board.folder / "sudo.log"
    policy = re.escape(f"{board.folder}/sys/devices/system/cpu/cpufreq/policy")
    for line in log.read_text().splitlines() if log.exists() else []:
        assert re.fullmatch(rf"tee -- {policy}[0-9][0-9a-z_]*/scaling_governor|nvpmodel -m [0-9][0-9a-z_]*", line)


def test_a_link_in_place_of_the_file_is_not_followed(board: Board, ours: Home, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mode 2\n")
    Path(ours.restore).symlink_to(tmp_path / "other")
    assert not rooted.set_back(board.device(), ours.restore)
    assert state(board) == BEFORE


# --- in a measurement far away ---------------------------------------------------------------------------------------


def test_ctrl_c_here_sets_back_what_the_measurement_there_could_not(board: Board, tmp_path: Path) -> None:
    """It is killed there before it can do so itself."""
    bundle = fake_board.bundle(tmp_path / "tiny.host")
    board.behave("wait 2")

    def press(_number: int, _command: Sequence[str]) -> None:
        if board.steps_done() == ["0", "1"]:
            board.on_call = lambda _n, _c: None
            left(board, home.home_in(f"{board.home}/.local/share/edgekit"))
            board.cancel.set()

    board.on_call = press
    with pytest.raises(InterruptError):
        bench_on(
            board.device(), bundle, load("host"), [], decode=bytes, progress=Quiet(),
            patience=Patience(lost_s=20, first_s=0.01, longest_s=0.05),
        )  # fmt: skip
    assert state(board) == BEFORE
    assert board.clean()


# --- in a measurement on this machine --------------------------------------------------------------------------------


@pytest.fixture
def here(board: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("EDGEKIT_HOME", f"{board.home}/edgekit")
    monkeypatch.setenv("BOARD", str(board.folder))
    monkeypatch.setenv("PATH", f"{board.folder}/bin:{os.environ['PATH']}")
    return board


def test_the_record_of_a_measurement_names_what_was_changed(here: Board) -> None:
    with ready(load("host"), None, Quiet(), wanted=BOTH) as prepared:
        assert state(here) == ("performance", "performance", "MAXN_SUPER")
        assert prepared.preflight["set power mode"] == "note: 15W → MAXN_SUPER, set back afterwards"
        facts = prepared.onto(BoardFacts(adapter="jetson"))
        assert facts is not None
        assert facts.changed == {"governor": "ondemand, schedutil → performance", "power mode": "15W → MAXN_SUPER"}
    assert state(here) == BEFORE


def test_a_governor_that_was_asked_for_is_the_one_that_is_expected(
    here: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = load("host")
    target = msgspec.structs.replace(host, thermal=msgspec.structs.replace(host.thermal, governor="ondemand"))
    monkeypatch.setattr(ready_module, "probe", lambda *given: set_to("performance", probe(*given)))
    with ready(target, None, Quiet(), wanted=Wanted(governor="performance"), emulated=True) as prepared:
        assert "governor" not in prepared.preflight
    monkeypatch.setattr(ready_module, "probe", lambda *given: set_to("powersave", probe(*given)))
    with ready(target, None, Quiet(), wanted=Wanted(governor="performance"), emulated=True) as prepared:
        assert "powersave; expected performance" in prepared.preflight["governor"]


def set_to(governor: str, found: Probed) -> Probed:
    return msgspec.structs.replace(found, governors=(governor,))


MEASURING = """\
import sys, time
from edgekit.bench.ready import ready
from edgekit.devices import rooted
from edgekit.progress import Quiet
from edgekit.targets import load
rooted.ROOT = sys.argv[1]
with ready(load("host"), None, Quiet(), wanted=rooted.Wanted(governor="performance"), emulated=True):
    print("measuring", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_crash(here: Board, ours: Home, number: signal.Signals) -> None:
    command = [sys.executable, "-c", MEASURING, str(here.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"measuring\n"
        assert state(here)[0] == "performance"
        process.send_signal(number)
        process.wait()
    if number == signal.SIGKILL:
        deadline = time.monotonic() + 60
        while here.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert state(here)[0] == "performance"
        assert home.clean(here.device(), ours) > 0
    assert state(here) == BEFORE
