"""Several processes that `accelerate launch` has started for one training."""

from __future__ import annotations

from contextlib import AbstractContextManager


def first_process() -> bool:
    """Whether this process writes and talks; a process that nobody else was started with does."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def count() -> int:
    """All of them."""
    from accelerate import PartialState

    return int(PartialState().num_processes)


def one_after_the_other() -> AbstractContextManager[None]:
    """The first process first; what it has made is there for the others, who then make nothing."""
    from accelerate import PartialState

    found: AbstractContextManager[None] = PartialState().main_process_first()
    return found
