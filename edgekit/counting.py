"""Whose bytes are counted: the formats of a bundle's file, or those that a build would choose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bench.result import BenchResult
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.manifest import MANIFEST, Artefact
from edgekit.bundle.target import bundle_target
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.economy.record import Decoded
from edgekit.errors import BundleError, GridError, OptionError
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.budgeted import plan_of_grids
from edgekit.quantize.choose import choose
from edgekit.quantize.plan import Plan
from edgekit.targets import Target


@dataclass(frozen=True)
class Counted:
    """A model, and the bundle's artefact that it is."""

    path: str | Path | None
    """What :func:`edgekit.checkpoint.source.resolve` takes."""
    artefact: Artefact | None = None
    target: Target | None = None
    """That the bundle was made for."""

    def plan(self, checkpoint: Checkpoint, target: Target, container: Container, bits: int, grid: str | None) -> Plan:
        """Format of every matrix.

        Args:
            checkpoint: the opened model.
            target: chooses the formats that are not given.
            container: of these.
            bits: of these.
            grid: of the linear layers; None: as the target chooses, or as the bundle has them.

        Raises:
            OptionError: a bundle, whose formats are known, and a grid.
            BundleError: the manifest names other tensors than the model has, or a format that there is not.
            GridError: a matrix does not fit the grid; edgekit knows none of that name.
        """
        if self.artefact is not None:
            if grid is not None:
                raise OptionError(
                    f"{grid} is asked for, but {self.path} has formats of its own",
                    remedy="leave --grids out, or give the model that the bundle was made from",
                )
            return _listed(self.artefact, checkpoint, target)
        if grid is None:
            return choose(checkpoint.spec, target, container, bits)
        own = get(grid)
        for tensor in checkpoint.spec.tensors:
            if tensor.rule.kind == "linear" and (refusal := own.refusal((tensor.shape[0], tensor.shape[1]))):
                raise GridError(f"{grid} does not fit {tensor.hf}: {refusal}", remedy="name another format")
        plan = choose(checkpoint.spec, target, "onnx" if own.container == "onnx" else "gguf", bits)
        entries = (
            replace(entry, grid=grid, nbytes=own.nbytes((entry.tensor.shape[0], entry.tensor.shape[1])))
            if entry.tensor.rule.kind == "linear" else entry
            for entry in plan.entries
        )  # fmt: skip
        return replace(plan, entries=tuple(entries))


def counted(model: str | Path | None) -> Counted:
    """The model, or where it is a bundle its GGUF file, checked against its checksums.

    Raises:
        BundleError: the bundle is damaged, or has no GGUF file.
        EdgekitError: its target is not known here, see :func:`edgekit.bundle.target.bundle_target`.
    """
    if model is None or not (Path(model) / MANIFEST).is_file():
        return Counted(model)
    bundle = open_bundle(Path(model))
    for artefact in bundle.manifest.artefacts:
        if artefact.format == "gguf":
            return Counted(bundle.root / artefact.path, artefact, bundle_target(bundle))
    raise BundleError(
        f"the bundle {bundle.root} has no GGUF file",
        expected="one to read the weights from",
        remedy="give the model that it was made from, and its format with --grids",
    )


def decoded(found: BenchResult, container: Container) -> Decoded:
    """What a result of `edgekit bench` says of decoding in the container's engine.

    Args:
        found: the result.
        container: whose engine.

    Raises:
        OptionError: it was emulated, or nothing was decoded in that engine.
    """
    if found.measured_on != "measured":
        raise OptionError(
            f"the measurement of {found.bundle.name} is of an emulated board, which has neither speed nor energy",
            expected="a result of a board",
        )
    for run in found.runs:
        if run.format == container and (decode := run.decode) is not None:
            energy = None if decode.energy is None else decode.energy.quantity.value
            return Decoded(
                bundle=found.bundle.name, device=found.target.title, millijoules=energy,
                tokens_per_second=decode.speed.quantity.value,
            )  # fmt: skip
    raise OptionError(
        f"the measurement of {found.bundle.name} has no decoding of {container}",
        expected="a result of a protocol that decodes, in that format",
    )


def _listed(artefact: Artefact, checkpoint: Checkpoint, target: Target) -> Plan:
    matrices = {tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.matrix}
    listed = {entry.tensor: entry.grid for entry in artefact.plan if entry.tensor in matrices}
    if listed.keys() != matrices:
        missing = min(matrices - listed.keys())
        raise BundleError(f"the manifest does not list {missing}", remedy="get the bundle again from who built it")
    try:
        return plan_of_grids(checkpoint.spec, target, artefact.format, listed)
    except GridError as error:
        raise BundleError(f"the manifest names formats that do not fit: {error.found}") from error
