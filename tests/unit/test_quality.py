"""The quality benchmark keeps its rows, goes on where it was, and draws what it measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks._rated import Entry, Quality, Subject, begun, draw, keep, summary, table
from benchmarks._result import Machine
from edgekit.options import Container

HOST = Machine(
    cpu="a CPU", architecture="x86_64", physical_cores=2, logical_cores=4, memory_gib=8.0, system="Linux 6",
    python="3.11", busy_percent=1.0,
)  # fmt: skip
SUBJECT = Subject(
    model="m", model_sha256="0" * 64, target="rpi4", tokens=512, text_sha256="1" * 64, calibration_sha256=None
)


def entry(name: str, container: Container, megabytes: float, kl: float) -> Entry:
    return Entry(
        name=name, container=container, megabytes=megabytes, kl=kl, low=kl * 0.9, high=kl * 1.1, same_top=0.9,
        seconds=12.4,
    )  # fmt: skip


FOUND = Quality(
    subject=SUBJECT, machine=HOST,
    entries=(
        entry("Q4_0", "gguf", 91.0, 0.23), entry("edgekit good --size 92.5MB", "gguf", 92.4, 0.07),
        entry("edgekit best --size 92.5MB", "gguf", 92.3, 0.06), entry("builder int4", "onnx", 90.0, 0.5),
    ),
)  # fmt: skip


def test_rows_are_kept_and_a_run_goes_on_with_them(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    assert begun(path, SUBJECT, HOST) == begun(None, SUBJECT, HOST) == Quality(subject=SUBJECT, machine=HOST)
    keep(FOUND, path)
    assert begun(path, SUBJECT, HOST) == FOUND
    assert [file.name for file in tmp_path.iterdir()] == ["quality.json"]


@pytest.mark.parametrize("other", [{"model_sha256": "2" * 64}, {"tokens": 256}, {"target": "rpi5"}])
def test_rows_of_something_else_are_not_mixed_in(other: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    keep(FOUND, path)
    with pytest.raises(SystemExit, match="take another file"):
        begun(path, msgspec.structs.replace(SUBJECT, **other), HOST)


def test_the_table_has_each_container_by_size_and_ours_in_bold() -> None:
    lines = table(FOUND).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        "| **GGUF edgekit good --size 92.5MB**", "| **GGUF edgekit best --size 92.5MB**", "| GGUF Q4_0",
        "| ONNX builder int4",
    ]  # fmt: skip
    assert lines[2] == "| **GGUF edgekit good --size 92.5MB** | 92.4 | **0.0700** | 0.0630–0.0770 | 0.900 | 12 s |"
    assert lines[-1] == "m, 512 tokens, formats of rpi4; measured on a CPU, 2 cores."


def test_the_summary_has_the_nearest_peer_that_is_not_larger() -> None:
    found = msgspec.structs.replace(FOUND, entries=(*FOUND.entries, entry("Q5_0", "gguf", 93.0, 0.03)))
    assert summary(found).splitlines() == [
        "| at most | edgekit, good | edgekit, best | best of the others there |", "|---|---|---|---|",
        "| GGUF 92.5 MB | **0.070** | **0.060** | 0.230 (Q4_0, 91.0 MB) |",
    ]  # fmt: skip


def test_the_picture_names_every_peer_and_is_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    draw(FOUND, one)
    draw(FOUND, two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_text("utf-8").count("<svg") == 1
    for name in ("Q4_0", "builder int4", "edgekit best", "edgekit good"):
        assert f"<!-- {name} -->" in one.read_text("utf-8")
