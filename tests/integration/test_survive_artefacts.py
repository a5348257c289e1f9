"""A survival curve of real files beside the one in torch: what is refused, what is measured, what is shown."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import tiny_families  # noqa: E402
from conftest import Cli  # noqa: E402
from test_trained_codes_exported import train  # noqa: E402

from edgekit import api, surviving_artefacts  # noqa: E402
from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgekit.dispersion.survival import ARTEFACTS, GRIDS, Point, split, with_artefacts  # noqa: E402
from edgekit.errors import GridError, MissingDependencyError  # noqa: E402
from edgekit.options import Options  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("module_cache")]
OPTIONS = Options(sequences=4, length=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("survival") / "model", "qwen2")


def by_name(points: tuple[Point, ...]) -> dict[tuple[str, str], Point]:
    return {(point.engine, point.grid): point for point in points}


# -- what is refused


@pytest.mark.parametrize(
    ("grids", "words"),
    [
        ("gguf:Q9", "Q9"),
        ("mlx:Q4_0", "no engine for mlx:Q4_0"),
        ("onnx:Q4_0", "Q4_0 is no format of onnx; expected gguf:Q4_0"),
        ("onnx:embed-int8-sym-b32", "format of embeddings"),
        ("F16,", "is not a number format"),
    ],
)
def test_formats_that_cannot_be(model: Path, cli: Cli, tmp_path: Path, grids: str, words: str) -> None:
    cli("survive", model, "--grids", grids, "-o", tmp_path / "page.html").refused(25, words)
    assert not (tmp_path / "page.html").exists()


def test_a_format_that_no_row_fits(model: Path) -> None:
    with pytest.raises(GridError, match="no format fits"):
        api.survive(model, grids=["gguf:Q6_K"], options=OPTIONS)


def test_an_engine_that_is_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is measured."""
    there = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "onnxruntime" else there(name, package)

    monkeypatch.setattr(surviving_artefacts, "find_spec", find)
    monkeypatch.setattr("edgekit.surviving.apart", None)
    with pytest.raises(MissingDependencyError, match="package onnxruntime"):
        api.survive(model, grids=["F16", "onnx:int4-sym-b32"], options=OPTIONS)


# -- what is measured


