"""The field's own quantizers at their best settings, for the quality benchmark."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._converter import converter
from edgekit.checkpoint.checkpoint import Checkpoint
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
    "builder k_quant": ("int4_algo_config=k_quant",),
    "builder k_quant_mixed": (
        "int4_algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8",
    ),
    "builder rtn": ("int4_algo_config=rtn",),
}  # fmt: skip
"""Name → extra options of onnxruntime-genai's builder."""


def gguf_peers(checkpoint: Checkpoint, importance: Importance, scratch: Path) -> Iterator[Peer]:
    """llama-quantize's types with an importance matrix, from the converter's own float file."""
    source = scratch / "float.gguf"
    if not source.exists():
        command = [sys.executable, str(converter().script), str(checkpoint.root), "--outfile", str(source)]
        _run([*command, "--outtype", "f32"])
    names = {tensor.hf: tensor.gguf for tensor in checkpoint.spec.tensors}
    table = scratch / "importance.npz"
    np.savez(table, **{names[name]: square for name, square in importance.items()})  # type: ignore[arg-type]
    for name, (kind, embedding, pure) in GGUF.items():

        def make(out: Path, kind: str = kind, embedding: str = embedding, pure: bool = pure) -> Path:
            path = out / "model.gguf"
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


def onnx_peers(checkpoint: Checkpoint, scratch: Path) -> Iterator[Peer]:
    """onnxruntime-genai's builder."""
    for name, extra in ONNX.items():

        def make(out: Path, extra: tuple[str, ...] = extra) -> Path:
            command = [
                sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(checkpoint.root), "-o", str(out),
                "-p", "int4", "-e", "cpu", "-c", str(scratch / "builder"), "--extra_options", "hf_remote=false",
                "int4_accuracy_level=4", *extra,
            ]  # fmt: skip
            _run(command)
            shutil.rmtree(scratch / "builder", ignore_errors=True)
            return out / "model.onnx"

        yield Peer(name, "onnx", make)


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
