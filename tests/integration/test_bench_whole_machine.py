"""`edgekit bench` on a whole emulated board whose power is cut, whose clock is set, and whose memory is too small.

The bundle is a tiny random model with the real engines. What its ONNX graph needs beside the model is little for 32
tokens and more than the board has for an answer's question, so that the board's own kernel ends the engine.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import native_runtime
import pytest
import tiny
from emulated import machine

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import edgekit
from edgekit import targets
from edgekit.bench.disturbances import timed_windows
from edgekit.bench.remote import Patience, bench_on, decoder
from edgekit.bench.result import BenchResult, Loading
from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.devices.emulated import device_of
from edgekit.emulator.board import LOOPBACK, Board
from edgekit.errors import OutOfMemoryError
from edgekit.files import cache_dir
from edgekit.options import Options, RuntimeOptions
from edgekit.progress import Quiet

pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(3600)]
RAM_MIB, DISK_MIB = 1024, 1536
CHUNKS, CHUNK = 6, 1 << 26
"""Arrays that the graph holds at the same time, and the numbers of four bytes in each at most: 1.5 GiB."""
RUNS = "/home/pi/.local/share/edgekit/bench/runs"
DAY = 86_400
OFTEN = Patience(first_s=1, longest_s=2)
KEEP_DIRTY = """
cd /proc/sys/vm
echo 360000 >dirty_expire_centisecs
echo 50 >dirty_background_ratio
echo 80 >dirty_ratio
"""
"""For an hour the board writes nothing to its disk but what a program asks it to."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("dist")
    native_runtime.give(cache_dir(), "rpi5")
    options = Options(sequences=4, length=48, runtime=RuntimeOptions())
    place = edgekit.build(tiny.make(folder / "model"), target="rpi5", output=folder, options=options).bundle
    before = open_bundle(place).manifest
    make_hungry(place / "onnx" / "model.onnx")
    write_manifest(place, before)
    return open_bundle(place)


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with machine("rpi5", ram_mib=RAM_MIB, disk_mib=DISK_MIB) as board:
        yield board


def make_hungry(path: Path) -> None:
    """Add to the logits of T tokens nothing, computed from CHUNKS arrays of min(2 ** (T - 24), CHUNK) numbers."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    helper, graph = onnx.helper, model.graph
    (last,) = [node for node in graph.node if "logits" in node.output]
    last.output[:] = ["sated" if name == "logits" else name for name in last.output]
    made = [
        helper.make_node("Shape", ["input_ids"], ["hungry/t"], start=1, end=2),
        helper.make_node("Cast", ["hungry/t"], ["hungry/tokens"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["hungry/tokens", "hungry/few"], ["hungry/beyond"]),
        helper.make_node("Pow", ["hungry/two", "hungry/beyond"], ["hungry/much"]),
        helper.make_node("Clip", ["hungry/much", "hungry/one", "hungry/most"], ["hungry/count"]),
        helper.make_node("Cast", ["hungry/count"], ["hungry/shape"], to=onnx.TensorProto.INT64),
    ]
    for index in range(CHUNKS):  # different values: equal ones would be one array
        value = helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [float(index + 1)])
        made.append(helper.make_node("ConstantOfShape", ["hungry/shape"], [f"hungry/{index}"], value=value))
    made += [
        helper.make_node("Sum", [f"hungry/{index}" for index in range(CHUNKS)], ["hungry/sum"]),
        helper.make_node("ReduceMax", ["hungry/sum"], ["hungry/max"], keepdims=0),
        helper.make_node("Mul", ["hungry/max", "hungry/none"], ["hungry/nothing"]),
        helper.make_node("Add", ["sated", "hungry/nothing"], ["logits"]),
    ]
    graph.node.extend(made)
    numbers = {"few": 24.0, "two": 2.0, "one": 1.0, "most": float(CHUNK), "none": 0.0}
    for name, number in numbers.items():
        shape = [1] if name in ("few", "two") else []
        graph.initializer.append(helper.make_tensor(f"hungry/{name}", onnx.TensorProto.FLOAT, shape, [number]))
    path.write_bytes(model.SerializeToString())


@dataclass
class Faults(Quiet):
    """Does something to the board when the measurement there says a word for the first time."""

    todo: dict[str, Callable[[], None]]
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)
        for word in [word for word in self.todo if word in line]:
            self.todo.pop(word)()


def root(board: Board, line: str) -> str:
    command = [*board.ssh_command(), f"root@{LOOPBACK}", line]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def journal(board: Board) -> bytes:
    return board.run_bytes(["sh", "-c", f"cat {RUNS}/*/journal/*.jsonl"], check=True).stdout


def measured(board: Board, bundle: Bundle, faults: Faults, *more: str) -> tuple[BenchResult, bytes]:
    """The result, and the board's journal as it was when the result was read; afterwards the board is clean."""
    device, target, journals = device_of(board), targets.load("rpi5"), list[bytes]()
    read = decoder(device, bundle)

    def decode(data: bytes) -> BenchResult:
        journals.append(journal(board))
        return read(data)

    arguments = ["--protocol", "smoke", *more]
    try:
        result = bench_on(device, bundle, target, arguments, decode=decode, progress=faults, patience=OFTEN)
    finally:
        device.close()
    assert not faults.todo, "the measurement was over before"
    assert board.run(["ls", RUNS], check=True).stdout == ""
    return result, journals[0]


