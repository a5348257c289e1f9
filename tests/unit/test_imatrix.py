"""llama.cpp's importance matrices: what its own llama-imatrix wrote is read, what does not suit is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.spec import Spec
from edgekit.errors import (
    BadWeightsError,
    FileFormatError,
    InputNotFoundError,
    OptionError,
    OutputExistsError,
)
from edgekit.quantize import imatrix

DATA = Path(__file__).parents[1] / "data"
UNTIED = tiny.Tiny(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16, tied=False, dtype="f32")
"""The model of tests/data: `llama-imatrix -c 64 --chunks 4 --process-output --no-ppl` on the tests' sentences."""
SEQUENCES = [np.arange(3, 67), np.arange(5, 69)]
Tensors = Mapping[str, NDArray[Any]]


def spec_of(folder: Path, made: tiny.Tiny = UNTIED) -> Spec:
    return open_checkpoint(tiny.make(folder / "model", made)).spec


def entries(spec: Spec, *, output: bool = True) -> dict[str, NDArray[np.float32]]:
    """Sums and counts of every matrix, as llama-imatrix lays them out."""
    found = {}
    for tensor in spec.tensors:
        if tensor.rule.kind == "linear" or (output and tensor.rule.kind == "head"):
            found[f"{tensor.gguf}.in_sum2"] = np.full((1, tensor.shape[1]), 6, np.float32)
            found[f"{tensor.gguf}.counts"] = np.full((1, 1), 3, np.float32)
    return found


def write_gguf(path: Path, tensors: Tensors, kind: str | None = "imatrix", *, big: bool = False) -> Path:
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "", endianess=order)
    if kind is not None:
        writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["a.txt"])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(records: list[tuple[bytes, int, list[float]]]) -> bytes:
    made = struct.pack("<i", len(records))
    for name, calls, values in records:
        made += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        made += np.array(values, "<f4").tobytes()
    return made


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no importance matrix at"):
        imatrix.read(tmp_path / "no.gguf")


def test_a_huge_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(imatrix.MAX_BYTES + 1)
    with pytest.raises(FileFormatError, match="larger than 256 MiB"):
        imatrix.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends early"),
        (b"just some text that is no matrix", "number of tensors is"),
        (struct.pack("<i", 0), "number of tensors is 0"),
        (struct.pack("<i", 1), "ends early"),
        (struct.pack("<ii", 1, -4), "length of a name is -4"),
        (struct.pack("<ii", 1, 60) + b"short", "ends early"),
        (legacy([(b"a", 0, [1.0])]), "number of calls for a is 0"),
        (legacy([(b"a", 1, [])]), "number of values of a is 0"),
        (legacy([(b"a", 1, [1.0, 2.0])])[:-1], "of its values of a"),
        (legacy([(b"a", 1, [1.0, -2.0])]), "input 1 of a has the sum of squares -2"),
        (legacy([(b"a", 1, [1.0]), (b"a", 1, [1.0])]), "a twice"),
        (b"GGUF", "not a whole GGUF file"),
    ],
)
def test_bytes_that_are_no_importance_matrix(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FileFormatError, match=message):
        imatrix.read(tmp_path / "x")


@pytest.mark.parametrize("kind", ["model", None])
def test_another_kind_of_gguf_file(kind: str | None, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r'general.type is .*expected "imatrix"'):
        imatrix.read(write_gguf(tmp_path / "x.gguf", {}, kind))


def test_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="of no tensor"):
        imatrix.read(write_gguf(tmp_path / "x.gguf", {}))


ONES = np.ones((1, 4), np.float32)
ONE = np.ones((1, 1), np.float32)


