"""Our folder on a device, and the lock in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_board import Board

from edgekit.bench import lock as locks
from edgekit.bench.ready import ready
from edgekit.devices import home
from edgekit.devices.home import Home
from edgekit.errors import DeviceError, WrongBoardError
from edgekit.progress import Quiet
from edgekit.targets import load


class Notes(Quiet):
    """Remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


@pytest.fixture
def ours(board: Board) -> Home:
    made = home.home_in(f"{board.home}/edgekit")
    home.prepare(board.device(), made)
    return made


@pytest.mark.parametrize("place", ["", "edgekit", "~/x", "/a\nb", "/\x1b[31m", "/" + "x" * 600])
def test_a_place_of_another_form_is_refused(place: str) -> None:
    with pytest.raises(DeviceError, match="absolute path"):
        home.home_in(place)


def test_the_folder_can_be_made_twice_and_removed_once(board: Board, ours: Home) -> None:
    home.prepare(board.device(), ours)
    Path(ours.base, "bundles", "x").mkdir()
    Path(ours.base, "bundles", "x").chmod(0o500)
    assert home.clean(board.device(), ours) > 0
    assert not (board.home / "edgekit").exists(), "an empty folder stays behind"
    assert home.clean(board.device(), ours) == 0


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_is_not_ours_is_neither_used_nor_removed(what: str, board: Board, tmp_path: Path) -> None:
    made = home.home_in(f"{board.home}/edgekit")
    theirs = tmp_path / "theirs"
    (theirs / "bench").mkdir(parents=True)
    (theirs / "bench" / "letters.txt").write_text("dear")
    base = Path(made.base)
    base.parent.mkdir()
    if what == "folder":
        (theirs / "bench").rename(base)
    elif what == "file":
        base.write_text("dear")
    else:
        home.prepare(board.device(), home.home_in(str(tmp_path / "marked")))
        base.symlink_to(tmp_path / "marked" / "bench")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for action in (home.prepare, home.clean):
        with pytest.raises(DeviceError):
            action(board.device(), made)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


# --- the lock --------------------------------------------------------------------------------------------------------


def test_a_lease_keeps_others_out_until_it_is_given_back(board: Board, ours: Home) -> None:
    first = locks.take(board.device(), ours, Quiet())
    with pytest.raises(DeviceError, match="busy") as caught:
        locks.take(board.device(), ours, Quiet())
    assert "clean --force" in caught.value.remedy
    with pytest.raises(DeviceError, match="a measurement runs"):
        home.clean(board.device(), ours)
    first.renew()
    first.give_back()
    assert board.clean()
    locks.take(board.device(), ours, Quiet()).give_back()
    assert board.clean()


def test_force_ends_what_runs(board: Board, ours: Home) -> None:
    lock = locks.take(board.device(), ours, Quiet())
    lock.hand_over(board.device().start(["sleep", "600"], f"{ours.base}/log"))
    home.clean(board.device(), ours, force=True)
    assert board.clean()


def test_the_lock_lives_as_long_as_the_program_it_was_handed_to(board: Board, ours: Home) -> None:
    device, notes = board.device(), Notes()
    lock = locks.take(device, ours, Quiet())
    handle = device.start(["sleep", "600"], f"{ours.base}/log")
    lock.hand_over(handle)
    assert len([line for line in board.running() if "sleep" in line]) <= 2
    with pytest.raises(DeviceError, match="busy"):
        locks.take(device, ours, notes)
    device.stop(handle)
    second = locks.take(device, ours, notes)
    assert "took over the lock of" in notes.said[0]
    with pytest.raises(DeviceError, match="no longer ours"):
        lock.renew()
    lock.give_back()
    assert os.path.islink(ours.lock), "the one who lost the lock removed it"  # noqa: PTH114
    second.give_back()


def test_a_lock_of_an_earlier_boot_is_stale(board: Board, ours: Home) -> None:
    notes = Notes()
    locks.take(board.device(), ours, notes)
    board.boot("33333333-0000")
    locks.take(board.device(), ours, notes).give_back()
    assert "took over the lock" in notes.said[0]
    subprocess.run(["kill", *_sleepers(board)], check=False)


def _sleepers(board: Board) -> list[str]:
    import psutil

    mark = str(board.folder)
    return [str(p.pid) for p in psutil.process_iter(["name"]) if p.info["name"] == "sleep" and _of(p, mark)]


def _of(process: object, mark: str) -> bool:
    import psutil

    try:
        return bool(process.environ().get("BOARD") == mark)  # type: ignore[attr-defined]
    except psutil.Error:
        return False


def test_the_same_token_takes_its_lock_again(board: Board, ours: Home) -> None:
    """A cut may swallow the answer; and after a restart of the board the holder comes back."""
    notes = Notes()
    first = locks.take(board.device(), ours, notes)
    again = locks.take(board.device(), ours, notes, token=first.token)
    assert notes.said == []
    again.give_back()
    assert board.clean()


@pytest.mark.parametrize(
    "text", ["x", ":::::", "a:1:1:t:o:run", "a:../../etc:1:t:\x1b[31m:run", "$(id):`id`:;:&:|:run"]
)
def test_a_lock_of_any_text_is_stale_and_harmless(text: str, board: Board, ours: Home) -> None:
    Path(ours.lock).symlink_to(text)
    notes = Notes()
    locks.take(board.device(), ours, notes).give_back()
    assert all(line.isprintable() for line in notes.said)
    assert board.clean()


def test_what_answers_nonsense_is_not_locked(board: Board, ours: Home) -> None:
    board.faults[len(board.calls)] = "garbage"
    with pytest.raises(DeviceError, match="cannot be locked"):
        locks.take(board.device(), ours, Quiet())


# --- this machine ----------------------------------------------------------------------------------------------------


def test_this_machine_is_locked_while_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "ours"))
    with ready(load("host"), None, Quiet()) as found:
        assert all(text.split(":")[0] in ("disturb", "note") for text in found.preflight.values())
        with pytest.raises(DeviceError, match="busy"), ready(load("host"), None, Quiet()):
            pass
        monkeypatch.setenv(locks.VARIABLE, "0123456789abcdef")
        with ready(load("host"), None, Quiet()):
            pass  # whoever started it from afar holds the lock for it
        monkeypatch.delenv(locks.VARIABLE)
    assert not os.path.lexists(tmp_path / "ours" / "bench" / "lock")


def test_another_board_than_this_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "ours"))
    wrong = "rpi5" if os.uname().machine != "aarch64" else "jetson-thor"
    with pytest.raises(WrongBoardError, match="this machine"), ready(load(wrong), None, Quiet()):
        pass
    assert not (tmp_path / "ours").exists()
