"""One artefact from plan to proof, the same story for GGUF and ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.checkpoint.checkpoint import F32, Checkpoint
from edgekit.checkpoint.tokenizer_fit import refuse_misfit
from edgekit.coherence.distribution import Positions, estimate_error
from edgekit.engines.base import Ids
from edgekit.engines.opening import open_engine
from edgekit.export import gguf, onnx, onnx_reading, parity
from edgekit.export.digests import Digests
from edgekit.export.foreign import Foreign
from edgekit.export.onnx_store import DATA
from edgekit.options import Container
from edgekit.progress import Progress, counter
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Plan, full_precision_plan
from edgekit.quantize.rounded import Rounded

if TYPE_CHECKING:  # torch takes a second and 180 MiB: only who has a model open needs it
    from edgekit.engines.torch import TorchEngine

_NOTHING = Rounded()
ENGINES = {"gguf": "llama.cpp", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Built:
    """An artefact on disk."""

    plan: Plan
    path: Path
    """The .gguf or .onnx file."""
    full_precision: Path
    """The same export without quantization, in a scratch folder."""
    planned: Digests
    """What each tensor is meant to decode to."""
    foreign: Foreign | None = None
    """What it was made from, where somebody else's exporter converted the model."""
    codes: Mapping[str, float] = field(default_factory=dict)
    """Share of the weights by who chose their codes."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        data = self.path.with_name(DATA)
        return self.path.stat().st_size + (data.stat().st_size if data.is_file() else 0)

    def weights(self, checkpoint: Checkpoint) -> Iterator[tuple[str, F32]]:
        """Hugging Face name and decoded weights, read by the format's official reader."""
        if self.plan.container == "gguf":
            return gguf.read_weights(self.path, checkpoint.spec)
        return onnx_reading.read_weights(self.path.parent, checkpoint.spec)


def full_precision_path(container: Container, scratch: Path) -> Path:
    """Where the unquantized export of a build goes."""
    return scratch / "full.gguf" if container == "gguf" else scratch / "full-onnx" / "model.onnx"


def write(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    scratch: Path,
    progress: Progress,
    importance: Importance | None = None,
    foreign: Foreign | None = None,
    rounded: Rounded = _NOTHING,
) -> Built:
    """Quantize and write one artefact below `folder`; `scratch` is where its unquantized twin will go.

    `foreign` is a conversion by somebody else's exporter to make it from, instead of from the checkpoint. `rounded`
    holds codes that are taken as they are.
    """
    refuse_misfit(checkpoint)
    kind, path = plan.container.upper(), folder / plan.container / f"model.{plan.container}"
    path.parent.mkdir()
    with progress.step(f"{kind}: quantize and write {len(plan.entries)} tensors") as advance:
        tick = counter(advance, len(plan.entries))
        if foreign is not None:
            planned = foreign.converted.write(plan, path, importance or {}, tick)
            return Built(plan, path, foreign.converted.path, planned, foreign)
        planned = _write(checkpoint, plan, path, importance, rounded, tick)
    return Built(plan, path, full_precision_path(plan.container, scratch), planned)


def write_full_precision(checkpoint: Checkpoint, built: Built) -> None:
    """Write the unquantized twin of an artefact unless it is there."""
    if built.full_precision.exists():
        return
    built.full_precision.parent.mkdir(exist_ok=True)
    plan = full_precision_plan(checkpoint.spec, built.plan.container)
    _write(checkpoint, plan, built.full_precision, None, _NOTHING, lambda _: None)


def _write(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    importance: Importance | None,
    rounded: Rounded,
    tick: Callable[[str], None],
) -> Digests:
    if plan.container == "gguf":
        return gguf.write_gguf(checkpoint, plan, path, importance=importance, rounded=rounded, tick=tick)
    return onnx.write_onnx(checkpoint, plan, path.parent, importance=importance, rounded=rounded, tick=tick)


def check_bytes(checkpoint: Checkpoint, built: Built, progress: Progress) -> int:
    """Every tensor decodes to what was planned; returns how many there are.

    Raises:
        ParityError: names the tensor.
    """
    count = sum(1 for e in built.plan.entries if built.plan.container == "gguf" or e.tensor.rule.matrix)
    with progress.step(f"{built.plan.container.upper()}: compare {count} tensors with the plan") as advance:
        tick = counter(advance, count)
        if built.foreign is not None:
            built.foreign.converted.check_bytes(built.plan, built.path, built.planned, tick)
        elif built.plan.container == "gguf":
            gguf.check_bytes(built.path, built.plan, built.planned, tick=tick)
        else:
            onnx_reading.check_bytes(built.path.parent, checkpoint.spec, built.plan, built.planned, tick=tick)
    return count


