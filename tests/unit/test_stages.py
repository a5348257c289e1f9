"""Stages: what is found again, what is made anew, and what a killed, damaged, full or crowded cache does to a build."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit import cache, locks, steps
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.errors import OptionError, OutputError
from edgekit.files import whole_folder
from edgekit.hashes import FOLDER, remembered_sha256
from edgekit.progress import Advance
from edgekit.stages import Made, Stage, Stages, code_digest

COMMON = {"code": "c0de", "versions": {"numpy": "1"}}
INPUTS = {"model": "abc", "bits": 4, "nested": {"a": [1, 2]}}


class Said:
    """Remembers what a person is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        self.steps.append(title)
        yield lambda _done, _total: None

    def note(self, line: str) -> None:
        self.notes.append(line)


class Builder:
    """One build after the other with one cheap stage; counts how often it is really made."""

    def __init__(self, root: Path | None, place: Path) -> None:
        self.root, self.place, self.made, self.said = root, place, 0, Said()
        self.bound = cache.DEFAULT_BOUND
        self._number = 0

    def stages(self, **common: Any) -> Stages:
        self._number += 1
        scratch = self.place / f"scratch{self._number}"
        scratch.mkdir(parents=True)
        return Stages(scratch, self.root, "tiny", {**COMMON, **common}, self.said, self.bound)

    def run(
        self, name: str = "text", inputs: dict[str, Any] = INPUTS, content: bytes = b"result", **common: Any
    ) -> Made:
        stages = self.stages(**common)

        def make(folder: Path) -> None:
            self.made += 1
            assert list(folder.iterdir()) == []
            (folder / "sub").mkdir()
            (folder / "sub" / "a.bin").write_bytes(content)

        made = stages.run(Stage(name, f"stage {name}", inputs), make)
        assert (made.folder / "sub" / "a.bin").read_bytes() == content
        stages.close()
        return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def builder(root: Path, tmp_path: Path) -> Builder:
    return Builder(root, tmp_path)


def writes(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text("x")

    return make


def entry_of(root: Path) -> cache.Entry:
    (entry,) = cache.entries(root)
    return entry


# -- found again, or not


def test_without_a_cache_the_same_build_makes_it_once(tmp_path: Path) -> None:
    builder = Builder(None, tmp_path)
    stages, stage, count = builder.stages(), Stage("text", "stage text", INPUTS), iter(range(9))

    def make(folder: Path) -> None:
        (folder / "a").write_text(str(next(count)))

    first, second = stages.run(stage, make), stages.run(stage, make)
    assert first == second
    assert (second.folder / "a").read_text() == "0"
    second.deliver("a", tmp_path / "delivered")
    third = stages.run(stage, make)
    assert (third.folder / "a").read_text() == "1", "what was delivered is made anew"


def test_second_run_finds_it(builder: Builder) -> None:
    first, second = builder.run(), builder.run()
    assert builder.made == 1
    assert first.digest == second.digest
    assert second.cached
    assert builder.said.steps == ["stage text (from cache)"]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {**INPUTS, "model": "abd"}}, {"inputs": {**INPUTS, "bits": 3}},
        {"inputs": {**INPUTS, "nested": {"a": [2, 1]}}}, {"inputs": {**INPUTS, "more": None}}, {"name": "texts"},
        {"code": "changed"}, {"versions": {"numpy": "2"}},
    ],
    ids=str,
)  # fmt: skip
def test_every_change_makes_it_anew(change: dict[str, Any], builder: Builder) -> None:
    builder.run()
    builder.run(**change)
    assert builder.made == 2
    builder.run()
    builder.run(**change)
    assert builder.made == 2, "and both stay"


def test_order_of_the_inputs_does_not_matter(builder: Builder) -> None:
    builder.run()
    builder.run(inputs=dict(reversed(INPUTS.items())))
    assert builder.made == 1


def test_digest_is_that_of_names_and_contents(builder: Builder) -> None:
    one = builder.run(inputs={"n": 1})
    assert builder.run(inputs={"n": 2}).digest == one.digest, "whatever it was made from"
    assert builder.run(inputs={"n": 3}, content=b"other").digest != one.digest
    uncached = Builder(None, builder.place / "uncached").run()
    assert uncached.digest == one.digest


