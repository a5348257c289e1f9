"""Verify: the fixed questions are answered again, and other answers than those of the build are named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from test_cli_verify import (
    LENGTH,
    SHA,
    VOCAB,
    Bigram,
    report_of,
    seal_bundle,
    table,
    verify,
    write_graph,
    write_tokenizer,
)

from edgekit.coherence.container import save
from edgekit.coherence.metrics import Coherence, evaluate
from edgekit.coherence.ragged import ragged
from edgekit.coherence.reference import Origin, Reference, seal
from edgekit.coherence.scoring import Flip, ItemScores, Questions
from edgekit.report import model as reports

ITEMS = 60


def asked() -> Questions:
    """Two options an item: the same context, another last token."""
    random = np.random.default_rng(5)
    rows = [[*context, last] for context in random.integers(0, VOCAB, (ITEMS, 3)).tolist() for last in (1, 2)]
    return Questions(
        names=tuple(f"facts-{index:02}" for index in range(ITEMS)),
        sha256=SHA,
        options=ragged(rows),
        divisors=np.ones(2 * ITEMS, np.int32),
        counts=np.full(ITEMS, 2, np.int32),
        starts=np.full(ITEMS, 3, np.int32),
        right=np.zeros(ITEMS, np.int32),
    )


def sealed() -> Reference:
    texts = np.random.default_rng(2).integers(0, VOCAB, (4, LENGTH)).tolist()
    origin = Origin(model="bigram", model_sha256=SHA, seed=0, text="self-generated", text_sha256=SHA, versions={})
    return seal(Bigram(table()), texts, [[1]], origin=origin, k=8, continuation_tokens=8, questions=asked())


def recorded() -> Coherence:
    return evaluate(Bigram(table(0.3)), sealed())


def write_report(bundle: Path, items: ItemScores | None) -> None:
    report = reports.from_json(report_of(("onnx",)))
    coherence = msgspec.structs.replace(recorded(), items=items)
    artefact = msgspec.structs.replace(report.artefacts[0], coherence=coherence)
    (bundle / "report.json").write_bytes(reports.to_json(msgspec.structs.replace(report, artefacts=(artefact,))))
    seal_bundle(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny.rpi5"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer")
    write_graph(folder / "onnx", table(0.3))
    save(sealed(), folder / "reference.npz")
    write_report(folder, recorded().items)
    return folder


def changed(scores: ItemScores, count: int) -> ItemScores:
    """Scores in which `count` other items are flips than were measured."""
    flipped = {flip.item for flip in scores.flipped}
    fresh = [name for name in asked().names if name not in flipped][:count]
    more = tuple(Flip(item=name, right=0, reference=0, engine=1) for name in fresh)
    return msgspec.structs.replace(scores, flipped=scores.flipped + more)


def test_other_answers_than_recorded_are_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = recorded().items
    assert items is not None
    write_report(bundle, changed(items, 4))
    assert verify(bundle) == 21
    captured = capsys.readouterr()
    assert "onnx/model.onnx in onnxruntime answers 4 of 60 questions otherwise" in captured.err
    assert "logits (onnx): ok" in captured.out
    assert "answers" not in captured.out


def test_flips_that_are_missing_count_as_well(bundle: Path) -> None:
    items = recorded().items
    assert items is not None
    assert 0 < len(items.flipped) <= 3
    write_report(bundle, changed(msgspec.structs.replace(items, flipped=()), 0))
    assert verify(bundle) == 0
    write_report(bundle, changed(msgspec.structs.replace(items, flipped=()), 4))
    assert verify(bundle) == 21


def test_a_few_ties_are_tolerated_and_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = recorded().items
    assert items is not None
    write_report(bundle, changed(items, 3))
    assert verify(bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["checks"][-1]["answers_changed"] == 3


def test_a_report_without_answers_is_not_called_verified(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(bundle, None)
    assert verify(bundle) == 0
    shown = capsys.readouterr().out
    assert "answers (onnx): not checked" in shown
    assert "Verified" not in shown


def test_answers_to_other_questions_are_not_compared(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = recorded().items
    assert items is not None
    write_report(bundle, msgspec.structs.replace(items, items_sha256="0" * 64))
    assert verify(bundle) == 0
    assert "answers (onnx): not checked" in capsys.readouterr().out


def test_the_same_artefact_answers_the_same(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(bundle) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("answers"))
    assert line.startswith("answers (onnx): ok: Answers ")
    assert "of 60 questions right" in line
    assert line.endswith("Otherwise than when the bundle was built: 0")
