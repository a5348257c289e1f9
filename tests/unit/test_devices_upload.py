"""A folder on a device becomes equal to one here, whatever was there, and only what differs is sent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fake_board
import pytest
from fake_board import Board, read_or_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.devices import upload
from edgekit.devices.base import UnreachableError
from edgekit.devices.local import local
from edgekit.errors import BundleError, DeviceError


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert not [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())], "an empty folder"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


# --- bad input first -------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_anything_is_sent(board: Board, tmp_path: Path) -> None:
    (board.folder / "free").write_text("2048")
    source = write(tmp_path / "source", {"a": b"x" * (20 << 20)})
    with pytest.raises(DeviceError, match=r"has 2 MiB free; expected 28 MiB") as caught:
        board.device().push(source, f"{board.home}/place")
    assert "devices clean" in caught.value.remedy
    assert board.fed == 0


def test_a_disk_that_fills_up_meanwhile_is_told_and_left_with_nothing_half(small_disk: Path, tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    (board.folder / "free").write_text("1000000")
    source = write(tmp_path / "source", {"a": b"x" * 30_000, "b": b"y" * 200_000})
    with pytest.raises(DeviceError, match="MiB free"):
        board.device().push(source, f"{small_disk}/place")
    assert tree(small_disk / "place") == {"a": b"x" * 30_000}
    assert list((small_disk / "place.parts").iterdir()) == []


def test_a_place_that_cannot_be_written(board: Board, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="cannot be written"):
        board.device().push(write(tmp_path / "source", {"a": b"x"}), f"{tmp_path}/file/place")


def test_a_file_that_changes_while_it_is_sent(board: Board, tmp_path: Path) -> None:
    bundle = fake_board.bundle(tmp_path / "tiny.host")
    (bundle.root / "gguf/model.gguf").write_bytes(os.urandom(4096))
    with pytest.raises(BundleError, match=r"'model\.gguf' arrived .* as something else"):
        board.device().push(bundle.root, f"{board.home}/place")
    assert not (board.home / "place/gguf/model.gguf").exists()
    (bundle.root / "gguf/model.gguf").write_bytes(b"short")
    with pytest.raises(BundleError, match="arrived"):
        board.device().push(bundle.root, f"{board.home}/place")


def test_links_on_the_board_are_not_followed(board: Board, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = board.home / "place"
    place.mkdir()
    (place / "sub").symlink_to(outside)
    (outside / "b").write_bytes(b"theirs")
    (place / "b").symlink_to(outside / "b")
    os.mkfifo(place / "pipe")
    board.device().push(write(tmp_path / "source", {"sub/a": b"x", "b": b"y"}), str(place))
    assert tree(place) == {"sub/a": b"x", "b": b"y"}
    assert tree(outside) == {"b": b"theirs"}


LISTINGS = {
    f"{'0' * 64}  ./../x": "did not put there", f"{'0' * 64}  /etc/passwd": "did not put there",
    f"\\{'0' * 64}  ./a\\nb": "did not put there", "sha256sum: ./x: Input/output error": "did not put there",
    f"{'0' * 64}  ./a/../../x": "did not put there", f"{'0' * 63}g  ./a": "did not put there",
}  # fmt: skip


@pytest.mark.parametrize("line", LISTINGS)
def test_a_listing_that_leads_out_is_refused(line: str) -> None:
    data = f"begin:\nfiles:\n {line}\nparts:\ndisk:\n /dev/x 1 1 9 1% /\nend:\n".encode()
    with pytest.raises(DeviceError, match=LISTINGS[line]):
        upload.parse_survey(data, "pi")


@given(st.binary(max_size=400))
def test_any_listing_is_read_or_refused(data: bytes) -> None:
    for text in (data, b"begin:\nfiles:\n " + data.replace(b"\n", b"\n ") + b"\ndisk:\n a 1 1 9 1% /\nend:\n"):
        if (found := read_or_refused(upload.parse_survey, text, "pi")) is not None:
            assert found.free == 9 << 10


def test_a_name_with_a_line_end_is_not_ours(board: Board, tmp_path: Path) -> None:
    place = write(board.home / "place", {"a\nb": b"x"})
    with pytest.raises(DeviceError, match="did not put there"):
        board.device().push(write(tmp_path / "source", {"a": b"x"}), str(place))


# --- what it does ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c d", "sub/a", "sub/deep/b", "-x", "é水", "a'b", "$HOME", "*", "b.txt"])
FOLDERS = st.dictionaries(NAMES, st.binary(max_size=3000), max_size=6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=FOLDERS, there=FOLDERS)
def test_the_place_becomes_equal(wanted: dict[str, bytes], there: dict[str, bytes], tmp_path: Path) -> None:
    own = Path(tempfile.mkdtemp(dir=tmp_path))
    source, place = write(own / "source", wanted), write(own / "place", there)
    local().push(source, str(place))
    assert tree(place) == wanted
    assert not Path(f"{place}.parts").exists()


def test_a_file_takes_the_place_of_a_folder_and_the_other_way_round(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a": b"x", "b/c": b"y"})
    place = write(tmp_path / "place", {"a/deep/x": b"1", "b": b"2"})
    local().push(source, str(place))
    assert tree(place) == {"a": b"x", "b/c": b"y"}


def test_only_what_differs_is_sent(board: Board, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a": b"x" * 5000, "b": b"y" * 300})
    device, place = board.device(), str(board.home / "place")
    told: list[tuple[int, int]] = []
    device.push(source, place, lambda done, total: told.append((done, total)))
    assert board.fed == 5300
    assert told[-1] == (5300, 5300)
    write(source, {"b": b"z" * 400})
    device.push(source, place)
    assert board.fed == 5700


@pytest.mark.parametrize("damage", ["none", "changed", "longer"])
def test_a_cut_transfer_goes_on_unless_its_beginning_is_another(damage: str, board: Board, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    source, place = write(tmp_path / "source", {"a": data}), board.home / "place"
    board.feed_most = 100_000
    with pytest.raises(UnreachableError):
        board.device().push(source, str(place))
    assert tree(place) == {}, "half a file has its own name"
    part = board.home / "place.parts" / hashlib.sha256(data).hexdigest()
    arrived = part.stat().st_size
    assert arrived >= 100_000
    if damage != "none":
        part.write_bytes(bytes(arrived) if damage == "changed" else data + b"more")
    sent = board.fed
    board.device().push(source, str(place))
    assert tree(place) == {"a": data}
    assert board.fed - sent == (300_000 - arrived if damage == "none" else 300_000)
