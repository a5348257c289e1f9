"""How much each layer leaves out, so that the whole loses least: as a plan under a budget chooses formats.

What inputs a layer leaves out changes its output by W Δx, and KL divergence is of second order in that. So one
measured point of a site (a layer's input, which several matrices may share) gives all others, in proportion to the
energy that is left out; and the damages of sites are added up. The choice is a multiple-choice knapsack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgekit.quantize.budget import Choice, least_damage, tabulate

LEVELS = tuple(step / 20 for step in range(20))
"""Shares of its inputs that a site may leave out."""
ANCHOR = 0.4
"""The level at which a site's damage is measured: large enough to be told from rounding errors."""


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input, and the matrices that read it."""

    weights: tuple[str, ...]
    """Parameter names."""
    connections: int
    """Weights of all of them."""
    kl: float
    """Measured divergence of the model with only this site at :data:`ANCHOR`, nats."""
    energies: tuple[float, ...]
    """Share of the inputs' squares that each of :data:`LEVELS` leaves out."""

    def damage(self, level: int) -> float:
        """Predicted divergence at a level, nats."""
        anchor = self.energies[LEVELS.index(ANCHOR)]
        return self.kl * self.energies[level] / anchor if anchor > 0 else 0.0


class Allotment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A level for every linear layer."""

    levels: dict[str, int]
    """Parameter name → index into :data:`LEVELS`."""
    predicted_kl: float
    """Sum of the sites' damages, nats."""


def allot(sites: Sequence[Site], shares: Sequence[float]) -> dict[float, Allotment]:
    """For each share of all connections the levels that leave out at least it and are predicted to cost least.

    Args:
        sites: all of a model.
        shares: 0 to the largest level.
    """
    if not sites:
        return {share: Allotment(levels={}, predicted_kl=0.0) for share in shares}
    table = tabulate([list(_choices(site)) for site in sites])
    whole = sum(site.connections for site in sites)
    return {share: _allotted(sites, least_damage(table, round(whole * (1 - share))).picks) for share in shares}


def _choices(site: Site) -> Sequence[Choice]:
    return [
        Choice(site.damage(index), round(site.connections * (1 - level))) for index, level in enumerate(LEVELS)
    ]  # fmt: skip


def _allotted(sites: Sequence[Site], picks: Sequence[int]) -> Allotment:
    levels: Mapping[str, int] = {
        name: pick for site, pick in zip(sites, picks, strict=True) for name in site.weights
    }  # fmt: skip
    predicted = sum(site.damage(pick) for site, pick in zip(sites, picks, strict=True))
    return Allotment(levels=dict(levels), predicted_kl=predicted)
