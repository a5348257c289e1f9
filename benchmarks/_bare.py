"""The loops that `edgekit bench` is held against, with nothing of edgekit in them: `python -m benchmarks._bare …`.

A process that loads one model, and for every line on its standard input generates tokens from an empty context and
prints the seconds it took.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np


def llama(model: Path, threads: int, tokens: int) -> Callable[[], float]:
    """test_gen of llama.cpp's tools/llama-bench/llama-bench.cpp, with its defaults, through the C interface."""
    import llama_cpp as lib

    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    loading = lib.llama_model_default_params()
    loading.n_gpu_layers = 0
    loaded = lib.llama_model_load_from_file(str(model).encode(), loading)
    parameters = lib.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = tokens, threads, threads
    context = lib.llama_init_from_model(loaded, parameters)
    if not context:
        raise SystemExit(f"llama.cpp cannot load {model}")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded))

    def run() -> float:
        fed = np.random.default_rng(0).integers(size, size=tokens).tolist()
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        begin = perf_counter()
        for token in fed:
            if lib.llama_decode(context, lib.llama_batch_get_one((lib.llama_token * 1)(token), 1)):
                raise SystemExit("llama_decode failed")
            lib.llama_synchronize(context)
        return perf_counter() - begin

    run.keep = silent  # type: ignore[attr-defined]  # the library calls it as long as the process lives
    return run


def onnx(model: Path, threads: int, tokens: int, context: int) -> Callable[[], float]:
    """A session of onnxruntime with bound inputs and outputs, the key-value cache updated in place."""
    import onnxruntime as ort

    sizes = json.loads((model.parent / "genai_config.json").read_text(encoding="utf8"))["model"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in sizes["decoder"]["session_options"].items():
        if key.startswith("mlas."):
            options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    decoder = sizes["decoder"]
    shape = (1, decoder["num_key_value_heads"], context, decoder["head_size"])
    binding: Any = session.io_binding()
    kept: list[Any] = []
    for layer in range(decoder["num_hidden_layers"]):
        for side in ("key", "value"):
            value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            kept.append(value)
            binding.bind_ortvalue_input(f"past_key_values.{layer}.{side}", value)
            binding.bind_ortvalue_output(f"present.{layer}.{side}", value)
    token, logits = np.zeros((1, 1), np.int64), np.empty((1, 1, sizes["vocab_size"]), np.float32)
    mask = np.ones((1, context), np.int64)
    binding.bind_cpu_input("input_ids", token)
    binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)

    def run() -> float:
        fed = np.random.default_rng(0).integers(sizes["vocab_size"], size=tokens).tolist()
        begin = perf_counter()
        for index, one in enumerate(fed):
            token[0, 0] = one
            binding.bind_cpu_input("attention_mask", mask[:, : index + 1])
            session.run_with_iobinding(binding)
        return perf_counter() - begin

    run.keep = (kept, logits)  # type: ignore[attr-defined]  # a binding does not own what it binds
    return run


class Bare:
    """One such process; it computes only while it is asked."""

    def __init__(self, container: str, model: Path, threads: int, tokens: int, context: int) -> None:
        self._tokens = tokens
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._bare", container, str(model), *map(str, (threads, tokens, context))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def __enter__(self) -> Bare:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self) -> float:
        """Tokens/s of one run.

        Raises:
            SystemExit: the process ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        self._process.stdin.write("go\n")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the bare loop ended early; see its message above")
        return self._tokens / float(line)


def main(arguments: Sequence[str]) -> None:
    """Run one loop for every line of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("container", choices=("gguf", "onnx"))
    parser.add_argument("model", type=Path)
    for name in ("threads", "tokens", "context"):
        parser.add_argument(name, type=int)
    chosen = parser.parse_args(arguments)
    if chosen.container == "gguf":
        run = llama(chosen.model, chosen.threads, chosen.tokens)
    else:
        run = onnx(chosen.model, chosen.threads, chosen.tokens, chosen.context)
    for _ in sys.stdin:
        print(run(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
