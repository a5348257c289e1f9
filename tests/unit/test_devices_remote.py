"""A measurement on a board that is far away: whatever happens on the way, its result comes back or a sentence says why.

The board is a folder (tests/fake_board.py), whose cable is cut at every step, which starts anew, or answers nonsense.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_results
import fake_board
import msgspec
import pytest
from fake_board import HOSTILE, STEPS, Board, Fault

from edgekit import targets
from edgekit.bench.fleet import on_all
from edgekit.bench.follow import Follower, failure
from edgekit.bench.remote import Patience, bench_on, decoder
from edgekit.bench.result import to_json
from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.manifest import identity
from edgekit.devices.base import Device, UnreachableError
from edgekit.devices.process import Cancel
from edgekit.errors import (
    BundleError,
    DeviceError,
    EdgekitError,
    FileFormatError,
    InterruptError,
    MissingDependencyError,
    OutOfMemoryError,
    OutputError,
    WrongBoardError,
)
from edgekit.progress import Advance, Progress, Quiet

HASTE = Patience(lost_s=20, first_s=0.01, longest_s=0.05)
ALL = [str(step) for step in range(STEPS)]


class Lines:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        self.said.append(title)
        yield lambda _done, _total: None

    def note(self, line: str) -> None:
        self.said.append(line)

    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fake_board.bundle(tmp_path_factory.mktemp("bundle") / "tiny.host")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "board")
    yield made
    made.behave("")
    (made.home / "behaviour").unlink()


def measure(
    board: Board, bundle: Bundle, progress: Progress | None = None, *, target: str = "host",
    decode: Callable[[bytes], Any] = json.loads, patience: Patience = HASTE,
) -> Any:  # fmt: skip
    return bench_on(
        board.device(), bundle, targets.load(target), ["--protocol", "smoke"], decode=decode,
        progress=progress or Quiet(), patience=patience,
    )  # fmt: skip


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- refused before anything happens --------------------------------------------------------------------------------


def test_another_cpu_is_refused_before_a_byte_is_sent(board: Board, bundle: Bundle) -> None:
    with pytest.raises(WrongBoardError, match=r"0xd0b|aarch64"):
        measure(board, bundle, target="rpi5")
    assert board.fed == 0
    assert list(board.home.iterdir()) == []


def test_a_changed_byte_is_refused_before_the_board_is_asked(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gguf/model\.gguf"):
        measure(board, open_bundle(fake_board.damaged_copy(bundle, tmp_path / "damaged.host")))
    assert board.calls == []


def test_a_bundle_without_engines_is_refused(board: Board, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--no-runtime"):
        measure(board, fake_board.bundle(tmp_path / "bare.host", installer=False))
    assert board.calls == []


def test_a_full_disk_is_told_with_free_and_needed_space(board: Board, bundle: Bundle) -> None:
    (board.folder / "free").write_text("1000")
    with pytest.raises(DeviceError, match=r"0 MiB of its disk are free; expected \d+ MiB"):
        measure(board, bundle)
    assert board.fed == 0


def test_a_folder_that_is_not_ours_stays_as_it_is(board: Board, bundle: Bundle) -> None:
    board.base.mkdir(parents=True)
    (board.base / "letters.txt").write_text("dear")
    with pytest.raises(DeviceError, match="edgekit did not make"):
        measure(board, bundle)
    assert [path.name for path in board.base.iterdir()] == ["letters.txt"]


# --- what goes well ---------------------------------------------------------------------------------------------------


def test_the_result_comes_back_and_the_board_is_clean(board: Board, bundle: Bundle) -> None:
    lines = Lines()
    result = measure(board, bundle, lines)
    assert result["steps"] == ALL
    assert result["arguments"][-2:] == ["--protocol", "smoke"]
    assert board.clean()
    assert all(f"step {step}" in lines.text() for step in ALL)
    assert lines.text().replace("\n", "").isprintable(), "an escape sequence of the board got through"
    outside = [path.name for path in board.home.iterdir() if path.name not in (".local", "parts")]
    assert outside == []


def test_a_second_time_nothing_is_sent(board: Board, bundle: Bundle) -> None:
    measure(board, bundle)
    board.fed = 0
    assert measure(board, bundle)["steps"] == ALL
    assert board.fed == 0


def test_what_is_left_of_an_older_bundle_goes(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    measure(board, bundle)
    newer = fake_board.bundle(tmp_path / "tiny.host", size=9000)
    measure(board, newer)
    installed = list((board.base / "installed").iterdir())
    assert len(installed) == 1, "the older environment stays"
    assert open_bundle(board.base / "bundles" / "tiny.host").manifest == newer.manifest


# --- the cable ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "offset"), [("before", 0), ("after", 1)])
def test_a_cable_that_is_cut_at_any_step_loses_nothing(
    fault: Fault, offset: int, board: Board, bundle: Bundle, tmp_path: Path
) -> None:
    """Before: the command never arrives. After: it is done, and nobody hears of it."""
    measure(board, bundle)
    start = next(n for n, call in enumerate(board.calls) if "nohup" in call[2] and "bench" in call)
    # The first two questions are asked once: with a wrong address nobody wants to wait.
    for number in {start, *range(2 + offset, len(board.calls) - 2, 4)}:
        other = Board(tmp_path / str(number), faults={number: fault})
        assert measure(other, bundle)["steps"] == ALL
        assert (other.home / "parts").read_text().count("part") == 1, "it was started twice"
        assert other.clean()


def test_a_transfer_goes_on_where_it_was_cut(board: Board, tmp_path: Path) -> None:
    big = fake_board.bundle(tmp_path / "big.host", size=400_000)
    board.feed_most = 200_000
    assert measure(board, big)["steps"] == ALL
    assert board.fed < sum(entry.size for entry in big.manifest.files.values()) + 40_000


def test_a_cable_that_stays_cut_is_told_and_the_run_goes_on(board: Board, bundle: Bundle) -> None:
    board.behave("wait 3")

    def unplug(number: int, _command: Sequence[str]) -> None:
        if board.steps_done() == ALL[:3]:
            board.faults.update(dict.fromkeys(range(number, number + 10_000), "before"))

    board.on_call = unplug
    with pytest.raises(UnreachableError, match="run the same command again later"):
        measure(board, bundle, patience=Patience(lost_s=0.2, first_s=0.01, longest_s=0.02))
    board.on_call, board.faults = lambda _n, _c: None, {}
    with pytest.raises(DeviceError, match="busy"):
        measure(board, bundle)
    (board.home / "behaviour").unlink()
    until(lambda: not board.running())
    lines = Lines()
    assert measure(board, bundle, lines)["steps"] == ALL
    assert "took over the lock" in lines.text()
    assert (board.home / "parts").read_text().count("part") == 1, "what had ended meanwhile was measured again"
    assert board.clean()


# --- the board ---------------------------------------------------------------------------------------------------


def test_a_board_that_starts_anew_goes_on_where_it_was(board: Board, bundle: Bundle) -> None:
    board.behave("wait 3")

    def pull(_number: int, _command: Sequence[str]) -> None:
        if board.steps_done() == ALL[:3] and (board.home / "behaviour").exists():
            board.power_cut()

    board.on_call, lines = pull, Lines()
    assert measure(board, bundle, lines)["steps"] == ALL
    assert "started anew; the measurement goes on" in lines.text()
    assert (board.home / "parts").read_text().count("part") == 2
    assert board.clean()


def test_two_at_once_do_not_share_a_board(board: Board, bundle: Bundle) -> None:
    board.behave("wait 2")
    results: list[Any] = []
    first = threading.Thread(target=lambda: results.append(measure(board, bundle)))
    first.start()
    until(lambda: board.steps_done() == ALL[:2])
    with pytest.raises(DeviceError, match=r"busy: .+@.+ measures there"):
        measure(Board(board.folder), bundle)
    (board.home / "behaviour").unlink()
    first.join()
    assert results[0]["steps"] == ALL, "the second one disturbed the first"


def test_ctrl_c_leaves_the_board_clean(board: Board, bundle: Bundle) -> None:
    board.behave("wait 2")
    board.on_call = lambda _n, _c: board.cancel.set() if board.steps_done() == ALL[:2] else None
    with pytest.raises(InterruptError):
        measure(board, bundle)
    assert board.clean()


@pytest.mark.parametrize("number", [4, 6, 9, 15])
def test_ctrl_c_at_other_steps_leaves_the_board_clean(board: Board, bundle: Bundle, number: int) -> None:
    board.on_call = lambda now, _c: board.cancel.set() if now == number else None
    with pytest.raises(InterruptError):
        measure(board, bundle)
    assert board.clean()


def test_ctrl_c_in_an_installation_ends_it_and_all_it_started(board: Board, bundle: Bundle) -> None:
    (board.home / "slow-install").touch()

    def press() -> None:
        until(lambda: sum("sleep 600" in line for line in board.running()) == 2)
        board.cancel.set()

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(InterruptError):
        measure(board, bundle)
    pressing.join()
    assert board.clean()


def test_what_the_measurement_says_at_its_end_is_passed_on(board: Board, bundle: Bundle) -> None:
    board.behave("fail 2")
    with pytest.raises(OutputError, match="ssh://board: the disk of the board is on fire"):
        measure(board, bundle)
    assert board.clean()


def test_an_installation_that_fails_says_why(board: Board, bundle: Bundle) -> None:
    (board.home / "no-install").touch()
    with pytest.raises(MissingDependencyError, match=r"needs Python 3\.99"):
        measure(board, bundle)
    assert board.clean()


def test_a_kill_from_outside_is_told(board: Board, bundle: Bundle) -> None:
    board.behave("kill 2")
    with pytest.raises(DeviceError, match="ended with -9"):
        measure(board, bundle)
    assert board.clean()


def test_a_kill_by_the_kernel_names_the_memory() -> None:
    follower = Follower(Board.device, "", "1.1.0", Quiet(), ended=(-9, 700 << 10, 1))  # type: ignore[arg-type]
    follower.device = _Titled()  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError, match="the kernel of pi ended the measurement .* at 700 MiB of 1000 MiB"):
        follower.judge(1000)


def test_a_line_that_is_read_in_pieces_is_one(tmp_path: Path) -> None:
    board, lines = Board(tmp_path / "board"), Lines()
    handle = board.device().start(["sleep", "600"], f"{board.home}/x")
    follower = Follower(board.device(), str(board.home), handle, lines)
    for piece in (b"one\nt", b"w", b"o\n", b"", b"three\nfo", b"ur"):
        with (board.home / "log").open("ab") as log:
            log.write(piece)
        assert follower.look() == "runs"
    (board.home / "ended").write_text("0 1 0")
    assert follower.look() == "ended"
    board.device().stop(handle)
    assert follower.lines == ["one", "two", "three", "four"]


def test_an_endless_log_is_followed_and_not_read_whole(tmp_path: Path) -> None:
    board, lines = Board(tmp_path / "board"), Lines()
    (board.home / "log").write_bytes(b"x" * (8 << 20) + b"\nlast\n")
    (board.home / "ended").write_text("0 1 0")
    follower = Follower(board.device(), str(board.home), "1.1.a", lines)
    looks = 1
    while follower.look() != "ended":
        looks += 1
    assert looks < 8
    assert follower.lines[-1] == "last"
    assert max(map(len, follower.lines)) < 400


class _Titled:
    title = "pi"


def test_an_unknown_exit_code_is_a_device_error() -> None:
    assert isinstance(failure(3, ["Traceback", "KeyError: 'x'"], "pi"), DeviceError)
    assert isinstance(failure(38, ["no sentence of ours"], "pi"), DeviceError)
    assert not isinstance(failure(38, ["no sentence of ours"], "pi"), WrongBoardError)


# --- a board that lies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", HOSTILE)
def test_nonsense_at_any_step_ends_in_one_sentence(fault: Fault, bundle: Bundle, tmp_path: Path) -> None:
    told: list[str] = []
    read: list[int] = []
    for number in range(0, 28, 5):
        board, lines = Board(tmp_path / f"{fault}{number}", faults={number: fault}), Lines()
        try:
            assert measure(board, bundle, lines)["steps"] == ALL
        except EdgekitError as error:
            told.append(error.sentence())
        except ValueError:
            read.append(number)
        assert lines.text().replace("\n", "").isprintable()
        left = [line for line in board.running() if not line.startswith("/bin/sleep")]
        assert not left, "more than a lease, which runs out by itself, was left"
    assert all(number > 15 for number in read), "only the JSON of the end may be read as such"
    assert told
    assert all(sentence.isprintable() and len(sentence) < 3000 for sentence in told)


def test_a_result_that_is_none_leaves_the_board_clean(board: Board, bundle: Bundle) -> None:
    def decode(_data: bytes) -> None:
        raise DeviceError("no result")

    with pytest.raises(DeviceError, match="no result"):
        measure(board, bundle, decode=decode)
    assert board.clean()


def test_only_a_result_of_this_bundle_and_kind_is_taken(board: Board, bundle: Bundle) -> None:
    device, made = board.device(), bench_results.result(bench_results.run("gguf"))
    own = msgspec.structs.replace(made.bundle, manifest_sha256=identity(bundle.manifest))
    taken = decoder(device, bundle)(to_json(msgspec.structs.replace(made, bundle=own)))
    assert taken.device.url == "ssh://board", "the board calls itself local"
    with pytest.raises(DeviceError, match="of another bundle"):
        decoder(device, bundle)(to_json(made))
    with pytest.raises(DeviceError, match="says it is emulated"):
        decoder(device, bundle)(to_json(msgspec.structs.replace(made, bundle=own, measured_on="emulated")))
    with pytest.raises(FileFormatError, match="ssh://board"):
        decoder(device, bundle)(b"{}")


# --- several ----------------------------------------------------------------------------------------------------------


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, bundle: Bundle) -> None:
    boards = {name: Board(tmp_path / name) for name in ("a", "b", "c")}
    boards["b"].behave("fail 1")
    lines = Lines()

    def opened(name: str, cancel: Cancel) -> Device:
        boards[name].cancel = cancel
        return boards[name].device()

    def work(device: Device, progress: Progress) -> Any:
        return bench_on(
            device, bundle, targets.load("host"), [], decode=json.loads, progress=progress, patience=HASTE
        )  # fmt: skip

    outcomes = on_all(["a", "b", "c", "a"], work, lines, opened)
    assert [outcome.name for outcome in outcomes] == ["a", "b", "c"]
    assert [outcome.value["steps"] if outcome.value else None for outcome in outcomes] == [ALL, None, ALL]
    assert isinstance(outcomes[1].error, OutputError)
    assert all(line.startswith(("a: ", "b: ", "c: ")) for line in lines.said)


def test_ctrl_c_reaches_all_boards(tmp_path: Path, bundle: Bundle) -> None:
    boards = {name: Board(tmp_path / name) for name in ("a", "b")}
    for board in boards.values():
        board.behave("wait 2")

    def opened(name: str, cancel: Cancel) -> Device:
        boards[name].cancel = cancel
        return boards[name].device()

    def work(device: Device, progress: Progress) -> Any:
        return bench_on(
            device, bundle, targets.load("host"), [], decode=json.loads, progress=progress, patience=HASTE
        )  # fmt: skip

    def press() -> None:
        until(lambda: all(board.steps_done() == ALL[:2] for board in boards.values()))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        on_all(list(boards), work, Quiet(), opened)
    assert all(board.clean() for board in boards.values())


def test_a_bug_is_no_outcome(tmp_path: Path) -> None:
    def work(_device: Device, _progress: Progress) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        on_all(["a"], work, Quiet(), lambda name, cancel: Board(tmp_path / name, cancel).device())
