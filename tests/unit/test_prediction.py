"""The check of predictions against published speeds: its arithmetic by hand, and what its figures must say."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
import pytest

from benchmarks import prediction, table
from edgekit.quantize.predict import decode_speed
from edgekit.targets import Target, load

DATA = prediction.published()
SIZES = [
    (row.model, row.type, row.streamed_mib)
    for source in DATA.sources
    for row in source.rows
    if row.streamed_mib is not None and row.type in ("Q8_0", "Q4_0", "Q4_K_M")
]


@pytest.fixture(scope="module")
def rpi5() -> Target:
    return load("rpi5")


@pytest.mark.parametrize(
    "text", ["", "models = 1", "[models]\n[[sources]]\nname = 'n'\nurl = 'u'\ntrust = 'A'\nrows = [{ model = 'm' }]"]
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.toml"
    path.write_text(text)
    with pytest.raises(msgspec.ValidationError):
        prediction.published(path)


def test_a_type_without_a_known_recipe_is_refused() -> None:
    with pytest.raises(KeyError):
        prediction.streamed_bytes(DATA.models["Qwen2.5-0.5B"], "IQ1_S")


def test_a_board_without_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError, match="host has no decode bandwidth"):
        prediction.check(DATA, load("host"))


@pytest.mark.parametrize(("model", "type_", "mib"), sorted(set(SIZES)))
def test_bytes_per_token_are_the_published_ones(model: str, type_: str, mib: float) -> None:
    assert prediction.streamed_bytes(DATA.models[model], type_) / 2**20 == pytest.approx(mib, rel=0.002)


def test_speed_by_hand(rpi5: Target) -> None:
    """11.82 GB/s, efficiency 0.98 of Q4_0; 12.6, 11.65 and 10.7 GB/s of reading at 2, 3 and 4 threads."""
    usual = 11.82e9 * 0.98 / 1e9
    assert decode_speed(rpi5, 1e9, "Q4_0") == decode_speed(rpi5, 1e9, "Q4_0", 2) == pytest.approx(usual)
    assert decode_speed(rpi5, 1e9, "Q4_0", 3) == pytest.approx(usual * 11.65 / 12.6)
    assert decode_speed(rpi5, 1e9, "Q4_0", 4) == pytest.approx(usual * 10.7 / 12.6)
    assert decode_speed(rpi5, 1e9, "Q4_0", 8) == decode_speed(rpi5, 1e9, "Q4_0", 4)


def test_one_thread_is_never_predicted_faster(rpi5: Target) -> None:
    assert decode_speed(rpi5, 1e9, "Q4_0", 1) == decode_speed(rpi5, 1e9, "Q4_0", 2)


def test_without_a_read_test_threads_change_nothing() -> None:
    board = load("rpi4")
    assert board.memory.read_gbps is None
    assert decode_speed(board, 1e9, None, 1) == decode_speed(board, 1e9, None, 4)


def test_a_wrong_bandwidth_shows(rpi5: Target) -> None:
    """The comparison must be able to fail: a tenth too much promises a tenth more, in every row."""
    memory = msgspec.structs.replace(rpi5.memory, decode_gbps=1.1 * 11.82)
    wrong = prediction.check(DATA, msgspec.structs.replace(rpi5, memory=memory))
    for right, off in zip(prediction.check(DATA, rpi5), wrong, strict=True):
        assert off.predicted == pytest.approx(1.1 * right.predicted)
        assert off.error > right.error


def test_rows_that_were_not_fitted_are_within_a_twentieth_in_the_median(rpi5: Target) -> None:
    checked = prediction.check(DATA, rpi5)
    fitted = [abs(one.error) for one in checked if one.row.fitted]
    free = [abs(one.error) for one in checked if not one.row.fitted]
    assert len(free) > 2 * len(fitted) > 0
    assert statistics.median(free) < 0.05
    assert max(fitted) < 0.05


def test_anchors_of_the_target_file_are_the_same_figures(rpi5: Target) -> None:
    rows = [row for source in DATA.sources for row in source.rows]
    for anchor in rpi5.anchors:
        model = anchor.model.removesuffix("-Instruct")
        assert any(
            (row.model, row.type, row.threads) == (model, anchor.type, anchor.threads)
            and anchor.tg_tok_s == pytest.approx(row.tok_s, rel=0.001)
            for row in rows
        ), anchor


def test_the_document_shows_what_is_computed() -> None:
    document = table.DOCUMENT.read_text(encoding="utf8")
    assert table.filled(document, prediction.figures() + "\n", *table.PREDICTED) == document


def test_the_command_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    prediction.main([])
    printed = capsys.readouterr().out
    assert printed.count("\n| ") - len(prediction.GROUPS) - 1 == sum(len(source.rows) for source in DATA.sources)
    assert "| not fitted on | 37 |" in printed
