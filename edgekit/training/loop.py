"""The training of a whole model, on Hugging Face's accelerate: any number of devices, and a run that can be killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgekit.engines.base import Ids
from edgekit.progress import Progress
from edgekit.training import schedule
from edgekit.training.averages import Average
from edgekit.training.corpus import Corpus
from edgekit.training.objective import Measure
from edgekit.training.passes import (
    fitting,
    has_bfloat16,
    judged,
    refuse_divergence,
    refuse_infinite,
    refuse_nan,
    without_dropout,
)
from edgekit.training.recipe import EndToEnd, Objective
from edgekit.training.record import HeldOut, Point
from edgekit.training.state import Going, Kept
from edgekit.training.student import Student

_TIMED = (2, 6)
"""Optimizer steps between which the pace is taken that turns minutes into steps: the first ones are slower."""
_KEEP_SECONDS = 300.0
_TELL_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What the loop did."""

    points: tuple[Point, ...]
    held_out: tuple[HeldOut, ...]
    averaged: int
    """Weights that the result is the mean of."""
    devices: int
    earlier: float
    """Seconds of the optimizer steps of runs that were interrupted."""


@dataclass(frozen=True)
class Job:
    """Everything that a training needs."""

    student: Student
    parent: Any | None
    """The full-precision model, for distillation and judging; None: there is none."""
    objective: Objective
    text: Corpus
    held: Sequence[Ids]
    """Sequences that are judged on at the beginning and the end."""
    end: EndToEnd
    seed: int
    kept: Kept
    progress: Progress
    first: int = 0
    """Index of the first sequence that is read: those before it, blocks have been trained on."""
    snapshot: Callable[[int], None] = lambda _step: None
    """Writes the weights as they are after so many steps, see `keep_every`."""


def train(job: Job) -> Outcome:
    """Train to the end, or on from what an interrupted run kept; the student's module then has the result.

    Raises:
        TrainingError: the loss is NaN or infinite (says which part), or diverges; what was kept last stays.
        OutOfMemoryError: says the batch that fits.
        CorruptCheckpointError: what an interrupted run kept cannot be read.
    """
    torch.manual_seed(job.seed)
    run = _Run(job)
    average = Average(job.end, job.kept.snapshots())
    going = job.kept.restore(run.accelerator, average)
    earlier = going.seconds
    if not going.held_out:
        going.held_out.append(run.judged(going.step))
    run.descend(average, going)
    run.accelerator.wait_for_everyone()
    mean, averaged = average.mean(going.step)
    with torch.no_grad():
        for name, parameter in job.student.learning().items():
            if name in mean:
                parameter.copy_(mean[name])
    going.held_out.append(run.judged(going.step))
    refuse_nan({"held-out text": going.held_out[-1].cross_entropy}, going.step)
    devices = run.accelerator.num_processes
    run.accelerator.wait_for_everyone()
    return Outcome(tuple(going.points), tuple(going.held_out), averaged, devices, earlier)


