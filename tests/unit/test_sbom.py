"""sbom.cdx.json is valid CycloneDX 1.6, lists everything that is shipped, and is the same for the same content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgekit.bundle.manifest import Model
from edgekit.crossbuild import runtime_record, sbom
from edgekit.crossbuild.runtime_record import Compiled, Excluded, RuntimeRecord, Tool, Wheel
from edgekit.errors import BundleError

LICENCES = ["MIT", "BSD-3-Clause AND 0BSD AND MIT", "BSD License", "not stated", "Apache-2.0"]


def record(**changes: Any) -> RuntimeRecord:
    wheels = tuple(
        Wheel(
            file=f"p{n}-1.0-py3-none-any.whl", name=("edgekit" if n == 0 else f"p{n}"), version="1.0", size=10,
            sha256=hashlib.sha256(bytes([n])).hexdigest(), licence=licence, why="needed",
        )
        for n, licence in enumerate(LICENCES)
    )  # fmt: skip
    made = RuntimeRecord(
        edgekit="0.1.0", target="rpi5", formats=("gguf", "onnx"), machine="aarch64", python="3.11", glibc="2.31",
        glibc_max="2.36", wheels=wheels, excluded=(Excluded(name="x", asked_by="p1", why="not needed"),),
        tools=(Tool(path="bin/llama-bench", sha256="a" * 64, size=7), Tool(path="bin/other", sha256="b" * 64, size=8)),
        compiled=Compiled(
            llama_cpp_python="0.3.36", ggml="0.25.3", toolchain="zig", toolchain_version="0.17.1", march="armv8.2-a",
            mtune="cortex-a76", glibc="2.31", flags=("-O3",),
        ),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


MODEL = Model(
    name="SmolLM2-135M", architecture="llama", source="the hub", sha256="c" * 64, parameters=135, license="apache-2.0"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name in ("gguf/model.gguf", "onnx/model.onnx", "onnx/model.onnx.data"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("model", [MODEL, None])
def test_it_is_valid(bundle: Path, model: Model | None) -> None:
    path = sbom.write(bundle, record(), model)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text(encoding="utf8")) is None


def test_everything_is_listed_with_its_checksum(bundle: Path) -> None:
    made = record()
    found = json.loads(sbom.text(bundle, made, MODEL))
    components = {each["bom-ref"]: each for each in found["components"]}
    expected = {f"runtime/wheels/{wheel.file}": wheel.sha256 for wheel in made.wheels}
    expected |= {f"runtime/{tool.path}": tool.sha256 for tool in made.tools}
    for name in ("gguf/model.gguf", "onnx/model.onnx", "onnx/model.onnx.data"):
        expected[name] = hashlib.sha256(name.encode()).hexdigest()
        assert components[name]["type"] == "machine-learning-model"
    assert {ref: each["hashes"] for ref, each in components.items()} == {
        ref: [{"alg": "SHA-256", "content": digest}] for ref, digest in expected.items()
    }
    assert components["runtime/wheels/p1-1.0-py3-none-any.whl"]["purl"].startswith("pkg:pypi/p1@1.0")
    assert components["runtime/wheels/p1-1.0-py3-none-any.whl"]["licenses"] == [{"expression": LICENCES[1]}]
    assert components["runtime/bin/llama-bench"]["version"] == "ggml 0.25.3"
    assert components["gguf/model.gguf"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert components["runtime/bin/llama-bench"]["licenses"] == [{"license": {"id": "MIT"}}]
    texts = bundle / "runtime" / "licenses"
    texts.mkdir(parents=True)
    for name in ("llama.cpp", "libc++", "of-another"):
        (texts / name).touch()
    again = {each["bom-ref"]: each for each in json.loads(sbom.text(bundle, made, MODEL))["components"]}
    licence = again["runtime/bin/llama-bench"]["licenses"]
    assert licence == [{"expression": "Apache-2.0 WITH LLVM-exception AND MIT"}]
    whole = next(each for each in found["dependencies"] if each["ref"] == "bundle")
    assert set(whole["dependsOn"]) == set(expected)


def test_its_bytes_follow_from_what_it_lists(bundle: Path) -> None:
    first = sbom.text(bundle, record(), MODEL)
    assert first == sbom.text(bundle, record(), MODEL)
    assert "timestamp" not in first
    (bundle / "gguf" / "model.gguf").write_bytes(b"another")
    other = json.loads(sbom.text(bundle, record(), MODEL))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]


def test_the_runtimes_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "runtime.json"
    path.write_bytes(runtime_record.to_json(record()))
    assert runtime_record.read(path) == record()
    assert (record().wheel_bytes, record().tool_bytes) == (50, 15)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"schema_version": 2}', b" " * (2 << 20)])
def test_a_damaged_record(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "runtime.json"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="get the bundle again"):
        runtime_record.read(path)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        runtime_record.read(tmp_path / "runtime.json")
