"""From a model, a target and a number of bits to a plan: the target's preferences, in order, as far as shapes allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import OptionError
from edgekit.grids import get
from edgekit.grids.onnx import PORTABLE
from edgekit.options import Container
from edgekit.quantize.plan import Plan, make_plan
from edgekit.targets import Target

BITS = (3, 4, 8)
"""What --bits takes."""
_OWN = 3
"""Bits that stock onnxruntime has no operator for, and edgekit has."""


def choose(spec: Spec, target: Target, container: Container, bits: int, *, portable: bool = False) -> Plan:
    """The plan for one container; with `portable`, ONNX has stock onnxruntime's operators alone.

    Raises:
        OptionError: `bits` is not one of :data:`BITS`.
        GridError: none of the target's formats suits a tensor.
    """
    if bits not in BITS:
        raise OptionError(f"--bits is {bits}", expected=" or ".join(map(str, BITS)))
    return _gguf(spec, target, bits) if container == "gguf" else _onnx(spec, target, bits, portable)


def _gguf(spec: Spec, target: Target, bits: int) -> Plan:
    runtime = target.runtime.gguf

    def candidates(tensor: TensorSpec) -> Sequence[str]:
        table = runtime.prefer if tensor.rule.kind == "linear" else runtime.embedding_prefer
        return _by_bits(table, bits, target.name)

    def requested(tensor: TensorSpec) -> int:
        # The target's first choice for the embedding is policy, not a fallback.
        return bits if tensor.rule.kind == "linear" else get(candidates(tensor)[0]).nominal_bits

    return make_plan(spec, "gguf", bits, candidates, requested)


def _by_bits(table: dict[int, tuple[str, ...]], bits: int, target: str) -> tuple[str, ...]:
    if bits not in table:
        raise OptionError(
            f"target {target} names no GGUF type for {bits} bits",
            expected="one of " + ", ".join(map(str, sorted(table))),
            remedy="ask for those bits, or add a line to the target's [runtime.gguf.prefer]",
        )
    return table[bits]


def _onnx(spec: Spec, target: Target, bits: int, portable: bool) -> Plan:
    runtime = target.runtime.onnx
    embedding = 8 if bits == 8 else runtime.embedding_bits

    def requested(tensor: TensorSpec) -> int:
        return bits if tensor.rule.kind == "linear" else embedding

    def candidates(tensor: TensorSpec) -> Sequence[str]:
        name = f"int{requested(tensor)}-{'sym' if runtime.symmetric else 'asym'}-b"
        if requested(tensor) == _OWN:
            return (_three_bits(runtime.block_size, runtime.symmetric, portable),)
        if tensor.rule.kind != "embedding":
            return (f"{name}{runtime.block_size}",)
        # A lookup needs rows of whole blocks: smaller blocks fit more row lengths.
        return tuple(f"embed-{name}{size}" for size in (128, 64, 32) if size <= runtime.block_size)

    needed = {embedding} if bits == _OWN and not portable else {max(bits, 4), embedding}
    if missing := needed - set(runtime.bits):
        raise OptionError(
            f"target {target.name} lists no ONNX kernel for {min(missing)} bits",
            expected=f"one of {list(runtime.bits)}",
            remedy="ask for other bits, or build with --format gguf",
        )
    plan = make_plan(spec, "onnx", bits, candidates, requested)
    return replace(plan, accuracy_level=runtime.accuracy_level, session=tuple(sorted(runtime.session.items())))


def _three_bits(block: int, symmetric: bool, portable: bool) -> str:
    """Format of 3-bit codes: edgekit's operator has no zero points; there are blocks of 32 and 64."""
    size = 32 if block < 64 else 64
    return f"int3-{'sym' if symmetric or not portable else 'asym'}-b{size}{PORTABLE if portable else ''}"