def _with(array: NDArray[np.float32], at: int, value: float) -> NDArray[np.float32]:
    made = array.copy()
    made[0, at] = value
    return made


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.in_sum2": ONES}, "has no a.counts"),
        ({"a.counts": ONE}, "has no a.in_sum2"),
        ({"a": ONES}, "has no a.in_sum2"),
        ({"a.in_sum2": ONES.astype(np.float16), "a.counts": ONE}, "a.in_sum2 in F16; expected F32"),
        ({"a.in_sum2": _with(ONES, 2, np.nan), "a.counts": ONE}, "input 2 of a has the sum of squares nan"),
        ({"a.in_sum2": _with(ONES, 1, np.inf), "a.counts": ONE}, "input 1 of a has the sum of squares inf"),
        ({"a.in_sum2": _with(ONES, 3, -1.0), "a.counts": ONE}, "input 3 of a has the sum of squares -1"),
        ({"a.in_sum2": ONES, "a.counts": 0 * ONE}, "counts 0 tokens for a; expected at least one"),
        ({"a.in_sum2": ONES, "a.counts": np.nan * ONE}, "counts nan tokens"),
        ({"a.in_sum2": ONES, "a.counts": np.ones((3, 1), np.float32)}, "4 sums and 3 counts for a"),
    ],
)
def test_numbers_that_make_no_importance(tensors: Tensors, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=message):
        imatrix.read(write_gguf(tmp_path / "x.gguf", tensors))


def _less(found: dict[str, NDArray[np.float32]]) -> None:
    del found["blk.1.ffn_up.weight.in_sum2"], found["blk.1.ffn_up.weight.counts"]


def _more(found: dict[str, NDArray[np.float32]]) -> None:
    found["blk.2.ffn_up.weight.in_sum2"], found["blk.2.ffn_up.weight.counts"] = ONES, ONE


def _wider(found: dict[str, NDArray[np.float32]]) -> None:
    found["blk.0.ffn_down.weight.in_sum2"] = np.ones((1, 64), np.float32)


