"""Survival curves that were measured once and come with edgekit: dense and dispersed twins, for `survive --demo`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec

from edgekit.dispersion.survival import Survival

__all__ = ["Recorded", "load"]
_FILE = "twins.json"


class Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Curves, and all that is needed to make them again."""

    schema_version: int = 1
    date: str
    """ISO 8601."""
    machine: str
    made_by: str
    """The command that measured the curves."""
    trained_by: str
    """The command that trained the models."""
    text_sha256: str
    """Of the file that both commands read."""
    versions: Mapping[str, str]
    words: str
    """What the models are, in one sentence."""
    curves: tuple[Survival, ...]

    @property
    def label(self) -> str:
        """For people: that nothing of this was measured where they read it, and what the curves do not show."""
        qualities = ", ".join(f"{curve.points[0].coherence.ppl_reference:.0f}" for curve in self.curves)
        return (
            f"Recorded on {self.date} ({self.machine}), not measured on this machine. {self.words} In full precision "
            f"their perplexities are {qualities}: a better model loses more by rounding, so that only a comparison at "
            f"equal quality tells what dispersion does (docs/experiments/dispersion.md). Made by {self.made_by}."
        )

    def figures(self) -> dict[str, Any]:
        """The record for programs, with its label."""
        return {"label": self.label, **msgspec.to_builtins(self)}


def load() -> Recorded:
    """The record that comes with edgekit; made by `benchmarks/dispersion/recorded.py`."""
    return msgspec.json.decode(files("edgekit.dispersion").joinpath(_FILE).read_bytes(), type=Recorded)