@contextmanager
def tokenizer_sides(built: Sequence[Built]) -> Iterator[dict[str, Callable[[str], list[int]]]]:
    """Engines that bring a tokenizer of their own, open while the block runs: name → encode."""
    from edgekit.engines.llamacpp import LlamaCppEngine

    files = [item.path for item in built if item.plan.container == "gguf"]
    if not files:
        yield {}
        return
    with closing(LlamaCppEngine(files[0], context=64)) as engine:
        yield {"llama.cpp": engine.tokenize}


@dataclass(frozen=True)
class LogitParity:
    """Mean KL divergences in nats; see edgekit.report.model.Parity."""

    full_precision_kl: float
    activation_kl: float
    truncation_kl: float


def check_logits(
    checkpoint: Checkpoint,
    built: Built,
    torch_engine: TorchEngine,
    sequences: Sequence[Ids],
    sealed: Sequence[Positions],
    progress: Progress,
    answered: Sequence[F32] | None = None,
) -> LogitParity:
    """Compare the unquantized export with the original, and the artefact with its own weights in full precision.

    These are put into torch. An unknown family's cannot be, as its converter may have reordered, split or fused them:
    there the same engine runs them, whose unquantized twin has just been compared with torch.

    `sealed` holds the reference's rows of each sequence: one per token but the last, which nothing follows. `answered`
    are the logits that it was made from, where another model gave them.

    Raises:
        ParityError: a divergence is above its limit; names the token.
    """
    kind = built.plan.container.upper()
    with progress.step(f"{kind}: compare logits with the original"):
        write_full_precision(checkpoint, built)
        original = parity.all_logits(torch_engine, sequences)
        exported = _engine_logits(built.plan.container, built.full_precision, sequences)
        full = parity.mean_kl(
            original,
            exported,
            sequences,
            parity.FULL_PRECISION_LIMIT,
            f"the unquantized {kind} export differs from the original",
        )
        del exported
    with progress.step(f"{kind}: activation cost"):
        shipped = _engine_logits(built.plan.container, built.path, sequences)
        cost = _activation_cost(checkpoint, built, torch_engine, sequences, shipped)
        errors = [
            estimate_error(s, p[:-1], q[:-1]) for s, p, q in zip(sealed, answered or original, shipped, strict=True)
        ]
    return LogitParity(full, cost, float(np.concatenate(errors).mean()))


def _activation_cost(
    checkpoint: Checkpoint, built: Built, torch_engine: TorchEngine, sequences: Sequence[Ids], shipped: Sequence[F32]
) -> float:
    """What 8-bit activations cost; `shipped` is what the artefact says.

    Where inputs have thresholds, that is asked of the artefact without them: what rounding puts on the other side of a
    threshold puts more there in the layers behind, so that two right engines part. With them it has to be nearer to
    torch with them than to torch without; that they are the plan's has been checked with the bytes.
    """
    words = f"the {built.plan.container.upper()} artefact differs from its own weights in "
    words += "torch" if built.foreign is None else "float"
    planned = _planned_logits(checkpoint, built, torch_engine, sequences)
    limits = {entry.tensor.hf: entry.threshold for entry in built.plan.entries if entry.threshold}
    if not limits:
        return parity.mean_kl(planned, shipped, sequences, parity.ACTIVATION_LIMIT, words)
    from edgekit.economy.gating import gated  # brings PyTorch, which a build out of the cache does without

    with onnx.without_thresholds(built.path) as path:
        whole = _engine_logits(built.plan.container, path, sequences)
    cost = parity.mean_kl(planned, whole, sequences, parity.ACTIVATION_LIMIT, f"without thresholds {words}")
    with gated(torch_engine.module, limits):
        left_out = _planned_logits(checkpoint, built, torch_engine, sequences)
    most = max(parity.ACTIVATION_LIMIT, parity.mean_kl(planned, shipped, sequences, np.inf, words))
    parity.mean_kl(left_out, shipped, sequences, most, f"with thresholds {words}")
    return cost


def _planned_logits(
    checkpoint: Checkpoint, built: Built, torch_engine: TorchEngine, sequences: Sequence[Ids]
) -> list[F32]:
    if built.foreign is None:
        return parity.dequantized_logits(torch_engine, checkpoint, built.weights(checkpoint), sequences)
    with tempfile.TemporaryDirectory(dir=built.foreign.scratch, prefix="dequantized-") as folder:
        file = Path(folder) / built.path.name
        built.foreign.converted.write_dequantized(built.plan, built.path, file)
        return _engine_logits(built.plan.container, file, sequences)


def _engine_logits(container: str, path: Path, sequences: Sequence[Ids]) -> list[F32]:
    engine = open_engine(container, path, context=max(map(len, sequences)))
    try:
        return parity.all_logits(engine, sequences)
    finally:
        engine.close()