def lines(text: bytes) -> dict[str, Any]:
    return {line["key"]: line["value"] for line in map(json.loads, text.splitlines()) if "key" in line}


def sane(result: BenchResult) -> None:
    """Times of the run go forward and lie within it, and no day has crept in."""
    assert 0 < result.seconds < DAY / 2
    for run in result.runs:
        windows = [window for _, window in timed_windows(run)]
        windows += [run.coherence.window] if run.coherence else []
        times = [time for window in windows for time in (window.begin, window.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= result.seconds
        assert all(0 < one.seconds.quantity.value < DAY / 2 for one in run.loading)
        assert run.decode is not None
        assert all(0 < milliseconds < 1000 * DAY / 2 for milliseconds in run.decode.token_ms)
        assert all(0 < one.ttft.quantity.value < 1000 * DAY / 2 for one in run.prefill)


def test_after_a_power_cut_it_goes_on_where_it_was(pi: Board, bundle: Bundle) -> None:
    """On a board that was just installed, writes nothing by itself, and whose clock was a day ahead until then."""
    cut, boot = list[bytes](), pi.run(["cat", "/proc/sys/kernel/random/boot_id"], check=True).stdout

    def lose_power() -> None:
        cut.append(journal(pi))
        pi.lose_power()

    root(pi, KEEP_DIRTY)
    root(pi, f"date -s @$(($(date +%s) + {DAY}))")
    faults = Faults({"GGUF: prompt of 16": lose_power})
    result, after = measured(pi, bundle, faults, "--format", "gguf")
    assert pi.run(["cat", "/proc/sys/kernel/random/boot_id"], check=True).stdout != boot
    assert any("the board started anew; the measurement goes on where it was" in note for note in faults.notes)
    before = lines(cut[0])
    assert "gguf/load/mmap" in before
    assert "gguf/coherence" not in before
    assert after.startswith(cut[0]), "what was measured was lost, or measured again"
    assert result.runs[0].loading == (msgspec.convert(before["gguf/load/mmap"], Loading),)
    assert [key for key in lines(after) if key.startswith("part/")] == ["part/0", "part/1"]
    assert result.parts == 2
    assert not result.failures
    assert result.runs[0].coherence is not None
    sane(result)


def test_a_clock_that_jumps_changes_no_figure(pi: Board, bundle: Bundle) -> None:
    def jump(seconds: int) -> Callable[[], None]:
        return lambda: print(root(pi, f"date -s @$(($(date +%s) + {seconds}))"))

    faults = Faults({"GGUF: load": jump(DAY), "GGUF: prompt of 16": jump(-2 * DAY), "GGUF: coherence": jump(DAY)})
    result, after = measured(pi, bundle, faults, "--format", "gguf")
    assert result.parts == 1
    assert not result.failures
    assert list(lines(after)) == [
        "part/0", "gguf/load/mmap", "gguf/prefill/16", "gguf/prefill/32", "gguf/decode/12", "gguf/talk",
        "gguf/coherence",
    ]  # fmt: skip
    sane(result)


def test_what_the_kernel_kills_for_want_of_memory_is_told_and_the_rest_is_kept(pi: Board, bundle: Bundle) -> None:
    result, after = measured(pi, bundle, Faults({}))
    gguf, hungry = result.runs
    assert gguf.failure is None
    assert gguf.coherence is not None
    failure = hungry.failure
    assert failure is not None
    assert failure.kind == "out of memory"
    assert failure.exit_code == OutOfMemoryError.exit_code
    assert "the kernel killed the engine for want of memory" in failure.sentence
    assert failure.resident_mib is not None
    assert RAM_MIB / 3 < failure.resident_mib < RAM_MIB
    assert f"{failure.resident_mib:.0f} MiB" in failure.sentence
    assert hungry.decode is not None, "what it had measured before counts"
    assert hungry.coherence is None
    assert {"onnx/decode/12", "gguf/coherence"} < set(lines(after))
    assert int(root(pi, "sed -n 's/^oom_kill //p' /proc/vmstat")) >= 1
    sane(result)
