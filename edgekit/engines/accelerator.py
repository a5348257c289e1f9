"""Whether a model file belongs to a bundle whose engines were made for a GPU: then no engine may leave it out."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import MANIFEST
from edgekit.bundle.paths import read_bounded
from edgekit.errors import BundleError

_RECORD = "runtime/runtime.json"
_MAX_BYTES = 1 << 20
_LEVELS = 3
"""How far above a model file its bundle's folder may be."""


class _Runtime(msgspec.Struct, frozen=True):
    """Of runtime.json, what is asked here."""

    machine: str
    accel: str = "none"


def needs_gpu(model: Path) -> bool:
    """Whether the bundle around a model file carries engines with CUDA for this kind of machine.

    On another kind of machine (the host that built the bundle) its engines cannot run; those that are installed there
    run the model on the CPU.

    Raises:
        BundleError: the record of the bundle's runtime cannot be read.
    """
    for root in model.absolute().parents[:_LEVELS]:
        if (root / MANIFEST).is_file():
            return (root / _RECORD).exists() and _made_for_this(root)
    return False


def _made_for_this(root: Path) -> bool:
    try:
        found = msgspec.json.decode(read_bounded(root, _RECORD, _MAX_BYTES), type=_Runtime)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{_RECORD} of the bundle cannot be read ({error})", remedy="get the bundle again") from error
    return found.accel != "none" and found.machine == platform.machine()
