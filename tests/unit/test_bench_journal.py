"""The journal: what was measured survives, what was damaged is refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bench import site
from edgekit.bench.journal import Identity, Journal, journal_path, open_journal
from edgekit.bench.result import Window
from edgekit.errors import DeviceError, EdgekitError, FileFormatError, OutputError

ID = Identity(bundle="a", protocol="b", machine="c", options="")


class Dated(msgspec.Struct):
    window: Window


def filled(folder: Path, values: int = 3) -> Path:
    with open_journal(folder, ID) as book:
        for index in range(values):
            book.put(f"key/{index}", [index, "é\u2028"])
        return book.path


def test_what_was_put_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "folder")
    with open_journal(path.parent, ID) as book:
        assert book.get("key/2", list[int | str]) == [2, "é\u2028"]
        assert book.get("other", int) is None
        assert book.keys() == ("key/0", "key/1", "key/2")


def test_a_line_that_was_cut_short_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with open_journal(tmp_path, ID) as book:
            assert book.keys() == ("key/0", "key/1")
            book.put("key/2", [2, "é\u2028"])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"[1,", b"[7,"),
        lambda data: data.replace(b"key/1", b"key/2"),
        lambda data: data[:40] + b"\n" + data[41:],
        lambda data: b"\n" + data,
        lambda data: b"\xff\xfe\n",
        lambda data: data + b"[" * 5000 + b"\n",
        lambda data: data.replace(b'"a"', b'"z"'),
        lambda data: data.replace(b'"started":"', b'"started":"x'),
        lambda data: data + data.splitlines(keepends=True)[-1],
    ],
)
def test_a_damaged_journal_is_refused_in_one_sentence(damage: object, tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(FileFormatError, match=r"is damaged.*--force"), open_journal(tmp_path, ID):
        pass
    with open_journal(tmp_path, ID, fresh=True) as book:
        assert len(book) == 0


def test_another_thing_under_a_key_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with open_journal(path.parent, ID) as book, pytest.raises(FileFormatError, match="key/1"):
        book.get("key/1", dict[str, int])


def test_a_huge_journal_is_not_read(tmp_path: Path) -> None:
    path = journal_path(tmp_path, ID)
    path.touch()
    os.truncate(path, 65 << 20)
    with pytest.raises(FileFormatError, match="larger than 64 MiB"), open_journal(tmp_path, ID):
        pass


def test_only_one_process_measures(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path, ID),
        pytest.raises(DeviceError, match="running already"),
        open_journal(tmp_path, ID),
    ):
        pass
    with open_journal(tmp_path, ID):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written.*--journal"), open_journal(tmp_path / "file", ID):
        pass


def test_a_full_disk_is_told_and_loses_nothing(small_disk: Path) -> None:
    with open_journal(small_disk, ID) as book:
        book.put("first", 1)
        with pytest.raises(OutputError):
            for index in range(100):
                book.put(f"big/{index}", "x" * 4000)
        kept = book.keys()
    with open_journal(small_disk, ID) as book:
        assert book.get("first", int) == 1
        assert set(book.keys()) <= set(kept)


def test_another_run_has_another_journal(tmp_path: Path) -> None:
    paths = {
        journal_path(tmp_path, msgspec.structs.replace(ID, **{name: "other"})) for name in ID.__struct_fields__[1:]
    }
    assert len(paths | {journal_path(tmp_path, ID)}) == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.binary(max_size=200))
def test_nothing_but_a_sentence_comes_of_garbage(data: bytes, tmp_path: Path) -> None:
    journal_path(tmp_path, ID).write_bytes(data)
    try:
        with open_journal(tmp_path, ID):
            pass
    except EdgekitError as error:
        told = error.sentence()
    else:
        told = ""
    assert "\n" not in told


# --- the time of a run -----------------------------------------------------------------------------------------------


def begun(folder: Path, ago: timedelta, end: float) -> Journal:
    """A journal that was begun some time ago, with one measurement."""
    with open_journal(folder, ID) as book:
        site.take_up(book).once("x", Dated, lambda: Dated(Window(begin=0.0, end=end)))
        path = book.path
    old = datetime.now(UTC) - ago
    lines = path.read_bytes().splitlines(keepends=True)
    head = msgspec.json.decode(lines[0])
    head["started"] = old.isoformat()
    path.write_bytes(msgspec.json.encode(head) + b"\n" + b"".join(lines[1:]))
    return open_journal(folder, ID)


@pytest.mark.parametrize(
    ("ago", "least", "most"),
    [
        (timedelta(hours=2), 7200, 7300),
        (timedelta(seconds=10), 500, 500),  # measured until second 500: the calendar was set back
        (timedelta(days=-3), 500, 500),
        (timedelta(days=20_000), 500, 500),  # a board without a clock began in 1970
    ],
)
def test_the_time_of_a_run_never_goes_backwards(ago: timedelta, least: int, most: int, tmp_path: Path) -> None:
    with begun(tmp_path, ago, 500.0) as book:
        assert least <= site.take_up(book).before <= most


def test_a_run_counts_how_often_it_was_taken_up(tmp_path: Path) -> None:
    for index in range(3):
        with open_journal(tmp_path, ID) as book:
            run = site.take_up(book)
            assert run.once(f"m/{index}", int, partial(int, index)) == index
            assert run.once("m/0", int, lambda: pytest.fail("measured again")) == 0
            assert run.parts == index + 1
    with open_journal(tmp_path, ID) as book:
        run = site.take_up(book)
        assert run.once("m/2", int, lambda: pytest.fail("measured again")) == 2
        assert run.parts == 3


def test_the_machine_is_the_same_after_a_reboot_and_another_one_is_not() -> None:
    facts = {"machine": "aarch64", "cpu": "A76", "cores": "4", "python": "3.11.2", "ram_mib": "4045", "system": "1"}
    key = site.machine_key(facts, {"edgekit": "1"}, "measured")
    assert key == site.machine_key({**facts, "system": "2", "ram_mib": "4043"}, {"edgekit": "1"}, "measured")
    assert key != site.machine_key({**facts, "cpu": "A72"}, {"edgekit": "1"}, "measured")
    assert key != site.machine_key(facts, {"edgekit": "2"}, "measured")
    assert key != site.machine_key(facts, {"edgekit": "1"}, "emulated")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: Fast\nmodel name\t: Fast\n", "Fast"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0b\nCPU part\t: 0xd0b\nCPU part\t: 0xd05\n", "CPU part 0xd0b, 0xd05"),
        ("", ""),
    ],
)
def test_name_of_the_cpu(text: str, name: str) -> None:
    assert site.cpu_name(text) == name
