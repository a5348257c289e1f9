"""Our divergence, same-top share and perplexity against llama.cpp's own, on the same tokens and the same two models.

The base model is the tiny one's forward pass in numpy, the other is a GGUF file in float32 whose weights went through
five bits: so both programs compare the same numbers, whatever the instruction set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import llama_perplexity as peer
import numpy as np
import pytest
import tiny
import tiny_gguf
from llama_perplexity import F32
from numpy.typing import NDArray

from edgekit.coherence.metrics import Coherence, estimate_error, evaluate
from edgekit.coherence.reference import Origin, Reference, seal
from edgekit.engines.llamacpp import LlamaCppEngine
from edgekit.sampling import draw

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.integration

CHUNK, CHUNKS, SHA = 64, 24, "ab" * 32
STEPS = 2e-5
"""Nats. llama.cpp rounds base log-probabilities to steps of at most 16 / 65535, without bias, and leaves out e^-16."""
Ids = NDArray[np.int64]


class Forward:
    """The tiny model in float64."""

    name, vocab_size, max_context = "numpy", tiny.Tiny().vocab, 512

    def __init__(self) -> None:
        self.weights = tiny.weights(tiny.Tiny())

    def logits(self, ids: Ids) -> F32:
        return tiny.forward(self.weights, tiny.Tiny(), ids).astype(np.float32)

    def start(self, ids: Ids) -> F32:
        return np.asarray(self.logits(ids)[-1])

    def step(self, token: int) -> F32:
        raise AssertionError(token)

    def close(self) -> None:
        pass


def written(random: np.random.Generator) -> list[int]:
    """A text that the model itself draws, after the beginning of text."""
    engine, ids = Forward(), [1]
    while len(ids) < CHUNK:
        ids.append(draw(engine.start(np.array(ids, np.int64)), random))
    return ids


def rounded(path: Path) -> Path:
    """The tiny model with its matrices rounded to Q5_1 and written in float32."""
    kind = gguf.GGMLQuantizationType.Q5_1
    more = {
        name: gguf.dequantize(gguf.quantize(array, kind), kind).astype(np.float32)
        for name, array in tiny_gguf.tensors(tiny.Tiny()).items()
        if array.ndim == 2 and array.shape[1] % 32 == 0
    }
    made: Path = tiny_gguf.write(path, kind="F32", more=more)
    return made


@dataclass(frozen=True)
class Case:
    """Both models' logits on the same sequences."""

    model: Path
    sequences: list[list[int]]
    base: list[F32]
    other: list[F32]
    ours: LlamaCppEngine

    def seal(self, k: int, draws: int = 32) -> Reference:
        origin = Origin(model="tiny", model_sha256=SHA, seed=0, text="file", text_sha256=SHA, versions={})
        return seal(Forward(), self.sequences, [], origin=origin, k=k, draws=draws)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = rounded(tmp_path_factory.mktemp("gguf") / "model.gguf")
    # llama-perplexity puts the beginning of text at the beginning of every chunk where the tokenizer wants it.
    sequences = [written(np.random.default_rng([5, index])) for index in range(CHUNKS)]
    engine = LlamaCppEngine(path, threads=1, context=CHUNK)
    arrays = [np.array(ids[:-1], np.int64) for ids in sequences]  # the last predicts nothing
    return Case(
        path, sequences, [Forward().logits(ids) for ids in arrays], [engine.logits(ids) for ids in arrays], engine
    )


def whole(case: Case) -> peer.Found:
    """llama.cpp's formula on every position that predicts a token."""
    following = [np.array(ids[1:], np.int64) for ids in case.sequences]
    return peer.formula(case.base, case.other, following)


def second_halves(case: Case) -> peer.Found:
    where = peer.halves(CHUNK)
    following = [np.array(ids[where.start + 1 : where.stop + 1], np.int64) for ids in case.sequences]
    return peer.formula([rows[where] for rows in case.base], [rows[where] for rows in case.other], following)


def ties(case: Case) -> int:
    """Positions whose two most probable tokens of the base model are one in the steps of llama.cpp's file."""
    top = np.sort(np.concatenate(case.base), axis=1)
    return int((top[:, -1] - top[:, -2] < 16 / 65535).sum())


def agree(case: Case, found: Coherence, theirs: peer.Found, kl_error: float) -> None:
    assert found.kl_mean == pytest.approx(theirs.kl_mean, abs=kl_error)
    assert found.same_top == pytest.approx(theirs.same_top, abs=(ties(case) + 0.5) / found.positions)
    assert math.log(found.ppl_ratio) == pytest.approx(theirs.ln_ppl_ratio, abs=STEPS)
    assert found.ppl_reference == pytest.approx(theirs.ppl_base, rel=STEPS)


def test_the_models_differ(case: Case) -> None:
    """Otherwise agreement would prove nothing."""
    found = whole(case)
    assert 0.005 < found.kl_mean < 1
    assert 0.5 < found.same_top < 0.99
    assert abs(found.ln_ppl_ratio) > 10 * STEPS


def test_with_every_token_kept_we_agree_to_the_steps_of_their_file(case: Case) -> None:
    found = evaluate(case.ours, case.seal(k=tiny.Tiny().vocab), generate=False)
    agree(case, found, whole(case), STEPS)


@pytest.mark.parametrize("k", [16, 128])
def test_with_some_tokens_kept_we_agree_within_the_stated_truncation_error(case: Case, k: int) -> None:
    """What a report calls truncation_kl is measured as here: exact minus estimated, on the same positions."""
    sealed = case.seal(k)
    errors = [
        estimate_error(sealed.positions.rows(rows), base, other)
        for rows, base, other in zip(sealed.sequence_rows(), case.base, case.other, strict=True)
    ]
    stated = abs(float(np.concatenate(errors).mean()))
    found = evaluate(case.ours, sealed, generate=False)
    agree(case, found, whole(case), stated + STEPS)
    assert stated < 0.05 * found.kl_mean


def test_the_formula_is_that_of_the_program(case: Case, tmp_path: Path) -> None:
    command = peer.program()
    if command is None:
        pytest.skip("no llama-perplexity: set EDGEKIT_LLAMA_PERPLEXITY, or build a runtime (edgekit runtime) and QEMU")
    base = peer.write_base(tmp_path / "base.kld", case.sequences, case.base)
    theirs, formula = peer.run(command, case.model, base, CHUNK), second_halves(case)
    # Its kernels may be another instruction set's, and the key-value cache is float16 on both sides.
    assert theirs.kl_mean == pytest.approx(formula.kl_mean, abs=1e-4)
    assert theirs.same_top == pytest.approx(formula.same_top, abs=1.5 / (CHUNKS * (CHUNK - 1 - CHUNK // 2)))
    assert theirs.ln_ppl_ratio == pytest.approx(formula.ln_ppl_ratio, abs=1e-4)
    assert theirs.ppl_base == pytest.approx(formula.ppl_base, rel=2e-5)