class _Run:
    """The job on its devices."""

    def __init__(self, job: Job) -> None:
        from accelerate import Accelerator

        self._job, self.accelerator = job, Accelerator()
        without_dropout(job.student.module)
        self._measure = Measure(job.objective, job.parent, half=has_bfloat16())
        if job.end.gradient_checkpointing:
            job.student.module.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(job.student.groups, betas=(0.9, 0.95))
        self._model, self._optimizer = self.accelerator.prepare(job.student.module, optimizer)
        if job.parent is not None:
            job.parent.to(self.accelerator.device)
        self._each = job.end.batch * self.accelerator.num_processes
        """Sequences of a pass on all devices."""

    def judged(self, step: int) -> HeldOut:
        """On held-out text."""
        with self._job.progress.step(f"held-out text after {step} steps"):
            return judged(self._model, self._job.parent, self._job.held, step)

    def descend(self, average: Average, going: Going) -> None:
        """Optimizer steps to the end."""
        job, kept, told = self._job, time.monotonic(), 0.0
        timed = job.end.minutes > 0 and not going.steps
        self._model.train()
        with job.progress.step("train the whole model") as advance:
            while going.step < self._steps(going):
                if timed and going.step == _TIMED[1]:  # another run would take another number of steps
                    self._keep(average, going)
                begin = time.monotonic()
                self._advance(going, average)
                going.seconds += time.monotonic() - begin
                going.points[-1] = _timed(going)
                advance(going.step, going.steps or going.step)
                self._snapshot(going.step)
                if time.monotonic() - told > _TELL_SECONDS and self.accelerator.is_main_process:
                    job.progress.note(_words(going))
                    told = time.monotonic()
                if self._any(time.monotonic() - kept > _KEEP_SECONDS):
                    self._keep(average, going)
                    kept = time.monotonic()
        self._keep(average, going)

    def _keep(self, average: Average, going: Going) -> None:
        """What is no number never takes the place of what was kept before."""
        refuse_infinite(self._job.student.learning(), going.step)
        self._job.kept.keep(self.accelerator, average, going)

    def _snapshot(self, step: int) -> None:
        every = self._job.end.keep_every
        if every and step % every == 0 and self.accelerator.is_main_process:
            refuse_infinite(self._job.student.learning(), step)
            self._job.snapshot(step)

    def _any(self, here: bool) -> bool:
        """Whether it holds in any process: all of them must do the same."""
        if self.accelerator.num_processes == 1:
            return here
        return self._mean(torch.tensor(float(here), device=self.accelerator.device)) > 0

    def _advance(self, going: Going, average: Average) -> None:
        """One optimizer step."""
        job = self._job
        # As long as the number of steps is not known, the rates stay where they begin.
        share = schedule.rate(job.end, going.step if going.steps else 0, going.steps or 20 * _TIMED[1])
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_rate"] * share
        self._optimizer.zero_grad(set_to_none=True)
        loss, parts = 0.0, dict[str, float]()
        for turn in range(job.end.accumulate):
            total, found = fitting(job.end.batch, self._pass(going.step, turn))
            loss += total / job.end.accumulate
            parts = {name: parts.get(name, 0.0) + part / job.end.accumulate for name, part in found.items()}
        if job.end.clip and not job.student.on_grid:
            self.accelerator.clip_grad_norm_(self._model.parameters(), job.end.clip)
        self._optimizer.step()
        going.step += 1
        going.tokens += self._each * job.end.accumulate * job.text.length
        going.points.append(
            Point(step=going.step, tokens=going.tokens, seconds=0.0, rate=share, loss=loss, parts=parts)
        )
        refuse_divergence(going.points)
        if self.accelerator.is_main_process:
            average.add(going.step, job.student.learning())

    def _pass(self, step: int, turn: int) -> Callable[[int], tuple[float, dict[str, float]]]:
        job, share = self._job, self._job.end.accumulate

        def run(batch: int) -> tuple[float, dict[str, float]]:
            generator = torch.Generator().manual_seed((job.seed << 20) + step * share + turn)
            loss = self._measure(self._model, self._batch(step * share + turn, batch), generator)
            found = {name: self._mean(part) for name, part in loss.parts.items()}
            refuse_nan(found, step)
            self.accelerator.backward(loss.total / share)
            return self._mean(loss.total.detach()), found

        return run

    def _batch(self, number: int, size: int) -> torch.Tensor:
        """Sequences of the pass of that number that are for this device."""
        first = self._job.first + number * self._each + self.accelerator.process_index * self._job.end.batch
        text = self._job.text
        rows = [text.sequence(text.order(first + index, self._job.seed)) for index in range(size)]
        return torch.from_numpy(np.stack(rows)).to(self.accelerator.device)

    def _mean(self, value: torch.Tensor) -> float:
        return float(self.accelerator.gather(value.reshape(1)).mean())

    def _steps(self, going: Going) -> int:
        """All steps of this training; those of a limit of minutes are fixed once the first ones have been timed."""
        if going.steps:
            return going.steps
        end = self._job.end
        per_step = self._each * end.accumulate * self._job.text.length
        limits = [limit for limit in (end.steps, math.ceil(end.tokens / per_step)) if limit]
        if end.minutes and going.step < _TIMED[1]:
            return min([*limits, _TIMED[1]])
        if end.minutes:
            first, last = (going.points[at - 1].seconds for at in _TIMED)
            pace = torch.tensor((last - first) / (_TIMED[1] - _TIMED[0]), device=self.accelerator.device)
            limits.append(max(_TIMED[1], int(60 * end.minutes / max(self._mean(pace), 1e-6))))
        going.steps = min(limits)
        return going.steps


def _timed(going: Going) -> Point:
    import msgspec

    return msgspec.structs.replace(going.points[-1], seconds=going.seconds)


def _words(going: Going) -> str:
    point = going.points[-1]
    parts = ", ".join(f"{name} {value:.4g}" for name, value in point.parts.items())
    left = (
        f", about {(going.steps - going.step) * going.seconds / going.step / 60:.0f} minutes left"
        if going.steps
        else ""
    )
    return (
        f"step {going.step}{f' of {going.steps}' if going.steps else ''}: {parts}; "
        f"{going.tokens / max(going.seconds, 1e-9):.0f} tokens/s{left}"
    )
