"""A checkpoint and a plan become an ONNX folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import ParityError
from edgekit.export.digests import Digests
from edgekit.export.genai_config import genai_config
from edgekit.export.onnx_decoder import Decoder
from edgekit.export.onnx_store import DATA, DataFile, Store
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Plan
from edgekit.quantize.rounded import Rounded

Tick = Callable[[str], None]
_NOTHING = Rounded()


def write_onnx(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    *,
    importance: Importance | None = None,
    rounded: Rounded = _NOTHING,
    tick: Tick = lambda _: None,
) -> Digests:
    """Write an ONNX folder: model.onnx, its data, genai_config.json and the tokenizer. Holds one node's matrices.

    Args:
        checkpoint: the full-precision model.
        plan: of container "onnx"; matrices of grid "F32" stay in full precision.
        folder: an existing, empty folder.
        importance: weighs the inputs of a layer when its codes are chosen; None: all the same.
        rounded: codes that are stored as they are.
        tick: called with the name of each node whose matrices are stored.

    Returns:
        For each matrix, the digest of the weights that its stored codes stand for; see edgekit.export.onnx_reading.

    Raises:
        ParityError: onnx.checker refuses the graph.
        BadWeightsError: a tensor holds NaN or infinity.
    """
    with (folder / DATA).open("wb") as stream:
        store = Store(checkpoint, importance or {}, rounded, DataFile(stream), {}, {})
        model = Decoder(checkpoint.spec, plan, store, tick).model()
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _check_structure(model, folder)
    config = genai_config(checkpoint, dict(plan.session), own_operators=bool(plan.own_operators))
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf8")
    for path in checkpoint.tokenizer_files():
        shutil.copyfile(path, folder / path.name)
    return store.planned


@contextmanager
def without_thresholds(path: Path) -> Iterator[Path]:
    """The graph at `path` with all inputs firing, beside it, where its data is, as long as the block lasts."""
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "threshold":
                attribute.f = 0.0
    whole = path.with_name("without-thresholds.onnx")
    try:
        whole.write_bytes(model.SerializeToString(deterministic=True))
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def _check_structure(model: onnx.ModelProto, folder: Path) -> None:
    """onnx.checker on the file, as far as it can: onnxruntime puts this operator into ONNX's own domain, where the
    checker does not know it, so the checked copy calls it what it is, a contributed one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    path = folder / "check.onnx"
    try:
        path.write_bytes(copy.SerializeToString())
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ParityError(
            f"onnx.checker refuses the model ({str(error).splitlines()[0]})", remedy="report this"
        ) from error
    finally:
        path.unlink(missing_ok=True)
