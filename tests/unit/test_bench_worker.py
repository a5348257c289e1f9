"""The measuring process: what it answers, and how its end is told."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from bench_toys import toy_bundle

from edgekit.bench import child
from edgekit.bench.child import Generate, Look, Open, Opened, Read
from edgekit.bench.latency import Generating, Reading
from edgekit.bench.memory import Resident, kills, resident
from edgekit.bench.worker import EngineDied, Process, death
from edgekit.errors import DeviceError, EdgekitError, FileFormatError, OptionError, OutOfMemoryError


def program(code: str) -> Process:
    return Process((sys.executable, "-c", code))


def died(code: str) -> EngineDied:
    with program(code) as worker, pytest.raises(EngineDied) as caught:
        worker.ask(Look(), Resident)
    return caught.value


def test_a_crash_is_told_with_signal_memory_and_last_words() -> None:
    own = int(resident().peak_mib or 0)
    hold = f"import os, signal, sys; x = b'x' * ({own + 60} << 20); print('ggml: oh no', file=sys.stderr, flush=True); "
    found = died(hold + "os.kill(os.getpid(), signal.SIGSEGV)")
    assert isinstance(found.error, DeviceError)
    assert "SIGSEGV" in found.error.sentence()
    assert "ggml: oh no" in found.error.sentence()
    assert found.resident_mib is not None
    assert found.resident_mib > own + 60


def test_a_small_process_is_not_said_to_have_held_what_its_owner_holds() -> None:
    """The kernel's figure begins with the memory of who started the process."""
    ballast = b"x" * (64 << 20)
    found = died("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert len(ballast)
    assert found.resident_mib is None
    assert "it held less than" in str(found)


@pytest.mark.parametrize("code", ["raise SystemExit('no luck')", "import sys; sys.exit('no luck')"])
def test_an_end_without_an_answer_is_told(code: str) -> None:
    assert "no luck" in str(died(code))


def test_half_an_answer_is_none() -> None:
    assert "code 0" in str(died("print('{\"type\"', end='')"))


@pytest.mark.parametrize("line", ["hello", "[]", '{"type":"other"}', '{"type":"answer","value":{"x":1}}', "\x1b[2J"])
def test_an_answer_to_nothing_is_refused(line: str) -> None:
    code = f"import time; print({line!r}, flush=True); time.sleep(60)"
    with program(code) as worker, pytest.raises(DeviceError, match="what it was not asked") as caught:
        worker.ask(Look(), Resident)
    assert "\x1b" not in caught.value.sentence()


@pytest.mark.parametrize(
    ("killed", "kind", "words"),
    [
        (True, OutOfMemoryError, "the kernel killed the engine for want of memory: it held 512 MiB at most"),
        (None, OutOfMemoryError, "most likely by the kernel"),
        (False, DeviceError, "not for want of memory"),
    ],
)
def test_a_kill_is_told_by_what_the_kernel_counts(killed: bool | None, kind: type[EdgekitError], words: str) -> None:
    error = death(-signal.SIGKILL, "", "it held 512 MiB at most", killed)
    assert type(error) is kind
    assert words in error.sentence()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGILL, "this CPU does not have"),
        (-signal.SIGABRT, "SIGABRT"),
        (-99, "signal 99"),
        (3, "code 3"),
    ],
)
def test_other_ends(code: int, words: str) -> None:
    assert words in death(code, "last words", "it held 1 MiB at most", None).sentence()


def test_closing_ends_a_process_that_does_not_listen() -> None:
    worker = program("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
    worker.close()
    worker.close()
    assert worker._process.returncode == -signal.SIGKILL


def test_it_dies_with_its_owner() -> None:
    """Otherwise a killed benchmark would leave a model in memory and a busy CPU."""
    code = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'edgekit.bench.child'], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE)\n"
        'p.stdin.write(b\'{"type":"look"}\\n\'); p.stdin.flush(); p.stdout.readline()\n'
        "print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        pidfd = os.pidfd_open(pid)
        owner.kill()
        import select

        assert select.select([pidfd], [], [], 60)[0], "it lives on"
        os.close(pidfd)


# --- the child -------------------------------------------------------------------------------------------------------


