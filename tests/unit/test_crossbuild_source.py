"""llama.cpp's sources: got once, checked before use, unpacked without leaving the folder."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

import pytest

from edgekit.crossbuild import source
from edgekit.errors import MissingDependencyError, OutputError, WheelError
from edgekit.files import sha256
from edgekit.progress import Quiet

TOP = "llama_cpp_python-0.3.36"
MEMBERS = {"vendor/llama.cpp/CMakeLists.txt": b"project(llama.cpp)", "llama_cpp/__init__.py": b"", "LICENSE.md": b"MIT"}


def archive(path: Path, members: dict[str, bytes], *, top: str = TOP) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class Index:
    """A pip that gets a prepared archive, counts its calls and can fail."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Path) -> None:
        self.calls = tmp_path / "calls"
        self.cache = tmp_path / "cache"
        self.served = served
        self._python = tmp_path / "python"
        self.behave(f'for last; do :; done; cp "{served}" "$last/"')
        monkeypatch.setattr(sys, "executable", str(self._python))
        monkeypatch.setattr(source, "release", lambda: "0.3.36")
        monkeypatch.setattr(source, "KNOWN", {"0.3.36": sha256(served)})
        monkeypatch.setenv("EDGEKIT_CACHE", str(self.cache))

    def behave(self, text: str) -> None:
        self._python.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls}"\n{text}\n')
        self._python.chmod(0o755)

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "sources").iterdir())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(tmp_path, monkeypatch, archive(tmp_path / f"{TOP}.tar.gz", MEMBERS))


# -- what goes wrong


def test_offline_says_what_is_missing(index: Index) -> None:
    with pytest.raises(WheelError, match=r"sources of llama-cpp-python 0.3.36 are not in the cache .* 77 MB"):
        source.sdist(Quiet(), offline=True)
    assert not index.calls.exists()


def test_a_network_that_does_not_answer(index: Index) -> None:
    index.behave("echo 'ERROR: No matching distribution found for llama-cpp-python==0.3.36' >&2; exit 1")
    with pytest.raises(WheelError, match=r"pip could not get .*\(No matching distribution found"):
        source.sdist(Quiet(), offline=False)
    assert index.left() == []


def test_pip_notices_a_wrong_hash(index: Index) -> None:
    index.behave(
        "printf 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\\n"
        "    Expected sha256 aa\\n         Got        bbbb\\n' >&2; exit 1"
    )
    with pytest.raises(WheelError, match=rf"has SHA-256 bbbb; expected {source.KNOWN['0.3.36']}"):
        source.sdist(Quiet(), offline=False)
    assert index.left() == []


def test_we_notice_a_wrong_hash(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "KNOWN", {"0.3.36": "0" * 64})
    with pytest.raises(WheelError, match=f"has SHA-256 {sha256(index.served)}; expected {'0' * 64}"):
        source.sdist(Quiet(), offline=False)
    assert index.left() == []


def test_pip_ends_well_and_leaves_nothing(index: Index) -> None:
    index.behave("exit 0")
    with pytest.raises(WheelError, match="it said nothing"):
        source.sdist(Quiet(), offline=False)


def test_no_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="python -m ensurepip"):
        source.sdist(Quiet(), offline=False)


def test_a_release_that_nobody_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "9.9.9")
    with pytest.raises(WheelError, match=r"llama-cpp-python 9.9.9, which is installed here, is unknown"):
        source.release()


@pytest.fixture(params=["filters", "no filters"])
def filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tarfile's own filters, and as on Python 3.11.2, which has none."""
    if request.param == "no filters":
        if sys.version_info >= (3, 12):
            pytest.skip("this Python always has filters")
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python has no filters")


@pytest.mark.parametrize("name", ["../../../evil", "../../evil", "a/../../../evil"])
def test_a_member_that_would_land_outside(name: str, filters: None, tmp_path: Path) -> None:
    bad = archive(tmp_path / "a.tar.gz", {**MEMBERS, name: b"evil"})
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(WheelError, match="damaged or unsafe"):
        source.unpack(bad, tmp_path / "x" / "y")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("target", ["/etc", "../..", "a/../../.."])
def test_a_link_that_points_outside(target: str, filters: None, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(f"{TOP}/link")
        info.type, info.linkname = tarfile.SYMTYPE, target
        tar.addfile(info)
    with pytest.raises(WheelError, match="damaged or unsafe"):
        source.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_an_archive_that_is_cut_off(keep: int, index: Index, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(index.served.read_bytes()[:keep])
    with pytest.raises(WheelError, match="damaged or unsafe"):
        source.unpack(cut, tmp_path / "out")


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MOST_BYTES", 1000)
    big = archive(tmp_path / "a.tar.gz", {"zeros": bytes(2000)})
    with pytest.raises(WheelError, match="unpacks to more than 1000 bytes"):
        source.unpack(big, tmp_path / "out")


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"this is no tar" * 100))
    with pytest.raises(WheelError, match="damaged or unsafe"):
        source.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_cache_that_cannot_be_written(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    (index.cache).write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        source.sdist(Quiet(), offline=False)


# -- what goes right


def test_got_once_and_then_found_offline(filters: None, index: Index) -> None:
    first = source.sdist(Quiet(), offline=False)
    assert {name: (first.folder / name).read_bytes() for name in MEMBERS} == MEMBERS
    assert (first.llama_cpp / "CMakeLists.txt").is_file()
    assert (first.release, first.sha256) == ("0.3.36", sha256(index.served))
    index.behave("exit 1")
    assert source.sdist(Quiet(), offline=True) == first
    assert len(index.calls.read_text().splitlines()) == 1
    assert index.left() == [first.folder.name]


def test_pip_is_told_the_hash_before_it_runs_anything(index: Index) -> None:
    index.behave('for last; do :; done; cat "$last/pin.txt" >&2; exit 1')
    with pytest.raises(WheelError, match=rf"llama-cpp-python==0.3.36 --hash=sha256:{sha256(index.served)}"):
        source.sdist(Quiet(), offline=False)
    assert "--require-hashes" in index.calls.read_text()


def test_the_release_is_that_of_the_host() -> None:
    assert source.release() in source.KNOWN
