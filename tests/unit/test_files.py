"""Results appear whole or not at all, and what was there before stays until the new one stands."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgekit import files
from edgekit.errors import OutputError, OutputExistsError
from edgekit.files import refuse_existing, sha256, whole_file, whole_folder

Whole = Callable[..., AbstractContextManager[Path]]


def fill(place: Path, text: str) -> None:
    """Write into the temporary file or folder that a context manager gave."""
    (place / "a.txt" if place.is_dir() else place).write_text(text)


def content(path: Path) -> str:
    return (path / "a.txt" if path.is_dir() else path).read_text()


BOTH = pytest.mark.parametrize("whole", [whole_folder, whole_file])


@BOTH
@pytest.mark.parametrize(
    "failure", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EIO, "x")], ids=repr
)
@pytest.mark.parametrize("before", ["", "old"])
def test_failure_leaves_what_was_there(whole: Whole, failure: BaseException, before: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if before:
        with whole(out) as fresh:
            fill(fresh, before)
    with pytest.raises(type(failure)), whole(out, force=True) as fresh:
        fill(fresh, "new")
        raise failure
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if before else [])
    if before:
        assert content(out) == before


@BOTH
def test_nothing_under_the_name_until_the_end(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with whole(out) as fresh:
        fill(fresh, "new")
        assert not out.exists()
        assert fresh.parent == out.parent, "on the same disk, so that renaming is one step"
    assert content(out) == "new"
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == (0o755 if out.is_dir() else 0o644)


@BOTH
def test_old_output_stands_while_the_new_one_is_made(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole(out) as fresh:
        fill(fresh, "old")
    with whole(out, force=True) as fresh:
        fill(fresh, "new")
        assert content(out) == "old"
    assert content(out) == "new"
    assert list(tmp_path.iterdir()) == [out]


@BOTH
def test_existing_output_needs_force(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="out is there already.*--force"), whole(out):
        raise AssertionError("the block must not run")
    assert out.read_text() == "mine"


def test_link_to_nowhere_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExistsError):
        refuse_existing(tmp_path / "out", force=False)


@BOTH
@pytest.mark.parametrize("kind", ["file", "folder", "link to a folder", "link to a file", "link to nowhere"])
def test_force_replaces_whatever_is_there(whole: Whole, kind: str, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("kept")
    if kind == "file":
        out.write_text("old")
    elif kind == "folder":
        out.mkdir()
        (out / "b.txt").write_text("old")
    else:
        out.symlink_to({"f": elsewhere, "n": tmp_path / "gone"}.get(kind[10], elsewhere / "a.txt"))
    with whole(out, force=True) as fresh:
        fill(fresh, "new")
    assert content(out) == "new"
    assert not out.is_symlink()
    assert not out.is_dir() or [path.name for path in out.iterdir()] == ["a.txt"]
    assert (elsewhere / "a.txt").read_text() == "kept", "a link is replaced, not followed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "x")], ids=repr)
def test_old_folder_comes_back_when_the_last_step_fails(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == out and (self / "a.txt").read_text() == "new":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(failure)), whole_folder(out, force=True) as fresh:
        fill(fresh, "new")
    assert content(out) == "old"
    assert list(tmp_path.iterdir()) == [out]


@BOTH
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left.*nothing was left half-written"),
        (errno.EROFS, "cannot write.*choose another folder"),
        (errno.EACCES, "cannot write"),
        (errno.EDQUOT, "cannot write"),
    ],
)
def test_disk_that_refuses(
    whole: Whole, number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=words) as told, whole(tmp_path / "out") as fresh:
        fill(fresh, "begun")
        os.write(0, b"more")
    assert str(tmp_path / "out") in str(told.value)
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_disk_that_is_really_full(whole: Whole, small_disk: Path) -> None:
    with pytest.raises(OutputError, match="no space left"), whole(small_disk / "out") as fresh:
        (fresh / "big" if fresh.is_dir() else fresh).write_bytes(b"x" * (2 << 20))
    assert list(small_disk.iterdir()) == []


@BOTH
@pytest.mark.parametrize("where", ["file/out", "file/deep/out", "a" * 300])
def test_place_that_cannot_be(whole: Whole, where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"), whole(tmp_path / where):
        raise AssertionError("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1, and the empty message."""
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_cache_folder_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert files.cache_dir() == Path("/one")
    monkeypatch.delenv("EDGEKIT_CACHE")
    assert files.cache_dir() == Path("/two/edgekit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.cache_dir() == Path("/home/someone/.cache/edgekit")
