"""From what fires to connections, bytes, predicted time and predicted energy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from edgekit.checkpoint.spec import Spec
from edgekit.economy.record import Part
from edgekit.quantize.plan import Entry, Plan
from edgekit.quantize.predict import decode_speed, efficiency, streamed
from edgekit.targets import Target

Fired = Mapping[str, float]
"""Linear layer → share of its inputs that fire."""


def matrices(plan: Plan) -> list[Entry]:
    """What a token is multiplied by: linear layers and the head, which may be the embedding."""
    kinds = ("linear", "embedding" if plan.tied else "head")
    return [entry for entry in plan.entries if entry.tensor.rule.kind in kinds]


def linear(plan: Plan) -> list[Entry]:
    """The linear layers, whose inputs may be left out."""
    return [entry for entry in plan.entries if entry.tensor.rule.kind == "linear"]


def connections(entries: Sequence[Entry]) -> int:
    """Weights of the entries."""
    return sum(entry.tensor.parameters for entry in entries)


def share_fired(entries: Sequence[Entry], fired: Fired) -> float:
    """Share of the entries' connections that fire; what `fired` does not name does."""
    return sum(entry.tensor.parameters * fired.get(entry.tensor.hf, 1.0) for entry in entries) / connections(entries)


def unread(entries: Sequence[Entry], fired: Fired) -> float:
    """Bytes of the entries that belong to inputs that do not fire."""
    return sum(entry.loaded_nbytes * (1 - fired.get(entry.tensor.hf, 1.0)) for entry in entries)


def attention(spec: Spec, context: int) -> int:
    """Multiply-adds of a token's attention over `context` tokens: the scores, and the values that they weigh."""
    return 2 * spec.layers * spec.heads * spec.head_dim * context


def roles(plan: Plan, fired: Fired) -> tuple[Part, ...]:
    """What fires, by role."""
    names = dict.fromkeys(entry.tensor.role for entry in matrices(plan))
    return tuple(_part(name, [e for e in matrices(plan) if e.tensor.role == name], fired, None) for name in names)


def blocks(plan: Plan, fired: Fired, costs: Sequence[float]) -> tuple[Part, ...]:
    """What fires, by block; `costs` is what each costs alone, nats."""
    own = linear(plan)
    return tuple(
        _part(str(number), [entry for entry in own if entry.tensor.layer == number], fired, cost)
        for number, cost in enumerate(costs)
    )


def _part(name: str, entries: Sequence[Entry], fired: Fired, kl: float | None) -> Part:
    return Part(
        name=name, connections=connections(entries), fired=share_fired(entries, fired),
        nbytes=sum(entry.loaded_nbytes for entry in entries), kl=kl,
    )  # fmt: skip


def tokens_per_second(plan: Plan, target: Target, fired: Fired) -> float | None:
    """Predicted, without the bytes of what does not fire; None where the target file has no bandwidth."""
    saved = sum(
        entry.loaded_nbytes * (1 - fired.get(entry.tensor.hf, 1.0)) / efficiency(target, entry.grid)
        for entry in linear(plan)
    )
    return decode_speed(target, streamed(plan, target) - saved)


def millijoules(target: Target, speed: float | None) -> float | None:
    """Predicted energy of a token at that speed; None where it is unknown."""
    watts = published_watts(target)
    return None if watts is None or speed is None else 1000 * watts / speed


def published_watts(target: Target) -> float | None:
    """Power while decoding on the target, the median of what its file has published; None: it has nothing."""
    each = [
        anchor.mj_per_token / 1000 * anchor.tg_tok_s
        for anchor in target.anchors
        if anchor.mj_per_token is not None and anchor.tg_tok_s is not None
    ]
    return statistics.median(each) if each else None


def basis(target: Target) -> str:
    """What the predictions rest on, in words."""
    if target.memory.decode_gbps is None:
        return f"the file of {target.name} has no decode bandwidth: nothing is predicted"
    watts = published_watts(target)
    power = "no published energy" if watts is None else f"{watts:.1f} W while decoding, the median of published ones"
    return f"{target.memory.decode_gbps} GB/s ({target.memory.decode_basis} there), {power}"


def formats(plan: Plan) -> str:
    """Whose bytes are counted, in words."""
    named = ", ".join(name for name, _ in plan.shares(linear_only=True).most_common(3))
    head = next((entry.grid for entry in matrices(plan) if entry.tensor.rule.kind != "linear"), None)
    return f"{plan.container.upper()}, linear layers in {named}{f', head in {head}' if head else ''}"
