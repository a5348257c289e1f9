"""Which compiler and tools the operators' library is made with, and what makes another library of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from edgekit.errors import MissingDependencyError, ToolchainError
from edgekit.threebit import headers, library

Calls = list[tuple[list[str], dict[str, str]]]
"""Definitions and environment of each."""
SETTINGS = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs, no packages that bring some; it has a compiler that tells its words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "c++", "echo c++ 1.0 $*")
    monkeypatch.setenv("PATH", str(folder))
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for package in ("cmake", "ninja"):
        monkeypatch.setitem(sys.modules, package, None)
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf8")
    path.chmod(0o755)
    return path


@pytest.fixture
def compiles(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What would have been compiled."""
    calls: Calls = []

    def instead(
        folder: Path, definitions: Sequence[str], target: str, *, environment: Mapping[str, str] | None = None
    ) -> None:
        calls.append((list(definitions), dict(environment or {})))
        (folder / library.LIBRARY).write_bytes(b"library")

    monkeypatch.setattr(library, "compile_into", instead)
    monkeypatch.setattr(headers, "header_in_use", lambda **_: nullcontext(own_cache))
    return calls


def test_each_setting_makes_another_library(programs: Path, compiles: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {library.host_library()}
    for name in SETTINGS[1:]:
        with monkeypatch.context() as patch:
            patch.setenv(name, "-DSOMETHING")
            found.add(library.host_library())
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "another")
        found.add(library.host_library())
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "c++ -DSOMETHING")
        found.add(library.host_library())
    assert len(found) == len(SETTINGS) + 2
    before = len(compiles)
    assert library.host_library() in found
    assert len(compiles) == before


@pytest.mark.parametrize("given", ["", "  ", "c++"])
def test_no_compiler_named(given: str, programs: Path, compiles: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", given)
    library.host_library()
    ((definitions, environment),) = compiles
    assert f"-DCMAKE_CXX_COMPILER={programs / 'c++'}" in definitions
    assert environment == {}


def test_a_compiler_of_several_words(programs: Path, compiles: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = script(programs / "a launcher", 'exec "$@"')
    monkeypatch.setenv("CXX", "'a launcher' c++ -m64")
    library.host_library()
    ((definitions, environment),) = compiles
    assert not any(each.startswith("-DCMAKE_CXX_COMPILER") for each in definitions)
    assert environment == {"CXX": f"'{launcher}' c++ -m64"}


@pytest.mark.parametrize("given", ["no-such-compiler", "'c++", "plain", "folder", "broken", "broken c++"])
def test_what_is_no_compiler(
    given: str, programs: Path, compiles: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "plain").write_text("no program", encoding="utf8")
    (programs / "folder").mkdir()
    (programs / "broken").write_bytes(b"\x7fELF")
    (programs / "broken").chmod(0o755)
    monkeypatch.setenv("CXX", given)
    with pytest.raises(MissingDependencyError, match=given.split()[0]):
        library.host_library()
    assert not compiles


def recorded(programs: Path, tmp_path: Path) -> list[str]:
    """What a stand-in for cmake was called with."""
    log, folder = tmp_path / "log", tmp_path / "made"
    folder.mkdir()
    script(programs / "cmake", f'for word in "$@"; do echo "$word" >> {log}; done; /bin/mkdir -p {folder}/tree')
    library.compile_into(folder, ["-DMINE=1"], "edgekit_ops")
    return log.read_text(encoding="utf8").splitlines()


@pytest.mark.parametrize(
    ("has", "generator"), [("ninja make", "Ninja"), ("ninja", "Ninja"), ("make", "Unix Makefiles")]
)
def test_ninja_or_make(has: str, generator: str, programs: Path, tmp_path: Path) -> None:
    for name in has.split():
        script(programs / name, "exit 1")
    words = recorded(programs, tmp_path)
    assert words[words.index("-G") + 1] == generator
    assert f"-DCMAKE_MAKE_PROGRAM={programs / has.split()[0]}" in words
    assert "-DMINE=1" in words


def test_neither_ninja_nor_make(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="neither ninja nor make"):
        recorded(programs, tmp_path)


def test_what_went_wrong_is_quoted_in_english(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script(programs / "ninja", "exit 1")
    script(programs / "cmake", 'echo "c++ -Werror -c x.cpp"; echo "x.cpp: error: in $LC_ALL"; echo end; exit 1')
    with pytest.raises(ToolchainError, match=r"\(x\.cpp: error: in C\)"):
        library.compile_into(tmp_path, [], "edgekit_ops")
