"""What an interrupted training goes on from, in a folder of its own beside the output."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import CorruptCheckpointError, OptionError
from edgekit.training.averages import Average
from edgekit.training.record import HeldOut, Point

_MARK = ".edgekit-training"
CHECKPOINTS = "checkpoints"
"""Weights along the way, in the kept folder and then in the output."""
_SETTINGS, _GOING, _LATEST, _OLD, _PART = "settings.json", "going.json", "latest", "old", "part"


@dataclass
class Going:
    """How far a training is."""

    step: int = 0
    steps: int = 0
    """Of the whole training; 0: not known yet."""
    tokens: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    held_out: list[HeldOut] = field(default_factory=list)


class Kept:
    """The folder. One training uses it at a time, which is the caller's to see to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def own(self) -> None:
        """Make sure that the folder is a training's: everything in it will be removed.

        Raises:
            OptionError: something else is in it.
        """
        if (self.folder / _MARK).is_file():
            return
        if any(self.folder.iterdir()):
            raise OptionError(
                f"{self.folder} holds something that is not of a training",
                expected="no folder of that name: what a training keeps lies there until it is done",
                remedy="move it away, or give another output",
            )
        (self.folder / _MARK).touch()

    def leave(self) -> None:
        """Remove the folder where no training has begun in it."""
        if (self.folder / _MARK).is_file() and not (self.folder / _SETTINGS).exists():
            self.remove()
        elif self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def claim(self, settings: Mapping[str, Any]) -> bool:
        """Begin a training with these settings, or go on with it.

        Args:
            settings: everything that the result depends on, by name, plain JSON values.

        Returns:
            Whether there is something to go on from.

        Raises:
            OptionError: another training was begun here; says in what they differ.
            CorruptCheckpointError: what is there cannot be read.
        """
        path = self.folder / _SETTINGS
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(msgspec.json.format(msgspec.json.encode(settings, order="sorted"), indent=2))
            part.rename(path)
            return False
        try:
            before = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (msgspec.DecodeError, OSError) as error:
            raise CorruptCheckpointError(f"{path} cannot be read ({error})", remedy=_again(self.folder)) from error
        now = msgspec.json.decode(msgspec.json.encode(settings), type=dict[str, Any])
        if before != now:
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            shown = ", ".join(f"{name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names)
            raise OptionError(
                f"the training in {self.folder} was begun with other settings ({shown})",
                expected="the same ones, to go on with it", remedy=_again(self.folder),
            )  # fmt: skip
        return True

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """An empty folder for the weights after so many steps; it takes its name when the block ends well."""
        folder = self.folder / CHECKPOINTS / f"step-{step:06d}"
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted behind it: the same weights
        part.rename(folder)

    def hand_over(self, folder: Path) -> None:
        """Put all of :meth:`checkpoint` into `folder`, without a second copy where the file system can."""
        if (self.folder / CHECKPOINTS).is_dir():
            shutil.copytree(
                self.folder / CHECKPOINTS, folder / CHECKPOINTS, copy_function=_linked,
                ignore=shutil.ignore_patterns("*.part"),
            )  # fmt: skip

    def snapshots(self) -> Path:
        """A folder for averages."""
        found = self.folder / "average"
        found.mkdir(exist_ok=True)
        return found

    def starts(self) -> Path:
        """A folder for the matrices that the whole model's training begins with."""
        found = self.folder / "start"
        found.mkdir(exist_ok=True)
        return found

    def keep(self, accelerator: Any, average: Average, going: Going) -> None:
        """Write how far the training is; what was kept before is there until this is whole."""
        part, latest, old = (self.folder / name for name in (_PART, _LATEST, _OLD))
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()
        told = logging.getLogger("accelerate.utils.other")
        level = told.level
        told.setLevel(logging.ERROR)  # it tells that a tied head is written once
        accelerator.save_state(str(part), safe_serialization=True)
        told.setLevel(level)
        if accelerator.is_main_process:
            average.keep(part)
            (part / _GOING).write_bytes(msgspec.json.encode(going))
            shutil.rmtree(old, ignore_errors=True)
            if latest.exists():
                latest.rename(old)
            part.rename(latest)
            shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()

    def restore(self, accelerator: Any, average: Average) -> Going:
        """Put back what :meth:`keep` wrote last; a fresh beginning where there is nothing.

        Raises:
            CorruptCheckpointError: it cannot be read.
        """
        found = next((path for name in (_LATEST, _OLD) if (path := self.folder / name).is_dir()), None)
        if found is None:
            return Going()
        try:
            accelerator.load_state(str(found))
            average.restore(found)
            return msgspec.json.decode((found / _GOING).read_bytes(), type=Going)
        except Exception as error:  # of pickles, safetensors, JSON and PyTorch
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorruptCheckpointError(f"{found} cannot be read ({first})", remedy=_again(self.folder)) from error

    def clear(self) -> None:
        """Forget everything."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _MARK:
                path.unlink()

    def remove(self) -> None:
        """The training is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _linked(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, place)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What an interrupted training kept is read within.

    Raises:
        CorruptCheckpointError: it is damaged.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read ({error})", remedy="give --restart") from error


def _again(folder: Path) -> str:
    return f"give another output, or --restart, which removes {folder}"