def test_record_comes_back_as_it_was(builder: Builder) -> None:
    stage = Stage("parity", "parity", INPUTS)
    value = {"kl": 0.1 + 0.2, "tiny": 5e-324}
    first = builder.stages().record(stage, dict[str, float], lambda: value)
    again = builder.stages().record(stage, dict[str, float], lambda: pytest.fail("it is in the cache"))
    assert first == again
    assert first[0] == value


def test_without_a_cache_everything_is_made_and_nothing_kept(tmp_path: Path, root: Path) -> None:
    builder = Builder(None, tmp_path)
    assert not builder.run().cached
    builder.run()
    assert builder.made == 2
    assert not root.exists()


def test_failure_keeps_nothing(builder: Builder, root: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    stages = builder.stages()
    with pytest.raises(KeyboardInterrupt):
        stages.run(Stage("text", "stage text", INPUTS), fails)
    assert cache.entries(root) == []
    assert [path for path in root.rglob("*") if path.is_file()] == [], "no lock either"
    assert list((builder.place / "scratch1").iterdir()) == []
    builder.run()
    assert builder.made == 1


def test_what_is_delivered_is_a_copy(builder: Builder, tmp_path: Path) -> None:
    """Who edits a bundle does not edit the cache."""
    builder.run()
    builder.run().deliver("sub", tmp_path / "bundle")
    (tmp_path / "bundle" / "a.bin").write_bytes(b"edited")
    builder.run()
    assert builder.made == 1


def test_digest_of_the_code_follows_sources_and_data(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "deep" / "b.toml").write_text("y = 1")
    seen = {code_digest(tmp_path)}
    for path, text in (("a.py", "x = 2"), ("deep/b.toml", "y = 2"), ("c.py", "")):
        (tmp_path / path).write_text(text)
        seen.add(code_digest(tmp_path))
    assert len(seen) == 4
    (tmp_path / "_targets").mkdir()
    (tmp_path / "_targets" / "rpi5.toml").write_text("limit = 1")
    (tmp_path / "notes.md").write_text("no code")
    assert code_digest(tmp_path) in seen
    assert len(code_digest()) == 64


# -- damage


def damage_byte(place: Path) -> None:
    path = place / "files" / "sub" / "a.bin"
    path.write_bytes(b"resulT")


def damage_missing(place: Path) -> None:
    (place / "files" / "sub" / "a.bin").unlink()


def damage_more(place: Path) -> None:
    (place / "files" / "b.bin").write_bytes(b"")


def damage_link(place: Path) -> None:
    path = place / "files" / "sub" / "a.bin"
    path.rename(place / "elsewhere")
    path.symlink_to(place / "elsewhere")


def damage_label(place: Path) -> None:
    (place / "entry.json").write_text("{")


def damage_deep_label(place: Path) -> None:
    (place / "entry.json").write_text("[" * 100_000)


def damage_no_label(place: Path) -> None:
    (place / "entry.json").unlink()


DAMAGES = [damage_byte, damage_missing, damage_more, damage_link, damage_label, damage_deep_label, damage_no_label]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_entry_is_made_again(damage: Callable[[Path], None], builder: Builder, root: Path) -> None:
    builder.run()
    damage(entry_of(root).path)
    builder.run()
    assert builder.made == 2
    assert entry_of(root).whole
    builder.run()
    assert builder.made == 2


def test_damaged_entry_that_another_build_uses_is_left_to_it(builder: Builder, root: Path) -> None:
    builder.run()
    user = builder.stages()
    user.run(Stage("text", "stage text", INPUTS), lambda _: pytest.fail("it is in the cache"))
    damage_byte(entry_of(root).path)
    assert not builder.run().cached
    assert builder.made == 2
    user.close()
    assert builder.run().cached


@pytest.mark.parametrize("name", ["with space", "ümlaut", "new\nline", "-dash", "a" * 200, ".hidden", "日本"])
def test_odd_file_names(name: str, builder: Builder) -> None:
    stage = Stage("text", "stage text", INPUTS)
    builder.stages().run(stage, writes(name))
    found = builder.stages().run(stage, lambda _: pytest.fail("it is in the cache"))
    assert [path.name for path in found.folder.iterdir()] == [name]
    assert builder.said.notes == []


def test_file_name_that_is_no_text_is_not_cached(builder: Builder) -> None:
    stage = Stage("text", "stage text", INPUTS)
    made = builder.stages().run(stage, writes(os.fsdecode(b"\xff")))
    assert not made.cached
    assert len(builder.said.notes) == 1


# -- a cache that cannot be used


def test_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    builder = Builder(tmp_path / "file" / "cache", tmp_path)
    assert not builder.run().cached
    assert len(builder.said.notes) == 1
    assert "goes on without" in builder.said.notes[0]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOLCK, errno.EDQUOT])
