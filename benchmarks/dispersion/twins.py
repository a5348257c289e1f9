"""Training the twins: a phase with a constant rate, and at each length a copy whose rate falls to zero.

Each copy is what a whole warm-up-stable-decay training of that length gives (as in MiniCPM, arXiv:2404.06395), so that
one run gives models of several full-precision losses, all of them with their rate run out; the mean of the last weights
of the constant phase (LAWA, arXiv:2306.03241) costs nothing more.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from benchmarks.dispersion.arms import AVERAGED, BATCH, CONFIG, DECAY, EVERY, UNIT, WARMUP, Arm
from benchmarks.dispersion.text import Texts
from edgekit.training.objective import Measure

Kind = Literal["decayed", "averaged"]
Named = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Twin:
    """A whole model of a run."""

    length: float
    """In UNITs."""
    kind: Kind
    steps: int
    """All that it has seen, those with a falling rate too."""
    module: Any


def fresh(seed: int) -> Any:
    """A new model: the seed makes its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).float()


@dataclass
class Run:
    """One arm with one seed; kept in `folder` behind each length, so that a killed run goes on there."""

    arm: Arm
    seed: int
    texts: Texts
    folder: Path
    tell: Callable[[int, int, Mapping[str, float]], None] = lambda _done, _all, _parts: None
    _window: deque[Named] = field(default_factory=lambda: deque(maxlen=AVERAGED))

    def twins(self) -> Iterator[Twin]:
        """Every model of the run, the shortest first."""
        model = fresh(self.seed)
        optimizer = _optimizer(model, self.arm.rate)
        done = self._restore(model, optimizer)
        stops = {round(length * UNIT): length for length in sorted({*self.arm.branches, *self.arm.averaged})}
        for step in range(done, max(stops)):
            rate = self.arm.rate * min(1.0, (step + 1) / (WARMUP * UNIT))
            self._step(model, optimizer, step, rate)
            if (step + 1) % round(EVERY * UNIT) == 0:
                self._window.append({name: value.detach().clone() for name, value in model.named_parameters()})
            if (length := stops.get(step + 1)) is not None:
                yield from self._ended(model, optimizer, step + 1, length)
                self._keep(model, optimizer, step + 1)

    def _ended(self, model: Any, optimizer: torch.optim.AdamW, done: int, length: float) -> Iterator[Twin]:
        if length in self.arm.branches:
            own = copy.deepcopy(model)
            other = _optimizer(own, self.arm.rate)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            count = round(DECAY * done)
            for number in range(count):
                self._step(own, other, done + number, self.arm.rate * (1 - (number + 1) / count))
            yield Twin(length, "decayed", done + count, own)
        if length in self.arm.averaged:
            own = copy.deepcopy(model)
            means = {name: torch.stack([each[name] for each in self._window]).mean(dim=0) for name in self._window[0]}
            own.load_state_dict(means, strict=False)
            own.tie_weights()
            yield Twin(length, "averaged", done, own)

    def _step(self, model: Any, optimizer: torch.optim.AdamW, step: int, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = torch.from_numpy(self.texts.batch(step, self.seed, BATCH))
        model.train()
        loss = Measure(self.arm.objective, None)(model, ids, torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            self.tell(step + 1, round(max(self.arm.branches) * UNIT), {k: float(v) for k, v in loss.parts.items()})

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.arm.name}-seed{self.seed}.safetensors"

    def _keep(self, model: Any, optimizer: torch.optim.AdamW, done: int) -> None:
        found: Named = {"done": torch.tensor(done)}
        for name, value in model.named_parameters():
            found[f"weights/{name}"] = value.detach()
            found |= {f"{key}/{name}": part for key, part in optimizer.state[value].items()}
        for number, weights in enumerate(self._window):
            found |= {f"window{number}/{name}": value for name, value in weights.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(found, self._file.with_suffix(".part"))
        self._file.with_suffix(".part").rename(self._file)

    def _restore(self, model: Any, optimizer: torch.optim.AdamW) -> int:
        """Go on behind the last length that was kept: the number of steps that are done."""
        if not self._file.is_file():
            return 0
        found = load_file(self._file)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(found[f"weights/{name}"])
                optimizer.state[value] = {key: found[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        names = [name for name, _ in model.named_parameters()]
        for number in range(AVERAGED):
            if f"window{number}/{names[0]}" in found:
                self._window.append({name: found[f"window{number}/{name}"] for name in names})
        return int(found["done"])


def _optimizer(model: Any, rate: float) -> torch.optim.AdamW:
    matrices = [value for value in model.parameters() if value.ndim > 1]
    rest = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
