"""What a file holds beside the planned tensors, found out before it is written."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.spec import Spec
from edgekit.export.gguf import write_gguf
from edgekit.export.onnx_decoder import positions
from edgekit.quantize.plan import Plan

_ALIGNMENT = {"gguf": 32, "onnx": 64}
_NODE_BYTES = 1024
"""Of an ONNX graph for each tensor, nodes and names included: generous."""


def overhead(checkpoint: Checkpoint, plan: Plan) -> int:
    """Bytes of the artefact's files beside the tensors of `plan`, rarely less than they turn out to be.

    For GGUF a file with a single tensor is written, so that vocabulary and metadata are counted and not guessed; for
    ONNX the tables of rotary positions are counted and the graph is estimated.

    Raises:
        TokenizerError: the tokenizer cannot be expressed in GGUF.
    """
    beside = _gguf(checkpoint, plan) if plan.container == "gguf" else _onnx(checkpoint.spec, plan)
    return beside + _ALIGNMENT[plan.container] * len(plan.entries)


def _gguf(checkpoint: Checkpoint, plan: Plan) -> int:
    linear = [entry for entry in plan.entries if entry.tensor.rule.kind == "linear"]
    smallest = min(linear, key=lambda entry: entry.nbytes)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(checkpoint, replace(plan, entries=(smallest,)), path)
        size = path.stat().st_size
    # Of every tensor: length and text of its name, number of dimensions, dimensions, type, place.
    infos = sum(8 + len(e.tensor.gguf.encode()) + 4 + 8 * len(e.tensor.shape) + 4 + 8 for e in plan.entries)
    return size - smallest.nbytes + infos


def _onnx(spec: Spec, plan: Plan) -> int:
    ropes = {rope for layer in range(spec.layers) if (rope := spec.layer_rope(layer)) is not None}
    tables = len(ropes) * positions(spec) * spec.head_dim * 4  # cosine and sine of half the head each
    return tables + _NODE_BYTES * len(plan.entries)