def test_cache_that_refuses(number: int, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "take", refuse)
    assert not builder.run().cached
    assert len(builder.said.notes) == 1, "one line"
    assert os.strerror(number) in builder.said.notes[0]


def test_full_disk_of_the_cache(small_disk: Path, tmp_path: Path) -> None:
    builder = Builder(small_disk / "cache", tmp_path)
    made = builder.run(content=b"x" * (1 << 20))
    assert not made.cached
    assert (made.folder / "sub" / "a.bin").is_file(), "the build goes on with what it made"
    assert len(builder.said.notes) == 1
    assert "no space left" in builder.said.notes[0]
    assert cache.entries(small_disk / "cache") == []
    assert list((small_disk / "cache").rglob("*.tmp-*")) == []


def test_cache_on_another_disk(small_disk: Path, tmp_path: Path) -> None:
    builder = Builder(small_disk / "cache", tmp_path)
    builder.run()
    assert builder.run().cached
    assert builder.made == 1


def test_full_disk_of_the_output_is_an_error(small_disk: Path, root: Path) -> None:
    builder = Builder(root, small_disk)
    with pytest.raises(OutputError, match="no space left"), whole_folder(small_disk / "out"):
        builder.run(content=b"x" * (1 << 20))
    assert cache.entries(root) == []


def is_free(root: Path, stages: Stages, stage: Stage) -> bool:
    """Whether nobody holds the stage's lock exclusively."""
    place = cache.place_of(root, stage.name, stages.key(stage))
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.take(cache.lock_of(place), shared=True, wait=False, create=True)
    locks.release(lock)
    return lock is not None


