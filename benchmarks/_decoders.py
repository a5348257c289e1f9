"""The two sides of the decode benchmark: processes that live through all pairs and work in turn."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal

import numpy as np

Kind = Literal["edgekit-gguf", "edgekit-onnx", "llama_cpp.Llama", "onnxruntime_genai"]
Generator = Callable[[Sequence[int]], Iterator[int]]
"""Prompt ids to an endless greedy continuation; the first token comes with the prefill."""


@dataclass(frozen=True)
class Setup:
    """What both sides share."""

    path: Path
    """The .gguf or .onnx file."""
    threads: int
    context: int
    tokens: int


@dataclass(frozen=True)
class Run:
    """One continuation. The seconds are those of all tokens but the first."""

    tokens: tuple[int, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Decode speed, prefill excluded."""
        return (len(self.tokens) - 1) / self.seconds


def _edgekit(container: str, setup: Setup) -> Generator:
    from edgekit.engines.base import greedy
    from edgekit.engines.opening import open_engine

    engine = open_engine(container, setup.path, threads=setup.threads, context=setup.context)
    return lambda ids: greedy(engine, np.array(ids, dtype=np.int64), setup.tokens, frozenset())


def _llama(setup: Setup) -> Generator:
    import llama_cpp

    # Off is this class's default; our engine leaves llama.cpp's own, automatic. On makes both compute attention alike.
    model = llama_cpp.Llama(
        str(setup.path), n_ctx=setup.context, n_threads=setup.threads, n_threads_batch=setup.threads, logits_all=False,
        flash_attn=True, verbose=False,
    )  # fmt: skip

    def generate(ids: Sequence[int]) -> Iterator[int]:
        model.reset()
        yield from model.generate(list(ids), temp=0.0)

    return generate


def _genai(setup: Setup) -> Generator:
    import onnxruntime_genai as genai

    config = genai.Config(str(setup.path.parent))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": setup.threads}}}}))
    model = genai.Model(config)

    def generate(ids: Sequence[int]) -> Iterator[int]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=setup.context, do_sample=False)
        generator: Any = genai.Generator(model, parameters)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return generate


def _open(kind: Kind, setup: Setup) -> Generator:
    if kind == "llama_cpp.Llama":
        return _llama(setup)
    if kind == "onnxruntime_genai":
        return _genai(setup)
    return _edgekit(kind.removeprefix("edgekit-"), setup)


def measure(generate: Generator, ids: Sequence[int], count: int) -> Run:
    """Take `count` tokens; the clock starts after the first."""
    stream = generate(ids)
    first = next(stream)
    begin = perf_counter()
    rest = list(islice(stream, count - 1))
    return Run((first, *rest), perf_counter() - begin)


def _serve(line: Connection, kind: Kind, setup: Setup) -> None:
    generate = _open(kind, setup)
    while (ids := line.recv()) is not None:
        line.send(measure(generate, ids, setup.tokens))


class Side:
    """A process with one loaded model; it computes only while it is asked."""

    def __init__(self, kind: Kind, setup: Setup) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.kind, self._tokens = kind, setup.tokens
        self._line, far = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(far, kind, setup), daemon=True)
        self._process.start()
        far.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._line.send(None)
        self._process.join(10)
        self._line.close()

    def run(self, ids: Sequence[int]) -> Run:
        """One continuation of the prompt.

        Raises:
            SystemExit: the process died, or its model ended the text before enough tokens were there.
        """
        try:
            self._line.send(list(ids))
            found: Run = self._line.recv()
        except (EOFError, OSError) as error:
            raise SystemExit(f"the process of {self.kind} ended early; see its message above") from error
        if len(found.tokens) < self._tokens:
            raise SystemExit(
                f"{self.kind} ended its text after {len(found.tokens)} of {self._tokens} tokens: "
                "use another --prompt or fewer --tokens"
            )
        return found
