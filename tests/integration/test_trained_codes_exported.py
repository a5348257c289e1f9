"""What a training found is in the artefact to the last bit, whatever the effort, and what cannot be is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
gguf = pytest.importorskip("gguf")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import tiny_families  # noqa: E402
from onnx.numpy_helper import to_array  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from edgekit import api, rounding  # noqa: E402
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from edgekit.dispersion.fake import attach, detach  # noqa: E402
from edgekit.errors import CorruptCheckpointError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.grids.base import Quantized  # noqa: E402
from edgekit.grids.threebit import portable  # noqa: E402
from edgekit.options import Container, Effort, Options  # noqa: E402
from edgekit.progress import Advance, Quiet  # noqa: E402
from edgekit.quantize import trained  # noqa: E402
from edgekit.quantize.groups import groups  # noqa: E402
from edgekit.quantize.plan_file import Listed, PlanFile  # noqa: E402

pytestmark = pytest.mark.integration

HELD: Mapping[str, Container] = {
    "Q4_0": "gguf", "Q4_1": "gguf", "int3-sym-b32": "onnx", "int3-sym-b32-portable": "onnx", "int4-sym-b32": "onnx",
}  # fmt: skip
EMBEDDING: Mapping[Container, str] = {"gguf": "Q8_0", "onnx": "embed-int8-sym-b32"}
_WIDER = 1.7
"""Steps that much larger leave codes unused, which no search for the best scale would."""
Matrices = dict[str, Quantized]
Select = Callable[[str], bool]


@dataclass
class Notes:
    """Remembers what it is told."""

    said: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """See Progress.step."""
        self.steps.append(title)
        with Quiet().step(title) as advance:
            yield advance

    def note(self, line: str) -> None:
        """See Progress.note."""
        self.said.append(line)


@pytest.fixture(autouse=True)
def _little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and the little text that a tiny model needs."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rounding, "SEQUENCES", {"good": 12, "best": 12})
    monkeypatch.setattr(rounding, "LENGTH", 64)
    monkeypatch.setitem(rounding._ITERATIONS, "best", 8)


def train(folder: Path, grid: str, family: str = "qwen2", chosen: Select = lambda _name: True) -> Matrices:
    """A model as a training leaves it: steps that no search would find, weights that are what its codes decode to."""
    tiny_families.make(folder, family)
    checkpoint = open_checkpoint(folder)
    weights, made = load_file(folder / "model.safetensors"), {}
    for tensor in checkpoint.spec.tensors:
        if tensor.rule.kind != "linear" or not chosen(tensor.hf):
            continue
        own = checkpoint.read(tensor)
        module = torch.nn.Linear(own.shape[1], own.shape[0], bias=False)
        module.weight = torch.nn.Parameter(torch.from_numpy(own.copy()))
        fake = attach(module, get(grid).quantize(own))
        with torch.no_grad():
            fake.steps.mul_(_WIDER)
        values, made[tensor.hf] = detach(module)
        stored = values.numpy().T if tensor.rule.transposed else values.numpy()
        weights[checkpoint.stored_names.get(tensor.hf, tensor.hf)] = np.ascontiguousarray(stored)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    trained.save(folder, made)
    return made


def plan(folder: Path, path: Path, grid: str) -> Path:
    """A plan file that gives every linear layer the grid."""
    checkpoint, container = open_checkpoint(folder), HELD[grid]
    grids = {
        tensor.hf: grid if tensor.rule.kind == "linear" else EMBEDDING[container]
        for group in groups(checkpoint.spec, container)
        for tensor in group.tensors
    }
    listed = Listed(format=container, tensors=grids)
    found = PlanFile(model=checkpoint.name, model_sha256=checkpoint.sha256, plans=(listed,))
    path.write_bytes(msgspec.json.encode(found))
    return path


def build(folder: Path, out: Path, grid: str, effort: Effort = "fast", **more: Any) -> tuple[api.Built, Notes]:
    notes = Notes()
    options = Options(formats=(HELD[grid],), asked=True, effort=effort, sequences=4, length=32)
    options = replace(options, plan=plan(folder, out.with_suffix(".json"), grid), **more)
    return api.build(folder, output=out, options=options, progress=notes), notes


def missing(bundle: Path, checkpoint: Checkpoint, made: Matrices) -> list[str]:
    """Names of matrices whose packed bytes the artefact does not hold, by the official readers."""
    if (bundle / "gguf").exists():
        return _missing_gguf(bundle / "gguf" / "model.gguf", checkpoint, made)
    return _missing_onnx(bundle / "onnx" / "model.onnx", made)


def _missing_gguf(path: Path, checkpoint: Checkpoint, made: Matrices) -> list[str]:
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = {tensor.hf: tensor.gguf for tensor in checkpoint.spec.tensors}
    heads = {"q_proj": checkpoint.spec.heads, "k_proj": checkpoint.spec.kv_heads}
    out = []
    for name, matrix in made.items():
        data = get(matrix.grid).pack(matrix)["data"]
        count = heads.get(name.split(".")[-2])
        if count and checkpoint.spec.family.name == "llama":  # llama.cpp's converter: the halves of a head by turns
            data = data.reshape(count, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        if not np.array_equal(stored[names[name]].data, data):
            out.append(name)
    return out


def _missing_onnx(path: Path, made: Matrices) -> list[str]:
    model = onnx.load(str(path))
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    widened = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    nodes = [
        tuple(to_array(arrays[widened.get(name, name)]) for name in node.input[1:3])
        for node in model.graph.node
        if node.op_type in ("MatMulNBits", "MatMul3Bits") and node.input[1] in arrays
    ]
    return [name for name, matrix in made.items() if not any(_holds(node, matrix) for node in nodes)]


def _holds(node: tuple[NDArray[Any], ...], matrix: Quantized) -> bool:
    """Whether rows of the node are the matrix's; one node may hold several matrices."""
    packed = get(matrix.grid).pack(matrix)
    codes, scales = (array.reshape(len(node[0]), -1) for array in node)
    own = [packed[part].reshape(len(packed["B"]), -1) for part in ("B", "scales")]
    if codes.shape[1] != own[0].shape[1] or scales.shape[1] != own[1].shape[1]:
        return False
    starts = range(len(codes) - len(own[0]) + 1)
    return any(
        np.array_equal(codes[at : at + len(own[0])], own[0]) and np.array_equal(scales[at : at + len(own[0])], own[1])
        for at in starts
    )


