"""The field's own quantizers at their best settings, for the quality benchmark."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._converter import converter
from edgekit import rounding
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence.text import from_file
from edgekit.errors import EdgekitError
from edgekit.options import Container
from edgekit.quantize.importance import Importance

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class PeerError(Exception):
    """A peer did not make its file."""


@dataclass(frozen=True)
class Peer:
    """One recipe of another tool."""

    name: str
    container: Container
    make: Callable[[Path], Path]
    """Fills an empty folder; returns the .gguf or .onnx file."""


GGUF: Mapping[str, tuple[str, str, bool]] = {
    "Q5_K_M": ("Q5_K_M", "", False),
    "Q5_0": ("Q5_0", "", False),
    "Q4_K_M": ("Q4_K_M", "", False),
    "Q4_K_S": ("Q4_K_S", "", False),
    "IQ4_NL": ("IQ4_NL", "", False),
    "Q4_0": ("Q4_0", "", False),
    "Q3_K_M": ("Q3_K_M", "", False),
    "IQ3_XXS": ("IQ3_XXS", "", False),
    "IQ4_NL, embedding too": ("IQ4_NL", "IQ4_NL", True),
}
"""Name → (file type, type of embedding and head or llama.cpp's own choice, whether all tensors take it)."""

ONNX: Mapping[str, tuple[str, ...]] = {
    "builder int4": (),
    "builder k_quant": ("algo_config=k_quant",),
    "builder k_quant_mixed": ("algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"),
    "builder rtn": ("algo_config=rtn",),
}
"""Name → extra options of onnxruntime-genai's builder; it passes over the int4_… names of older versions in silence."""

HQQ: Mapping[str, bool] = {"ORT HQQ int4": False, "ORT HQQ int4, embedding too": True}
"""Name → whether the embedding's Gather is quantized: by the tool's rounding to nearest, HQQ does not know it."""

AUTO_ROUND = ("Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0")
"""File types that auto-round exports."""


def gguf_peers(checkpoint: Checkpoint, importance: Callable[[], Importance], scratch: Path) -> Iterator[Peer]:
    """llama-quantize's types with an importance matrix, from the converter's own float file.

    Both are made when the first type is.
    """
    source, table = scratch / "float.gguf", scratch / "importance.npz"
    for name, (kind, embedding, pure) in GGUF.items():

        def make(out: Path, kind: str = kind, embedding: str = embedding, pure: bool = pure) -> Path:
            path = out / "model.gguf"
            if not source.exists():
                command = [sys.executable, str(converter().script), str(checkpoint.root), "--outfile", str(source)]
                _run([*command, "--outtype", "f32"])
            if not table.exists():
                names = {tensor.hf: tensor.gguf for tensor in checkpoint.spec.tensors}
                squares = {names[name]: square for name, square in importance().items()}
                np.savez(table, **squares)  # type: ignore[arg-type]
            # In a process of its own: ggml ends the process when something does not suit it.
            job = [sys.executable, "-m", "benchmarks._peers", str(source), str(path), str(table), kind, embedding]
            _run([*job, str(int(pure))])
            return path

        yield Peer(f"{name} with importance", "gguf", make)


def quantize(
    source: Path, out: Path, kind: str, embedding: str, pure: bool, importance: Mapping[str, np.ndarray]
) -> None:
    """llama.cpp's own quantization.

    Raises:
        SystemExit: llama.cpp refuses.
    """
    import llama_cpp
    from gguf import GGMLQuantizationType

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 0
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.pure = pure
    if embedding:
        parameters.token_embedding_type = parameters.output_tensor_type = GGMLQuantizationType[embedding]
    kept = [(name.encode(), np.ascontiguousarray(square, np.float32)) for name, square in importance.items()]
    table = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
    for entry, (name, square) in zip(table, kept, strict=False):
        entry.name, entry.size = name, square.size
        entry.data = square.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = ctypes.cast(table, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    if status:
        raise SystemExit(f"llama_model_quantize returned {status} for {kind}")


def auto_round_peers(
    checkpoint: Checkpoint, calibration_text: Path | None, scratch: Path, iterations: int
) -> Iterator[Peer]:
    """Intel's auto-round with as many steps per block, on the sequences that our rounding learns from."""
    for kind in AUTO_ROUND:

        def make(out: Path, kind: str = kind) -> Path:
            if calibration_text is None:
                raise PeerError("auto-round is compared on the same calibration text: give --calibration-text")
            sequences, path = scratch / "sequences.json", out / "model.gguf"
            sequences.write_text(json.dumps(_sequences(checkpoint, calibration_text)))
            # In a process of its own: what it holds in memory is gone before the next one.
            job = [sys.executable, "-m", "benchmarks._auto_round", str(checkpoint.root), str(path), str(sequences)]
            _run([*job, kind, str(iterations)])
            return path

        yield Peer(f"auto-round {kind} ({iterations} iterations)", "gguf", make)


def _sequences(checkpoint: Checkpoint, text: Path) -> list[list[int]]:
    """Cut as --effort best cuts its calibration text."""
    tokenizer, length = load_tokenizer(checkpoint.root), min(rounding.LENGTH, checkpoint.spec.context_length)
    try:
        found = from_file(text, tokenizer.encode, rounding.SEQUENCES["best"], length, bos=tokenizer.bos_id)
    except EdgekitError as error:
        raise PeerError(str(error)) from error
    return [ids.tolist() for ids in found.sequences]


def onnx_peers(checkpoint: Checkpoint, scratch: Path) -> Iterator[Peer]:
    """onnxruntime-genai's builder, and onnxruntime's own quantizer with HQQ."""
    for name, extra in ONNX.items():

        def make(out: Path, extra: tuple[str, ...] = extra) -> Path:
            return _builder(checkpoint, out, scratch, "int4", "accuracy_level=4", *extra)

        yield Peer(name, "onnx", make)
    for name, embedding in HQQ.items():

        def make_hqq(out: Path, embedding: bool = embedding) -> Path:
            return _hqq(checkpoint, out, scratch, embedding)

        yield Peer(name, "onnx", make_hqq)


def _builder(checkpoint: Checkpoint, out: Path, scratch: Path, precision: str, *extra: str) -> Path:
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint.root), "-o", str(out),
        "-p", precision, "-e", "cpu", "-c", str(scratch / "builder"), "--extra_options", "hf_remote=false", *extra,
    ]  # fmt: skip
    _run(command)
    shutil.rmtree(scratch / "builder", ignore_errors=True)
    return out / "model.onnx"


