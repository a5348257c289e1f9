from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_coherence_engine import ORIGIN, Bigram, sealed, table, text

from edgekit.coherence import container
from edgekit.coherence.container import load, save
from edgekit.coherence.metrics import evaluate
from edgekit.coherence.reference import Reference, seal
from edgekit.errors import FileFormatError, InputNotFoundError, OptionError, OutputExistsError

V = 64
Array = NDArray[Any]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return sealed(Bigram(table(V)))


@pytest.fixture
def path(reference: Reference, tmp_path: Path) -> Path:
    save(reference, tmp_path / "reference.npz")
    return tmp_path / "reference.npz"


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, data: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in data.items():
            archive.writestr(name, content)


def npy(array: Array, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def change(path: Path, name: str, edit: Callable[[Array], Array]) -> None:
    data = entries(path)
    array = np.load(io.BytesIO(data[f"{name}.npy"])).copy()
    data[f"{name}.npy"] = npy(edit(array))
    rewrite(path, data)


def change_meta(path: Path, **values: object) -> None:
    data = entries(path)
    data["meta.json"] = msgspec.json.encode(msgspec.json.decode(data["meta.json"]) | values)
    rewrite(path, data)


def put(array: Array, index: Any, value: Any) -> Array:
    array[index] = value
    return array


def test_a_missing_file(tmp_path: Path) -> None:
    for place in (tmp_path / "no.npz", tmp_path):
        with pytest.raises(InputNotFoundError, match="no reference file"):
            load(place)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not a zip file" * 10, pickle.dumps({"a": 1}), b"PK\x05\x06" + bytes(18)]
)
def test_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(FileFormatError, match="is not a coherence reference"):
        load(tmp_path / "x.npz")


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError):
            load(path)


