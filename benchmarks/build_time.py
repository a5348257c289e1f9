"""Time and memory of a 4-bit export against the peers that do the same job: `python -m benchmarks.build_time`."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks._converter import Converter, converter
from benchmarks._measure import Usage, begin, pairs, parser, run, versions
from benchmarks._result import Limit, Row
from edgekit.checkpoint.source import resolve

TIME, MEMORY = 1.5, 1.0
PEERS = {
    "gguf": "convert_hf_to_gguf.py (f16) + llama_model_quantize",
    "onnx": "onnxruntime_genai.models.builder -p int4",
}
METHOD = (
    "Every run is a fresh process that begins with the Hugging Face folder and ends with the finished files; "
    "calibration, parity and coherence are not part of it. Memory: largest sum of the resident sets over the process "
    "tree, sampled every 50 ms, or the kernel's high-water mark of the largest process if that is more; of two steps "
    "the larger one. "
    "The quantize step counts only the seconds inside the call, without the start of Python, because the peer's own "
    "tool is a compiled one."
)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Made:
    """One export."""

    seconds: float
    peak_mib: float
    cpu_seconds: float
    types: str
    """Types of the tensors in a GGUF file; "" for ONNX."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    title: str
    peer: str
    ours: Callable[[], Made]
    theirs: Callable[[], Made]


def types(path: Path) -> str:
    """How many tensors of each type a GGUF file holds, as the official reader sees them."""
    from gguf import GGUFReader

    found = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def _job(*arguments: str) -> Usage:
    return run([sys.executable, "-m", "benchmarks._jobs", *arguments], _OFFLINE)


def export(model: Path, container: str, linear: str, out: Path) -> Made:
    """Our export in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    used = _job("export", str(model), container, str(out), "--linear", linear)
    return Made(
        used.seconds, used.peak_mib, used.cpu_seconds, types(out / "gguf" / "model.gguf") if container == "gguf" else ""
    )


def convert_and_quantize(tool: Converter, model: Path, linear: str, embedding: str, out: Path) -> Made:
    """llama.cpp's two steps to a GGUF file."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    half, small = out / "f16.gguf", out / "model.gguf"
    first = run([sys.executable, str(tool.script), str(model), "--outfile", str(half), "--outtype", "f16"], _OFFLINE)
    second = _job("quantize", str(half), str(small), linear, embedding)
    inside = float(json.loads(second.output.splitlines()[-1])["quantize"])
    cpu = first.cpu_seconds + second.cpu_seconds
    return Made(first.seconds + inside, max(first.peak_mib, second.peak_mib), cpu, types(small))


def genai(model: Path, out: Path) -> Made:
    """onnxruntime-genai's builder."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(model), "-o", str(out / "onnx"),
        "-p", "int4", "-e", "cpu", "-c", str(out / "cache"), "--extra_options", "hf_remote=false",
    ]  # fmt: skip
    used = run(command, _OFFLINE)
    return Made(used.seconds, used.peak_mib, used.cpu_seconds, "")


def cases(wanted: Sequence[str], model: Path, scratch: Path) -> list[Case]:
    """The comparisons that were asked for."""
    made = []
    if "gguf" in wanted:
        tool = converter()
        made = [_gguf_case(tool, model, linear, scratch) for linear in ("IQ4_NL", "Q4_0")]
    if "onnx" in wanted:
        made.append(
            Case(
                "ONNX int4", PEERS["onnx"], lambda: export(model, "onnx", "", scratch / "ours"),
                lambda: genai(model, scratch / "peer"),
            )
        )  # fmt: skip
    return made


def _gguf_case(tool: Converter, model: Path, linear: str, scratch: Path) -> Case:
    return Case(
        f"GGUF {linear}", PEERS["gguf"], lambda: export(model, "gguf", linear, scratch / "ours"),
        lambda: convert_and_quantize(tool, model, linear, "Q8_0", scratch / "peer"),
    )  # fmt: skip


def _cpu(found: Sequence[tuple[Made, Made]]) -> str:
    """Processor time, which other work on the machine disturbs less than wall time; a hint, not what is judged."""
    ours, theirs = (statistics.median(pair[side].cpu_seconds for pair in found) for side in (0, 1))
    return f"processor time {ours:.1f} s, of the peer {theirs:.1f} s"


def measure(case: Case, count: int, warmup: int) -> list[Row]:
    """Two rows: time and memory."""
    print(case.title, file=sys.stderr)
    found = pairs(case.ours, case.theirs, count, warmup)
    notes = [_cpu(found)]
    if (ours := found[-1][0].types) != (theirs := found[-1][1].types):
        notes.append(f"edgekit wrote {ours}; the peer {theirs}: not the same work")
    elif ours:
        notes.append(f"both wrote {ours}")
    return [
        Row(
            title=f"{case.title}, time", peer=case.peer, unit="s", ours=tuple(own.seconds for own, _ in found),
            peers=tuple(other.seconds for _, other in found), limit=Limit(measure="ratio_at_most", value=TIME),
            notes=tuple(notes),
        ),
        Row(
            title=f"{case.title}, peak memory", peer=case.peer, unit="MiB",
            ours=tuple(own.peak_mib for own, _ in found),
            peers=tuple(other.peak_mib for _, other in found), limit=Limit(measure="ratio_at_most", value=MEMORY),
        ),
    ]  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=3)
    options.add_argument("--model", help="Hugging Face folder; default: the demo")
    options.add_argument("--format", choices=("gguf", "onnx"), action="append", help="default: both")
    chosen = options.parse_args(arguments)
    model = resolve(chosen.model).root
    session = begin("build_time", arguments)
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        wanted = cases(chosen.format or ("gguf", "onnx"), model, Path(scratch))
        rows = [row for case in wanted for row in measure(case, chosen.pairs, chosen.warmup)]
    found = versions("edgekit", "torch", "transformers", "llama-cpp-python", "onnxruntime-genai", "onnxruntime", "gguf")
    if "gguf" in (chosen.format or ("gguf",)):
        found["llama-cpp-python source, SHA-256"] = converter().archive_sha256
    session.finish(rows, found, METHOD, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