def served(*requests: bytes) -> list[dict[str, object]]:
    replies = io.BytesIO()
    child.serve(io.BytesIO(b"".join(request + b"\n" for request in requests)), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def opening(bundle: Path, **changes: object) -> bytes:
    request = {
        "type": "open", "format": "onnx", "path": str(bundle / "onnx/model.onnx"),
        "tokenizer": str(bundle / "tokenizer"), "threads": 1, "prefill_threads": 1, "context": 64,
    }  # fmt: skip
    return json.dumps({**request, **changes}).encode()


def test_measuring_before_opening_is_refused() -> None:
    assert served(b'{"type":"generate","tokens":3}')[0]["error"] == "OptionError"


def test_a_missing_model_is_told_with_its_class(tmp_path: Path) -> None:
    toy_bundle(tmp_path / "b")
    reply = served(opening(tmp_path / "b", path=str(tmp_path / "b/onnx/nothing.onnx")))[0]
    assert (reply["type"], reply["error"]) == ("error", "FileFormatError")


def test_cpus_that_are_not_there(tmp_path: Path) -> None:
    toy_bundle(tmp_path / "b")
    reply = served(opening(tmp_path / "b", affinity=[1023]))[0]
    assert reply["error"] == "OptionError"
    assert "1023" in str(reply["found"])


@pytest.mark.parametrize(
    ("said", "gpu", "title"),
    [
        (b"CPU : NEON = 1 | DOTPROD = 1 | ", False, "CPU"),
        (b"CUDA : ARCHS = 870 | CPU : NEON = 1 | ", True, "GPU (CUDA)"),
        (b"CUDA : ARCHS = 870 | CPU : NEON = 1 | \xff", False, "CPU (of a CUDA build)"),
        (b"CPU : NEON = 1 | ", True, "CPU"),
    ],
)
def test_where_llama_cpp_computes(said: bytes, gpu: bool, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(llama_print_system_info=lambda: said)
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    monkeypatch.setattr(child, "needs_gpu", lambda _: gpu)
    engine: Any = SimpleNamespace(name="llama.cpp")
    assert child.processor_of(engine, Path("x.gguf")) == title


def test_where_onnxruntime_computes(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    toy_bundle(tmp_path / "b")
    opened: Any = served(opening(tmp_path / "b"))[0]["value"]
    build = " (of a CUDA build)" if "CUDAExecutionProvider" in ort.get_available_providers() else ""
    assert opened["processor"] == f"CPU{build}"


def test_too_little_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> object:
        raise MemoryError

    toy_bundle(tmp_path / "b")
    monkeypatch.setattr(child, "open_engine", full)
    assert served(opening(tmp_path / "b"))[0]["error"] == "OutOfMemoryError"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(msgspec.DecodeError):
        served(b"{")


def test_a_real_engine_in_a_real_process(tmp_path: Path) -> None:
    toy_bundle(tmp_path / "b")
    with Process() as worker:
        request = Open(
            format="onnx", path=str(tmp_path / "b/onnx/model.onnx"), tokenizer=str(tmp_path / "b/tokenizer"), threads=1,
            prefill_threads=1, context=64, affinity=(min(os.sched_getaffinity(0)),),
        )  # fmt: skip
        opened = worker.ask(request, Opened)
        assert (opened.engine, opened.vocab_size, opened.max_context) == ("onnxruntime", 96, 64)
        assert opened.loaded.peak_mib is not None
        assert opened.loaded.peak_mib >= opened.empty.resident_mib  # type: ignore[operator]
        assert worker.ask(Read(text="hello there", tokens=8), Reading).prefill > 0
        with pytest.raises(OptionError, match="2 tokens"):
            worker.ask(Read(text="ab", tokens=8), Reading)
        assert len(worker.ask(Generate(tokens=5), Generating).tokens) == 5
        with pytest.raises(FileFormatError):
            worker.ask(Open(**{**{f: getattr(request, f) for f in request.__struct_fields__}, "path": "x"}), Opened)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_of_a_status_file() -> None:
    text = "Name:\tx\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\nRssAnon:\t 1024 kB\nRssFile:\t 512 kB\n"
    assert resident(text) == Resident(peak_mib=200, resident_mib=100, anonymous_mib=1, file_mib=0.5)


@pytest.mark.parametrize("text", ["", "VmHWM", "VmHWM: many kB", "VmHWM: 5", "VmHWM: -5 kB", "VmHWM: ٣ kB", "\x00:"])
def test_what_the_kernel_does_not_say_is_none(text: str) -> None:
    assert resident(text) == Resident(peak_mib=None, resident_mib=None, anonymous_mib=None, file_mib=None)


def test_this_process_holds_something() -> None:
    found = resident()
    assert found.peak_mib is not None
    assert found.resident_mib is not None
    assert found.peak_mib >= found.resident_mib > 1


@pytest.mark.parametrize(
    ("text", "count"), [("a 1\noom_kill 7\n", 7), ("", None), ("oom_kill x\n", None), ("oom_kill\n", None)]
)
def test_kills_of_the_kernel(text: str, count: int | None) -> None:
    assert kills(text) == count