# -- what must not be used


def test_a_damaged_file_ends_the_build_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    train(folder, "Q4_0")
    (folder / trained.FILE).write_bytes(b"damaged")
    notes = Notes()
    with pytest.raises(CorruptCheckpointError, match="delete that file"):
        api.build(folder, output=tmp_path / "out", options=Options(formats=("gguf",), asked=True), progress=notes)
    assert notes.steps == []
    assert not (tmp_path / "out").exists()


def test_codes_of_changed_weights_are_not_used_and_that_is_said_every_time(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = train(folder, "Q4_0")
    weights = load_file(folder / "model.safetensors")
    changed = next(iter(made))
    weights[changed][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for out in (tmp_path / "first", tmp_path / "from-cache"):
        built, notes = build(folder, out, "Q4_0")
        assert missing(built.bundle, open_checkpoint(folder), made) == [changed]
        (said,) = [line for line in notes.said if trained.FILE in line]
        assert changed in said
        assert "quantized anew" in said


def test_a_plan_of_another_format_is_followed_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = train(folder, "Q4_0")
    built, notes = build(folder, tmp_path / "out", "Q4_1")
    assert "trained" not in built.report.artefacts[0].codes
    (said,) = [line for line in notes.said if "trained on" in line]
    assert f"{len(made)} of the {len(made)}" in said
    assert "Q4_0" in said


def test_codes_that_another_tools_exporter_cannot_take_are_missed_aloud(tmp_path: Path) -> None:
    folder, notes = tmp_path / "model", Notes()
    train(folder, "Q4_0")
    work: Any = SimpleNamespace(checkpoint=open_checkpoint(folder), progress=notes)
    found, digest = rounding.set_aside(work)
    assert (found.places, digest) == ({}, None)
    assert "quantized anew" in notes.said.pop()
    (folder / trained.FILE).unlink()
    rounding.set_aside(work)
    assert notes.said == []


# -- what must be


@pytest.mark.parametrize("grid", ["Q4_0", "int3-sym-b32"])
def test_without_their_file_such_codes_are_not_found_again(grid: str, tmp_path: Path) -> None:
    """Otherwise the tests below would say nothing."""
    folder = tmp_path / "model"
    made = train(folder, grid)
    (folder / trained.FILE).unlink()
    built, _ = build(folder, tmp_path / "out", grid)
    assert missing(built.bundle, open_checkpoint(folder), made) == list(made)
    assert built.report.artefacts[0].codes == {"own": 1}


@pytest.mark.parametrize(
    ("grid", "effort"), [*((grid, "fast") for grid in HELD), ("Q4_0", "good"), ("int3-sym-b32", "best")]
)
def test_every_trained_matrix_is_there_bit_for_bit(grid: str, effort: Effort, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = train(folder, grid)
    built, notes = build(folder, tmp_path / "out", grid, effort)
    assert missing(built.bundle, open_checkpoint(folder), made) == []
    (artefact,) = built.report.artefacts
    assert artefact.codes.keys() == {"trained", "own"}, "the embedding is the format's own"
    assert "GPTQ" not in built.report.calibration
    assert not any("tokens" in step and "12 ×" in step for step in notes.steps), "nothing is left to round"
    assert not any("quantized anew" in line for line in notes.said)
    assert "training" in (built.bundle / "report.html").read_text("utf8")


@pytest.mark.parametrize(("family", "grid"), [("llama-biases", "Q4_0"), ("gpt2", "Q4_0"), ("gpt2", "int4-sym-b32")])
def test_rows_that_files_keep_in_another_order_are_the_trained_ones(family: str, grid: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = train(folder, grid, family)
    built, _ = build(folder, tmp_path / "out", grid)
    assert missing(built.bundle, open_checkpoint(folder), made) == []
    assert built.report.artefacts[0].codes["trained"] > 0.5


@pytest.mark.parametrize(("grid", "effort"), [("Q4_0", "good"), ("int3-sym-b32", "best")])
def test_what_was_not_trained_is_rounded_around_them(grid: str, effort: Effort, tmp_path: Path) -> None:
    """The first block has some of both, the second trained matrices only."""
    folder = tmp_path / "model"
    made = train(folder, grid, chosen=lambda name: "layers.1" in name or name.split(".")[-2] in ("q_proj", "down_proj"))
    built, _ = build(folder, tmp_path / "out", grid, effort)
    assert missing(built.bundle, open_checkpoint(folder), made) == []
    (artefact,) = built.report.artefacts
    assert artefact.codes["trained"] > artefact.codes["own"] > 0
    assert artefact.codes.get("GPTQ", 0) + artefact.codes.get("learned", 0) > 0.1
    assert "GPTQ" in built.report.calibration


@pytest.mark.parametrize("effort", ["fast", "good"])
def test_trained_for_our_operator_they_are_the_same_weights_for_stock_onnxruntime(
    effort: Effort, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    made = train(folder, "int3-sym-b32", chosen=lambda name: effort == "fast" or "layers.1" in name)
    built, notes = build(folder, tmp_path / "out", "int3-sym-b32-portable", effort)
    stock = {name: portable(matrix) for name, matrix in made.items()}
    assert missing(built.bundle, open_checkpoint(folder), stock) == []
    assert not any("quantized anew" in line for line in notes.said)


def test_other_codes_of_the_same_weights_are_another_build(tmp_path: Path) -> None:
    """A step may change its sign with its codes: same weights, other bytes, so nothing may come from the cache."""
    folder, grid = tmp_path / "model", "int4-sym-b32"
    made = train(folder, grid)
    build(folder, tmp_path / "first", grid)
    turned = {name: _turned(matrix) for name, matrix in made.items()}
    trained.save(folder, turned)
    built, notes = build(folder, tmp_path / "second", grid)
    assert missing(built.bundle, open_checkpoint(folder), turned) == []
    assert missing(built.bundle, open_checkpoint(folder), made) == list(made)
    assert not any("quantized anew" in line for line in notes.said)


def _turned(matrix: Quantized) -> Quantized:
    """Signs of codes and scales changed where the format has the other code: its levels are -8 to 7."""
    codes, scales = matrix.fields["codes"].reshape(len(matrix.fields["scales"]), -1, 32), matrix.fields["scales"]
    can = codes.min(axis=2) > 0
    assert can.any()
    codes = np.where(can[:, :, None], 16 - codes, codes).reshape(matrix.shape)
    return replace(matrix, fields={"codes": codes, "scales": np.where(can, -scales, scales)})
