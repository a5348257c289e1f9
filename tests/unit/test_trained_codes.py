"""Codes of a training: a wrong file is refused in one sentence, stale codes are seen, sound ones come back whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from tiny import Tiny

numpy_files = pytest.importorskip("safetensors.numpy")

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from edgekit.errors import CorruptCheckpointError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.grids.base import Quantized  # noqa: E402
from edgekit.inspecting import inspect  # noqa: E402
from edgekit.quantize import trained  # noqa: E402
from edgekit.quantize.rounded import Rounded, load  # noqa: E402
from edgekit.report.words import chosen_by  # noqa: E402
from edgekit.steps import model_digests  # noqa: E402

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
GRIDS = ("int3-sym-b32", "int4-asym-b32", "int4-sym-b64")
Arrays = dict[str, NDArray[Any]]
Header = dict[str, Any]


def quantized(shape: tuple[int, int], grid: str, seed: int = 0) -> Quantized:
    """Random codes and scales that no search would find."""
    generator, known = np.random.default_rng(seed), get(grid)
    weights = generator.normal(0, 0.05, shape).astype(np.float32)
    matrix = known.quantize(weights)
    scales = matrix.fields["scales"]
    return replace(matrix, fields={**matrix.fields, "scales": (scales * np.float32(0.93)).astype(scales.dtype)})


def write(folder: Path, grid: str = GRIDS[0]) -> dict[str, Quantized]:
    """A model whose linear weights are what codes decode to, and the codes beside them."""
    tiny.make(folder, Tiny(dtype="f32"))
    spec = open_checkpoint(folder).spec
    made = {
        t.hf: quantized((t.shape[0], t.shape[1]), grid, n)
        for n, t in enumerate(spec.tensors)
        if t.rule.kind == "linear"
    }
    decoded = {name: get(grid).dequantize(matrix) for name, matrix in made.items()}
    tiny.write_weights(folder, {**tiny.weights(Tiny(dtype="f32")), **decoded}, Tiny(dtype="f32"))
    trained.save(folder, made)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[Arrays, Header], Any]) -> None:
    """Change fields or header of the file of codes in place."""
    from safetensors import safe_open

    path = folder / trained.FILE
    with safe_open(path, framework="numpy") as stored:
        header = json.loads(stored.metadata()["edgekit"])
    arrays = {key: array.copy() for key, array in numpy_files.load_file(path).items()}
    change(arrays, header)
    numpy_files.save_file(arrays, path, {"edgekit": json.dumps(header)})


def check_all(folder: Path) -> Mapping[str, bool]:
    checkpoint = open_checkpoint(folder)
    found = trained.places(checkpoint)
    tensors = {tensor.hf: tensor for tensor in checkpoint.spec.tensors}
    return {name: trained.fits(checkpoint, tensors[name], place) for name, place in found.items()}


# -- what is refused


def _set(place: str, value: object) -> Callable[[Arrays, Header], Any]:
    return lambda _arrays, header: header["matrices"][Q].update({place: value})


def _field(part: str, array: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays, Header], Any]:
    return lambda arrays, _header: arrays.update({f"{Q}|{part}": array(arrays[f"{Q}|{part}"])})


WRONG: dict[str, tuple[Callable[[Arrays, Header], Any], str]] = {
    "unknown grid": (_set("grid", "int5-odd-b7"), "int5-odd-b7"),
    "grid of no matrix": (_set("grid", "Q4_K"), "cannot hold it"),
    "grid not of the codes": (_set("grid", "Q4_0"), "holds no codes"),
    "endless grid": (_set("grid", "x" * 100_000), "does not say"),
    "shape of another model": (_set("shape", [64, 128]), r"\[64, 128\]"),
    "negative shape": (_set("shape", [-64, 64]), "does not say"),
    "huge shape": (_set("shape", [1 << 40, 64]), "does not say"),
    "unknown key": (_set("code", "os.system"), "does not say"),
    "newer schema": (lambda _a, header: header.update(schema_version=2), "does not say"),
    "another kind": (lambda _a, header: header.update(kind="weights"), "does not say"),
    "no such tensor": (lambda _a, h: h["matrices"].update(x=h["matrices"][Q]), "no linear layer"),
    "embedding": (
        lambda _a, h: h["matrices"].update({"model.embed_tokens.weight": {"grid": GRIDS[0], "shape": [384, 64]}}),
        "no linear layer",
    ),
    "matrix without fields": (lambda a, _h: [a.pop(f"{Q}|{part}") for part in ("codes", "scales")], "no codes of"),
    "fields without matrix": (lambda _a, h: h["matrices"].pop(Q), "belongs to no matrix"),
    "field without name": (lambda a, _h: a.update(codes=a[f"{Q}|codes"]), "belongs to no matrix"),
    "field of two names": (lambda a, _h: a.update({f"{Q}|x|codes": a[f"{Q}|codes"]}), "belongs to no matrix"),
    "missing field": (lambda a, _h: a.pop(f"{Q}|scales"), "scales"),
    "extra field": (lambda a, _h: a.update({f"{Q}|more": a[f"{Q}|scales"]}), "'more'"),
    "code out of range": (_field("codes", lambda a: a | 0x10), "runs from"),
    "codes too wide": (_field("codes", lambda a: np.hstack([a, a])), "of shape"),
    "codes transposed": (_field("codes", lambda a: np.ascontiguousarray(a[:, :1].T)), "of shape"),
    "flat codes": (_field("codes", lambda a: a.reshape(-1)), "of shape"),
    "too few scales": (_field("scales", lambda a: np.ascontiguousarray(a[:, :1])), "scales"),
    "wide scales": (_field("scales", lambda a: a.astype(np.float32)), "float32"),
    "codes as 64 bits": (_field("codes", lambda a: a.astype(np.int64)), "as I64"),
    "codes as truth": (_field("codes", lambda a: a.astype(bool)), "as BOOL"),
    "NaN scale": (_field("scales", lambda a: np.full_like(a, np.nan)), "NaN or infinite"),
    "infinite scale": (_field("scales", lambda a: np.full_like(a, np.inf)), "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity times zero, in the test
def test_a_wrong_file_is_one_sentence(name: str, model: Path) -> None:
    change, words = WRONG[name]
    edit(model, change)
    with pytest.raises(CorruptCheckpointError, match=words) as caught:
        check_all(model)
    assert "codes.safetensors" in caught.value.found
    assert "delete that file" in caught.value.remedy
    assert len(caught.value.sentence()) < 4000


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 8 + b"{}", b"not a file of tensors at all"])
def test_a_file_of_another_kind_is_refused(content: bytes, model: Path) -> None:
    (model / trained.FILE).write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="safetensors"):
        trained.places(open_checkpoint(model))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"matrices": 3}', "[" * 100_000])
def test_a_header_that_says_nothing_is_refused(text: str, model: Path) -> None:
    path = model / trained.FILE
    numpy_files.save_file(numpy_files.load_file(path), path, {"edgekit": text})
    with pytest.raises(CorruptCheckpointError, match="does not say what it holds"):
        trained.places(open_checkpoint(model))


def test_a_header_without_bound_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "_MAX_HEADER", 100)
    with pytest.raises(CorruptCheckpointError, match="characters"):
        trained.places(open_checkpoint(model))


def test_a_file_cut_short_is_refused(model: Path) -> None:
    path = model / trained.FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="safetensors"):
        trained.places(open_checkpoint(model))


def test_a_pipe_in_its_place_is_not_waited_for(model: Path) -> None:
    (model / trained.FILE).unlink()
    os.mkfifo(model / trained.FILE)
    assert trained.places(open_checkpoint(model)) == {}


# -- what is stale


def _changed(folder: Path, change: Callable[[NDArray[Any]], NDArray[Any]], dtype: str = "f32") -> None:
    weights = numpy_files.load_file(folder / "model.safetensors")
    tiny.write_weights(folder, {**weights, Q: change(weights[Q])}, Tiny(dtype=dtype))


def test_one_changed_weight_makes_codes_stale(model: Path) -> None:
    def nudge(weights: NDArray[Any]) -> NDArray[Any]:
        weights[3, 5] = np.nextafter(weights[3, 5], np.float32(1))
        return weights

    _changed(model, nudge)
    found = check_all(model)
    assert [name for name, fits in found.items() if not fits] == [Q]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_weights_cast_to_16_bits_make_codes_stale(dtype: str, model: Path) -> None:
    _changed(model, lambda weights: weights, dtype)
    assert not any(check_all(model).values())


def test_the_sign_of_a_zero_does_not(model: Path) -> None:
    _changed(model, lambda weights: np.where(weights == 0, -weights, weights))
    assert all(check_all(model).values())


# -- what is sound


def test_a_model_without_them_has_none(sound: Path) -> None:
    assert trained.places(open_checkpoint(sound)) == {}


@pytest.mark.parametrize("grid", GRIDS)
def test_they_come_back_bit_for_bit(grid: str, tmp_path: Path) -> None:
    made = write(tmp_path / "model", grid)
    found = trained.places(open_checkpoint(tmp_path / "model"))
    assert found.keys() == made.keys()
    for name, matrix in made.items():
        again = load(name, found[name])
        assert (again.grid, again.shape) == (matrix.grid, matrix.shape)
        assert again.fields.keys() == matrix.fields.keys()
        for part, array in matrix.fields.items():
            assert again.fields[part].dtype == array.dtype
            np.testing.assert_array_equal(again.fields[part], array)
    assert all(check_all(tmp_path / "model").values())


def test_gguf_fields_of_two_bytes_come_back(model: Path) -> None:
    """float16 scales, beside codes of one byte, of a format that stores them otherwise than ONNX."""
    packed = np.random.default_rng(0).integers(0, 60, (64, 36), np.uint8)
    matrix = get("Q4_0").unpack({"data": packed}, (64, 64))
    trained.save(model, {Q: matrix})
    (place,) = trained.places(open_checkpoint(model)).values()
    np.testing.assert_array_equal(get("Q4_0").pack(load(Q, place))["data"], packed)


def test_saving_replaces_what_was_there(model: Path) -> None:
    trained.save(model, {DOWN: quantized((64, 96), GRIDS[0])})
    assert list(trained.places(open_checkpoint(model))) == [DOWN]
    assert [path.name for path in (model / "edgekit").iterdir()] == ["codes.safetensors"]


def test_a_mapping_may_read_each_matrix_when_it_is_asked_for(model: Path) -> None:
    checkpoint, own = open_checkpoint(model), trained.places(open_checkpoint(model))
    before = (model / trained.FILE).read_bytes()

    class Lazy(dict[str, Quantized]):
        def __getitem__(self, name: str) -> Quantized:
            return load(name, own[name])

        def items(self) -> Any:
            return ((name, self[name]) for name in own)

    trained.save(model, Lazy())
    assert (model / trained.FILE).read_bytes() == before
    assert trained.places(checkpoint).keys() == own.keys()


# -- who else looks into the folder


def test_nobody_takes_them_for_weights(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert {path.name for path in checkpoint.files.values()} == {"model.safetensors"}
    (model / "model.safetensors").rename(model / "other.safetensors")
    assert {path.name for path in open_checkpoint(model).files.values()} == {"other.safetensors"}
    assert not any("|" in name for name in open_checkpoint(model).files)


def test_every_stage_depends_on_them(model: Path) -> None:
    whole = model_digests(open_checkpoint(model))
    edit(model, _field("scales", lambda array: array + array))
    other = model_digests(open_checkpoint(model))
    assert {name for name in whole if whole[name] != other[name]} == {trained.FILE}
    shutil.rmtree(model / "edgekit")
    assert trained.FILE not in model_digests(open_checkpoint(model))


def test_inspect_tells_of_them(model: Path, sound: Path) -> None:
    assert inspect(str(model)).facts["trained_codes"] == f"14 matrices of {GRIDS[0]}"
    assert inspect(str(sound)).facts["trained_codes"] is None
    (model / trained.FILE).write_bytes(b"damaged")
    assert "delete that file" in str(inspect(str(model)).facts["trained_codes"])


def test_the_report_says_that_a_training_chose(model: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(model)
    found = Rounded(trained.places(checkpoint))
    shares = found.shares([(Q, (64, 64)), ("model.embed_tokens.weight", (192, 64))])
    assert shares == {"own": 0.75, "trained": 0.25}
    assert chosen_by(shares) == "the format's own quantizer 75 %, training 25 %"
