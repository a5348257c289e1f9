"""Stages of a build: inputs hash to a key, a finished result goes to the cache, the same key is not made again.

A result is made in a scratch folder beside the output and enters the cache by one renaming, so that the cache holds
whole results only, wherever a build is killed. The next stage's key holds the hash of this one's *content*, so that a
result that comes out differently when made again never meets descendants of its predecessor.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit import cache, locks
from edgekit.errors import OutputError
from edgekit.files import copy_tree
from edgekit.machine import give_memory_back
from edgekit.progress import Progress

_PACKAGE = Path(__file__).parent
_RECORD = "record.json"
_TRIES, _PAUSE = 100, 0.05
"""How often a result is asked for that somebody else holds without making it, and the seconds between."""
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """What is made, and everything that its result depends on."""

    name: str
    """Folder in the cache: lower-case letters, digits, dashes."""
    title: str
    """For people."""
    inputs: Mapping[str, Any]
    """Plain JSON values: content hashes of what goes in, and all parameters."""


@dataclass(frozen=True)
class Made:
    """A finished result."""

    folder: Path
    digest: str
    """Hash of its files' names and contents."""
    cached: bool
    """True: it belongs to the cache and may only be read. False: it lies in the scratch folder."""

    def deliver(self, name: str, place: Path) -> None:
        """Put its file or folder `name` at `place`: a copy of what the cache holds, otherwise the thing itself."""
        source = self.folder / name
        if not self.cached:
            source.rename(place)
        elif source.is_dir():
            copy_tree(source, place)
        else:
            shutil.copyfile(source, place)


