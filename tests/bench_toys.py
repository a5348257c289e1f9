"""What the benchmark's tests measure: a toy bundle, an engine that is a table, a clock that ticks when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import tokenizers
import toy_decoder
from numpy.typing import NDArray
from tokenizers import decoders, models

from edgekit.bench import child
from edgekit.bench.child import Desk, Request
from edgekit.bench.worker import Tell
from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.bundle.manifest import Artefact, Manifest, Model, TargetRef
from edgekit.bundle.said import seal_said
from edgekit.coherence.container import save
from edgekit.coherence.gates import Verdict
from edgekit.coherence.metrics import evaluate
from edgekit.coherence.reference import Origin, Reference, seal
from edgekit.engines.base import greedy
from edgekit.report import model as reports

T = TypeVar("T")
F32 = NDArray[np.float32]
Ids = NDArray[np.int64]
SHA = "ab" * 32
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
"""One token each, as many as the toy decoder's vocabulary."""


class Table:
    """Row i of the table holds the logits after token i; every call takes the time that the clock is told."""

    name = "table"

    def __init__(self, context: int = 512, noise: float = 0.0, tick: Callable[[float], None] = lambda _: None) -> None:
        exact = 3 * np.random.default_rng(0).standard_normal((len(LETTERS), len(LETTERS)))
        more = noise * np.random.default_rng(1).standard_normal(exact.shape)
        self.rows: F32 = (exact + more).astype(np.float32)
        self.vocab_size, self.max_context = len(LETTERS), context
        self.tick, self.closed = tick, False

    def logits(self, ids: Ids) -> F32:
        return np.asarray(self.rows[ids])

    def start(self, ids: Ids) -> F32:
        self.tick(len(ids) / 100)
        return np.asarray(self.rows[ids[-1]])

    def step(self, token: int) -> F32:
        self.tick(0.1)
        return np.asarray(self.rows[token])

    def close(self) -> None:
        self.closed = True


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class InProcess:
    """A worker without a process: requests and answers go through JSON all the same."""

    def __init__(self, clock: Clock) -> None:
        self.asked: list[Request] = []
        self.closed = False
        self._desk, self._tell = Desk(self._advance, clock), list[Tell | None]([None])

    def _advance(self, done: int, total: int) -> None:
        if tell := self._tell[0]:
            tell(done, total)

    def ask(self, request: Request, type_: type[T], tell: Tell | None = None) -> T:
        self.asked.append(request)
        self._tell[0] = tell
        again = msgspec.json.decode(msgspec.json.encode(request), type=Request)
        return msgspec.json.decode(msgspec.json.encode(self._desk.answer(again)), type=type_)

    def close(self) -> None:
        self.closed = True