def test_a_flipped_byte_of_data_is_refused(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x40
    path.write_bytes(whole)
    with pytest.raises(FileFormatError, match="CRC"):
        load(path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_gives_a_traceback(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "small.npz"
    engine = Bigram(table(4))
    save(seal(engine, [[1, 2, 3]], [[1]], origin=ORIGIN, k=2, continuation_tokens=2), path, force=True)
    whole = bytearray(path.read_bytes())
    whole[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(whole)
    with contextlib.suppress(FileFormatError):
        load(path)


def test_a_pickled_array_is_refused_and_never_run(path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    data = entries(path)
    data["entropy.npy"] = npy(np.array([Bomb()] * 4, object), allow_pickle=True)
    rewrite(path, data)
    with pytest.raises(FileFormatError, match="array entropy is not float32"):
        load(path)
    assert not (tmp_path / "pwned").exists()


def test_compressed_entries_are_refused(path: Path) -> None:
    rewrite(path, entries(path), zipfile.ZIP_DEFLATED)
    with pytest.raises(FileFormatError, match="compressed"):
        load(path)


def test_a_zip_bomb_is_refused_before_it_is_read(path: Path) -> None:
    data = entries(path)
    data["top_logp.npy"] = bytes(100 << 20)
    rewrite(path, data, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(FileFormatError, match="compressed"):
        load(path)


def test_an_oversized_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference) -> None:
    monkeypatch.setattr(container, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(FileFormatError, match="more than"):
        load(path)
    with pytest.raises(OptionError, match="larger than 64 MiB"):
        save(reference, path, force=True)


def test_a_huge_directory_is_refused(path: Path) -> None:
    rewrite(path, entries(path) | {f"extra{i}": b"" for i in range(500)})
    with pytest.raises(FileFormatError, match="directory is too large"):
        load(path)


def test_a_lying_size_is_refused(path: Path) -> None:
    """An entry that declares a terabyte, in its own header and in the directory, allocates nothing."""
    whole = path.read_bytes()
    data = entries(path)["entropy.npy"]
    honest = struct.pack("<III", zlib.crc32(data), len(data), len(data))
    assert whole.count(honest) == 2
    path.write_bytes(whole.replace(honest, struct.pack("<III", zlib.crc32(data), 0xFFFFFFF0, 0xFFFFFFF0)))
    with pytest.raises(FileFormatError):
        load(path)


def test_missing_extra_and_doubled_entries_are_refused(path: Path) -> None:
    data = entries(path)
    for wrong in (data | {"more.npy": b""}, {n: d for n, d in data.items() if n != "tail_logp.npy"}):
        rewrite(path, wrong)
        with pytest.raises(FileFormatError, match="misses an entry or has one too many"):
            load(path)
    rewrite(path, data)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("meta.json", data["meta.json"])
    with pytest.raises(FileFormatError, match="twice"):
        load(path)


@pytest.mark.parametrize("dtype", ["<f8", "<f2", "<i4", ">f4"])
def test_a_wrong_type_is_refused(path: Path, dtype: str) -> None:
    change(path, "entropy", lambda a: a.astype(dtype))
    with pytest.raises(FileFormatError, match=r"array entropy is not float32 of shape \(138,\)"):
        load(path)


def test_a_wrong_shape_is_refused(path: Path) -> None:
    change(path, "top_logp", lambda a: a.reshape(a.shape[::-1]))
    with pytest.raises(FileFormatError, match="array top_logp"):
        load(path)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("sequence_ids", 0, V, "sequence_ids leave the vocabulary"),
        ("prompt_ids", 0, -1, "prompt_ids leave the vocabulary"),
        ("continuation_ids", -1, 1 << 30, "continuation_ids leave the vocabulary"),
        ("sequence_lengths", 0, 25, "sequence_lengths do not add up"),
        ("sequence_lengths", slice(0, 2), [47, 1], "sequence_lengths do not add up"),
        ("sequence_lengths", slice(0, 2), [49, -1], "sequence_lengths do not add up"),
        ("top_ids", (0, 0), V, "top_ids leave the vocabulary"),
        ("top_ids", (0, slice(0, 2)), 1, "top_ids name a token twice"),
        ("top_logp", (0, 0), np.nan, "top_logp holds no log-probabilities"),
        ("top_logp", (0, 0), 0.5, "top_logp holds no log-probabilities"),
        ("top_logp", (0, 15), 0.0, "top_logp does not descend"),
        ("top_logp", (0, 15), -1e9, None),
        ("top_logp", (0, slice(0, 16)), -20.0, "do not add up to 1"),
        ("next_logp", 3, -np.inf, "next_logp holds no log-probabilities"),
        ("tail_logp", 3, -np.inf, "tail_logp is out of range"),
        ("tail_logp", 3, 0.1, "tail_logp is out of range"),
        ("entropy", 3, -0.1, "entropy is out of range"),
        ("entropy", 3, 5.0, "entropy is out of range"),
        ("drawn_ids", (3, 5), V, "drawn_ids leave the vocabulary"),
        ("drawn_ids", (3, 5), -1, "drawn_ids leave the vocabulary"),
        ("drawn_logp", (3, 5), np.nan, "drawn_logp holds no log-probabilities"),
        ("drawn_logp", (3, 5), -np.inf, "drawn_logp holds no log-probabilities"),
        ("drawn_logp", (3, 5), 0.5, "drawn_logp holds no log-probabilities"),
        ("drawn_logp", (3, 5), -1e-9, "drawn_logp is above the least of top_logp"),
    ],
)
def test_wrong_values_are_refused(path: Path, name: str, index: object, value: float, message: str | None) -> None:
    change(path, name, lambda a: put(a, index, value))
    with pytest.raises(FileFormatError, match=message):
        load(path)


@pytest.mark.parametrize(
    "values",
    [
        {"k": 0},
        {"k": V + 1},
        {"k": 1 << 40},
        {"k": "16"},
        {"draws": -1},
        {"draws": 31},
        {"draws": 0},
        {"draws": 1 << 24},
        {"draws": "32"},
        {"vocab_size": 1},
        {"schema_version": 2},
        {"surprise": 1},
        {"sequences": 0},
        {"sequences": 100},
        {"sequence_tokens": 1 << 24},
        {"prompts": 6},
        {"token_limit": 2},
        {"eot_ids": [V]},
        {"origin": None},
    ],
)
def test_wrong_metadata_is_refused(path: Path, values: dict[str, object]) -> None:
    change_meta(path, **values)
    with pytest.raises(FileFormatError):
        load(path)


@pytest.mark.parametrize("column", [0, 15])
def test_a_draw_from_the_kept_tokens_is_refused(path: Path, reference: Reference, column: int) -> None:
    row = len(reference.positions.top_ids) - 1
    kept = reference.positions.top_ids[row, column]
    change(path, "drawn_ids", lambda a: put(a, (row, 31), kept))
    with pytest.raises(FileFormatError, match="drawn_ids name one of the top_ids"):
        load(path)


def test_a_draw_more_probable_than_the_whole_tail_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    rows = np.log(np.array([[0.5, 0.3, 0.1, 0.1]] * 4, np.float32))
    save(seal(Bigram(rows), [[1, 2]], [], origin=ORIGIN, k=2), path)
    change(path, "drawn_logp", lambda a: put(a, (0, 0), np.log(0.25)))
    with pytest.raises(FileFormatError, match="drawn_logp is above tail_logp"):
        load(path)


def test_draws_where_there_is_no_tail_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    made = seal(Bigram(table(4)), [[1, 2]], [], origin=ORIGIN)
    assert (made.meta.k, made.meta.draws) == (4, 0)
    save(made, path)
    data = entries(path)
    data["drawn_ids.npy"], data["drawn_logp.npy"] = npy(np.zeros((1, 1), "<i4")), npy(np.zeros((1, 1), "<f4"))
    rewrite(path, data)
    change_meta(path, draws=1)
    with pytest.raises(FileFormatError, match="a tail of none"):
        load(path)


def test_metadata_that_are_no_json_or_too_long_are_refused(path: Path) -> None:
    data = entries(path)
    for wrong in (b"{", b"\xff", b"[" * 60_000, b" " * (1 << 17)):
        rewrite(path, data | {"meta.json": wrong})
        with pytest.raises(FileFormatError, match=r"meta\.json"):
            load(path)


def same(a: Reference, b: Reference) -> bool:
    left, right = container._arrays(a), container._arrays(b)
    return a.meta == b.meta and all(
        left[n].dtype == right[n].dtype and left[n].tobytes() == right[n].tobytes() for n in left
    )


def test_round_trip_is_bit_exact_and_bytes_are_reproducible(path: Path, reference: Reference, tmp_path: Path) -> None:
    again = load(path)
    assert same(again, reference)
    save(again, tmp_path / "b.npz")
    save(sealed(Bigram(table(V))), tmp_path / "c.npz")
    assert path.read_bytes() == (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    assert evaluate(Bigram(table(V)), again).kl_max == 0.0


def test_numpy_reads_the_file(path: Path, reference: Reference) -> None:
    with np.load(path, allow_pickle=False) as file:
        assert {info.date_time for info in file.zip.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert (file["top_ids"] == reference.positions.top_ids).all()
        assert file["tail_logp"].shape == (138,)


def test_an_existing_file_is_kept_without_force(path: Path, reference: Reference) -> None:
    before = path.read_bytes()
    with pytest.raises(OutputExistsError):
        save(reference, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_2048_positions_take_under_4_mb(tmp_path: Path) -> None:
    made = seal(Bigram(table(512)), text(512, 8, 257), [[1]], origin=ORIGIN)
    assert (made.meta.k, made.meta.draws, len(made.positions.entropy)) == (128, 32, 2048)
    save(made, tmp_path / "r.npz")
    assert 2_600_000 < (tmp_path / "r.npz").stat().st_size < 2_700_000


@given(
    vocab_size=st.integers(2, 9),
    lengths=st.lists(st.integers(2, 7), min_size=1, max_size=4),
    prompts=st.lists(st.integers(1, 3), max_size=3),
    k=st.integers(1, 12),
    limit=st.integers(1, 5),
    draws=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    vocab_size: int,
    lengths: list[int],
    prompts: list[int],
    k: int,
    limit: int,
    draws: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "shape.npz"
    engine = Bigram(table(vocab_size))
    lists = [[i % vocab_size for i in range(n)] for n in lengths]
    starts = [[i % vocab_size for i in range(n)] for n in prompts]
    options: dict[str, Any] = {"k": k, "draws": draws, "continuation_tokens": limit, "stop": frozenset({1})}
    made = seal(engine, lists, starts, origin=ORIGIN, **options)
    save(made, path, force=True)
    found = load(path)
    assert same(found, made)
    assert [ids.tolist() for ids in found.sequences.lists()] == lists
    assert [ids.tolist() for ids in found.prompts.lists()] == starts


def test_confident_and_huge_logits_survive_the_file(tmp_path: Path) -> None:
    for index, scale in enumerate((0.0, 1e4, 3e37)):
        engine = Bigram(np.float32(scale) * np.sign(table(8)))
        path = tmp_path / f"{index}.npz"
        save(seal(engine, [[1, 2, 3, 4]], [[1]], origin=ORIGIN, k=3), path)
        assert evaluate(engine, load(path)).kl_max == 0.0
