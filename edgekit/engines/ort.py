"""ONNX Runtime as an engine: plain onnxruntime, key-value cache in one shared buffer. Runs on a board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines.base import F32, Ids
from edgekit.errors import FileFormatError, MissingDependencyError, OptionError
from edgekit.machine import cores
from edgekit.threebit import library

_MODEL = {"vocab_size": 1 << 24, "context_length": 1 << 31}
_DECODER = {"num_hidden_layers": 1024, "num_key_value_heads": 1 << 14, "head_size": 1 << 14}
"""Keys of genai_config.json → what is far above any model."""
OPERATORS = "custom_ops_library"
"""Session option of onnxruntime-genai that names a library of operators."""
_ENTRIES = ("mlas.disable_kleidiai", "session.intra_op.allow_spinning")


def _runtime() -> Any:
    try:
        import onnxruntime
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"onnxruntime cannot be loaded ({error})", remedy="pip install 'edgekit[onnx]', or see edgekit doctor"
        ) from error
    return onnxruntime


def session_entries(folder: Path) -> dict[str, str]:
    """Configuration entries that genai_config.json in `folder` asks for, where onnxruntime-genai looks for them too.

    Only those that change how something is computed: others name files or switch checks off.
    """
    asked = _asked(folder)
    return {key: value for key in _ENTRIES if (value := asked.get(key)) in ("0", "1")}


def _asked(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf8"))
        return dict(config["model"]["decoder"]["session_options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # whoever needs the file says what is wrong with it


def needs_operators(folder: Path) -> bool:
    """Whether genai_config.json in `folder` names edgekit's operators.

    A file of that name in `folder` may be anybody's: what is loaded is edgekit's own.
    """
    return _asked(folder).get(OPERATORS) == library.LIBRARY


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU; `threads` of 0 takes the physical cores. See also :func:`session_entries`.

    Raises:
        MissingDependencyError: onnxruntime is not installed; or edgekit's operators are needed, and there is neither
            their library nor a compiler for it.
        ToolchainError, DownloadError, OutputError: edgekit's operators cannot be compiled.
        FileFormatError: it cannot load the file.
    """
    ort = _runtime()
    options = ort.SessionOptions()
    for key, value in session_entries(path.parent).items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3
    if needs_operators(path.parent):
        options.register_custom_ops_library(str(library.host_library()))
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FileFormatError(
            f"onnxruntime {ort.__version__} cannot load {path} ({str(error).splitlines()[0][:300]})",
            remedy="build it again, or run edgekit doctor to compare versions",
        ) from error


def model_sizes(folder: Path, *, decoder: bool = False) -> list[int]:
    """Vocabulary and context that genai_config.json gives; with `decoder` also layers, key-value heads and head size.

    Raises:
        FileFormatError: it is no such file, or a size is missing or impossible.
    """
    path = folder / "genai_config.json"
    try:
        model = json.loads(path.read_text(encoding="utf8"))["model"]
        found = [(int(model[key]), most) for key, most in _MODEL.items()]
        if decoder:
            found += [(int(model["decoder"][key]), most) for key, most in _DECODER.items()]
        if not all(0 < size <= most for size, most in found):
            raise ValueError("a size that no model has")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FileFormatError(
            f"{path} does not describe a decoder ({type(error).__name__}: {error})",
            expected="onnxruntime-genai's format",
        ) from error
    return [size for size, _ in found]


class OrtEngine:
    """A decoder with fused attention (GroupQueryAttention), as edgekit.export.onnx_decoder lays it out.

    The cache is one buffer per layer and side, (1, kv_heads, context, head_size) float32, which the attention operator
    updates in place because past and present are bound to the same memory.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, *, threads: int = 0, context: int = 2048, file: str = "model.onnx") -> None:
        sizes = model_sizes(folder, decoder=True)
        self.vocab_size, longest, self._layers, self._kv_heads, self._head_size = sizes
        self._session = open_session(folder / file, threads)
        self.providers = tuple(self._session.get_providers())
        self._ort = _runtime()
        self.max_context = min(context, longest)
        self._caches = [f"{layer}.{side}" for layer in range(self._layers) for side in ("key", "value")]
        self._cache: dict[str, Any] = {}
        self._decoding: Any = None
        self._length = 0

    def logits(self, ids: Ids) -> F32:
        """See Engine.logits; reads the whole sequence in one run, without the shared cache."""
        self._check_room(len(ids))
        empty = np.zeros((1, self._kv_heads, 0, self._head_size), dtype=np.float32)
        feed: dict[str, Any] = {f"past_key_values.{name}": empty for name in self._caches}
        feed["input_ids"] = np.asarray(ids, dtype=np.int64)[None]
        feed["attention_mask"] = np.ones((1, len(ids)), dtype=np.int64)
        result: F32 = self._session.run(["logits"], feed)[0][0]
        return result

    def start(self, ids: Ids) -> F32:
        """See Engine.start."""
        self._check_room(len(ids))
        if not self._cache:
            self._allocate()
        self._length = len(ids)
        rows = np.empty((1, len(ids), self.vocab_size), dtype=np.float32)
        tokens = np.asarray(ids, dtype=np.int64)[None]
        self._run(self._bind(tokens, rows))
        last: F32 = rows[0, -1]
        return last

    def step(self, token: int) -> F32:
        """See Engine.step."""
        self._check_room(self._length + 1)
        self._length += 1
        self._token[0, 0] = token
        self._run(self._decoding)
        last: F32 = self._row[0, 0].copy()
        return last

    def _check_room(self, length: int) -> None:
        if length > self.max_context:
            raise OptionError(
                f"the sequence has {length} tokens", expected=f"at most {self.max_context} (the engine's context)"
            )

    def _allocate(self) -> None:
        """The cache, and what decoding a token reads and writes: bound once, since binding costs 2 % of a token."""
        shape = (1, self._kv_heads, self.max_context, self._head_size)
        for name in self._caches:
            self._cache[name] = self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))
        self._mask = np.ones((1, self.max_context), dtype=np.int64)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._row = np.empty((1, 1, self.vocab_size), dtype=np.float32)
        self._decoding = self._bind(self._token, self._row)

    def _bind(self, ids: Ids, rows: F32) -> Any:
        """A binding of token ids (1, T), the shared cache and logits (1, T, vocab_size); the arrays must outlive it."""
        binding = self._session.io_binding()
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_output("logits", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        return binding

    def _run(self, binding: Any) -> None:
        binding.bind_cpu_input("attention_mask", self._mask[:, : self._length])
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """See Engine.close."""
        self._decoding, self._cache, self._session = None, {}, None