def _hqq(checkpoint: Checkpoint, out: Path, scratch: Path, embedding: bool) -> Path:
    """HQQ of every MatMul, 4 bits in blocks of 32.

    No accuracy level: the quantizer writes none for HQQ, and with float zero points it would change nothing. Head
    and embedding are not shared: the Gather would read a Transpose, and the quantizer passes over such a one.
    """
    plain, rounded, path = scratch / "float", scratch / "rounded", out / "model.onnx"
    for folder in (plain, rounded):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    source = _builder(checkpoint, plain, scratch, "fp32", "shared_embeddings=false")
    first = rounded / "model.onnx" if embedding else path
    _nbits(source, first, "hqq", "MatMul")
    if embedding:
        _nbits(first, path, "default", "Gather")
    shutil.copyfile(plain / "genai_config.json", out / "genai_config.json")
    for folder in (plain, rounded):
        shutil.rmtree(folder)
    return path


def _nbits(source: Path, out: Path, method: str, operator: str) -> None:
    command = [
        sys.executable, "-m", "onnxruntime.quantization.matmul_nbits_quantizer", "--input_model", str(source),
        "--output_model", str(out), "--bits", "4", "--block_size", "32", "--symmetric", "False",
        "--quant_method", method, "--op_types_to_quantize", operator,
    ]  # fmt: skip
    _run(command)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env={**os.environ, **_OFFLINE}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(command[1:3])} ended with {done.returncode}: {done.stderr[-300:]}")


def main() -> None:
    """One quantization: SOURCE OUT IMPORTANCE.npz TYPE EMBEDDING-TYPE 0|1."""
    source, out, table, kind, embedding, pure = sys.argv[1:]
    with np.load(table, allow_pickle=False) as importance:
        quantize(Path(source), Path(out), kind, embedding, pure == "1", dict(importance))


if __name__ == "__main__":
    main()