class Stages:
    """The stages of one build. Results that it used stay in the cache until :meth:`close`.

    Args:
        scratch: an existing folder for what is being made, on the output's disk.
        root: the cache; None to work without one.
        what: the model's name, for who lists the cache.
        common: what every stage depends on, plain JSON values: model, code, versions, machine.
        progress: told what comes from the cache and when another build is waited for.
        bound: bytes the cache may have.
    """

    def __init__(
        self,
        scratch: Path,
        root: Path | None,
        what: str,
        common: Mapping[str, Any],
        progress: Progress,
        bound: int = cache.DEFAULT_BOUND,
    ) -> None:
        self._scratch, self._root, self._what, self._common = scratch, root, what, common
        self._progress, self._bound = progress, bound
        self._used: list[int | None] = []
        self._again: dict[str, Made] = {}
        """Results of this build that no cache holds."""

    def run(self, stage: Stage, make: Callable[[Path], None]) -> Made:
        """The stage's result, from the cache or from `make`, which fills an empty folder.

        What `make` raises ends the stage, and nothing of it is kept.
        """
        root, key = self._root, self.key(stage)
        if (again := self._still(key)) is not None:
            return again
        found, lock = self._find(stage)
        if found is not None:
            return found
        work = self._scratch / f"{stage.name}-{key[:16]}"
        shutil.rmtree(work, ignore_errors=True)  # what is left of a result that was delivered
        try:
            cache.files_of(work).mkdir(parents=True)
            make(cache.files_of(work))
            give_memory_back()
            made = self._keep(stage, work, lock)
            if not made.cached:
                self._again[key] = made
            return made
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if root is not None:
                cache.abandon(self._place(root, stage), lock)
            raise

    def _still(self, key: str) -> Made | None:
        """A result that this build made and no cache holds, as long as nothing of it was delivered."""
        made = self._again.get(key)
        whole = made is not None and cache.digest(cache.sums(made.folder)) == made.digest
        return made if whole else None

    def record(self, stage: Stage, kind: type[T], make: Callable[[], T]) -> tuple[T, str]:
        """As :meth:`run` for a small result that JSON can hold: the value, always as read back, and its digest."""

        def write(folder: Path) -> None:
            (folder / _RECORD).write_bytes(msgspec.json.encode(make()))

        made = self.run(stage, write)
        return msgspec.json.decode((made.folder / _RECORD).read_bytes(), type=kind), made.digest

    def key(self, stage: Stage) -> str:
        """SHA-256 of the stage's name, its inputs and what all stages have in common."""
        whole = {"stage": stage.name, "inputs": stage.inputs, "common": self._common}
        return hashlib.sha256(msgspec.json.encode(whole, order="sorted")).hexdigest()

    def close(self) -> None:
        """Let others remove what this build used."""
        for lock in self._used:
            locks.release(lock)
        self._used.clear()

    def _place(self, root: Path, stage: Stage) -> Path:
        return cache.place_of(root, stage.name, self.key(stage))

    def _find(self, stage: Stage) -> tuple[Made | None, int | None]:
        """What the cache holds, or the exclusive lock to make it; neither when it is to be made for this run alone."""
        if self._root is None:
            return None, None
        try:
            return self._look(self._root, stage)
        except (OSError, OutputError) as error:
            self._give_up(error)
            return None, None

    def _look(self, root: Path, stage: Stage) -> tuple[Made | None, int | None]:
        place = self._place(root, stage)
        place.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            found, damaged = self._use(stage, place)
            if found is not None:
                return found, None
            if (own := locks.take(cache.lock_of(place), wait=False, create=True)) is not None:
                if _cleared(place, damaged, own):
                    return None, own
            elif damaged is not None:
                break  # and in use by others, who found it whole
            else:
                time.sleep(_PAUSE)  # somebody else looks, and will make it
        return None, None

    def _use(self, stage: Stage, place: Path) -> tuple[Made | None, cache.Label | None]:
        """The cached result under a shared lock that lasts as long as this build, or the label of a damaged one.

        Waits for another build that is making it.
        """
        path = cache.lock_of(place)
        lock = locks.take(path, shared=True, wait=False, create=True)
        if lock is None:
            with self._progress.step(f"{stage.title}: waiting for another build that makes the same"):
                lock = locks.take(path, shared=True, create=True)
        try:
            label = cache.label_at(place)
            if label is None:
                return None, None
            if not self._is_whole(stage, place, label):
                return None, label
            self._used.append(lock)
            lock = None
            return Made(cache.files_of(place), cache.digest(label.files), True), None
        finally:
            locks.release(lock)

    def _is_whole(self, stage: Stage, place: Path, label: cache.Label) -> bool:
        with self._progress.step(f"{stage.title} (from cache)"):
            whole = cache.is_whole(place, label)
        if whole:
            cache.mark_used(place)
        else:
            self._progress.note(f"{stage.title}: the result in the cache is damaged and is made again")
        return whole

    def _keep(self, stage: Stage, work: Path, lock: int | None) -> Made:
        files = cache.sums(cache.files_of(work))
        made = Made(cache.files_of(work), cache.digest(files), False)
        if self._root is None or lock is None:
            return made
        label = cache.Label(stage=stage.name, what=self._what, created=time.time(), files=files)
        place = self._place(self._root, stage)
        try:
            stored = self._store(self._root, work, place, label, lock)
        except (OSError, OutputError, UnicodeEncodeError) as error:
            self._give_up(error)
            stored = None
        if stored is None:  # whoever waits for it need not wait for the rest of this build
            cache.abandon(place, lock)
            return made
        self._used.append(lock)
        return stored

    def _store(self, root: Path, work: Path, place: Path, label: cache.Label, lock: int) -> Made | None:
        """The result where it lies now, with its lock shared; None when it is too large for the cache."""
        if label.nbytes > self._bound:
            return None
        cache.make_room(root, self._bound - label.nbytes)
        with cache.storing(root):
            moved = cache.put(work, place, label)
            locks.share(lock)
        return Made(cache.files_of(place if moved else work), cache.digest(label.files), moved)

    def _give_up(self, error: Exception) -> None:
        self._root = None
        reason = error.found if isinstance(error, OutputError) else str(error)
        self._progress.note(f"the cache cannot be used ({reason}); this build goes on without it")


def _cleared(place: Path, damaged: cache.Label | None, own: int) -> bool:
    """Whether nothing or only what is damaged was at `place`, now removed; otherwise the lock `own` is given back."""
    try:
        if cache.label_at(place) in (None, damaged):
            cache.discard(place)
            return True
    except BaseException:
        locks.release(own)
        raise
    locks.release(own)  # somebody made it just now
    return False


def code_digest(package: Path = _PACKAGE) -> str:
    """SHA-256 over edgekit's own sources (*.py, *.toml, C++, no target files): changed code makes every result anew."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in ("*.py", "*.toml", "*.cpp", "*.h") for path in package.rglob(pattern)):
        name = path.relative_to(package)
        if name.parts[0] != "_targets":  # a target reaches a stage through its plan; its limits only judge
            found.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
