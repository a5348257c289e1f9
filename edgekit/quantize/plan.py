"""Which tensor gets which grid, what that costs, and what it promises. A plan is made before anything is built."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import GridError, StrictError
from edgekit.grids import get, loaded_nbytes
from edgekit.grids.threebit import ThreeBitGrid
from edgekit.options import Container


@dataclass(frozen=True)
class Entry:
    """One tensor's place in the plan."""

    tensor: TensorSpec
    requested_bits: int
    """What was asked for this tensor; 32 for norms."""
    grid: str
    nbytes: int
    reason: str = ""
    """Why the grid is not of the requested bits; empty when it is."""
    threshold: float = 0.0
    """Inputs of smaller magnitude count as zero, and their weights are not read; only a sparse grid takes one."""

    @property
    def bits(self) -> float:
        """Bits per weight in the file, scales included."""
        return 8 * self.nbytes / self.tensor.parameters

    @property
    def loaded_nbytes(self) -> int:
        """Bytes once an engine has loaded it: onnxruntime's operators widen scales."""
        rows, *columns = self.tensor.shape
        return loaded_nbytes(self.grid, (rows, columns[0])) if self.tensor.rule.matrix else self.nbytes


@dataclass(frozen=True)
class Plan:
    """A whole model in one container."""

    container: Container
    bits: int
    entries: tuple[Entry, ...]
    accuracy_level: int = 4
    """MatMulNBits only: what it computes with, 4 for int8 activations (see the operator's documentation)."""
    session: tuple[tuple[str, str], ...] = ()
    """Configuration entries of ONNX Runtime's session that the artefact is to be run with."""
    budget: str = ""
    """The limit that the grids were chosen under, in words; "" when they were chosen by `bits`."""
    predicted_kl: float | None = None
    """Mean KL divergence, nats, that the sensitivity map promises; None without one."""
    map_sha256: str = ""
    """Digest of that map."""
    gap: float = 0.0
    """How far the choice may be from the best one, relative; 0: it is the best."""
    active: float | None = None
    """Share of the linear layers' connections that fire on calibration text; None: all, inputs have no thresholds."""

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    @cached_property
    def loaded_nbytes(self) -> int:
        """Bytes of all tensors once an engine has loaded them, before it rearranges them."""
        return sum(entry.loaded_nbytes for entry in self.entries)

    @property
    def effective_bits(self) -> float:
        """Bits per weight over all tensors, embedding, head, norms and scales included."""
        return 8 * self.nbytes / sum(entry.tensor.parameters for entry in self.entries)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads: everything, but of an untied embedding only one row."""
        return sum(read_per_token(self, entry) for entry in self.entries)

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding is the head, too."""
        return not any(entry.tensor.rule.kind == "head" for entry in self.entries)

    @property
    def own_operators(self) -> tuple[Entry, ...]:
        """Matrices that only edgekit's own operators of ONNX Runtime read."""
        return tuple(e for e in self.entries if e.tensor.rule.matrix and isinstance(get(e.grid), ThreeBitGrid))

    @property
    def main_grid(self) -> str:
        """The grid that holds most bytes of the linear layers."""
        return self.shares(linear_only=True).most_common(1)[0][0]

    def shares(self, *, linear_only: bool = False) -> Counter[str]:
        """Bytes by grid."""
        count: Counter[str] = Counter()
        for entry in self.entries:
            if not linear_only or entry.tensor.rule.kind == "linear":
                count[entry.grid] += entry.nbytes
        return count

    @property
    def honest_share(self) -> float:
        """Share (0 to 1) of the linear layers' weights whose codes have at most the requested bits."""
        linear = [entry for entry in self.entries if entry.tensor.rule.kind == "linear"]
        kept = sum(e.tensor.parameters for e in linear if get(e.grid).nominal_bits <= self.bits)
        return kept / sum(e.tensor.parameters for e in linear)

    def title(self, file_bits: float | None = None) -> str:
        """One sentence for the head of a report; never calls a model what its bytes are not.

        Args:
            file_bits: bits per weight counted from a written file; None: of the planned tensors.
        """
        if self.budget:
            text = f"{self.budget} requested, {file_bits or self.effective_bits:.2f} bits per weight in the file"
            return text + self._fires
        text = f"{self.bits} bits requested, {file_bits or self.effective_bits:.2f} bits per weight in the file"
        if self.honest_share < 1:
            text += (
                f"; only {math.floor(100 * self.honest_share)}% of the linear weights are in {self.bits}-bit codes: "
            )
            text += f"not a {self.bits}-bit model"
        elif any(get(e.grid).stored_bits > get(e.grid).nominal_bits for e in self.entries):
            text += f"; portable: its {self.bits}-bit codes are stored in 4 bits each: 3-bit quality at 4-bit size"
        return text + self._fires

    @property
    def _fires(self) -> str:
        return "" if self.active is None else f"; {self.active:.0%} of the linear layers' connections are to fire"


