"""`edgekit bench --protocol instructions`: what is refused, and what becomes of the counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_toys import seal_folder, table_bundle
from conftest import Cli

from edgekit.bench import instructions
from edgekit.bench.instructions import PROGRAM, count
from edgekit.bench.judge import judge
from edgekit.bench.plan import names
from edgekit.bench.result import from_json, to_json
from edgekit.bench.words import lines
from edgekit.bench_report.html import render
from edgekit.bench_report.summary import markdown
from edgekit.bench_report.words import Entry
from edgekit.bundle.bundle import Bundle
from edgekit.emulator.counting import PerToken
from edgekit.errors import BundleError, EmulatorError
from edgekit.progress import Quiet
from edgekit.targets import Target, load

RPI5 = load("rpi5")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = table_bundle(tmp_path / "toy").root
    (made / PROGRAM).parent.mkdir(parents=True)
    (made / PROGRAM).write_bytes(b"\x7fELF")
    (made / "manifest.json").unlink()
    return seal_folder(made, "gguf", "gguf/model.gguf", target="rpi5")


def counter(*decode: float) -> Callable[[Path, Path, Target], PerToken]:
    """Gives these counts of a decoded token, in millions, one after the other."""
    left = list(decode)

    def count_once(program: Path, model: Path, board: Target) -> PerToken:
        assert program.read_bytes() == b"\x7fELF"
        assert model.read_bytes() == b"GGUF"
        assert board.name == "rpi5"
        return PerToken(decode=left.pop(0) * 1e6, prefill=20e6)

    return count_once


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "local"], "is given for 'local'"),
        (["--device", "ssh://pi@board"], "is given for 'ssh://pi@board'"),
        (["--device", "emulated:rpi5", "--device", "ssh://pi@board"], "ssh://pi@board"),
        (["--device", "emulated:rpi5", "--format", "onnx"], "counts GGUF"),
        (["--device", "emulated:rpi5", "--threads", "4"], "with one thread"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_a_bundle_is_opened(
    options: list[str], words: str, cli: Cli, tmp_path: Path
) -> None:
    cli("bench", tmp_path / "no-bundle", "--protocol", "instructions", *options).refused(29, words)


def test_a_bundle_without_engines_or_without_gguf(bundle: Bundle, tmp_path: Path) -> None:
    bare = table_bundle(tmp_path / "bare")
    with pytest.raises(BundleError, match="holds no runtime/bin/llama-bench"):
        count(bare, RPI5, RPI5, Quiet(), counter(1, 1))
    (bare.root / "onnx").mkdir()
    (bare.root / "onnx/model.onnx").write_bytes(b"onnx")
    (bare.root / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no gguf artefact"):
        count(seal_folder(bare.root), RPI5, RPI5, Quiet(), counter(1, 1))


def test_a_target_that_nobody_ships_and_one_without_a_cpu(bundle: Bundle, cli: Cli) -> None:
    for name, code, words in (("nothing", 29, "there is no target"), ("host", 29, "no fixed processor")):
        outcome = cli("bench", bundle.root, "--protocol", "instructions", "--device", f"emulated:{name}")
        assert outcome.code == code
        assert words in outcome.err


def test_the_result_says_what_was_counted_and_holds_no_time(bundle: Bundle) -> None:
    found = count(bundle, RPI5, RPI5, Quiet(), counter(36.91, 36.93))
    assert from_json(to_json(found)) == found
    counts = found.runs[0].instructions
    assert counts is not None
    assert counts.decode.values == (36.91, 36.93)
    assert counts.decode.quantity.kind == "emulated"
    assert (counts.cpu, found.device.url) == ("cortex-a76", "emulated:rpi5")
    judged = judge(found, RPI5)
    assert judged.verdict == "PASS"
    assert any("instructions a decoded token: 36.92 M instructions/token emulated" in line for line in lines(found))
    page = render([Entry(found, judged)])
    assert "Instructions, a decoded token" in page
    for words in ("tokens/s", "latency", "First token"):
        assert words not in page
    assert "PASS" in markdown([Entry(found, judged)])


def test_counts_that_do_not_repeat_fail(bundle: Bundle) -> None:
    judged = judge(count(bundle, RPI5, RPI5, Quiet(), counter(36.9, 37.0)), RPI5)
    assert judged.verdict == "FAIL"
    assert "2 counts of a decoded token differ by 0.27 % (limit 0.1 %)" in judged.sentence


def test_on_the_command_line(bundle: Bundle, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(bundle: Bundle, settings: Target, board: Target, progress: Quiet) -> object:
        if board.name == "rpi4":
            raise EmulatorError("llama-bench ended with 132")
        return count(bundle, settings, board, progress, counter(36.9, 36.9))

    monkeypatch.setattr(instructions, "count", counted)
    outcome = cli(
        "bench", bundle.root, "--protocol", "instructions", "--gate", "--device", "emulated:rpi5", "--device",
        "emulated:rpi4", "--json", tmp_path / "o.json", "--junit", tmp_path / "o.xml",
    )  # fmt: skip
    assert outcome.code == 36
    assert "ended with 132" in (tmp_path / "o.xml").read_text()
    assert json.loads((tmp_path / "o.emulated-rpi5.json").read_text())["protocol"]["name"] == "instructions"
    assert not (tmp_path / "o.emulated-rpi4.json").exists()


def test_it_is_no_protocol_of_a_board() -> None:
    assert "instructions" not in names()