def _experts(found: dict[str, NDArray[np.float32]]) -> None:
    found["blk.0.ffn_down.weight.in_sum2"] = np.ones((2, 48), np.float32)
    found["blk.0.ffn_down.weight.counts"] = np.ones((2, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less, r"says nothing of blk\.1\.ffn_up\.weight; expected an importance matrix of this model"),
        (_more, r"names blk\.2\.ffn_up\.weight, which this model does not have"),
        (_wider, r"has 64 inputs for blk\.0\.ffn_down\.weight; expected 48, as this model has"),
        (_experts, r"has 2 times 48 inputs for blk\.0\.ffn_down\.weight"),
        (dict.clear, "of no tensor"),
    ],
)
def test_another_model(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    found = entries(spec)
    change(found)
    with pytest.raises((OptionError, FileFormatError), match=message):
        imatrix.for_model(imatrix.read(write_gguf(tmp_path / "x.gguf", found)), spec)


def test_a_model_of_other_sizes_is_named(tmp_path: Path) -> None:
    other = spec_of(tmp_path, tiny.Tiny(layers=3))
    with pytest.raises(OptionError, match=r"says nothing of blk\.2\.attn_k\.weight and 6 others"):
        imatrix.for_model(imatrix.read(DATA / "tiny.imatrix.gguf"), other)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_what_llama_imatrix_wrote_is_read_in_both_its_forms(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    forms = [imatrix.for_model(imatrix.read(DATA / f"tiny.imatrix.{end}"), spec) for end in ("gguf", "dat")]
    assert forms[0].keys() == forms[1].keys()
    assert forms[0].keys() == {t.hf for t in spec.tensors if t.rule.kind in ("linear", "head")}
    for name, means in forms[0].items():
        np.testing.assert_allclose(means, forms[1][name], rtol=1e-6)
        assert means.min() > 0
    assert imatrix.missing(forms[0], spec) is None


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    found = imatrix.read(write_gguf(tmp_path / "x.gguf", entries(spec), big=True))
    assert all((means == 2).all() for means in found.means.values())


def test_the_output_matrix_may_be_missing(tmp_path: Path) -> None:
    """llama-imatrix gathers it only with --process-output, and a tied one never."""
    spec = spec_of(tmp_path)
    found = imatrix.for_model(imatrix.read(write_gguf(tmp_path / "x.gguf", entries(spec, output=False))), spec)
    assert imatrix.missing(found, spec) == "lm_head.weight"


@pytest.mark.parametrize("name", ["output.weight", "token_embd.weight"])
def test_a_tied_output_matrix_has_two_names(name: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, tiny.Tiny())
    made = entries(spec)
    made[f"{name}.in_sum2"], made[f"{name}.counts"] = np.full((1, 64), 8, np.float32), np.full((1, 1), 2, np.float32)
    found = imatrix.for_model(imatrix.read(write_gguf(tmp_path / "x.gguf", made)), spec)
    assert (found["model.embed_tokens.weight"] == 4).all()


# --- what is written -------------------------------------------------------------------------------------------------


def means_of(spec: Spec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    kinds = ("linear", "embedding" if spec.tied else "head")
    return {t.hf: random.exponential(size=t.shape[1]).astype(np.float32) for t in spec.tensors if t.rule.kind in kinds}


def test_the_official_reader_finds_what_llama_quantize_asks_for(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    means = means_of(spec)
    imatrix.write(tmp_path / "x.gguf", means, spec, SEQUENCES, "a.txt")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(means)
    for tensor in spec.tensors:
        if tensor.hf in means:
            sums, counts = (tensors[f"{tensor.gguf}.{end}"] for end in ("in_sum2", "counts"))
            assert [sums.tensor_type, counts.tensor_type] == [gguf.GGMLQuantizationType.F32] * 2
            assert (sums.shape.tolist(), counts.shape.tolist()) == ([tensor.shape[1]], [1])
            assert counts.data.tolist() == [128]
            np.testing.assert_allclose(sums.data / 128, means[tensor.hf], rtol=1e-6)


def test_the_layout_is_that_of_llama_imatrix(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    theirs = imatrix.for_model(imatrix.read(DATA / "tiny.imatrix.gguf"), spec)
    imatrix.write(tmp_path / "x.gguf", theirs, spec, [np.arange(64)] * 4, "sentences.txt")
    own, other = (gguf.GGUFReader(path) for path in (tmp_path / "x.gguf", DATA / "tiny.imatrix.gguf"))
    assert list(own.fields) == list(other.fields)
    for mine, their in zip(own.tensors, other.tensors, strict=True):
        assert (mine.name, mine.shape.tolist()) == (their.name, their.shape.tolist())
        np.testing.assert_allclose(mine.data, their.data, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.floats(0, 2.0**100, width=32, allow_subnormal=False), min_size=48, max_size=48),
    tokens=st.lists(st.integers(1, 4096), min_size=1, max_size=5),
)
def test_what_is_written_is_read_again(
    values: list[float], tokens: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("again")
    spec = spec_of(folder)
    means = means_of(spec)
    name = next(t.hf for t in spec.tensors if t.role == "ffn_down" or t.gguf == "blk.1.ffn_down.weight")
    means[name] = np.array(values, np.float32)
    imatrix.write(folder / "x.gguf", means, spec, [np.zeros(count, np.int64) for count in tokens], "t")
    again = imatrix.for_model(imatrix.read(folder / "x.gguf"), spec)
    assert again.keys() == means.keys()
    for key, array in means.items():
        np.testing.assert_allclose(again[key], array, rtol=1e-6, atol=1e-44)


def test_a_file_is_only_replaced_when_asked(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        imatrix.write(path, means_of(spec), spec, SEQUENCES, "t")
    assert path.read_bytes() == b"mine"
    imatrix.write(path, means_of(spec), spec, SEQUENCES, "t", force=True)
    assert imatrix.read(path).means


def test_sums_that_overflow_name_the_layer_and_leave_nothing(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    means = means_of(spec)
    means["model.layers.1.mlp.up_proj.weight"][3] = 1e38
    with pytest.raises(BadWeightsError, match=r"layers\.1\.mlp\.up_proj"):
        imatrix.write(tmp_path / "x.gguf", means, spec, SEQUENCES, "t")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