def read_per_token(plan: Plan, entry: Entry) -> int:
    """Bytes of a tensor that decoding one token reads: all, but of an untied embedding next to nothing."""
    return 0 if entry.tensor.rule.kind == "embedding" and not plan.tied else entry.loaded_nbytes


def _first_fitting(candidates: Sequence[str], tensor: TensorSpec, bits: int) -> tuple[str, str]:
    shape = (tensor.shape[0], tensor.shape[1])
    refusals: list[str] = []
    for name in candidates:
        refusal = get(name).refusal(shape)
        if refusal is None:
            wrong = get(name).nominal_bits != bits
            return name, ("; ".join(refusals) or f"the target asks for {name}") if wrong else ""
        refusals.append(f"{name}: {refusal}")
    raise GridError(
        f"tensor {tensor.hf} takes none of {', '.join(candidates)} ({refusals[-1]})",
        remedy="add a format with blocks of 32 to the target's preferences",
    )


def _entry(tensor: TensorSpec, bits: int, candidates: Sequence[str]) -> Entry:
    grid, reason = _first_fitting(candidates, tensor, bits)
    return Entry(tensor, bits, grid, get(grid).nbytes((tensor.shape[0], tensor.shape[1])), reason)


def kept(tensor: TensorSpec) -> Entry:
    """A norm's or bias's place: float32, always."""
    return Entry(tensor, 32, "F32", 4 * tensor.parameters)


def make_plan(
    spec: Spec,
    container: Container,
    bits: int,
    candidates: Callable[[TensorSpec], Sequence[str]],
    requested: Callable[[TensorSpec], int],
) -> Plan:
    """Assign to each matrix the first candidate grid that its shape allows.

    Args:
        spec: the model.
        container: "gguf" or "onnx".
        bits: what the user asked for.
        candidates: grid names for a matrix, best first.
        requested: bits asked for that matrix (the embedding may differ from the rest).

    Raises:
        GridError: no candidate suits a tensor.
    """
    entries = [
        _entry(tensor, requested(tensor), candidates(tensor)) if tensor.rule.matrix else kept(tensor)
        for tensor in spec.tensors
    ]
    if container == "onnx":
        entries = _same_in_fused(spec, entries)
    return Plan(container, bits, tuple(entries))


def _same_in_fused(spec: Spec, entries: list[Entry]) -> list[Entry]:
    """Projections that the graph fuses into one node must share a grid: all take the widest one chosen."""
    groups: Mapping[str, tuple[str, ...]] = spec.family.fused
    changed = list(entries)
    for roles in groups.values():
        for layer in range(spec.layers):
            places = [i for i, e in enumerate(changed) if e.tensor.layer == layer and e.tensor.role in roles]
            widest = max((changed[i] for i in places), key=lambda e: e.bits, default=None)
            if widest is None:
                continue
            for i in places:
                tensor = changed[i].tensor
                size = get(widest.grid).nbytes((tensor.shape[0], tensor.shape[1]))
                reason = changed[i].reason if changed[i].grid == widest.grid else f"fused with {widest.tensor.role}"
                changed[i] = Entry(tensor, changed[i].requested_bits, widest.grid, size, reason)
    return changed


def full_precision_plan(spec: Spec, container: Container) -> Plan:
    """Every matrix in F16 (GGUF) or F32 (ONNX): the export that must equal the original."""
    grid, size = ("F16", 2) if container == "gguf" else ("F32", 4)
    entries = tuple(Entry(t, 8 * size, grid, size * t.parameters) if t.rule.matrix else kept(t) for t in spec.tensors)
    return Plan(container, 8 * size, entries)


def refuse_fallbacks(plan: Plan) -> None:
    """--strict: refuse a plan in which a linear layer did not get the requested bits.

    The embedding's bits are the target's policy, not a fallback.

    Raises:
        StrictError: names the first layer, why, and what it would become.
    """
    linear = [entry for entry in plan.entries if entry.tensor.rule.kind == "linear"]
    fallen = [entry for entry in linear if entry.reason]
    if fallen:
        first = fallen[0]
        raise StrictError(
            f"{len(fallen)} of {len(linear)} linear layers cannot take {plan.bits} bits in {plan.container}, "
            f"the first is {first.tensor.hf} {list(first.tensor.shape)}: {first.reason}; it would become {first.grid}",
            expected=f"{plan.bits}-bit codes everywhere",
            remedy="drop --strict to accept the named formats, or ask for 4 bits",
        )
    stored = [e for e in linear if get(e.grid).stored_bits > get(e.grid).nominal_bits]
    if stored:
        raise StrictError(
            f"{len(stored)} linear layers would keep {plan.bits}-bit codes in 4 bits each, since stock onnxruntime has "
            f"no {plan.bits}-bit kernel",
            expected=f"{plan.bits} bits in the file",
            remedy="drop --strict or --portable, or ask for 4 bits",
        )
