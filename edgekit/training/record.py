"""What a training was, for people and programs: the run card's content."""

from __future__ import annotations

import msgspec

from edgekit.training.recipe import Recipe

RUN = "edgekit/run.json"
"""In the trained model's folder."""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that took part."""

    name: str
    sha256: str
    """Of its weights, see :attr:`edgekit.checkpoint.checkpoint.Checkpoint.sha256`."""


class Scratch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that began with random weights."""

    name: str
    """Of its configuration."""
    architecture: str
    parameters: int
    seed: int
    """Of its first weights."""
    sha256: str
    """Of its first weights, as :attr:`Model.sha256`."""


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained on."""

    sources: tuple[str, ...]
    """File names, without folders."""
    sha256: str
    """Of the token ids, 4 bytes each, little-endian."""
    tokens: int
    """Of the whole text, held-out ones included."""
    held_out: int
    """Tokens at its end that were never trained on."""


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block's training."""

    layer: int
    before: float
    """Mean error of a token's output, relative to its size, as the block was rounded at first, on its training text."""
    after: float


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One optimizer step."""

    step: int
    tokens: int
    """So far."""
    seconds: float
    """So far, of all runs that were needed."""
    rate: float
    """Share of the full learning rates."""
    loss: float
    parts: dict[str, float]
    """"cross_entropy", "distillation", "dispersion": before their weights; only what was computed."""


class HeldOut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On held-out text, nats per token."""

    step: int
    divergence: float | None = msgspec.field(name="kl", default=None)
    """KL(parent ‖ model); None: there is no parent."""
    cross_entropy: float

    @property
    def kl(self) -> float:
        """KL(parent ‖ model).

        Raises:
            ValueError: there is no parent.
        """
        if self.divergence is None:
            raise ValueError("a model that is trained from scratch has no parent to differ from")
        return self.divergence


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole training."""

    parent: Model | None = None
    """None: trained from scratch."""
    scratch: Scratch | None = None
    recipe: Recipe
    name: str
    """Of the recipe; "" where it has none."""
    text: Text
    grids: dict[str, int]
    """Number format → matrices on it."""
    blocks: tuple[Block, ...]
    points: tuple[Point, ...]
    held_out: tuple[HeldOut, ...]
    """First before any training (on a grid: rounded to nearest), then as the whole model's begins, last the result."""
    seconds: float
    """Of the run that ended it, and of the optimizer steps of those that were interrupted."""
    versions: dict[str, str]
    machine: str
    devices: int
    averaged: int
    """Weights that the result is the mean of; 1 without averaging."""

    @property
    def subject(self) -> str:
        """Name of the model that was trained on, or of the configuration."""
        known = self.parent or self.scratch
        return known.name if known else ""

    @property
    def beginning(self) -> str:
        """Of a training from scratch, in words; "" of any other."""
        return f"trained from scratch, random initialisation seed {self.scratch.seed}" if self.scratch else ""