class Room:
    """Workers over table engines that share a fake clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.workers = Clock(), list[InProcess]()
        self.opened: list[dict[str, Any]] = []
        self.fail: Callable[[dict[str, Any]], None] = lambda _: None
        self.speed: Callable[[dict[str, Any]], float] = lambda _: 1.0
        monkeypatch.setattr(child, "open_engine", self.open)
        monkeypatch.setattr(child, "_pin", lambda _: None)

    def open(self, form: str, path: Path, **options: Any) -> Table:
        options["path"] = path
        self.opened.append(options)
        self.fail(options)
        slow = self.speed(options)
        return Table(min(512, options["context"]), 0.3, lambda seconds: self.clock.tick(seconds * slow))

    def start(self) -> InProcess:
        self.workers.append(InProcess(self.clock))
        return self.workers[-1]


def write_tokenizer(folder: Path) -> Path:
    """Every letter is a token."""
    folder.mkdir(parents=True)
    made = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    made.decoder = decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({}))
    return folder


class Numpy:
    """The toy decoder in numpy: the full-precision model of the toy bundle."""

    name, vocab_size, max_context = "numpy", toy_decoder.VOCAB, 64

    def __init__(self) -> None:
        self.weights, self.ids = toy_decoder.weights(), np.empty(0, np.int64)

    def logits(self, ids: Ids) -> F32:
        return toy_decoder.expected(self.weights, ids).astype(np.float32)

    def start(self, ids: Ids) -> F32:
        self.ids = np.asarray(ids, np.int64)
        return np.asarray(self.logits(self.ids)[-1])

    def step(self, token: int) -> F32:
        return self.start(np.append(self.ids, token))

    def close(self) -> None:
        pass


def reference(engine: Any, sequences: int = 4, length: int = 40, tokens: int = 12) -> Reference:
    """Sealed on random text."""
    texts = np.random.default_rng(2).integers(0, engine.vocab_size, (sequences, length)).tolist()
    origin = Origin(model="toy", model_sha256=SHA, seed=0, text="self-generated", text_sha256=SHA, versions={})
    prompts = [[40, 41, 42], [50], [60, 61]]
    return seal(engine, texts, prompts, origin=origin, k=16, continuation_tokens=tokens)


def said(engine: Any, sealed: Reference) -> list[str]:
    """The texts of its greedy continuations."""
    return ["".join(LETTERS[i] for i in greedy(engine, ids, sealed.meta.token_limit, sealed.stop))
            for ids in sealed.prompts.lists()]  # fmt: skip


def report_of(sealed: Reference, engine: Any, texts: Sequence[str], form: str = "onnx") -> bytes:
    """report.json of a bundle with one artefact."""
    artefact = reports.Artefact(
        format=form,  # type: ignore[arg-type]
        engine="x", title="x", requested_bits=4, effective_bits=5.0, bytes=1, shares={}, fallbacks=(),
        predicted=reports.Predicted(ram_mib=1, usable_mib=2, bytes_per_token=3, tokens_per_second=None, basis="x"),
        parity=reports.Parity(tokenizer_strings=1, tensors=1, full_precision_kl=0, activation_kl=0, positions=1),
        coherence=evaluate(engine, sealed), truncation_kl=0.0, verdict=Verdict(result="PASS", checks=(), sentence="P"),
    )  # fmt: skip
    return reports.to_json(
        reports.Report(
            edgekit="0", name="toy", model="toy", source="a test", parameters=1, caveats=(), target="host",
            target_title="x", text="x", calibration="x", artefacts=(artefact,), seconds={},
            samples=tuple(reports.Sample(prompt="?", original="", artefacts={form: text}) for text in texts),
            host=reports.Host(machine="x", system="x", python="3", cpus=1, versions={}),
        )
    )  # fmt: skip


def seal_folder(folder: Path, form: str = "onnx", path: str = "onnx/model.onnx", target: str = "host") -> Bundle:
    """Write the manifest of what is there."""
    engine = "onnxruntime" if form == "onnx" else "llama.cpp"
    artefact = Artefact(format=form, path=path, engine=engine, requested_bits=4, effective_bits=5, plan=())  # type: ignore[arg-type]
    model = Model(name="toy", architecture="toy", source="a test", sha256=SHA, parameters=1)
    ref = TargetRef(id=target, sha256=SHA)
    write_manifest(folder, Manifest(edgekit="0", name="toy", model=model, target=ref, artefacts=(artefact,)))
    return open_bundle(folder)


def toy_bundle(folder: Path, target: str = "host") -> Bundle:
    """The toy decoder as ONNX, with tokenizer, sealed reference and report: a real engine runs it in milliseconds."""
    folder.mkdir()
    toy_decoder.write(folder / "onnx")
    write_tokenizer(folder / "tokenizer")
    engine = Numpy()
    sealed = reference(engine)
    save(sealed, folder / "reference.npz")
    (folder / "report.json").write_bytes(report_of(sealed, engine, said(engine, sealed)))
    return seal_folder(folder, target=target)


def table_bundle(folder: Path, report: bool = True, said_ids: Sequence[Sequence[int]] = ()) -> Bundle:
    """A bundle whose engine is a :class:`Table`: nothing in it can be loaded."""
    (folder / "gguf").mkdir(parents=True)
    (folder / "gguf/model.gguf").write_bytes(b"GGUF")
    write_tokenizer(folder / "tokenizer")
    sealed = reference(Table())
    save(sealed, folder / "reference.npz")
    if report:
        texts = said(Table(noise=0.3), sealed)
        (folder / "report.json").write_bytes(report_of(sealed, Table(noise=0.3), texts, "gguf"))
    if said_ids:
        seal_said(folder, {"gguf": said_ids})
    return seal_folder(folder, "gguf", "gguf/model.gguf")
