"""The benchmarks' arguments, statistics and tables. Nothing here measures time."""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench_overhead, decode_speed, instructions, table
from benchmarks._measure import begin, natural, pairs, parser, positive, run
from benchmarks._result import (
    Limit,
    Machine,
    Measure,
    Result,
    Row,
    first_difference,
    load,
    markdown,
    ratios,
    reached,
    save,
)
from edgekit.bench.stats import median_interval
from edgekit.emulator.counting import PerToken

MACHINE = Machine(
    cpu="a CPU", architecture="x86_64", physical_cores=2, logical_cores=4, memory_gib=8.0, system="Linux 6",
    python="3.11", busy_percent=1.0,
)  # fmt: skip


def row(
    ours: tuple[float, ...], peers: tuple[float, ...], measure: Measure = "ratio_at_most", value: float = 1.5
) -> Row:
    return Row(title="t", peer="p", unit="s", ours=ours, peers=peers, limit=Limit(measure=measure, value=value))


def result(*rows: Row) -> Result:
    return Result(
        benchmark="b", command="python -m benchmarks.b", started="2026-01-01T00:00:00+00:00", machine=MACHINE,
        versions={"edgekit": "0"}, method="Method.", rows=rows,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(natural, "-1"), (positive, "0"), (positive, "-3")])
def test_counts_out_of_range_are_refused(kind: type, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)


@pytest.mark.parametrize("arguments", [["--pairs", "0"], ["--pairs", "x"], ["--warmup", "-1"], ["--nonsense"]])
def test_bad_arguments_end_with_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser("d", pairs_default=3).parse_args(arguments)


def test_defaults_and_given_arguments() -> None:
    made = parser("d", pairs_default=3)
    assert (made.parse_args([]).pairs, made.parse_args([]).warmup, made.parse_args([]).json) == (3, 1, None)
    given_ = made.parse_args(["--pairs", "5", "--warmup", "0", "--json", "x.json"])
    assert (given_.pairs, given_.warmup, given_.json) == (5, 0, Path("x.json"))


