"""Fixtures for all tests: tiny checkpoints and the command line as a user meets it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import tiny

from edgekit.cli.main import main

hypothesis.settings.register_profile("edgekit", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("edgekit")


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Assert one sentence on standard error, with all of `words`, and that exit code."""
        assert self.code == code, (self.code, self.err)
        assert self.err.startswith("edgekit: ")
        assert self.err.endswith(".\n")
        assert self.err.count("\n") == 1, "one line"
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `edgekit ARGUMENTS…` in this process; anything but an exit is a bug and is raised."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test meets the user's cache; what is converted into checkpoints is shared by the tests of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Where measurements on this machine are locked: other runs of the tests, and the user, have locks of their own.
        patch.setenv("EDGEKIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache: the test's builds make every stage themselves."""
    folder = tmp_path_factory.mktemp("own-cache")
    monkeypatch.setenv("EDGEKIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for a module's tests, empty at first: what one of them makes the others find."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("module-cache")
        patch.setenv("EDGEKIT_CACHE", str(folder))
        yield folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound tiny checkpoint that a test may damage."""
    return tiny.make(tmp_path / "model")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sound tiny checkpoint that no test changes."""
    return_to = tiny.make(tmp_path_factory.mktemp("sound") / "model")
    before = {path.name: path.read_bytes() for path in return_to.iterdir()}
    yield return_to
    assert before == {path.name: path.read_bytes() for path in return_to.iterdir()}, "a test changed the shared model"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB; needs root and a kernel that lets it mount."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", place], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # an engine may still map a file
