"""ONNX Runtime as an engine for graphs that return the whole key-value cache anew at every step. Runs on a board.

That is what exporters write that know no fused attention (torch's, optimum's): every `present` is `past` with the new
keys or values behind it. A step copies the cache, which costs little at the lengths that small boards are used for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines.base import F32, Ids
from edgekit.engines.ort import model_sizes, open_session
from edgekit.errors import FileFormatError, OptionError

_PAST, _PRESENT = "past_key_values.", "present."
_PLAIN = ("input_ids", "attention_mask", "position_ids")


def concatenates(folder: Path) -> bool:
    """Whether genai_config.json says that past and present share no buffer; its own default is that they do not."""
    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf8"))
        return config["search"].get("past_present_share_buffer", False) is False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # the engine that opens it says what is wrong with it


class ConcatOrtEngine:
    """A decoder with inputs `input_ids`, `attention_mask`, perhaps `position_ids`, and `past_key_values.L.key|value`.

    All sizes are read from the graph; genai_config.json gives the context.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, *, threads: int = 0, context: int = 2048, file: str = "model.onnx") -> None:
        path = folder / file
        self.vocab_size, longest = model_sizes(folder)
        self._session = open_session(path, threads)
        self.providers = tuple(self._session.get_providers())
        self._outputs = [output.name for output in self._session.get_outputs()]
        inputs = self._session.get_inputs()
        self._takes_positions = any(item.name == "position_ids" for item in inputs)
        self._empty = {item.name: _empty(path, item) for item in inputs if item.name.startswith(_PAST)}
        unknown = [item.name for item in inputs if item.name not in (*_PLAIN, *self._empty)]
        missing = [name for name in ("logits", *map(_present, self._empty)) if name not in self._outputs]
        if unknown or missing or not self._empty:
            raise FileFormatError(
                f"{path} is no decoder with a cache (input {unknown[0]})" if unknown else f"{path} has no cache",
                expected="input_ids, attention_mask, position_ids, past_key_values.… and logits, present.…",
                remedy="export it for the task text-generation-with-past",
            )
        self.max_context = min(context, longest)
        self._past: dict[str, Any] = {}
        self._length = 0

    def logits(self, ids: Ids) -> F32:
        """See Engine.logits."""
        self._check_room(len(ids))
        feed = {**self._empty, **self._plain_inputs(np.asarray(ids, dtype=np.int64), 0)}
        result: F32 = self._session.run(["logits"], feed)[0][0]
        return result

    def start(self, ids: Ids) -> F32:
        """See Engine.start."""
        self._past, self._length = dict(self._empty), 0
        return self._append(np.asarray(ids, dtype=np.int64))

    def step(self, token: int) -> F32:
        """See Engine.step."""
        return self._append(np.array([token], dtype=np.int64))

    def _append(self, ids: Ids) -> F32:
        self._check_room(self._length + len(ids))
        feed = {**self._past, **self._plain_inputs(ids, self._length)}
        names = ["logits", *map(_present, self._past)]
        rows, *caches = self._session.run(names, feed)
        self._past = dict(zip(self._past, caches, strict=True))
        self._length += len(ids)
        last: F32 = rows[0, -1].copy()
        return last

    def _plain_inputs(self, ids: Ids, before: int) -> dict[str, Ids]:
        end = before + len(ids)
        feed = {"input_ids": ids[None], "attention_mask": np.ones((1, end), dtype=np.int64)}
        if self._takes_positions:
            feed["position_ids"] = np.arange(before, end, dtype=np.int64)[None]
        return feed

    def _check_room(self, length: int) -> None:
        if length > self.max_context:
            raise OptionError(
                f"the sequence has {length} tokens", expected=f"at most {self.max_context} (the engine's context)"
            )

    def close(self) -> None:
        """See Engine.close."""
        self._past, self._session = {}, None


def _present(past: str) -> str:
    return _PRESENT + past.removeprefix(_PAST)


def _empty(path: Path, item: Any) -> F32:
    """A cache of no tokens: (1, heads, 0, head size) with heads and head size from the graph."""
    shape = item.shape
    if len(shape) != 4 or not all(isinstance(shape[axis], int) and 0 < shape[axis] < 1 << 20 for axis in (1, 3)):
        raise FileFormatError(
            f"{path} gives its cache {item.name} the shape {shape}", expected="(batch, heads, tokens, head size)"
        )
    return np.zeros((1, shape[1], 0, shape[3]), dtype=np.float32)
