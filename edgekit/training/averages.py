"""Averages of the weights along a training: with few bits they often survive better than the last ones.

"lawa", latest weight averaging (Kaddour, "Stop wasting my time!", arXiv:2209.14981), is the mean of the latest few
snapshots, which lie on disk; "ema" is an exponential moving average, which lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from edgekit.training.recipe import EndToEnd

_EMA = "ema.safetensors"
Named = Mapping[str, torch.Tensor]


class Average:
    """The average of what learns.

    Args:
        end: which, how often, how many.
        folder: an existing folder for snapshots.
    """

    def __init__(self, end: EndToEnd, folder: Path) -> None:
        self._end, self._folder = end, folder
        self._mean: dict[str, torch.Tensor] | None = None

    def add(self, step: int, weights: Named) -> None:
        """Take the weights after optimizer step `step`, from 1, where it is one of those that count."""
        if self._end.average == "none" or step % self._end.average_every:
            return
        if self._end.average == "lawa":
            _save(weights, self._folder / _name(step))
            self._forget(step)
        elif self._mean is None:
            self._mean = {name: weight.detach().cpu().float().clone() for name, weight in weights.items()}
        else:
            for name, weight in weights.items():
                self._mean[name].lerp_(weight.detach().cpu().float(), 1 - self._end.average_decay)

    def _forget(self, step: int) -> None:
        """Remove snapshots that are too old, and those of steps that an interrupted run takes again."""
        kept = {_name(step - self._end.average_every * back) for back in range(self._end.average_last)}
        for path in self._folder.glob("step-*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def keep(self, folder: Path) -> None:
        """Write what is in memory."""
        if self._mean is not None:
            _save(self._mean, folder / _EMA)

    def restore(self, folder: Path) -> None:
        """Read what :meth:`keep` wrote."""
        if (folder / _EMA).is_file():
            self._mean = _load(folder / _EMA)

    def mean(self, step: int) -> tuple[dict[str, torch.Tensor], int]:
        """The average after step `step` and the number of weights in it; ({}, 1) where there is none."""
        if self._end.average == "ema" and self._mean is not None:
            return self._mean, max(1, step // self._end.average_every)
        last = step - step % self._end.average_every
        paths = [self._folder / _name(last - self._end.average_every * back) for back in range(self._end.average_last)]
        found = [path for path in paths if self._end.average == "lawa" and path.is_file()]
        total: dict[str, torch.Tensor] = {}
        for path in found:  # one in memory at a time
            for name, weight in _load(path).items():
                total[name] = total[name] + weight if name in total else weight
        return {name: weight / len(found) for name, weight in total.items()}, max(1, len(found))


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _save(weights: Named, path: Path) -> None:
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}, part)
    part.rename(path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(path)
    return found
