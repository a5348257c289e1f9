"""A bundle's runtime is put together whole, the same each time, and never with a fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_wheels
import pytest

from edgekit import targets
from edgekit.bundle.manifest import FileEntry
from edgekit.crossbuild import audit, cuda, package, wheelhouse
from edgekit.crossbuild.model import Native, NativeRecord
from edgekit.crossbuild.runtime_record import RuntimeRecord, read, shipped
from edgekit.crossbuild.wheelhouse import host_version
from edgekit.errors import AuditError, OptionError
from edgekit.files import sha256
from edgekit.options import Container, RuntimeOptions
from edgekit.progress import Quiet

RELEASE = host_version("llama-cpp-python")
RECORD = NativeRecord(
    llama_cpp_python=RELEASE, source_sha256="0" * 64, ggml="0.25.3", toolchain="zig", toolchain_version="0.17.1",
    march="armv8.2-a+dotprod+fp16", mtune="cortex-a76", features=("asimd",), glibc="2.31", flags=("-O3",),
    seconds=527.4, files={},
)  # fmt: skip
Make = Callable[..., tuple[Path, RuntimeRecord]]


@pytest.fixture
def make(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a runtime in a fresh bundle folder."""
    fake_wheels.index(tmp_path / "index", monkeypatch)
    source = fake_wheels.source_tree(tmp_path / "source", RELEASE)
    compiled = fake_wheels.native_folder(tmp_path / "native")
    monkeypatch.setattr(wheelhouse, "sdist", lambda _progress, _offline: SimpleNamespace(folder=source))
    asked: list[dict[str, Any]] = []

    def build(_target: object, **options: Any) -> Native:
        asked.append(options)
        return Native(compiled, RECORD)

    monkeypatch.setattr(package, "build_native", build)
    number = 0

    def run(*formats: Container, faults: tuple[str, ...] = (), **options: Any) -> tuple[Path, RuntimeRecord]:
        nonlocal number
        number += 1
        folder = tmp_path / f"bundle{number}"
        folder.mkdir()
        found = SimpleNamespace(faults=faults, files=(1, 2), started="started")
        monkeypatch.setattr(audit, "audit_bundle", lambda *_args, **_options: found)
        made = package.package(targets.load("rpi5"), formats, folder, RuntimeOptions(**options), Quiet())
        assert len(asked) <= number
        return folder, made

    run.asked = asked  # type: ignore[attr-defined]
    return run


def test_a_fault_stops_it_and_is_named(make: Make) -> None:
    with pytest.raises(AuditError, match=r"not work on rpi5: libllama\.so needs sve and 1 more"):
        make("gguf", faults=("libllama.so needs sve", "another"))


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_cuda_is_not_passed_over(make: Make, monkeypatch: pytest.MonkeyPatch, form: Container) -> None:
    with pytest.raises(OptionError, match="rpi5 has no CUDA accelerator"):
        make(form, accel="cuda")
    monkeypatch.setattr(cuda, "architecture", lambda _target: "87")
    if form == "onnx":
        with pytest.raises(OptionError, match="--accel cuda is for llama.cpp, and no GGUF artefact is built"):
            make(form, accel="cuda")
        return
    folder, made = make(form, accel="cuda")
    assert (made.accel, read(folder / "runtime" / "runtime.json").accel) == ("cuda", "cuda")
    assert make.asked[-1]["accel"] == "cuda"  # type: ignore[attr-defined]
    assert make(form)[1].accel == "none"


def test_the_layout_of_both_formats(make: Make) -> None:
    folder, made = make("gguf", "onnx")
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in paths if not path.startswith("runtime/wheels/")} == {
        "install.sh", "chat.sh", "bench.sh", "sbom.cdx.json", "runtime/runtime.json", "runtime/requirements.txt",
        "runtime/SHA256SUMS", "runtime/bin/llama-bench", "runtime/bin/llama-perplexity",
        "runtime/licenses/llama.cpp.txt",
    }  # fmt: skip
    assert read(folder / "runtime" / "runtime.json") == shipped(made)
    assert {tool.path: tool.sha256 for tool in made.tools} == {
        f"bin/{name}": sha256(folder / "runtime" / "bin" / name) for name in ("llama-bench", "llama-perplexity")
    }
    programs = ("install.sh", "chat.sh", "bench.sh", "runtime/bin/llama-bench")
    assert all(os.access(folder / path, os.X_OK) for path in programs)
    assert made.compiled is not None
    assert (made.compiled.ggml, made.python, made.glibc, made.glibc_max) == ("0.25.3", "3.11", "2.30", "2.36")
    assert made.audit is not None
    assert made.audit.files == 2
    for path in paths:
        FileEntry(sha256=sha256(folder / path), size=(folder / path).stat().st_size)


def test_every_file_of_the_runtime_is_in_its_checksums(make: Make) -> None:
    folder, _ = make("gguf")
    runtime = folder / "runtime"
    lines = (runtime / "SHA256SUMS").read_text(encoding="utf8").splitlines()
    found = {path.relative_to(runtime).as_posix() for path in runtime.rglob("*") if path.is_file()}
    assert {line[66:]: line[:64] for line in lines} == {name: sha256(runtime / name) for name in found - {"SHA256SUMS"}}


def test_onnx_alone_compiles_nothing(make: Make) -> None:
    folder, made = make("onnx")
    assert made.compiled is None
    assert not made.tools
    assert not (folder / "runtime" / "bin").exists()
    assert "llama-cpp-python" not in {wheel.name for wheel in made.wheels}
    assert "import edgekit.cli.main" not in (folder / "install.sh").read_text(encoding="utf8")
    assert "IMPORTS='edgekit.cli.main, edgekit.bundle.tokenizer, onnxruntime'" in (folder / "install.sh").read_text(
        "utf8"
    )


def test_twice_the_same_bytes_without_a_trace_of_this_machine(make: Make, tmp_path: Path) -> None:
    (one, _), (two, _) = make("gguf", "onnx"), make("gguf", "onnx")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert [sha256(one / path) for path in files] == [sha256(two / path) for path in files]
    text = (one / "runtime" / "runtime.json").read_text(encoding="utf8")
    assert str(tmp_path) not in text
    assert "527.4" not in text
    assert json.loads(text)["excluded"][0]["why"]