@pytest.mark.parametrize("arguments", [["--tokens", "1"], ["--bundle", "there/is/none"], ["--format", "pt"]])
def test_decode_speed_refuses_before_it_loads_anything(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        decode_speed.main(arguments)


@pytest.mark.parametrize(
    "arguments", [["--bundle", "there/is/none"], ["--format", "pt"], ["--tokens", "65", "--context", "64"]]
)
def test_bench_overhead_refuses_before_it_loads_anything(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_overhead.main(arguments)


def test_a_llama_bench_that_says_something_else_ends_it(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text("#!/bin/sh\necho '[{}]'\n")
    program.chmod(0o755)
    setup = bench_overhead.Setup(tmp_path, 1, 2, 64, program)
    with pytest.raises(SystemExit, match="expected"):
        bench_overhead.llama_bench(program, setup)
    program.write_text("#!/bin/sh\necho '[{\"avg_ts\": 12.5}]'\n")
    assert bench_overhead.llama_bench(program, setup) == 12.5


def test_the_command_to_repeat_leaves_out_where_figures_went() -> None:
    session = begin("cli_start", ["--pairs", "2", "--json", "a b.json", "--prompt", "it's"])
    assert session.command == """python -m benchmarks.cli_start --pairs 2 --prompt 'it'"'"'s'"""


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_median_without_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="median"):
        median_interval(values)


def test_sides_of_different_lengths_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios(row((1.0, 2.0), (1.0,)))


def test_few_pairs_show_their_extremes() -> None:
    found = median_interval([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.method) == (2.0, 1.0, 3.0, "min to max")


def test_bootstrap_of_many_pairs_is_narrower_than_the_extremes_and_repeatable() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 5.0, 1.01]
    found = median_interval(values)
    assert found == median_interval(values)
    assert found.method == "bootstrap 95 %"
    assert min(values) < found.low < found.median == 1.01 < found.high < max(values)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    found = median_interval(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_limits() -> None:
    assert reached(row((3.0,), (2.0,)))
    assert not reached(row((3.1,), (2.0,)))
    assert reached(row((95.0,), (100.0,), "ratio_at_least", 0.95))
    assert not reached(row((94.0,), (100.0,), "ratio_at_least", 0.95))
    assert not reached(row((0.1, 0.3), (0.1, 0.1), "ours_below", 0.3))


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_order_alternates_and_warm_up_is_thrown_away(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def call(name: str) -> int:
        calls.append(name)
        return len(calls)

    assert pairs(lambda: call("a"), lambda: call("b"), 2, 1) == [(4, 3), (5, 6)]
    assert calls == ["a", "b", "b", "a", "a", "b"]
    capsys.readouterr()


def test_run_counts_the_memory_of_children_together() -> None:
    hold = "import time; x = bytearray(60 << 20); time.sleep(0.5)"
    both = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; p.wait(); print(7)"
    used = run([sys.executable, "-c", both])
    assert used.output == "7\n"
    # The kernel's high-water mark of a child begins at the size of the process that started it.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 120 < used.peak_mib < max(300, 1.1 * own)


def test_a_failing_command_stops_the_benchmark_and_is_quoted() -> None:
    with pytest.raises(SystemExit, match="no such luck"):
        run([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_figures_survive_the_file_and_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    save(result(row((1.0,), (2.0,))), path)
    assert load(path) == result(row((1.0,), (2.0,)))
    path.write_text('{"benchmark": 1}')
    with pytest.raises(msgspec.ValidationError):
        load(path)


def test_table_says_when_a_limit_is_missed() -> None:
    text = markdown(result(row((4.0, 4.0, 8.0), (2.0, 2.0, 2.0)), row((2.0, 2.0, 2.0), (2.0, 2.0, 2.0))))
    assert "| t | 4 s | p: 2 s | **2.000** (2.000 – 4.000) | ratio ≤ 1.5 | **no** |" in text
    assert "| **1.000** (1.000 – 1.000) | ratio ≤ 1.5 | yes |" in text


def test_only_the_text_between_the_markers_changes() -> None:
    old = f"a\n{table.BEGIN}\nold\n{table.END}\nz\n"
    assert table.filled(old, "new\n") == f"a\n{table.BEGIN}\n\nnew\n\n{table.END}\nz\n"
    with pytest.raises(ValueError, match="markers"):
        table.filled("nothing", "new")


def test_the_document_shows_the_committed_figures() -> None:
    document = table.DOCUMENT.read_text(encoding="utf8")
    assert table.filled(document, table.tables(table.RESULTS)) == document


@pytest.mark.parametrize("arguments", [["--binary", "zig"], ["--binary", "=/bin/sh"], ["--binary", "zig=/no/such"]])
def test_instructions_refuses_what_is_no_binary(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        instructions.main(arguments)


def test_instructions_says_in_a_sentence_what_cannot_be_emulated() -> None:
    with pytest.raises(SystemExit, match="edgekit: target host cannot be emulated"):
        instructions.main(["--target", "host", "--binary", f"sh={sys.executable}"])


def test_instructions_judges_the_first_build_against_the_limit_and_the_others() -> None:
    found = {
        "zig": [PerToken(37e6, 18e6)] * 2,
        "gcc": [PerToken(38e6, 17e6)] * 2,
        "generic": [PerToken(90e6, 80e6)] * 2,
    }
    rows = instructions.rows(found, "a model", "cortex-a76")
    assert [(one.title.split(",")[0], one.peer, reached(one)) for one in rows] == [
        ("decode", "gcc build", True), ("decode", "generic build", True),
        ("prefill", "gcc build", True), ("prefill", "generic build", True),
    ]  # fmt: skip
    assert rows[0].limit == Limit(measure="ours_below", value=40.0)
    slow = instructions.rows({"zig": [PerToken(41e6, 18e6)]}, "a model", "cortex-a76")
    assert [reached(one) for one in slow] == [False, True]
    assert instructions.repeats(found)
    assert not instructions.repeats({"zig": [PerToken(37e6, 18e6), PerToken(37.1e6, 18e6)]})
