"""edgekit: quantize a small language model, ship it to a board, prove that it still speaks sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.api import build, open_bundle

__version__ = "0.1.0"
__all__ = ["__version__", "build", "open_bundle"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is used: the command line and a board need less."""
    if name in ("build", "open_bundle"):
        from edgekit import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
