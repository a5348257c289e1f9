"""The codes that a build brings along: those of a training, and with --effort good and best those that are found by
longer calibration text, the tokens' weights, and rounding block after block.

A killed build goes on at the block where it was: each block is a stage whose key holds the digest of the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgekit.checkpoint.spec import Spec
from edgekit.coherence import text
from edgekit.engines.base import Ids
from edgekit.errors import OptionError
from edgekit.files import sha256
from edgekit.grids import get
from edgekit.grids.onnx import PORTABLE
from edgekit.grids.scalar import is_scalar
from edgekit.grids.threebit_columns import SPARSE
from edgekit.progress import counter
from edgekit.quantize import trained
from edgekit.quantize.plan import Entry, Plan
from edgekit.quantize.rounded import Place, Rounded, Ways, load, save
from edgekit.stages import Made, Stage
from edgekit.weighing import load_importance

if TYPE_CHECKING:
    from edgekit.quantize.blocks import Blocks
    from edgekit.steps import Work

SEQUENCES = {"good": 48, "best": 160}
"""Of the text that rounding is calibrated on."""
LENGTH = 256
"""Tokens of each, never more than the model's context."""
_LEAST = 4
"""Sequences that a user's own file must at least give."""
_WEIGHTS, _CODES = "weights.safetensors", "codes.safetensors"
_MANY = 8
"""Bits of a code from which rounding an output matrix by GPTQ gains nothing worth its time."""
_ITERATIONS = {"good": 0, "best": 300}
"""Of learned rounding, for each block."""
_SEED = 1 << 16
"""Added to the seed: this text is another one than the evaluation text and the text that importance is measured on."""


class _Compared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Matrices that a training gave codes."""

    fitting: tuple[str, ...]
    """Their weights are still what the codes stand for."""
    stale: tuple[str, ...]


def rounded(work: Work, plan: Plan, importance: Made | None) -> tuple[Rounded, str | None]:
    """The codes of the plan's linear layers that somebody chose, and the digest of the last stage.

    Those of a training are taken as they are where the plan has its formats. The others are found with --effort good
    and best, and left to their grid's own quantizer with --effort fast.

    Raises:
        CorruptCheckpointError: the model's file of trained codes is damaged.
        OptionError: there is no calibration text.
        TextError: the calibration text is missing or too short.
        BadWeightsError: an activation, gradient or weight is NaN or infinite; names the layer.
        UnknownArchitectureError: the model is not a list of blocks.
    """
    given, found = _trained(work, plan)
    if work.options.effort == "fast":
        return Rounded(given), found
    if not work.options.calibrate:
        raise OptionError(
            f"--effort {work.options.effort} is given with --no-calibration",
            expected="calibration text, which rounding looks at",
            remedy="drop one of the two",
        )
    if _is_complete(plan, given):
        return Rounded(given), found
    sequences = _text(work)
    weights = _weights(work, plan, sequences)
    walk = _Walk(work, plan, sequences, weights, importance, given)
    before = f"{weights.digest} {importance and importance.digest}{f' {found}' if found else ''}"
    digest = walk.output(hashlib.sha256(before.encode()).hexdigest())
    for layer in range(work.checkpoint.spec.layers):
        digest = walk.block(layer, digest)
    return Rounded(walk.places), digest


def set_aside(work: Work) -> tuple[Rounded, None]:
    """No codes, where somebody else's exporter has named the tensors; those of a training are missed aloud."""
    if trained.places(work.checkpoint):
        work.progress.note(
            "what another tool exports is quantized anew: the codes that the training found are not used"
        )
    return Rounded(), None


def _trained(work: Work, plan: Plan) -> tuple[dict[str, Place], str | None]:
    """The trained codes that the plan can use, and the digest of the check that they belong to the weights."""
    there = trained.places(work.checkpoint)
    if not there:
        return {}, None
    checked, digest = _compared(work, there)
    grids = {entry.tensor.hf: entry.grid for entry in plan.entries}
    endings = ("", PORTABLE, SPARSE)
    wanted = {n: place for n, place in there.items() if grids.get(n) in [place.grid + ending for ending in endings]}
    stale = [name for name in checked.stale if name in wanted]
    _tell(work, plan, there, len(wanted), stale)
    return {name: place for name, place in wanted.items() if name not in stale}, digest


def _compared(work: Work, there: Mapping[str, Place]) -> tuple[_Compared, str]:
    title = "codes of the training: are the weights still theirs"

    def make() -> _Compared:
        tensors = [tensor for tensor in work.checkpoint.spec.tensors if tensor.hf in there]
        fitting: dict[str, bool] = {}
        with work.progress.step(title) as advance:
            tick = counter(advance, len(tensors))
            for tensor in tensors:
                fitting[tensor.hf] = trained.fits(work.checkpoint, tensor, there[tensor.hf])
                tick(tensor.hf)
        return _Compared(
            fitting=tuple(name for name, fits in fitting.items() if fits),
            stale=tuple(name for name, fits in fitting.items() if not fits),
        )

    return work.stages.record(Stage("trained-codes", title, {}), _Compared, make)


