"""What was counted and measured of one model's economy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
"""Of the linear layers' connections that are left out."""
MAX_KL = 0.03
"""Nats that leaving out may cost."""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model with a share of every linear layer's inputs left out."""

    asked: float
    """Share of the linear layers' connections that was to be left out, on the calibration text."""
    skipped: float
    """Share of the linear layers' connections that did not fire, counted on the evaluation text."""
    predicted_kl: float | None = None
    """What the sum over sites said of it, nats; None where every layer leaves out the same share."""
    kl_mean: float
    """From the full-precision reference, nats."""
    kl_low: float | None
    """Of the bootstrap 95 % interval over sequences; None for a single sequence."""
    kl_high: float | None
    same_top: float
    ppl_ratio: float
    unread: int
    """Bytes that a token would not read where each input's weights lie together."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A role, or a block, at the point that was chosen."""

    name: str
    connections: int
    """Weights that a token is multiplied by."""
    fired: float
    """Share of them whose input fires."""
    nbytes: int
    """Of these weights in the file."""
    kl: float | None = None
    """Of the model with nothing else left out, from the same model whole, nats; None: not measured."""


class Decoded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `edgekit bench` measured of decoding, everything read."""

    bundle: str
    device: str
    tokens_per_second: float
    millijoules: float | None
    """Of a token; None: the board has no sensor."""


class Economy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model."""

    schema_version: int = 1
    model: str
    model_sha256: str
    reference: str
    """Whose full-precision answers it is compared with."""
    weights: str
    """Format of the linear layers that was computed with, "" as the model has them."""
    text: str
    """What it was judged on, in words."""
    formats: str
    """Whose bytes are counted, in words."""
    target: str
    connections: int
    """Weights that a token is multiplied by, head included."""
    linear: int
    """Those of the linear layers: what may be left out."""
    multiply_adds: int
    """The connections, and attention over `context` tokens."""
    context: int
    bytes_per_token: int
    """Weights that decoding one token reads, as :attr:`edgekit.quantize.plan.Plan.bytes_per_token`."""
    uniform: bool
    """Whether every layer leaves out the same share of its inputs; otherwise those that cost least."""
    points: tuple[Point, ...]
    max_kl: float
    """Nats by which leaving out may raise the divergence."""
    chosen: float
    """`asked` of the point that leaves out most within `max_kl`."""
    roles: tuple[Part, ...]
    """At that point."""
    blocks: tuple[Part, ...]
    """At that point, each with what it costs alone."""
    tokens_per_second: float | None
    """Predicted, everything read; None where the target file has no bandwidth."""
    tokens_per_second_chosen: float | None
    """Predicted, without what does not fire at the chosen point."""
    millijoules: float | None
    """Predicted for a token, everything read; None where the target file has no published energy."""
    millijoules_chosen: float | None
    basis: str
    """What the predictions rest on."""
    measured: Decoded | None = None
    """None: no measurement was given."""

    @property
    def best(self) -> Point:
        """The chosen point."""
        return next(point for point in self.points if point.asked == self.chosen)


def within(points: Sequence[Point], max_kl: float) -> Point:
    """The point that leaves out most among those whose divergence is at most `max_kl` above the first one's.

    Args:
        points: the first leaves nothing out.
        max_kl: nats.
    """
    limit = points[0].kl_mean + max_kl
    return max((point for point in points if point.kl_mean <= limit), key=lambda point: point.skipped)
