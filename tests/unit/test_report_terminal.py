from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.cells import cell_len
from test_report_model import UNLIMITED, artefact, coherence, report

from edgekit.coherence.metrics import Coherence
from edgekit.report.model import Predicted, Report
from edgekit.report.terminal import show


def shown(made: Report, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    show(made)
    sys.stdout.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_stream_and_80_columns_are_enough(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "名前" * 60 + "é±Δ" + "x" * 500
    text = shown(report(model=model, caveats=("…" + "长" * 300,)), monkeypatch, encoding)
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_a_name_cannot_send_escape_sequences_or_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(report(model="\x1b[2J\x9bevil [red]:smile:[/nope]\n"), monkeypatch)
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[red]:smile:[/nope]" in text


@pytest.mark.parametrize(
    "found",
    [
        coherence(generation=None),
        coherence(kl_mean_low=None, kl_mean_high=None, ppl_ratio_se=None),
        coherence(kl_mean=float("nan"), kl_p999=float("inf"), ppl_engine=1e304),
    ],
)
def test_odd_figures_are_words(found: Coherence, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Predicted(ram_mib=1, usable_mib=2, bytes_per_token=3, tokens_per_second=None, basis="no bandwidth")
    text = shown(report(artefacts=(artefact(found, predicted=quiet),)), monkeypatch)
    assert "decode speed unknown" in text
    assert "None" not in text


def test_verdict_titles_caveats_and_predictions_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown(report(), monkeypatch).split())
    assert "FAIL: ONNX is outside the target's coherence limits" in text
    assert "GGUF PASS: 4 bits requested, 5.31 bits per weight in the file; not a 4-bit model" in text
    assert "ONNX FAIL: mean KL divergence 0.12 nats is above the limit" in text
    assert "Caveat: The original is itself dequantized." in text
    assert "Predicted, not measured, GGUF: about 132 tokens/s decode, 311 of 3,584 MiB RAM on rpi5" in text


def test_what_nobody_judged_is_not_called_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(report(artefacts=(artefact(limits=UNLIMITED),)), monkeypatch)
    assert "NOT JUDGED" in text
    assert "PASS" not in text


def test_the_table_holds_both_artefacts_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(report(), monkeypatch).splitlines()
    row = next(line for line in lines if line.startswith("Mean KL divergence, nats"))
    assert row.split()[-2:] == ["0.0521", "0.120"]


def test_reports_need_neither_torch_nor_a_plotting_library() -> None:
    code = (
        "import sys, edgekit.report.html, edgekit.report.terminal;"
        "print([m for m in ('torch', 'matplotlib', 'rich', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_answers_are_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown(report(), monkeypatch).split())
    assert text.count("Answers 202 of 250 questions right") == 2
    assert "Flips 2.4 % (1.1 to 5.1)" in text
    without = shown(report(artefacts=(artefact(coherence(items=None)),)), monkeypatch)
    assert "questions right" not in without
    assert "not measured" in without
