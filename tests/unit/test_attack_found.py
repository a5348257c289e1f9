"""What the attack of tests/fuzz found, each as the smallest file that shows it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import tiny_gguf
from conftest import Cli

from edgekit.bundle.template import render
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.coherence import container
from edgekit.engines.ort import OrtEngine
from edgekit.errors import EdgekitError, FileFormatError
from edgekit.gguf_header import MAX_VALUES, read_header
from edgekit.report.model import from_json


def one_line_of(error: EdgekitError) -> None:
    assert error.sentence().isprintable()
    assert len(error.sentence()) < 8000


@pytest.mark.parametrize("place", ["node", "initializer", "producer", "location"])
def test_onnx_name_that_is_not_utf8(place: str, cli: Cli, tmp_path: Path) -> None:
    """protobuf hands out such a string as bytes: an AttributeError."""
    onnx: Any = pytest.importorskip("onnx")
    mark, bad = "M" * 7, b"\xff" * 7
    tensor = onnx.TensorProto(name=mark if place == "initializer" else "w", dims=[1], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value=mark if place == "location" else "w.data")
    node = onnx.helper.make_node(mark if place == "node" else "Identity", ["w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [tensor]))
    model.producer_name = mark if place == "producer" else "x"
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString().replace(mark.encode(), bad))
    cli("inspect", tmp_path / "x.onnx").refused(26)


@pytest.mark.parametrize("name", ["é" * 200, "x" * 300])
def test_shard_with_a_name_too_long_to_exist(name: str, cli: Cli, model: Path) -> None:
    """An OSError of Path.is_file."""
    names = list(tiny.weights(tiny.Tiny()))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    cli("plan", model).refused(10, "not there")


def test_zip_entry_with_a_long_name(tmp_path: Path) -> None:
    """zipfile quotes both names of an entry: a sentence of 16,000 characters."""
    path = tmp_path / "reference.npz"
    local = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 60_000, 0) + b"n" * 60_000
    central = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 9) + bytes(16) + b"meta.json"
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHIIH", 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    with pytest.raises(FileFormatError) as caught:
        container.load(path)
    one_line_of(caught.value)


def test_unknown_key_of_a_report_is_shown_harmless() -> None:
    """msgspec quotes the key as it stands."""
    with pytest.raises(EdgekitError) as caught:
        from_json(b'{"schema_version": 1, "\\u001b[31m": 1}')
    one_line_of(caught.value)


@pytest.mark.parametrize("value", ["Infinity", "1e400", "2147483647", "NaN", "-1", "0", "9" * 30, '"x"', "[]", "null"])
def test_size_in_genai_config_that_is_none(value: str, tmp_path: Path) -> None:
    """int(inf) is an OverflowError, and a negative size went through to numpy."""
    decoder = '{"num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": VALUE}'.replace("VALUE", value)
    (tmp_path / "genai_config.json").write_text(
        f'{{"model": {{"vocab_size": 9, "context_length": 9, "decoder": {decoder}}}}}'
    )
    with pytest.raises(FileFormatError, match="does not describe a decoder"):
        OrtEngine(tmp_path)


def test_metadata_key_twice(cli: Cli, tmp_path: Path) -> None:
    """gguf-py renames the second, llama.cpp refuses: what edgekit shows would depend on whom it asked."""

    def entry(key: bytes, value: int) -> bytes:
        return struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, value)

    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    (tmp_path / "x.gguf").write_bytes(header + entry(b"a.b", 1) + entry(b"a.b", 2))
    cli("inspect", tmp_path / "x.gguf").refused(26, "twice")
    (tmp_path / "x.gguf").write_bytes(header + entry(b"a" * 70_000, 1) + entry(b"b", 2))
    cli("inspect", tmp_path / "x.gguf").refused(26, "70000 bytes")


@pytest.mark.parametrize("endian", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_header_is_what_the_official_reader_says(endian: gguf.GGUFEndian, kind: str, tmp_path: Path) -> None:
    """gguf-py makes objects of every array item: 16 MB of empty strings took 36 s and 3.3 GB."""
    if endian is gguf.GGUFEndian.BIG and kind != "F16":
        pytest.skip("gguf-py swaps no bytes of quantized blocks")
    small = tiny.Tiny(hidden=32, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=16)
    path = tiny_gguf.write(tmp_path / "x.gguf", small, kind=kind, endian=endian, words={"odd": [1, 2, 3], "none": True})
    header, official = read_header(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in official.fields.items() if not name.startswith("GGUF.")}
    assert header.fields.keys() == fields.keys()
    for name, field in header.fields.items():
        assert field.kind == fields[name].types[0].name.lower()
        if field.value is None:
            assert field.count == len(fields[name].data) > MAX_VALUES
            assert field.item == fields[name].types[-1].name.lower()
        else:
            assert field.value == fields[name].contents()
    assert [(t.name, t.type, t.parameters, t.nbytes) for t in header.tensors] == [
        (t.name, t.tensor_type.name, int(t.n_elements), int(t.n_bytes)) for t in official.tensors
    ]
    assert header.byte_order == official.endianess.name.lower()


def test_two_million_strings_are_skipped(tmp_path: Path) -> None:
    """In 300 MiB of address space beyond what the modules take, and 20 s of CPU time."""
    count = (1 << 21) - 1
    key = struct.pack("<Q", 3) + b"a.b" + struct.pack("<IIQ", 9, 8, count)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(8 * count))
    code = """
import resource, sys
from pathlib import Path
from edgekit.inspecting_files import gguf_file
import gguf
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
print(gguf_file(Path(sys.argv[1])).tables["metadata"])
"""
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"{count} x string" in ran.stdout


def test_weights_that_are_a_fifo_are_not_opened(cli: Cli, model: Path) -> None:
    """With no model.safetensors every *.safetensors was opened, and a fifo waits for a writer."""
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "other.safetensors")
    result = cli("plan", model)
    assert result.code == 10


def test_syntax_error_of_a_template_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for the line in a file of the template's name, which was "<template>" in the current folder."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("<template>")
    os.mkfifo("template")
    with pytest.raises(EdgekitError, match="keyword argument repeated"):
        render("{{ f(a=1, a=2) }}", [])


@pytest.mark.parametrize("name", [b"\xff", b"\x1b[31m", b"a\nb"])
def test_name_of_a_model_folder_goes_nowhere_raw(name: bytes, tmp_path: Path) -> None:
    """It becomes part of the bundle's name, its manifest, its report and its GGUF file."""
    folder = tiny.make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name.isprintable()
    assert checkpoint.source.isprintable()