def _tell(work: Work, plan: Plan, there: Mapping[str, Place], wanted: int, stale: list[str]) -> None:
    """Say which trained codes are not used, and why."""
    kind = plan.container.upper()
    if wanted < len(there):
        formats = ", ".join(sorted({place.grid for place in there.values()}))
        work.progress.note(
            f"{kind}: {len(there) - wanted} of the {len(there)} matrices that were trained on {formats} get another "
            "format than they were trained on, and are quantized anew"
        )
    if stale:
        others = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        work.progress.note(
            f"{kind}: {stale[0]}{others} changed after the training (trained further, merged, or cast to 16 bits): the "
            f"codes in {trained.FILE} are not theirs any more, and they are quantized anew"
        )


def _is_complete(plan: Plan, given: Mapping[str, Place]) -> bool:
    """Whether a training left nothing to be rounded."""
    linear = {entry.tensor.hf for entry in plan.entries if entry.tensor.rule.kind == "linear"}
    return bool(given) and linear <= given.keys() and not _gains(_of_output(plan))


def _gains(entry: Entry) -> bool:
    """Whether the output matrix's format has so few levels that rounding it is worth the time."""
    return get(entry.grid).nominal_bits < _MANY and is_scalar(entry.grid)


def _text(work: Work) -> list[Ids]:
    options = work.options
    given = options.calibration_text
    stage = Stage("rounding-text", "calibration: text for rounding", {
        "file": None if given is None or not given.is_file() else sha256(given), "seed": options.seed,
        "sequences": _sequences(work), "length": _length(work),
    })  # fmt: skip

    def make() -> list[list[int]]:
        found = _generated(work) if given is None else _cut(work, given)
        return [ids.tolist() for ids in found.sequences]

    return [np.array(ids, np.int64) for ids in work.stages.record(stage, list[list[int]], make)[0]]


def _sequences(work: Work) -> int:
    return SEQUENCES[work.options.effort]


def _length(work: Work) -> int:
    return min(LENGTH, work.checkpoint.spec.context_length)


