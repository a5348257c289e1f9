"""llama.cpp as an engine, through llama-cpp-python's C bindings. Runs on a board."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines.base import F32, Ids
from edgekit.errors import FileFormatError, MissingDependencyError, OptionError, ParityError
from edgekit.machine import cores

_ALL = 1 << 20
"""Layers: more than any model has."""


def _library() -> Any:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"llama-cpp-python cannot be loaded ({error})", remedy="pip install 'edgekit[gguf]', or see edgekit doctor"
        ) from error
    return llama_cpp


class _Silence:
    """Keeps llama.cpp's log lines, so that only a failure shows the last of them."""

    def __init__(self, lib: Any) -> None:
        self.lines: list[str] = []
        self.callback = lib.llama_log_callback(self._hear)

    def _hear(self, _level: int, text: bytes, _data: Any) -> None:
        del self.lines[:-20]
        self.lines.append(text.decode("utf8", "replace").strip())

    def complaint(self) -> str:
        """The last line that speaks of an error."""
        wanted = [line for line in self.lines if "error" in line.lower() or "fail" in line.lower()]
        return (wanted or self.lines or ["no reason given"])[0][:300]


class LlamaCppEngine:
    """A GGUF file in llama.cpp; key-value cache in float16 as llama.cpp's own default.

    Without `gpu` the CPU does everything; with it every layer is on the GPU, or nothing is loaded.
    """

    name = "llama.cpp"

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        context: int = 2048,
        prefill_threads: int = 0,
        mmap: bool | None = None,
        gpu: bool = False,
    ) -> None:
        lib = _library()
        self._lib = lib
        self._log = _Silence(lib)
        lib.llama_log_set(self._log.callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        if gpu and not lib.llama_supports_gpu_offload():
            raise MissingDependencyError(
                "this bundle is made for CUDA, and llama.cpp finds no GPU here",
                expected="the bundle's own engines, and NVIDIA's driver with a GPU that this user may use",
                remedy="run sh install.sh, or build the bundle without --accel cuda",
            )
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = _ALL if gpu else 0
        if mmap is not None:
            parameters.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mmap else lib.LLAMA_LOAD_MODE_NONE
        self._model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise FileFormatError(f"llama.cpp cannot load {path} ({self._log.complaint()})", remedy="build it again")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.max_context = min(context, int(lib.llama_model_n_ctx_train(self._model)))
        self._context = self._open(threads, prefill_threads)
        self._batch = lib.llama_batch_init(self._chunk, 0, 1)
        self._length = 0

    def _open(self, threads: int, prefill_threads: int) -> Any:
        lib, parameters = self._lib, self._lib.llama_context_default_params()
        self._chunk = min(512, self.max_context)
        parameters.n_ctx = self.max_context
        parameters.n_batch = parameters.n_ubatch = self._chunk
        # llama.cpp's own default is four, whatever the machine has.
        parameters.n_threads = threads or cores()
        parameters.n_threads_batch = prefill_threads or parameters.n_threads
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise FileFormatError(
                f"llama.cpp cannot start a context ({self._log.complaint()})", remedy="lower the context"
            )
        return context

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none is added."""
        raw = text.encode()
        size = len(raw) + 16
        buffer = (self._lib.llama_token * size)()
        count = int(self._lib.llama_tokenize(self._vocab, raw, len(raw), buffer, size, False, True))
        if count < 0:
            raise ParityError(f"llama.cpp gives more tokens than bytes for {text[:40]!r}")
        return list(buffer[:count])

    def logits(self, ids: Ids) -> F32:
        """See Engine.logits."""
        self._clear()
        rows = np.empty((len(ids), self.vocab_size), dtype=np.float32)
        for begin in range(0, len(ids), self._chunk):
            piece = ids[begin : begin + self._chunk]
            self._decode(piece, every=True)
            rows[begin : begin + len(piece)] = self._rows(len(piece))
        return rows

    def start(self, ids: Ids) -> F32:
        """See Engine.start."""
        self._clear()
        for begin in range(0, len(ids), self._chunk):
            self._decode(ids[begin : begin + self._chunk], every=False)
        return self._last()

    def step(self, token: int) -> F32:
        """See Engine.step."""
        self._decode(np.array([token], dtype=np.int64), every=False)
        return self._last()

    def _last(self) -> F32:
        row: F32 = self._rows(1)[0].copy()
        return row

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._length = 0

    def _rows(self, count: int) -> F32:
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self.vocab_size))

    def _decode(self, ids: Ids, *, every: bool) -> None:
        if self._length + len(ids) > self.max_context:
            raise OptionError(
                f"the sequence has {self._length + len(ids)} tokens",
                expected=f"at most {self.max_context} (the engine's context)",
            )
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = int(token)
            batch.pos[index] = self._length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = every or index == len(ids) - 1
        if status := self._lib.llama_decode(self._context, batch):
            raise ParityError(f"llama.cpp stopped with status {status} ({self._log.complaint()})")
        self._length += len(ids)

    def close(self) -> None:
        """See Engine.close."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None
