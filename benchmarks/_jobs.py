"""What the build benchmark starts in processes of its own: `python -m benchmarks._jobs {export,quantize} …`."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

TARGET = "rpi5"


def export(model: str, container: str, out: Path, linear: str) -> dict[str, float]:
    """Run our export without parity and coherence; returns the seconds of each stage.

    Args:
        model: Hugging Face folder.
        container: "gguf" or "onnx".
        out: folder to create.
        linear: GGUF type of the linear layers, "" for what the target prefers.
    """
    from msgspec.structs import replace

    from edgekit.checkpoint.source import resolve
    from edgekit.export import artefacts
    from edgekit.progress import Quiet, Stopwatch
    from edgekit.quantize.choose import choose
    from edgekit.targets import load

    watch = Stopwatch(Quiet())
    with watch.step("plan"):
        target = load(TARGET)
        if linear:
            preferred = replace(target.runtime.gguf, prefer={4: (linear,)})
            target = replace(target, runtime=replace(target.runtime, gguf=preferred))
        checkpoint = resolve(model)
        plan = choose(checkpoint.spec, target, "onnx" if container == "onnx" else "gguf", 4)
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    artefacts.write(checkpoint, plan, out, scratch, watch)
    return watch.seconds


def quantize(source: Path, out: Path, linear: str, embedding: str) -> dict[str, float]:
    """llama.cpp's own quantization, every linear layer to one type; seconds inside the call.

    Raises:
        SystemExit: llama.cpp refuses.
    """
    import llama_cpp
    from gguf import GGMLQuantizationType

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 0
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{linear}")
    parameters.pure = True
    parameters.token_embedding_type = parameters.output_tensor_type = GGMLQuantizationType[embedding]
    begin = perf_counter()
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    if status:
        raise SystemExit(f"llama_model_quantize returned {status}")
    return {"quantize": perf_counter() - begin}


def main(arguments: Sequence[str]) -> None:
    """Do one job and print its seconds as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    exporting = jobs.add_parser("export")
    for name in ("model", "container"):
        exporting.add_argument(name)
    exporting.add_argument("out", type=Path)
    exporting.add_argument("--linear", default="")
    quantizing = jobs.add_parser("quantize")
    for name in ("source", "out"):
        quantizing.add_argument(name, type=Path)
    for name in ("linear", "embedding"):
        quantizing.add_argument(name)
    options = parser.parse_args(arguments)
    if options.job == "export":
        seconds = export(options.model, options.container, options.out, options.linear)
    else:
        seconds = quantize(options.source, options.out, options.linear, options.embedding)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