def test_files_say_what_torch_says(model: Path) -> None:
    """The same codes in another engine: the same error of the weights, and nearly the same divergence."""
    grids = with_artefacts(["F16", "Q8_0", "Q4_0", "int8-sym-b32", "int3-sym-b32"])
    found = by_name(api.survive(model, grids=grids, options=OPTIONS).points)
    assert len(found) == 10
    engines = {"gguf": "llama.cpp", "onnx": "onnxruntime"}
    for container, grid in map(split, grids):
        if not container:
            continue
        file, own = found[engines[container], grid], found["torch", grid]
        assert file.error == pytest.approx(own.error, rel=1e-3)
        assert (file.bits, file.stored_bits) == (own.bits, own.stored_bits)
        assert file.coherence.engine == engines[container]
        assert file.coherence.positions == own.coherence.positions
        assert file.coherence.kl_mean == pytest.approx(own.coherence.kl_mean, rel=0.25, abs=0.02)
        assert file.coherence.generation is not None
        assert file.sample
    assert found["torch", "Q4_0"].nbytes is None
    sizes = [found["llama.cpp", grid].nbytes or 0 for grid in ("F16", "Q8_0", "Q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    weights = sum(tensor.parameters for tensor in open_checkpoint(model).spec.tensors)
    assert sizes[0] > 2 * weights, "the whole file, its tokenizer included"


def test_files_are_kept_nowhere_and_points_are_not_measured_again(
    model: Path, module_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.survive(model, grids=["gguf:Q5_1", "onnx:int4-sym-b32"], options=OPTIONS)
    assert [point.engine for point in first.points] == ["llama.cpp", "onnxruntime"]
    assert not [*module_cache.rglob("*.gguf"), *module_cache.rglob("*.onnx")]
    measured: list[str] = []
    own = surviving_artefacts.measured

    def noting(work: Any, container: Any, grid: str, *rest: Any) -> Point:
        measured.append(grid)
        return own(work, container, grid, *rest)

    monkeypatch.setattr(surviving_artefacts, "measured", noting)
    again = api.survive(model, grids=["gguf:Q5_1", "gguf:IQ4_NL", "onnx:int4-sym-b32"], options=OPTIONS)
    assert measured == ["IQ4_NL"]
    assert [again.points[0], again.points[2]] == list(first.points)


def test_codes_of_a_training_are_in_the_file_as_they_are(tmp_path: Path) -> None:
    """On the format that it was trained on nothing is rounded; on another it is like any model."""
    train(tmp_path / "model", "Q4_0")
    found = api.survive(
        tmp_path / "model", grids=["Q4_0", "gguf:Q4_0", "gguf:Q5_0", "onnx:int4-sym-b32"], options=OPTIONS
    )
    points = by_name(found.points)
    assert points["llama.cpp", "Q4_0"].error == points["torch", "Q4_0"].error == 0
    assert points["llama.cpp", "Q5_0"].error > 0
    assert points["onnxruntime", "int4-sym-b32"].error > 0
    assert points["llama.cpp", "Q4_0"].coherence.kl_mean < points["onnxruntime", "int4-sym-b32"].coherence.kl_mean


def test_a_family_that_stores_inputs_first(tmp_path: Path) -> None:
    folder = tiny_families.make(tmp_path / "gpt2", "gpt2-untied")
    found = by_name(api.survive(folder, grids=with_artefacts(["Q8_0", "int8-asym-b32"]), options=OPTIONS).points)
    for engine, grid in (("llama.cpp", "Q8_0"), ("onnxruntime", "int8-asym-b32")):
        assert found[engine, grid].error == pytest.approx(found["torch", grid].error, rel=1e-3)
        assert found[engine, grid].coherence.kl_mean < 0.05


def test_which_formats_there_are() -> None:
    assert set(GRIDS) <= {*ARTEFACTS, "Q6_K"}
    names = with_artefacts(ARTEFACTS)
    assert len(names) == 2 * len(ARTEFACTS)
    assert {"gguf:F16", "gguf:Q2_0", "onnx:int8-sym-b32"} <= set(names)
    assert with_artefacts(["gguf:Q4_0", "Q4_0"]) == ("gguf:Q4_0", "Q4_0")
    with pytest.raises(GridError):
        with_artefacts(["Q9"])


def test_a_format_that_the_writer_does_not_know_is_left_out(tmp_path: Path) -> None:
    """Q2_0 is newer in llama.cpp than in gguf's releases; whichever is installed, the others are measured."""
    from gguf import GGMLQuantizationType

    folder = tiny_families.make(tmp_path / "model", "llama-576")
    found = api.survive(folder, grids=["gguf:Q2_0", "gguf:Q8_0"], options=OPTIONS)
    written = ["Q2_0"] if "Q2_0" in GGMLQuantizationType.__members__ else []
    assert [point.grid for point in found.points] == [*written, "Q8_0"]


# -- what is shown


def test_the_page_and_the_terminal(model: Path, cli: Cli, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    said = cli(
        "survive", model, "--artefacts", "--grids", "Q8_0,Q4_0,int8-sym-b32,Q3_K", "--sequences", "4", "--length", "32",
        "-o", page, "--json", figures,
    )  # fmt: skip
    assert said.code == 0, said.err
    for word in ("engine", "MiB", "llama.cpp", "onnxruntime", "PyTorch"):
        assert word in said.out, word
    table = [line for line in said.out.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 80
    assert not [line for line in table if "…" in line], "nothing is cut off"
    points = json.loads(figures.read_text())[0]["points"]
    assert [(point["engine"], point["grid"]) for point in points] == [
        ("torch", "Q8_0"), ("torch", "Q4_0"), ("torch", "int8-sym-b32"), ("llama.cpp", "Q8_0"), ("llama.cpp", "Q4_0"),
        ("onnxruntime", "int8-sym-b32"),
    ]  # fmt: skip
    text = page.read_text()
    picture = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    marks = {kind: len(picture.findall(f".//{kind}")) for kind in ("circle", "rect", "polygon")}
    assert marks == {"circle": 3, "rect": 2, "polygon": 1}
    assert len(picture.findall(".//polyline")) == 3
    lines = {line.get("class"): line.get("points", "").split() for line in picture.findall(".//polyline")}
    assert len(lines["curve"]) == 2, "of two formats with 8 bits the line takes one"
    for title in ("<th>engine</th>", "<th>file, MiB</th>", "<dt>Q4_0 in llama.cpp</dt>"):
        assert title in text
    heights = [float(mark.get("cy", "nan")) for mark in picture.findall(".//circle")]
    assert np.isfinite(heights).all()


def test_without_files_nothing_is_said_of_them(model: Path, cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = cli("survive", model, "--grids", "Q8_0", "--sequences", "4", "--length", "32", "-o", page)
    assert said.code == 0, said.err
    for word in ("engine", "MiB", "llama.cpp"):
        assert word not in page.read_text(), word
        assert word not in said.out, word