def _cut(work: Work, path: Path) -> text.EvalText:
    """As many sequences as the file gives, at most :func:`_sequences`."""
    bos, length = work.tokenizer.bos_id, _length(work)
    each = length - (bos is not None)
    found = text.from_file(path, work.tokenizer.encode, _LEAST, length, bos=bos)
    count = min(_sequences(work), len(work.tokenizer.encode(path.read_text("utf-8-sig"))) // each)
    if count <= _LEAST:
        return found
    return text.from_file(path, work.tokenizer.encode, count, length, bos=bos)


def _generated(work: Work) -> text.EvalText:
    engine, seed, length, count = work.original.engine(), work.options.seed + _SEED, _length(work), _sequences(work)
    beginnings = [ids[:1] for ids in text.starts(count, work.tokenizer.bos_id, work.tokenizer.encode)]
    with work.progress.step(f"text: the full-precision model writes {count} × {length} tokens") as advance:
        rows = engine.sample_batch([int(ids[0]) for ids in beginnings], length, seed, advance)
    return text.self_generated(lambda _b, _l, _s: list(rows), beginnings, length, seed, engine.vocab_size)


def _weights(work: Work, plan: Plan, sequences: list[Ids]) -> Made:
    spec = work.checkpoint.spec
    names = [tensor.hf for tensor in spec.tensors if tensor.rule.kind == "linear"] + [_output_layer(spec)]
    stage = Stage("token-weights", "calibration: how much each token counts", {
        "text": [ids.tolist() for ids in sequences], "names": names, "seed": work.options.seed,
    })  # fmt: skip

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        from edgekit.quantize.curvature import token_weights

        module = work.original.engine().module
        with work.progress.step("calibration: how much each token counts") as advance:
            save_file(token_weights(module, names, sequences, work.options.seed, advance), folder / _WEIGHTS)

    return work.stages.run(stage, make)


def _output_layer(spec: Spec) -> str:
    """Name of the layer that makes the logits, also where its weights are the embedding's."""
    return next(rule.hf for rule in spec.family.tensors if rule.kind == "head")


def _of_output(plan: Plan) -> Entry:
    """The matrix that makes the logits: the head, or the embedding that it is tied to."""
    by_kind = {entry.tensor.rule.kind: entry for entry in plan.entries}
    return by_kind.get("head", by_kind["embedding"])


class _Walk:
    """Block after block; the model is only loaded when there is one to be rounded."""

    def __init__(
        self, work: Work, plan: Plan, sequences: list[Ids], weights: Made, importance: Made | None,
        given: Mapping[str, Place],
    ) -> None:  # fmt: skip
        self._work, self._plan, self._sequences = work, plan, sequences
        self._weights, self._importance, self._blocks, self._next = weights, importance, None, 0
        self._tensors = {entry.tensor.hf: entry.tensor for entry in plan.entries}
        self._iterations = _ITERATIONS[work.options.effort]
        self._given = given
        self.places: dict[str, Place] = dict(given)

    _blocks: Blocks | None

    def block(self, layer: int, before: str) -> str:
        """Round one block but for trained matrices; `before` is the digest of all before it. Returns its own."""
        own = [e for e in self._plan.entries if e.tensor.layer == layer and e.tensor.rule.kind == "linear"]
        entries = [entry for entry in own if entry.tensor.hf not in self._given]
        if not entries:
            return hashlib.sha256(f"{before} trained {[e.tensor.hf for e in own]}".encode()).hexdigest()
        embedding = [e.grid for e in self._plan.entries if e.tensor.rule.kind == "embedding"]
        title = f"{self._plan.container.upper()}: round block {layer + 1} of {self._work.checkpoint.spec.layers}"
        stage = Stage("round", title, {
            "before": before, "embedding": embedding, "grids": [[e.tensor.hf, e.grid] for e in entries],
            "iterations": self._iterations,
        })  # fmt: skip
        made = self._work.stages.run(stage, lambda folder: self._round(layer, entries, folder, title))
        for entry in entries:
            shape = (entry.tensor.shape[0], entry.tensor.shape[1])
            self.places[entry.tensor.hf] = Place(made.folder / _CODES, entry.grid, shape)
        return _chained(before, made)

    def output(self, before: str) -> str:
        """Round the matrix that makes the logits, unless its format has too many levels to gain; returns the digest."""
        entry = _of_output(self._plan)
        if not _gains(entry):
            return before
        title = f"{self._plan.container.upper()}: round {entry.tensor.hf}"
        stage = Stage("round-output", title, {"before": before, "grid": entry.grid, "tensor": entry.tensor.hf})
        made = self._work.stages.run(stage, lambda folder: self._round_output(entry, folder, title))
        shape = (entry.tensor.shape[0], entry.tensor.shape[1])
        self.places[entry.tensor.hf] = Place(made.folder / _CODES, entry.grid, shape)
        return _chained(before, made)

    def _round_output(self, entry: Entry, folder: Path, title: str) -> None:
        from edgekit.quantize.blocks import inputs_of
        from edgekit.quantize.rounding import naming, round_output

        name, matrix = _output_layer(self._work.checkpoint.spec), entry.tensor.hf
        with self._work.progress.step(title), naming(matrix):
            inputs = inputs_of(self._work.original.engine().module, name, self._sequences)
            weights = _load(self._weights, [name])[name]
            own: list[int] = []
            found = round_output(inputs, weights, entry.grid, self._read(matrix), tied=name != matrix, tell=own.append)
            rows = entry.tensor.shape[0]
            save({matrix: found}, folder / _CODES, {matrix: {"GPTQ": rows - own[0], "own": own[0]}})

    def _round(self, layer: int, entries: list[Entry], folder: Path, title: str) -> None:
        from edgekit.quantize.rounding import round_block

        with self._work.progress.step(title):
            blocks = self._at(layer)
            grids = {entry.tensor.hf: entry.grid for entry in entries}
            names = [t.hf for t in self._tensors.values() if t.layer == layer and t.rule.kind == "linear"]
            weights = _load(self._weights, names)
            ways: Ways = {}
            found = round_block(blocks, layer, grids, self._read, weights, self._iterations, ways)
            self._next = layer + 1
            save(found, folder / _CODES, ways)

    def _at(self, layer: int) -> Blocks:
        """The text before `layer`, with what earlier builds rounded in place."""
        if self._blocks is None:
            self._blocks = self._start()
        while self._next < layer:
            with self._blocks.borrowed(self._next):
                for name, place in self.places.items():
                    if self._tensors[name].layer == self._next:
                        self._blocks.put(self._next, name, get(place.grid).dequantize(load(name, place)))
                self._blocks.advance(self._next)
            self._next += 1
        return self._blocks

    def _start(self) -> Blocks:
        """The text as the quantized embedding gives it to the first block; the model keeps its own."""
        from edgekit.quantize.blocks import Blocks

        engine = self._work.original.engine()
        entry = next(e for e in self._plan.entries if e.tensor.rule.kind == "embedding")
        own = self._read(entry.tensor.hf)
        given = Rounded(self.places).load(entry.tensor.hf)
        if given is None:  # as it is exported
            given = get(entry.grid).quantize(own, (load_importance(self._importance) or {}).get(entry.tensor.hf))
        rounded = get(entry.grid).dequantize(given)
        try:
            engine.replace([(entry.tensor.hf, rounded)])
            return Blocks(engine.module, self._work.checkpoint.spec, self._sequences)
        finally:
            engine.replace([(entry.tensor.hf, own)])

    def _read(self, name: str) -> Any:
        return self._work.checkpoint.read(self._tensors[name])


def _chained(before: str, made: Made) -> str:
    """Digest of everything so far: a block that comes out the same says nothing of those before it."""
    return hashlib.sha256(f"{before} {made.digest}".encode()).hexdigest()


def _load(made: Made, names: Iterable[str]) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(made.folder / _WEIGHTS, framework="numpy") as stored:
        return {name: stored.get_tensor(name) for name in names}
