"""The process that measures: `python -m edgekit.bench.child`, one JSON line in, one or more out.

A process of its own, so that its memory is the model's, its CPUs can be chosen, and an engine that crashes, or that the
kernel kills, takes nothing else with it. What engines print on standard output goes to standard error.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from edgekit.bench import latency
from edgekit.bench.coherence import Asked, Judged, judged
from edgekit.bench.memory import Resident, resident
from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.devices.boards.processor import of_llamacpp, of_onnxruntime
from edgekit.engines.accelerator import needs_gpu
from edgekit.engines.base import Engine
from edgekit.engines.opening import open_engine
from edgekit.errors import EdgekitError, OptionError, OutOfMemoryError, memory_shortage

_PR_SET_PDEATHSIG = 1
LESS_MEMORY = "use a smaller model or fewer bits, or end other programs"
_ENGINES = {"gguf": "llama_cpp", "onnx": "onnxruntime"}


class Open(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="open"):
    """Load a model; the first request."""

    format: str
    path: str
    tokenizer: str
    """Folder."""
    threads: int
    prefill_threads: int
    context: int
    mmap: bool | None = None
    affinity: tuple[int, ...] = ()


class Read(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="read"):
    """See :func:`edgekit.bench.latency.read_prompt`."""

    text: str
    tokens: int


class Generate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="generate"):
    """See :func:`edgekit.bench.latency.generate`."""

    tokens: int


class Talk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="talk"):
    """See :func:`edgekit.bench.latency.talk`."""

    tokens: int


class Judge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="judge"):
    """See :func:`edgekit.bench.coherence.judged`."""

    reference: str
    asked: Asked
    host: tuple[str, ...]
    host_ids: tuple[tuple[int, ...], ...] = ()


class Look(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="look"):
    """How much memory the process holds."""


Request = Open | Read | Generate | Talk | Judge | Look


class Opened(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A loaded model."""

    engine: str
    vocab_size: int
    max_context: int
    seconds: float
    begin: float
    end: float
    empty: Resident
    loaded: Resident
    processor: str = ""
    """See :attr:`edgekit.bench.result.Loading.processor`."""


class Told(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="error"):
    """A failure in the child that is no crash."""

    error: str
    """Name of a class of edgekit.errors."""
    found: str
    expected: str
    remedy: str


class Advanced(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="advance"):
    """Not an answer yet: how far it is."""

    done: int
    total: int


class Answered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="answer"):
    """The answer to a request."""

    value: msgspec.Raw


Reply = Told | Advanced | Answered


class Desk:
    """Answers requests about one model."""

    def __init__(self, advance: Callable[[int, int], None], clock: latency.Clock = time.monotonic) -> None:
        self._advance, self._clock = advance, clock
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None

    def answer(self, request: Request) -> Struct:
        """The answer to one request.

        Raises:
            EdgekitError: see the function that does it.
        """
        if isinstance(request, Look):
            return resident()
        if isinstance(request, Open):
            return self._open(request)
        if self._engine is None or self._tokenizer is None:
            raise OptionError("no model is loaded yet", expected="the request to open one")
        return self._measure(request, self._engine, self._tokenizer)

    def _measure(self, request: Read | Generate | Talk | Judge, engine: Engine, tokenizer: Tokenizer) -> Struct:
        if isinstance(request, Read):
            return latency.read_prompt(engine, tokenizer.encode, request.text, request.tokens, clock=self._clock)
        if isinstance(request, Generate):
            return latency.generate(engine, request.tokens, clock=self._clock)
        if isinstance(request, Talk):
            return latency.talk(engine, tokenizer, request.tokens, clock=self._clock)
        return self._judge(request, engine, tokenizer)

    def _open(self, request: Open) -> Opened:
        if request.affinity:
            _pin(request.affinity)
        self._tokenizer = load_tokenizer(Path(request.tokenizer))
        _load_library(request.format)
        empty, begin = resident(), self._clock()
        self._engine = open_engine(
            request.format, Path(request.path), threads=request.threads, prefill_threads=request.prefill_threads,
            context=request.context, mmap=request.mmap,
        )  # fmt: skip
        end, engine = self._clock(), self._engine
        return Opened(
            engine=engine.name, vocab_size=engine.vocab_size, max_context=engine.max_context, seconds=end - begin,
            begin=begin, end=end, empty=empty, loaded=resident(), processor=processor_of(engine, Path(request.path)),
        )  # fmt: skip

    def _judge(self, request: Judge, engine: Engine, tokenizer: Tokenizer) -> Judged:
        from edgekit.coherence.container import load

        reference = load(Path(request.reference))
        return judged(
            engine, reference, request.asked, tokenizer.decode, request.host, self._clock, self._advance,
            host_ids=request.host_ids,
        )  # fmt: skip


def processor_of(engine: Engine, path: Path) -> str:
    """Where an engine has the layers of the model at `path`, as its library says it; empty when it says nothing."""
    if engine.name == "llama.cpp":
        import llama_cpp

        info = bytes(llama_cpp.llama_print_system_info()).decode("utf8", "replace")
        return of_llamacpp(info, int(needs_gpu(path))).title
    if isinstance(used := getattr(engine, "providers", None), tuple):
        import onnxruntime

        return of_onnxruntime(onnxruntime.get_available_providers(), used).title
    return ""


def _pin(cpus: tuple[int, ...]) -> None:
    """Before the engine starts its threads, which inherit it."""
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the process cannot be pinned to CPUs {', '.join(map(str, cpus))} ({error})",
            remedy="correct runtime.gguf.affinity of the target",
        ) from error


def _load_library(form: str) -> None:
    """Engines' libraries are not part of a model's load time or memory; what is missing is told by the engine."""
    with suppress(Exception):
        __import__(_ENGINES[form])


def _told(error: Exception) -> EdgekitError | None:
    """What a user can do something about; None for a bug of ours."""
    if memory_shortage(error):
        return OutOfMemoryError("the engine found too little memory", remedy=LESS_MEMORY)
    return error if isinstance(error, EdgekitError) else None


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer until there are no more requests."""

    def say(reply: Reply) -> None:
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()

    desk = Desk(lambda done, total: say(Advanced(done=done, total=total)))
    for line in requests:
        try:
            say(Answered(value=msgspec.Raw(msgspec.json.encode(desk.answer(msgspec.json.decode(line, type=Request))))))
        except Exception as error:
            told = _told(error)
            if told is None:
                raise
            say(Told(error=type(told).__name__, found=told.found, expected=told.expected, remedy=told.remedy))


def main() -> None:
    """Serve on standard input and output, and die with the process that started this one."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
