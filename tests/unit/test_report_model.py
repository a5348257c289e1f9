"""The example report of the report tests, and its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from edgekit.coherence.gates import judge
from edgekit.coherence.generation import Generation, Habits
from edgekit.coherence.intervals import paired_difference
from edgekit.coherence.items import fixed_sha256
from edgekit.coherence.metrics import Coherence
from edgekit.coherence.scoring import CategoryScores, Flip, ItemScores
from edgekit.errors import BundleError
from edgekit.report.model import Artefact, FlippedItem, Host, Parity, Predicted, Report, Sample, from_json, to_json


@dataclass(frozen=True)
class Limits:
    kl_mean_max: float | None = 0.1
    kl_p999_max: float | None = 3.0
    same_top_min: float | None = 0.85
    ppl_ratio_max: float | None = 1.1
    seq_rep_4_rise_max: float | None = 0.05
    loop_rate_rise_max: float | None = 0.1


UNLIMITED = Limits(None, None, None, None, None, None)


def generation() -> Generation:
    return Generation(
        prompts=12,
        token_limit=64,
        first_divergent_token=(3, 9, None),
        first_divergent_median=9,
        identical_share=0.0833,
        engine=Habits(seq_rep_4=0.31, loop_rate=0.25, eot_rate=0.41),
        reference=Habits(seq_rep_4=0.27, loop_rate=0.1667, eot_rate=0.5),
        seq_rep_4_rise=0.04,
        loop_rate_rise=0.0833,
        eot_rate_rise=-0.09,
    )


def scores(**changes: Any) -> ItemScores:
    """250 questions; 6 flips of which 4 lose a right answer and 1 gains one."""
    rows = [
        CategoryScores(name="facts", items=150, right_reference=130, right_engine=128, lost=3, gained=1, flips=4),
        CategoryScores(name="reasoning", items=100, right_reference=75, right_engine=74, lost=1, gained=0, flips=2),
    ]
    low, high = paired_difference(201, 1, 4, 44)
    found: dict[str, Any] = {
        "items": 250, "items_sha256": fixed_sha256(), "chance": 0.402, "right_reference": 205, "right_engine": 202,
        "accuracy_reference": 0.82, "accuracy_engine": 0.808, "accuracy_difference": -0.012,
        "accuracy_difference_low": low, "accuracy_difference_high": high,
        "flips": 6, "flip_share": 0.024, "flip_low": 0.011, "flip_high": 0.0514, "lost": 4, "gained": 1,
        "categories": tuple(rows),
        "flipped": (
            Flip(item="facts-02", right=1, reference=0, engine=1),
            Flip(item="facts-05", right=1, reference=0, engine=2),
            Flip(item="reasoning-01", right=2, reference=2, engine=0),
        ),
    }  # fmt: skip
    return ItemScores(**(found | changes))


def coherence(**changes: Any) -> Coherence:
    found: dict[str, Any] = {
        "engine": "llama.cpp",
        "model": "tiny",
        "text": "self-generated",
        "sequences": 16,
        "positions": 2544,
        "k": 64,
        "tail_mass_mean": 0.0441,
        "kl_mean": 0.0521,
        "kl_mean_coarse": 0.0433,
        "kl_mean_low": 0.0467,
        "kl_mean_high": 0.0586,
        "kl_median": 0.0171,
        "kl_p99": 0.4912,
        "kl_p999": 1.533,
        "kl_max": 4.217,
        "same_top": 0.8993,
        "delta_p_rms": 0.0512,
        "ppl_reference": 15.31,
        "ppl_engine": 15.98,
        "ppl_ratio": 1.0438,
        "ppl_ratio_se": 0.0061,
        "entropy_reference": 2.713,
        "entropy_engine": 2.747,
        "generation": generation(),
        "items": scores(),
    }
    return Coherence(**(found | changes))


def artefact(found: Coherence | None = None, limits: Limits | None = None, **changes: Any) -> Artefact:
    found = found or coherence()
    values: dict[str, Any] = {
        "format": "gguf",
        "engine": "llama.cpp",
        "title": "4 bits requested, 5.31 bits per weight in the file; not a 4-bit model",
        "requested_bits": 4,
        "effective_bits": 5.34,
        "bytes": 89_712_331,
        "shares": {"IQ4_NL": 0.598, "Q8_0": 0.371, "Q5_0": 0.0291, "F32": 0.0019},
        "fallbacks": ("mlp.down: Q4_K: 576 is no multiple of 256, so IQ4_NL",),
        "predicted": Predicted(
            ram_mib=311.4, usable_mib=3584, bytes_per_token=89_000_111, tokens_per_second=131.7, basis="11.82 GB/s"
        ),
        "parity": Parity(
            tokenizer_strings=212, tensors=272, full_precision_kl=3.1e-7, activation_kl=0.00423, positions=320
        ),
        "coherence": found,
        "truncation_kl": 0.00134,
        "verdict": judge(found, limits or Limits()),
        "flipped": (
            FlippedItem(id="facts-02", question="One week has seven", right="days", original="days", artefact="years"),
        ),
    }
    return Artefact(**(values | changes))


def report(**changes: Any) -> Report:
    bad = coherence(engine="onnxruntime", kl_mean=0.1198, kl_mean_low=0.107, kl_mean_high=0.135, ppl_engine=17.2)
    said = "The sea is calm.\n\n  He said:\tno  more\n"
    values: dict[str, Any] = {
        "edgekit": "0.1.0",
        "name": "tiny.rpi5",
        "model": "Tiny",
        "source": "local folder tiny",
        "parameters": 134_515_008,
        "caveats": ("The original is itself dequantized.",),
        "target": "rpi5",
        "target_title": "Raspberry Pi 5",
        "text": "16 sequences, 2560 tokens, written by the model itself",
        "calibration": "importance of each input on 16 sequences, 2048 tokens, from a text file",
        "artefacts": (artefact(), artefact(bad, format="onnx", engine="onnxruntime", fallbacks=())),
        "samples": (
            Sample(prompt="Once upon", original=said, artefacts={"gguf": said, "onnx": "The sea is calling."}),
        ),
        "seconds": {"GGUF: write": 3.11, "coherence": 12.94},
        "host": Host(machine="x86_64", system="Linux 6.1", python="3.11.2", cpus=2, versions={"numpy": "2.1.3"}),
    }
    return Report(**(values | changes))


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b"[" * 100_000, b"\xff", b'{"schema_version": 2}'])
def test_what_is_no_report_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(BundleError, match="build the bundle again"):
        from_json(data)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(BundleError):
        from_json(to_json(report()).replace(b'"edgekit"', b'"edgekti"', 1))


def test_a_report_made_before_there_were_questions_is_read() -> None:
    data = json.loads(to_json(report()))
    for found in data["artefacts"]:
        del found["flipped"], found["coherence"]["items"]
    again = from_json(json.dumps(data).encode())
    assert again.artefacts[0].coherence.items is None
    assert again.artefacts[0].flipped == ()


def test_json_gives_the_same_report_back() -> None:
    assert from_json(to_json(report())) == report()
