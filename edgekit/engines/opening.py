"""From a format's name to a running engine."""

from __future__ import annotations

from pathlib import Path

from edgekit.engines.accelerator import needs_gpu
from edgekit.engines.base import Engine


def open_engine(
    container: str,
    path: Path,
    *,
    threads: int = 0,
    context: int = 2048,
    prefill_threads: int = 0,
    mmap: bool | None = None,
) -> Engine:
    """Load a model file.

    Args:
        container: "gguf" (llama.cpp) or "onnx" (onnxruntime).
        path: the .gguf file, or the .onnx file inside its folder.
        threads: 0 takes the physical cores.
        context: longest sequence in tokens, bounded by the model's own.
        prefill_threads: of llama.cpp, for more than one token at a time; 0 takes `threads`.
        mmap: llama.cpp maps the file, or copies it into memory; None: as it decides.

    Raises:
        MissingDependencyError: the engine's package is not installed; or the file is of a bundle with CUDA and
            llama.cpp finds no GPU here: the CPU is no substitute.
        FileFormatError: the engine cannot load the file.
    """
    if container == "gguf":
        from edgekit.engines.llamacpp import LlamaCppEngine

        return LlamaCppEngine(
            path, threads=threads, context=context, prefill_threads=prefill_threads, mmap=mmap, gpu=needs_gpu(path)
        )
    from edgekit.engines.ort import OrtEngine
    from edgekit.engines.ort_concat import ConcatOrtEngine, concatenates

    engine = ConcatOrtEngine if concatenates(path.parent) else OrtEngine
    return engine(path.parent, file=path.name, threads=threads, context=context)
