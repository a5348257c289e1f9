"""`edgekit bench` on this machine with both engines: whole runs, killed runs, killed engines, too little memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tiny

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import edgekit
from edgekit.bench import result
from edgekit.bench.result import BenchResult
from edgekit.options import Options

pytestmark = pytest.mark.integration
MEMORY, LIMIT = Path("/sys/fs/cgroup/memory"), 160


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    options = Options(formats=("gguf", "onnx"), sequences=4, length=48)
    return edgekit.build(tiny.make(folder / "model"), output=folder, options=options).bundle


def start(bundle: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgekit", "bench", str(bundle), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(bundle: Path, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    with start(bundle, *arguments) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out, err


def found(path: Path) -> BenchResult:
    return result.from_json(path.read_bytes())


def test_a_whole_run(bundle: Path, tmp_path: Path) -> None:
    out, _ = finish(bundle, "--protocol", "smoke", "--json", tmp_path / "out.json")
    assert "GGUF in llama.cpp" in out
    made = found(tmp_path / "out.json")
    assert made.measured_on == "measured"
    assert [run.format for run in made.runs] == ["gguf", "onnx"]
    for run in made.runs:
        assert run.failure is None
        assert [one.tokens for one in run.prefill] == [16, 32]
        assert run.decode is not None
        assert len(run.decode.token_ms) == run.decode.tokens == 12
        assert run.talk is not None
        assert run.talk.tokens == 8
        assert run.coherence is not None
        assert run.coherence.whole
        # The same machine and the same artefact: what the build measured, to the rounding of another thread count.
        assert run.coherence.recorded_kl is not None
        assert run.coherence.here.kl_mean == pytest.approx(run.coherence.recorded_kl, abs=1e-3)
        assert run.coherence.against_host is not None
        assert run.coherence.against_host.prompts == 2
        for one in run.loading:
            assert one.ran.peak_mib is not None
            assert one.loaded.peak_mib is not None
            assert one.ran.peak_mib >= one.loaded.peak_mib > 10
    assert [one.mode for one in made.runs[0].loading] == ["mmap"]


def test_both_ways_to_load_and_a_sweep(bundle: Path, tmp_path: Path) -> None:
    finish(bundle, "--format", "gguf", "--json", tmp_path / "out.json")
    run = found(tmp_path / "out.json").runs[0]
    assert [one.mode for one in run.loading] == ["mmap", "copy"]
    assert [one.seconds.quantity.n for one in run.loading] == [3, 3]
    assert [point.threads for point in run.sweep] == list(range(1, len(run.sweep) + 1))
    assert run.decode is not None
    assert run.decode.speed.quantity.n >= 5
    assert run.decode.inter_token.p50 <= run.decode.inter_token.p95 <= run.decode.inter_token.p99


def wait_for(journal: Path, lines: int, process: subprocess.Popen[str]) -> Path:
    for _ in range(3000):
        for path in journal.glob("*.jsonl"):
            if path.read_bytes().count(b"\n") >= lines:
                return path
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("nothing was measured")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_killed_run_goes_on_where_it_was(bundle: Path, tmp_path: Path) -> None:
    journal, options = tmp_path / "journal", ("--threads", "1", "--json", tmp_path / "out.json")
    with start(bundle, "--journal", journal, *options) as process:
        path = wait_for(journal, 5, process)
        left = children(process)
        process.kill()
    assert not psutil.wait_procs(left, timeout=60)[1], "a measuring process outlives its owner"
    before = path.read_bytes()
    path.write_bytes(before + b'{"key":"gguf/co')  # as a cut of the power may leave it
    finish(bundle, "--journal", journal, *options)
    assert path.read_bytes().startswith(before)
    assert found(tmp_path / "out.json").parts == 2
    assert not found(tmp_path / "out.json").failures


def test_an_engine_that_is_killed_is_told_and_the_rest_is_kept(bundle: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with start(
        bundle, "--journal", journal, "--threads", "1", "--format", "gguf", "--json", tmp_path / "out.json"
    ) as process:
        wait_for(journal, 6, process)
        while not (engines := children(process)):
            time.sleep(0.01)
        os.kill(engines[0].pid, signal.SIGKILL)
        _, err = process.communicate(timeout=600)
    failed = found(tmp_path / "out.json").failures
    assert len(failed) == 1
    assert failed[0].kind in ("crash", "out of memory")  # a kernel may not say whom it killed
    assert failed[0].resident_mib is not None or "it held less than" in failed[0].sentence, "it was hit as it began"
    assert "SIGKILL" in err.splitlines()[-1]
    assert process.returncode == failed[0].exit_code
    assert found(tmp_path / "out.json").runs[0].loading
    finish(bundle, "--journal", journal, "--threads", "1", "--format", "gguf", "--json", tmp_path / "out2.json")


def test_ctrl_c_leaves_no_process(bundle: Path, tmp_path: Path) -> None:
    with start(bundle, "--journal", tmp_path / "j", "--threads", "1") as process:
        wait_for(tmp_path / "j", 3, process)
        left = children(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not psutil.wait_procs(left, timeout=60)[1]


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory control group of LIMIT MiB; needs root."""
    group = MEMORY / f"edgekit-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT << 20))
    except OSError:
        pytest.skip("no control group for memory can be made here")
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.05)


ASK = """
import sys
from edgekit.bench.child import Look
from edgekit.bench.memory import Resident
from edgekit.bench.worker import EngineDied, Process
try:
    Process((sys.executable, "-c", sys.argv[1])).ask(Look(), Resident)
except EngineDied as died:
    print(type(died.error).__name__, died.resident_mib, died)
"""


def test_the_kernel_kills_an_engine_for_want_of_memory(little_memory: Path) -> None:
    """In a process that is smaller than the limit: the kernel's figure begins with the memory of the owner."""
    hungry = (
        "import os, pathlib, sys\n"
        f"pathlib.Path({str(little_memory / 'tasks')!r}).write_text(str(os.getpid()))\n"
        "held = []\n"
        "while True: held.append(b'x' * (1 << 20))"
    )
    done = subprocess.run([sys.executable, "-c", ASK, hungry], capture_output=True, text=True, check=True, timeout=60)
    name, mib, said = done.stdout.split(maxsplit=2)
    assert name == "OutOfMemoryError"
    assert 0.7 * LIMIT < float(mib) < 1.3 * LIMIT
    assert "the kernel killed the engine for want of memory" in said
