"""Inspecting a stranger's file: however broken, it is one sentence; a good one is counted from its bytes."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli_inspect import found, run

from edgekit.errors import CorruptCheckpointError, EdgekitError, FileFormatError
from edgekit.inspecting import inspect

MODEST = settings(max_examples=100, deadline=None)


def write_gguf(path: Path, file_type: gguf.LlamaFileType = gguf.LlamaFileType.MOSTLY_Q8_0) -> None:
    """64 x 64 weights in Q8_0, 32 x 64 in Q4_0, 64 in F32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny\x1b[31m")
    writer.add_file_type(file_type)
    writer.add_token_list([f"t{i}" for i in range(50)])
    writer.add_array("test.short", [1, 2, 3])
    ones = np.ones((64, 64), np.float32)
    for name, kind in (("a", gguf.GGMLQuantizationType.Q8_0), ("b", gguf.GGMLQuantizationType.Q4_0)):
        rows = ones if name == "a" else ones[:32]
        writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.add_tensor("c", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_gguf(Path(folder) / "x.gguf")
        return (Path(folder) / "x.gguf").read_bytes()


GGUF = gguf_bytes()


def fault(name: str, data: bytes) -> EdgekitError | None:
    """What inspecting a file of this content raises; None when it can be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            inspect(str(path))
        except EdgekitError as error:
            return error
    return None


def refuse(name: str, data: bytes, kind: type[EdgekitError] = FileFormatError) -> None:
    error = fault(name, data)
    assert isinstance(error, kind)
    assert error.sentence().isprintable()
    assert name in error.sentence()


def read_or_refuse(name: str, data: bytes, kind: type[EdgekitError] = FileFormatError) -> None:
    error = fault(name, data)
    assert error is None or (isinstance(error, kind) and error.sentence().isprintable())


def refuse_gguf(data: bytes) -> None:
    refuse("x.gguf", data)


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"G", b"GGUF", b"GGUF\x03\0\0\0", b"NOPE" + GGUF[4:], GGUF[:-1]])
def test_short_and_foreign_gguf(data: bytes) -> None:
    refuse_gguf(data)


@MODEST
@given(st.integers(0, len(GGUF) - 1))
def test_truncated_gguf(length: int) -> None:
    refuse_gguf(GGUF[:length])


@MODEST
@given(st.binary(max_size=400), st.integers(0, 3), st.integers(0, 3))
def test_random_gguf(data: bytes, tensors: int, keys: int) -> None:
    read_or_refuse("x.gguf", data)
    if tensors or keys:
        refuse_gguf(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"\xff" * 8 + data)


@MODEST
@given(st.integers(4, 1200), st.binary(min_size=1, max_size=8))
def test_spoilt_gguf_is_read_or_refused_but_never_crashes(place: int, data: bytes) -> None:
    read_or_refuse("x.gguf", GGUF[:place] + data + GGUF[place + len(data) :])


def key(name: bytes, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + rest


def tensor(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return key(name, struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("counts", "body"),
    [
        ((HUGE, 0), b""),
        ((0, HUGE), b""),
        ((0, 1), key(b"k", struct.pack("<IIQ", 9, 0, HUGE)) + bytes(64)),
        ((0, 1), key(b"k", struct.pack("<IIQ", 9, 8, HUGE)) + bytes(64)),
        ((0, 1), key(b"k", struct.pack("<IIQ", 9, 0, 1 << 22)) + bytes(1 << 22)),
        ((0, 1), key(b"k", struct.pack("<IQ", 8, HUGE)) + bytes(64)),
        ((0, 1), key(b"k", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000) + bytes(64)),
        ((0, 1), key(b"k", struct.pack("<I", 77)) + bytes(64)),
        ((0, 1), key(b"\xff\xfe", struct.pack("<II", 4, 1)) + bytes(64)),
        ((0, 2), key(b"k", struct.pack("<II", 4, 1)) * 2 + bytes(64)),
        ((0, 1), key(b"general.alignment", struct.pack("<II", 4, 0)) + bytes(64)),
        ((0, 1), key(b"general.name", struct.pack("<IQ", 8, 2) + b"\xff\xff") + bytes(64)),
        ((1, 0), tensor(b"t", (1 << 32, 1 << 32)) + bytes(64)),
        ((1, 0), tensor(b"t", (1 << 40,)) + bytes(64)),
        ((1, 0), tensor(b"t", (2,) * 9) + bytes(64)),
        ((1, 0), tensor(b"t", (4,), offset=HUGE) + bytes(64)),
        ((1, 0), tensor(b"t", (4,), kind=999) + bytes(64)),
        ((1, 0), tensor(b"t", (33,), kind=2) + bytes(64)),
        ((2, 0), tensor(b"t", (4,)) * 2 + bytes(64)),
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_malicious_gguf(counts: tuple[int, int], body: bytes) -> None:
    refuse_gguf(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)


def test_gguf_is_counted_from_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "x.gguf")
    data = found(capsys, tmp_path / "x.gguf")
    size, parameters = (tmp_path / "x.gguf").stat().st_size, 64 * 64 + 32 * 64 + 64
    assert data["kind"] == "gguf"
    assert data["facts"]["parameters"] == parameters
    assert data["facts"]["effective_bits"] == pytest.approx(8 * size / parameters)
    types = {row["type"]: (row["bytes"], row["bits"]) for row in data["tables"]["types"]}
    assert types == {"Q8_0": (4352, 8.5), "Q4_0": (1152, 4.5), "F32": (256, 32)}
    assert sum(row["share"] for row in data["tables"]["types"]) == pytest.approx(1)
    metadata = {row["key"]: row["value"] for row in data["tables"]["metadata"]}
    assert metadata["tokenizer.ggml.tokens"] == "50 x string"
    assert metadata["test.short"] == "[1, 2, 3]"
    assert metadata["general.name"].isprintable()


@pytest.mark.parametrize(
    ("claim", "name", "words"),
    [
        ("MOSTLY_Q8_0", "Q8_0", "as the bytes are"),
        ("MOSTLY_Q4_0", "Q4_0", "only 20% of the tensor bytes are Q4_0"),
        ("MOSTLY_Q4_K_M", "Q4_K_M", "only 0% of the tensor bytes are Q4_K"),
        ("MOSTLY_IQ3_M", "IQ3_M", "no single type"),
        ("ALL_F32", "F32", "only 4%"),
    ],
)
def test_a_claim_is_judged_by_the_bytes(
    tmp_path: Path, claim: str, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "x.gguf", gguf.LlamaFileType[claim])
    facts = found(capsys, tmp_path / "x.gguf")["facts"]
    assert facts["claimed_type"] == name
    assert words in facts["claim_against_bytes"]


def test_gguf_under_another_name_and_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "blob")
    assert run(str(tmp_path / "blob")) == 0
    shown = capsys.readouterr().out
    for word in ("Q8_0", "Q4_0", "effective bits", "75.6%"):
        assert word in shown
    assert "\x1b" not in shown


# --- safetensors -----------------------------------------------------------------------------------------------------


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(dtype: str = "F16", shape: object = (2, 3), offsets: object = (0, 12)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("<Q", HUGE) + b"{}",
        safetensors_bytes(b"[]"),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(b"\xff\xff"),
        safetensors_bytes({"a": 1}),
        safetensors_bytes({"a": tensor_entry()}, bytes(11)),
        safetensors_bytes({"a": tensor_entry(offsets=(4, 0))}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(offsets=(-12, 0))}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(shape=(-2, -3))}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(shape=(2, 2))}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(dtype="F32")}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(shape=(HUGE, HUGE))}, bytes(12)),
        safetensors_bytes({"a": tensor_entry(dtype="NEW", shape=(HUGE, HUGE))}, bytes(12)),
        safetensors_bytes({"__metadata__": {"a": 1}}),
    ],
)
def test_spoilt_safetensors(data: bytes) -> None:
    refuse("x.safetensors", data, CorruptCheckpointError)


@MODEST
@given(st.binary(max_size=200), st.booleans())
def test_random_safetensors(data: bytes, framed: bool) -> None:
    told = FileFormatError if not framed and data.startswith(b"GGUF") else CorruptCheckpointError
    read_or_refuse("x.safetensors", safetensors_bytes(data) if framed else data, told)


def test_safetensors_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": tensor_entry(), "b": tensor_entry("F32", (3,), (12, 24))}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, bytes(24)))
    data = found(capsys, tmp_path / "x.safetensors")
    assert (data["facts"]["tensors"], data["facts"]["parameters"]) == (2, 9)
    assert {row["type"]: row["bytes"] for row in data["tables"]["types"]} == {"F16": 12, "F32": 12}
    assert data["tables"]["tensors"][0] == {"tensor": "a", "type": "F16", "shape": "2x3", "bytes": 12}


# --- ONNX ------------------------------------------------------------------------------------------------------------


def write_onnx(folder: Path, location: str = "w.data", **more: str) -> Path:
    """A 4-bit matrix 8 x 64 in external data, read by a MatMulNBits and, as a table, by a GatherBlockQuantized."""
    onnx = pytest.importorskip("onnx")
    types, make = onnx.TensorProto, onnx.helper

    def outside(name: str, dims: tuple[int, ...], kind: int, offset: int, length: int) -> Any:
        made = types(name=name, data_type=kind, dims=dims, data_location=types.EXTERNAL)
        told = {"location": location, "offset": str(offset), "length": str(length)} | more
        for word, value in told.items():
            made.external_data.add(key=word, value=value)
        return made

    weights = [
        outside("codes", (8, 2, 16), types.UINT8, 0, 256),
        outside("table", (8, 32), types.UINT8, 0, 256),
        outside("scales", (8, 2), types.FLOAT, 256, 64),
        onnx.numpy_helper.from_array(np.ones(64, np.float32), "norm"),
    ]
    settings_ = {"domain": "com.microsoft", "bits": 4, "block_size": 32}
    nodes = [
        make.make_node("GatherBlockQuantized", ["table", "ids", "scales"], ["x"], gather_axis=0, **settings_),
        make.make_node("Mul", ["x", "norm"], ["y"]),
        make.make_node("MatMulNBits", ["y", "codes", "scales"], ["z"], K=64, N=8, **settings_),
    ]
    graph = make.make_graph(nodes, "g", [], [], weights)
    path = folder / "model.onnx"
    path.write_bytes(make.make_model(graph).SerializeToString())
    (folder / "w.data").write_bytes(bytes(320))
    return path


def test_edgekits_own_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lookup and a product that read the same 3-bit matrix; one with an attribute left out is shown as what it is."""
    onnx = pytest.importorskip("onnx")
    make, whole = onnx.helper, {"domain": "edgekit", "K": 64, "N": 8, "bits": 3, "block_size": 32}
    tensors = [
        onnx.numpy_helper.from_array(np.zeros((1, 2, 96), np.uint8), "codes"),
        onnx.numpy_helper.from_array(np.zeros((1, 2, 8), np.float16), "scales"),
    ]
    nodes = [
        make.make_node("Gather3Bits", ["ids", "codes", "scales"], ["x"], **whole),
        make.make_node("MatMul3Bits", ["x", "codes", "scales"], ["y"], **whole),
        make.make_node("MatMul3Bits", ["y", "codes", "scales"], ["z"], domain="edgekit", K=64, N=8),
        make.make_node("SparseMatMul3Bits", ["z", "codes", "scales"], ["u"], threshold=0.5, **whole),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(make.make_model(make.make_graph(nodes, "g", [], [], tensors)).SerializeToString())
    rows = found(capsys, path)["tables"]["quantized"]
    assert {(row["operator"], row["bits"], row["block"], row["parameters"]) for row in rows} == {
        ("Gather3Bits", 3, 32, 512), ("MatMul3Bits", 3, 32, 512), ("MatMul3Bits", 3, 0, 512),
        ("SparseMatMul3Bits", 3, 32, 512),
    }  # fmt: skip


@pytest.mark.parametrize("location", ["../w.data", "/etc/passwd", "", "a\\b"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    assert run(str(write_onnx(tmp_path, location))) == 26


@pytest.mark.parametrize("more", [{"offset": "x"}, {"length": "1e3"}, {"offset": "-1"}, {"length": "9" * 30}])
def test_external_data_at_an_impossible_place(tmp_path: Path, more: dict[str, str]) -> None:
    assert run(str(write_onnx(tmp_path, **more))) == 26


@MODEST
@given(st.binary(max_size=200))
def test_random_onnx(data: bytes) -> None:
    pytest.importorskip("onnx")
    read_or_refuse("x.onnx", data)


def test_onnx_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run(str(tmp_path / "x.onnx")) == 24
    assert "pip install 'edgekit[build]'" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "state"), [(320, "whole"), (319, "cut short"), (None, "missing")])
def test_external_data_on_disk(
    tmp_path: Path, size: int | None, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_onnx(tmp_path)
    (tmp_path / "w.data").unlink()
    if size is not None:
        (tmp_path / "w.data").write_bytes(bytes(size))
    (row,) = found(capsys, path)["tables"]["external_data"]
    assert row == {"file": "w.data", "tensors": 3, "needed_bytes": 320, "file_bytes": size, "state": state}


def test_onnx_bytes_shared_by_two_tensors_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_onnx(tmp_path)
    data = found(capsys, path)
    tables = data["tables"]
    assert {row["operator"] for row in tables["operators"]} == {
        "Mul", "com.microsoft::GatherBlockQuantized", "com.microsoft::MatMulNBits",
    }  # fmt: skip
    bits = {
        row["operator"]: (row["bits"], row["block"], row["parameters"], row["bits_per_weight"])
        for row in tables["quantized"]
    }
    assert bits == {"MatMulNBits": (4, 32, 512, 5), "GatherBlockQuantized": (4, 32, 512, 5)}
    kinds = {row["type"]: (row["tensors"], row["bytes"]) for row in tables["bytes"]}
    assert kinds["codes of 4-bit matrices"] == (2, 256)
    assert kinds["scales of 4-bit matrices"] == (1, 64)
    assert kinds["float, not quantized"][1] >= 256
    assert data["facts"]["all_bytes"] == path.stat().st_size + 320
    assert run(str(path)) == 0
    assert "MatMulNBits" in capsys.readouterr().out