@pytest.mark.parametrize("why", ["too large", "not written", "no text"])
def test_result_that_is_not_stored_keeps_nobody_waiting(
    why: str, builder: Builder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if why == "too large":
        builder.bound = 0
    if why == "not written":
        monkeypatch.setattr(cache, "put", refuse)
    stages, stage = builder.stages(), Stage("text", "stage text", INPUTS)
    made = stages.run(stage, writes(os.fsdecode(b"\xff") if why == "no text" else "a"))
    assert not made.cached
    assert len(list(made.folder.iterdir())) == 1
    assert is_free(root, stages, stage), "although the build goes on"
    stages.close()


def test_stored_result_is_shared_until_the_build_ends(builder: Builder, root: Path) -> None:
    stages, stage = builder.stages(), Stage("text", "stage text", INPUTS)
    assert stages.run(stage, writes("a")).cached
    assert is_free(root, stages, stage)
    assert not cache.remove(root, entry_of(root)), "in use"
    stages.close()
    assert cache.remove(root, entry_of(root))


def test_damaged_entry_that_cannot_be_removed_keeps_nobody_waiting(
    builder: Builder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    builder.run()
    damage_byte(entry_of(root).path)
    monkeypatch.setattr(cache, "discard", refuse)
    stages, stage = builder.stages(), Stage("text", "stage text", INPUTS)
    assert not stages.run(stage, writes("a")).cached
    assert is_free(root, stages, stage)


# -- what every stage depends on


def test_model_with_a_file_name_that_is_no_text_has_a_key(sound: Path, builder: Builder, tmp_path: Path) -> None:
    model = shutil.copytree(sound, tmp_path / "model")
    before = steps.surroundings(open_checkpoint(model))
    (model / os.fsdecode(b"notes\xff.txt")).write_text("x")
    after = steps.surroundings(open_checkpoint(model))
    stage = Stage("text", "stage text", {})
    assert builder.stages(**before).key(stage) != builder.stages(**after).key(stage)


def test_number_of_threads_counts(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, seen = open_checkpoint(sound), []
    for cores, threads in ((2, None), (4, None), (4, "1")):
        monkeypatch.setattr(steps, "cores", lambda cores=cores: cores)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)
        seen.append(steps.surroundings(checkpoint))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


# -- several processes


SCRIPT = """
import sys, time
from pathlib import Path
from edgekit.progress import Bars
from edgekit.stages import Stage, Stages
root, scratch, log, wait = map(Path, sys.argv[1:])
scratch.mkdir()
def make(folder):
    (folder / "a.bin").write_bytes(b"x" * 1000)
    with log.open("a") as stream:
        stream.write("made\\n")
    while not wait.exists():
        time.sleep(0.02)
    (folder / "b.bin").write_bytes(b"y")
stages = Stages(scratch, root, "tiny", {}, Bars())
print(stages.run(Stage("text", "stage text", {}), make).digest)
"""


class Processes:
    """Builds in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.wait, self._folder = folder / "cache", folder / "log", folder / "go", folder
        self.all: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        scratch = self._folder / f"scratch{len(self.all)}"
        command: list[str | Path] = [sys.executable, "-c", SCRIPT, self.root, scratch, self.log, self.wait]
        self.all.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return self.all[-1]

    def made(self) -> int:
        return self.log.read_text().count("made") if self.log.is_file() else 0

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    yield running
    for process in running.all:
        process.kill()
        process.communicate()


def test_second_of_two_builds_waits_and_says_so(processes: Processes) -> None:
    first = processes.start()
    processes.until(lambda: processes.made() == 1)
    second = processes.start()
    assert second.stderr is not None
    assert "waiting for another build" in second.stderr.readline()
    processes.wait.touch()
    told = [process.communicate(timeout=60) for process in (first, second)]
    assert processes.made() == 1
    assert told[0][0] == told[1][0] != ""
    assert "(from cache)" in told[1][1]


def test_many_at_once_make_it_once(processes: Processes) -> None:
    processes.wait.touch()
    told = [process.communicate(timeout=120)[0] for process in [processes.start() for _ in range(4)]]
    assert processes.made() == 1
    assert len(set(told)) == 1
    assert told[0]


def test_killed_build_leaves_no_entry_and_no_lock(processes: Processes) -> None:
    first = processes.start()
    processes.until(lambda: processes.made() == 1)
    waiting = processes.start()
    assert waiting.stderr is not None
    waiting.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert cache.entries(processes.root) == []
    processes.wait.touch()
    out, _ = waiting.communicate(timeout=60)
    assert out, "who waited makes it itself"
    assert processes.made() == 2
    assert entry_of(processes.root).whole
    cache.tidy(processes.root)
    assert len(list(processes.root.rglob("*.lock"))) == 2, "that of the entry, and that of all removing"


# -- temporary folders of the dead


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edgekit.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1]), force=True) as fresh:\n"
        "    (fresh / 'half').write_text('x'); print('begun', flush=True); time.sleep(100)\n"
    )
    out = tmp_path / "out dir"
    run = [subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in run:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.iterdir())) == 2
    run[0].kill()
    run[0].communicate()
    (tmp_path / ".out dir.tmp-mine").mkdir()
    (tmp_path / ".other.tmp-abcd1234").mkdir()
    with whole_folder(out) as fresh:
        (fresh / "a.txt").write_text("new")
    kept = {path.name for path in tmp_path.iterdir()} - {"out dir", ".out dir.tmp-mine", ".other.tmp-abcd1234"}
    assert len(kept) == 1, "that of the second process, which lives"
    run[1].kill()
    run[1].communicate()
    with whole_folder(out, force=True) as fresh:
        (fresh / "a.txt").write_text("newer")
    assert {path.name for path in tmp_path.iterdir()} == {"out dir", ".out dir.tmp-mine", ".other.tmp-abcd1234"}


def test_output_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """Killed between moving the old folder away and renaming the new one."""
    (tmp_path / ".out.old-abcd1234" / "out").mkdir(parents=True)
    (tmp_path / ".out.old-abcd1234" / "out" / "a.txt").write_text("old")
    (tmp_path / ".out.tmp-abcd1234").mkdir()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", force=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


# -- the bound


def fill(builder: Builder, root: Path, count: int) -> list[cache.Entry]:
    """Entries of 1000 bytes, the first used least recently."""
    for number in range(count):
        builder.run(inputs={"n": number}, content=b"x" * 1000)
    found = sorted(cache.entries(root), key=lambda entry: entry.created)
    for age, entry in enumerate(reversed(found)):
        os.utime(entry.path / "entry.json", (time.time() - 100 * (age + 1),) * 2)
    return found


def test_least_recently_used_goes_first(builder: Builder, root: Path) -> None:
    first, second, third = fill(builder, root, 3)
    builder.run(inputs={"n": 0}, content=b"x" * 1000)
    builder.bound = 3500
    builder.run(inputs={"n": 3}, content=b"x" * 1000)
    left = {entry.path for entry in cache.entries(root)}
    assert first.path in left, "it was just used"
    assert second.path not in left
    assert third.path in left
    assert sum(entry.nbytes for entry in cache.entries(root)) <= 3500


def test_what_a_build_uses_is_never_removed(builder: Builder, root: Path) -> None:
    (only,) = fill(builder, root, 1)
    user = builder.stages()
    user.run(Stage("text", "stage text", {"n": 0}), lambda _: pytest.fail("it is in the cache"))
    os.utime(only.path / "entry.json", (0, 0))
    builder.bound = 1500
    builder.run(inputs={"n": 1}, content=b"x" * 1000)
    assert only.path.exists()
    user.close()
    builder.run(inputs={"n": 2}, content=b"x" * 1000)
    assert not only.path.exists()


def test_result_beyond_the_bound_empties_nothing(builder: Builder, root: Path) -> None:
    fill(builder, root, 2)
    builder.bound = 2500
    assert not builder.run(inputs={"n": 9}, content=b"x" * 3000).cached
    assert len(cache.entries(root)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("0", 0), ("123", 123), ("7B", 7), ("2k", 2000)],
)
def test_sizes(text: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", text)
    assert cache.bound() == expected


@pytest.mark.parametrize("text", ["much", "-1", "5XB", "GB", "1e9", "5 G B", "9" * 30, "٣GB", "5IB"])
def test_bad_sizes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", text)
    with pytest.raises(OptionError, match="EDGEKIT_CACHE_SIZE"):
        cache.bound()


def test_default_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_CACHE_SIZE", raising=False)
    assert cache.bound() == 20 * 10**9


# -- remembered checksums


@pytest.fixture
def large(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 1 MiB that has not changed for a while."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(root))
    path = tmp_path / "weights"
    path.write_bytes(b"x" * (1 << 20))
    later = time.time_ns() + 10**10
    monkeypatch.setattr("edgekit.hashes.time.time_ns", lambda: later)
    return path


def test_large_file_is_hashed_once(large: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = remembered_sha256(large)
    monkeypatch.setattr("edgekit.hashes.sha256", lambda _: pytest.fail("it is remembered"))
    assert remembered_sha256(large) == first
    assert len(list((root / FOLDER).iterdir())) == 1


def test_changed_file_is_hashed_again(large: Path) -> None:
    first = remembered_sha256(large)
    times = large.stat()
    large.write_bytes(b"y" * (1 << 20))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert remembered_sha256(large) != first, "even with its old time: the change time tells"


def test_damaged_note_is_ignored(large: Path, root: Path) -> None:
    first = remembered_sha256(large)
    (note,) = (root / FOLDER).iterdir()
    note.write_text("{}")
    assert remembered_sha256(large) == first


def test_file_that_just_changed_is_not_remembered(large: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.hashes.time.time_ns", lambda: large.stat().st_mtime_ns + 1)
    remembered_sha256(large)
    assert not (root / FOLDER).exists()
