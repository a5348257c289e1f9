"""`edgekit cache`: lists and removes what edgekit put there, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import Cli

from edgekit import cache, locks
from edgekit.cache import FileSum, Label
from edgekit.checkpoint.cached import cached_folder
from edgekit.files import sha256

DAY = 86400.0


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEKIT_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


def add(root: Path, stage: str, number: int, *, size: int = 1000, days: float = 0, what: str = "tiny") -> Path:
    """A whole entry that was last used `days` ago."""
    place = cache.place_of(root, stage, f"{number:064x}")
    files = cache.files_of(place)
    files.mkdir(parents=True)
    (files / "a.bin").write_bytes(b"x" * size)
    sums = {"a.bin": FileSum(size=size, sha256=sha256(files / "a.bin"))}
    label = Label(stage=stage, what=what, created=time.time() - days * DAY, files=sums)
    cache.lock_of(place).touch()
    import msgspec

    (place / "entry.json").write_bytes(msgspec.json.encode(label))
    os.utime(place / "entry.json", (time.time() - days * DAY,) * 2)
    return place


def convert(root: Path, kind: str, name: str, *, days: float = 0) -> Path:
    place = root / kind / name
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"w" * 5000)
    os.utime(place, (time.time() - days * DAY,) * 2)
    return place


# -- wrong calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-size", "much"], "--max-size is 'much'"), (["--older-than", "soon"], "--older-than is 'soon'"),
        (["--older-than", "30"], "--older-than"), (["--all", "--max-size", "1GB"], "--all contradicts"),
        (["--all", "--older-than", "1d"], "--all contradicts"), (["--max-size", "-5GB"], "--max-size"),
    ],
)  # fmt: skip
def test_wrong_options_remove_nothing(arguments: list[str], words: str, cli: Cli, root: Path) -> None:
    place = add(root, "texts", 1, days=1000)
    cli("cache", "clean", *arguments).refused(29, words)
    assert place.exists()


def test_wrong_bound(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", "huge")
    cli("cache", "list").refused(29, "EDGEKIT_CACHE_SIZE is 'huge'")
    cli("cache", "clean").refused(29, "EDGEKIT_CACHE_SIZE is 'huge'")


# -- list


def test_no_cache_yet(cli: Cli, root: Path) -> None:
    assert cli("cache", "list").out == f"0 B of at most 20.0 GB in {root}\n"
    assert cli("cache", "clean").out == "removed 0 of 0 B\n"
    assert not root.exists()


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "list"]])
def test_table(arguments: list[str], cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", "5GB")
    add(root, "reference", 1, size=2500, days=3)
    convert(root, "demo", "smollm2", days=40)
    result = cli(*arguments)
    assert result.code == 0
    for word in ("reference", "tiny", "2.5 kB", "3 d", "demo", "smollm2", "5.0 kB", "40 d", "7.5 kB of at most 5.0 GB"):
        assert word in result.out


def test_json(cli: Cli, root: Path) -> None:
    place = add(root, "reference", 1, days=3)
    found = json.loads(cli("cache", "list", "--json").out)
    assert (found["folder"], found["bytes"], found["bound"]) == (str(root), 1000, 20 * 10**9)
    (entry,) = found["entries"]
    assert {
        "kind": "reference",
        "what": "tiny",
        "path": str(place),
        "bytes": 1000,
        "whole": True,
    }.items() <= entry.items()
    assert abs(time.time() - 3 * DAY - entry["used"]) < 60


def test_name_of_a_model_cannot_write_to_the_terminal(cli: Cli, root: Path) -> None:
    add(root, "texts", 1, what="evil\x1b[2J[bold]name")
    for arguments in (["list"], ["clean", "--all", "--dry-run"], ["clean", "--all"]):
        out = cli("cache", *arguments).out
        assert "\x1b[2J" not in out
        assert "[bold]" in out, "and is no markup"


# -- clean


def test_older_than(cli: Cli, root: Path) -> None:
    old, new = add(root, "texts", 1, days=31), add(root, "texts", 2, days=29)
    model = convert(root, "gguf", "old-model", days=100)
    result = cli("cache", "clean", "--older-than", "30d")
    assert result.out.splitlines()[-1] == "removed 2 of 6.0 kB"
    assert [place.exists() for place in (old, new, model)] == [False, True, False]
    assert not cache.lock_of(old).exists()


def test_max_size_removes_the_least_recently_used(cli: Cli, root: Path) -> None:
    places = [add(root, "texts", number, days=number) for number in range(4)]
    cli("cache", "clean", "--max-size", "2kB")
    assert [place.exists() for place in places] == [True, True, False, False]


def test_without_options_the_bound_counts(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [add(root, "texts", number, days=number) for number in range(3)]
    assert cli("cache", "clean").out == "removed 0 of 0 B\n"
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", "1000")
    cli("cache", "clean")
    assert [place.exists() for place in places] == [True, False, False]


def test_damaged_entries_go_first(cli: Cli, root: Path) -> None:
    good, bad = add(root, "texts", 1, days=10), add(root, "texts", 2)
    (bad / "entry.json").write_text("{}")
    assert "damaged" in cli("cache", "list").out
    cli("cache", "clean")
    assert [good.exists(), bad.exists()] == [True, False]


def test_dry_run_removes_nothing(cli: Cli, root: Path) -> None:
    place = add(root, "texts", 1)
    assert (
        cli("cache", "clean", "--all", "--dry-run").out
        == "would remove texts: tiny, 1.0 kB\nwould remove 1 of 1.0 kB\n"
    )
    assert place.exists()


def test_what_is_in_use_stays(cli: Cli, root: Path) -> None:
    place, model = add(root, "texts", 1), convert(root, "lora", "merged")
    held = [locks.take(cache.lock_of(place), shared=True), locks.take(model, shared=True)]
    result = cli("cache", "clean", "--all")
    assert result.code == 0
    assert "kept texts: tiny, in use" in result.out
    assert "kept lora: merged, in use" in result.out
    assert place.exists()
    assert model.exists()
    for lock in held:
        locks.release(lock)
    cli("cache", "clean", "--all")
    assert not place.exists()
    assert not model.exists()


def test_all_leaves_what_it_does_not_know(cli: Cli, root: Path, tmp_path: Path) -> None:
    add(root, "texts", 1)
    for kind in ("demo", "gguf", "lora", "envs"):
        convert(root, kind, "model")
    (root / "hashes").mkdir()
    (root / "hashes" / "a.json").write_text("{}")
    mine = [root / "stages" / "texts" / "notes", root / "stages" / "My Stage" / ("0" * 64), root / "benchmarks" / "x"]
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    (root / "mine.txt").write_text("mine")
    elsewhere = add(tmp_path / "elsewhere", "texts", 7)
    (root / "stages" / "texts" / f"{8:064x}").symlink_to(elsewhere)
    (root / "gguf" / "link").symlink_to(elsewhere)
    cli("cache", "clean", "--all")
    assert cache.entries(root) == []
    assert all((folder / "mine.txt").exists() for folder in mine)
    assert (root / "mine.txt").exists()
    assert (elsewhere / "entry.json").exists()


def test_temporary_folders_of_killed_builds_go(cli: Cli, root: Path) -> None:
    add(root, "texts", 1)
    dead, alive = (root / "stages" / "texts" / f".{9:064x}.tmp-{name}" for name in ("abcd1234", "abcd1235"))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "half").write_text("x")
    lock = locks.take(alive)
    cli("cache", "clean")
    assert not dead.exists()
    assert alive.exists()
    locks.release(lock)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def test_conversion_whose_removal_was_killed_is_made_again(
    cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(place: Path, **_: object) -> None:
        (place / "model.safetensors").unlink()
        raise KeyboardInterrupt

    cached_folder("gguf", "model", "key", write_model)
    (entry,) = cache.entries(root)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        cache.remove(root, entry)
    assert cache.entries(root) == []
    again = cached_folder("gguf", "model", "key", write_model)
    assert (again / "model.safetensors").read_bytes() == b"weights"
    cli("cache", "clean")
    assert [path.name for path in (root / "gguf").iterdir() if path.is_dir()] == [again.name]


def test_half_removed_checksums_go(cli: Cli, root: Path) -> None:
    (root / ".hashes.tmp-abcd1234").mkdir(parents=True)
    (root / ".mine.tmp-abcd1234").mkdir()
    cli("cache", "clean")
    assert sorted(path.name for path in root.iterdir()) == [".mine.tmp-abcd1234"]


def test_conversion_that_is_being_made_stays(cli: Cli, root: Path) -> None:
    """Whoever waits for it is not handed a folder that is being removed."""

    def write(folder: Path) -> None:
        write_model(folder)
        convert(root, "gguf", "model-key")  # as a process of an older version made it
        assert "kept gguf: model-key, in use" in cli("cache", "clean", "--all").out

    assert (cached_folder("gguf", "model", "key", write) / "config.json").exists()
    cli("cache", "clean", "--all")
    assert list((root / "gguf").iterdir()) == [], "no lock either"


# -- environments


def test_environment_is_listed_beside_the_bound(cli: Cli, root: Path) -> None:
    convert(root, "envs", "optimum-2")
    convert(root, "gguf", "model")
    out = cli("cache", "list").out
    assert "optimum-2" in out
    assert f"5.0 kB of at most 20.0 GB in {root}\nnot counted: environments 5.0 kB\n" in out
    assert json.loads(cli("cache", "list", "--json").out)["bytes"] == 10_000


@pytest.mark.parametrize("kind", cache.TOOLS)
@pytest.mark.parametrize("arguments", [["--all"], ["--older-than", "30d"], ["--max-size", "1kB"]])
def test_tools_go_when_it_is_asked_for(kind: str, arguments: list[str], cli: Cli, root: Path) -> None:
    place = convert(root, kind, "optimum-2", days=40)
    with cache.using(place):
        os.utime(place, (0, 0))
        assert f"kept {kind}: optimum-2, in use" in cli("cache", "clean", *arguments).out
    cli("cache", "clean", *arguments)
    assert not place.exists()


def test_environment_is_beside_the_bound(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, small = convert(root, "envs", "optimum-2", days=400), add(root, "texts", 1, days=3)
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", "2000")
    cli("cache", "clean")
    cache.make_room(root, 2000)
    assert [environment.exists(), small.exists()] == [True, True]
    cache.make_room(root, 0)
    assert [environment.exists(), small.exists()] == [True, False]


# -- what measurements leave

JOURNAL, RESULT = "bench-0123456789abcdef", "result-0123456789abcdef"


def leave(root: Path, *, days: float = 0) -> tuple[Path, Path]:
    """A journal of 300 bytes and a kept result of 700."""
    journal, result = root / "bench" / f"{JOURNAL}.jsonl", root / "bench" / RESULT
    result.mkdir(parents=True)
    journal.write_bytes(b"j" * 300)
    (result / "bench.json").write_bytes(b"r" * 700)
    for path in (journal, result):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return journal, result


def test_what_only_looks_like_a_measurement_is_left(cli: Cli, root: Path, tmp_path: Path) -> None:
    leave(root)
    folder = root / "bench"
    (folder / "mine.jsonl").write_text("mine")
    (folder / "results").mkdir()
    (folder / f"{JOURNAL[:-1]}0.jsonl").mkdir()
    (folder / f"{RESULT[:-1]}0").write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    (folder / f"{JOURNAL[:-1]}1.jsonl").symlink_to(tmp_path / "elsewhere")
    assert "removed 2 of 1.0 kB" in cli("cache", "clean", "--all").out
    assert len(list(folder.iterdir())) == 5
    assert (tmp_path / "elsewhere").exists()


def test_journals_and_kept_results_are_listed_as_such(cli: Cli, root: Path) -> None:
    leave(root)
    convert(root, "runtimes", "cortex-a76")
    convert(root, "gguf", "model")
    add(root, "gguf", 1)
    out = cli("cache", "list").out
    assert f"6.0 kB of at most 20.0 GB in {root}\n" in out
    assert "not counted: journals of measurements 300 B, kept results 700 B, runtimes 5.0 kB\n" in out
    assert "environments" not in out
    rows = {row.split()[1]: row for row in out.splitlines() if JOURNAL in row or RESULT in row}
    assert ("journals" in rows["journals"], "300 B" in rows["journals"], "results" in rows["results"]) == (True,) * 3
    assert "stage gguf" in out, "a stage is told from the converted model of the same name"
    found = {one["what"]: one for one in json.loads(cli("cache", "list", "--json").out)["entries"]}
    assert (found[JOURNAL]["kind"], found[RESULT]["kind"], found[JOURNAL]["bytes"]) == ("journals", "results", 300)
    assert [found[name]["bounded"] for name in (JOURNAL, RESULT, "cortex-a76", "model", "tiny")] == [
        False, False, False, True, True
    ]  # fmt: skip
    assert found["tiny"]["stage"]


@pytest.mark.parametrize("arguments", [["--all"], ["--older-than", "30d"], ["--max-size", "0"]])
def test_measurements_go_when_it_is_asked_for(arguments: list[str], cli: Cli, root: Path) -> None:
    journal, result = leave(root, days=40)
    held = locks.take(journal)
    out = cli("cache", "clean", *arguments).out
    assert f"kept journals: {JOURNAL}, in use" in out, "a measurement that runs"
    assert [journal.exists(), result.exists()] == [True, False]
    locks.release(held)
    assert f"removed journals: {JOURNAL}, 300 B" in cli("cache", "clean", *arguments).out
    assert list((root / "bench").iterdir()) == [], "neither a lock nor a half-removed file"


def test_measurements_are_beside_the_bound(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = leave(root, days=400)
    monkeypatch.setenv("EDGEKIT_CACHE_SIZE", "0")
    cli("cache", "clean")
    cache.make_room(root, 0)
    assert all(path.exists() for path in paths)


def test_a_removal_that_was_killed_is_no_journal(cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = leave(root)
    entry = next(one for one in cache.entries(root) if one.path == journal)

    def killed(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        cache.discard(entry.path)
    assert JOURNAL not in cli("cache", "list").out
    cli("cache", "clean")
    assert [path.name for path in (root / "bench").iterdir()] == [RESULT]


def test_real_journals_and_kept_results_have_these_names(root: Path) -> None:
    from bench_results import result

    from edgekit.bench.journal import Identity, open_journal
    from edgekit.bench.kept import Keeper
    from edgekit.progress import Quiet

    with open_journal(root / "bench", Identity(bundle="b", protocol="p", machine="m", options="o")) as journal:
        journal.put("x", 1)
        Keeper(Quiet()).keep(result())
        assert sorted(one.kind for one in cache.entries(root)) == ["journals", "results"]
        (running,) = [one for one in cache.entries(root) if one.kind == "journals"]
        assert not cache.remove(root, running)
    assert cache.remove(root, running)
