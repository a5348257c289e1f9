"""Several processes that `accelerate launch` has started for one training."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def first_process() -> bool:
    """Whether this process writes and talks; a process that nobody else was started with does."""
    return bool(_state().is_main_process)


def count() -> int:
    """All of them."""
    return int(_state().num_processes)


def one_after_the_other() -> AbstractContextManager[None]:
    """The first process first; what it has made is there for the others, who then make nothing."""
    found: AbstractContextManager[None] = _state().main_process_first()
    return found


def _state() -> Any:
    import torch
    from accelerate import PartialState

    # Without being told, accelerate takes several processes on a CPU for as many trainings.
    return PartialState(cpu=not torch.accelerator.is_available())
