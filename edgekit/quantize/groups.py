"""Groups of tensors that must share a number format in a container, and the formats that each may get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import GridError, OptionError
from edgekit.grids import get, loaded_nbytes
from edgekit.grids.threebit import ThreeBitGrid
from edgekit.options import Container
from edgekit.targets import Target

FORMATS: dict[Container, tuple[str, ...]] = {
    "gguf": ("IQ4_NL", "Q4_0", "Q3_K", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"),
    "onnx": tuple(f"int{bits}-{kind}-b{size}" for bits in (4, 8) for kind in ("sym", "asym") for size in (32, 64, 128)),
}
"""What a sensitivity map covers, whatever the target: a 4-bit format first, whose damage is measured."""


@dataclass(frozen=True)
class Group:
    """Matrices that get one grid together: alone in GGUF; what one node of the graph holds in ONNX."""

    tensors: tuple[TensorSpec, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Hugging Face names: what identifies the group."""
        return tuple(tensor.hf for tensor in self.tensors)

    @property
    def kind(self) -> str:
        """One of "linear", "embedding" (and the head, where they are tied) or "head"."""
        return self.tensors[0].rule.kind

    def fits(self, grid: str) -> bool:
        """Whether every tensor can take the grid."""
        return all(get(grid).refusal((t.shape[0], t.shape[1])) is None for t in self.tensors)

    def nbytes(self, grid: str) -> int:
        """Bytes of all its tensors in the grid."""
        return sum(get(grid).nbytes((t.shape[0], t.shape[1])) for t in self.tensors)

    def loaded_nbytes(self, grid: str) -> int:
        """Bytes of all its tensors in the grid, once an engine has loaded them."""
        return sum(loaded_nbytes(grid, (t.shape[0], t.shape[1])) for t in self.tensors)


def groups(spec: Spec, container: Container) -> list[Group]:
    """Every matrix of the model once, in the order of the checkpoint's first member."""
    fused = {role: name for name, roles in spec.family.fused.items() for role in roles} if container == "onnx" else {}
    found: dict[tuple[object, ...], list[TensorSpec]] = {}
    for tensor in spec.tensors:
        if tensor.rule.matrix:
            found.setdefault((tensor.layer, fused.get(tensor.role, tensor.hf)), []).append(tensor)
    return [Group(tuple(members)) for members in found.values()]


def fitting(group: Group, container: Container, formats: Sequence[str]) -> tuple[str, ...]:
    """Those of `formats` that the group can take, by their own names: an ONNX embedding's are called "embed-…".

    Raises:
        GridError: there is none; or a name is unknown, or of another container.
    """
    lookup = container == "onnx" and group.kind == "embedding"
    names = tuple(f"embed-{name}" if lookup else name for name in dict.fromkeys(formats))
    for name in names:
        if get(name).container != container:
            raise GridError(f"{name} is a format of {get(name).container}", expected=f"one of {container}")
    if found := tuple(name for name in names if group.fits(name)):
        return found
    rows = group.tensors[0].shape[1]
    raise GridError(
        f"tensor {group.names[0]} with rows of {rows} takes none of {', '.join(names)}",
        remedy="add a format with blocks of 32 to the target's fast ones",
    )


def fast_formats(target: Target, container: Container) -> tuple[str, ...]:
    """What the target's file says that its engine runs fast.

    Raises:
        OptionError: it names none.
    """
    found: tuple[str, ...] = target.runtime.gguf.fast
    if container == "onnx":
        found = tuple(_of_bits(target.runtime.onnx.fast, target.runtime.onnx.bits))
    if not found:
        raise OptionError(
            f"target {target.name} names no format that {container} runs fast",
            expected=f"runtime.{container}.fast in its file",
            remedy="inherit from a shipped target, or ask for --bits 4",
        )
    return found


def stock(target: Target) -> Target:
    """The target without the formats of edgekit's own operators: what --portable leaves to choose from."""
    onnx = target.runtime.onnx
    kept = tuple(name for name in onnx.fast if not isinstance(get(name), ThreeBitGrid))
    runtime = msgspec.structs.replace(target.runtime, onnx=msgspec.structs.replace(onnx, fast=kept))
    return msgspec.structs.replace(target, runtime=runtime)


def _of_bits(names: Sequence[str], bits: Sequence[int]) -> Iterator[str]:
    """What onnxruntime has kernels for here, as `bits` says; edgekit brings those of its own operators."""
    return (name for name in names if get(name).stored_bits in bits or isinstance(get(name), ThreeBitGrid))
