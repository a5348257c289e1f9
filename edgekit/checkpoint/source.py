"""What a user may call a model: nothing (the demo) or a local folder."""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.demo import demo_checkpoint


def resolve(model: str | None) -> Checkpoint:
    """The checkpoint that MODEL names; without one, or for "demo", the embedded default.

    Raises:
        InputNotFoundError, UnsafeCheckpointError, CorruptCheckpointError, UnknownArchitectureError: as
            open_checkpoint.
        MissingDependencyError: the demo is asked for but not installed.
    """
    if model in (None, "demo"):
        return demo_checkpoint()
    return open_checkpoint(Path(str(model)))
