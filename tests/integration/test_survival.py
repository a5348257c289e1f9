"""The survival curve: fewer bits drift further, noise is as large as rounding, and a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tiny_families  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from edgekit import api, surviving  # noqa: E402
from edgekit.checkpoint.source import resolve  # noqa: E402
from edgekit.cli.main import cli  # noqa: E402
from edgekit.dispersion.survival import GRIDS, Point, Survival, bits_of, noisy, rounded  # noqa: E402
from edgekit.errors import GridError, InputNotFoundError, OptionError  # noqa: E402
from edgekit.options import Options  # noqa: E402
from edgekit.progress import Quiet  # noqa: E402
from edgekit.steps import Work  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("module_cache")]
OPTIONS = Options(sequences=4, length=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("survival") / "model", "gpt2")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("survival") / "other", "qwen2")


def test_the_fewer_bits_the_further(model: Path) -> None:
    """GPT-2 stores its matrices the other way round."""
    found = api.survive(model, noise=True, options=OPTIONS)
    points = {point.grid: point for point in found.points}
    assert set(points) == set(GRIDS) - {"Q6_K"}  # its blocks are of 256
    ordered = sorted(found.points, key=lambda point: -point.bits)
    errors, kls = [point.error for point in ordered], [point.coherence.kl_mean for point in ordered]
    assert errors == sorted(errors)
    assert kls[0] < kls[1] < kls[2] < min(kls[3:])  # below, chance has its say in so small a model
    assert points["F16"].coherence.kl_mean < 1e-4
    assert points["int3-sym-b32"].coherence.kl_mean > 10 * points["Q8_0"].coherence.kl_mean
    for point in found.points:
        assert point.coherence.generation is not None
        assert point.noise is not None
        assert point.noise.generation is None
    coarse = points["int3-sym-b32"]
    assert coarse.noise is not None
    assert 0.1 < coarse.noise.kl_mean / coarse.coherence.kl_mean < 10


def test_the_model_is_as_it_was_afterwards_and_kept_formats_are_not_measured_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.survive(model, grids=["Q8_0"], options=OPTIONS)
    measured: list[str] = []
    own = surviving._measured

    def noting(work: Work, grid: str, *rest: Any, **named: Any) -> Point:
        measured.append(grid)
        return own(work, grid, *rest, **named)

    monkeypatch.setattr(surviving, "_measured", noting)
    again = api.survive(model, grids=["Q8_0", "Q4_0", "BF16"], options=OPTIONS)
    assert measured == ["Q4_0", "BF16"]
    assert again.points[0] == first.points[0]
    assert again.points[2].coherence.kl_mean < 1e-3  # nothing of Q4_0 is left in it


def test_a_model_is_compared_with_its_parent(model: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(model))
    found = api.survive(model, against=model, grids=["Q8_0"], options=OPTIONS)
    assert found.reference == checkpoint.name
    assert found.points[0].coherence.kl_mean < 0.05


def test_a_parent_with_other_tokens_is_refused(model: Path) -> None:
    checkpoint = resolve(str(model))
    parent = replace(checkpoint, spec=replace(checkpoint.spec, vocab_size=7))
    with pytest.raises(OptionError, match="391 and 7 logits"):
        surviving.survival(checkpoint, parent, GRIDS, OPTIONS, Quiet())


def test_no_format_that_fits_is_refused(model: Path) -> None:
    with pytest.raises(GridError, match="no format fits"):
        api.survive(model, grids=["Q6_K"], options=OPTIONS)
    with pytest.raises(GridError):
        api.survive(model, grids=["Q9"], options=OPTIONS)


def test_the_command_writes_a_page_with_both_models(model: Path, other: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    arguments = ["survive", str(model), str(other), "--grids", "F16, Q4_0,int3-sym-b32", "--sequences", "4"]
    arguments += ["--length", "32", "-o", str(page), "--json", str(figures)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(figures.read_text())
    assert [[point["grid"] for point in one["points"]] for one in found] == [["F16", "Q4_0", "int3-sym-b32"]] * 2
    text = page.read_text()
    assert text.count('<polyline class="curve"') == 2
    assert text.count("<details>") == 2
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code != 0
    assert page.read_text() == text


def test_noise_is_as_large_as_the_rounding() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    other = rounded(weights, "Q4_0", None)
    made = noisy(weights, other, 0)
    assert np.linalg.norm(made - weights) == pytest.approx(float(np.linalg.norm(other - weights)), rel=1e-5)
    assert (made == noisy(weights, other, 0)).all()
    assert (made != noisy(weights, other, 1)).any()
    assert bits_of("Q4_0", {"a": (8, 64)}) == 4.5
    assert Survival.__struct_fields__[0] == "schema_version"


def test_a_parent_whose_ids_mean_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    stranger = tiny_families.make(tmp_path / "stranger", "gpt2", tokenizer="gpt2")
    with pytest.raises(OptionError, match="same tokenizer"):
        api.survive(model, against=stranger, options=OPTIONS)


def test_a_context_shorter_than_the_parents_is_told(model: Path, tmp_path: Path) -> None:
    short = tiny_families.make(tmp_path / "short", "gpt2", context=100)
    with pytest.raises(OptionError, match="context of 100 tokens"):
        api.survive(short, against=model, grids=["Q8_0"], options=OPTIONS)


def test_a_later_model_that_is_missing_is_told_before_the_first_is_measured(model: Path, tmp_path: Path) -> None:
    for verb in ("survive", "condensation"):
        done = CliRunner().invoke(cli, [verb, str(model), str(tmp_path / "missing")])
        assert isinstance(done.exception, InputNotFoundError)
        assert "write" not in done.output


def test_two_outputs_with_one_name_are_refused(model: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    for arguments in (["survive", "-o", path], ["condensation", "--html", path]):
        done = CliRunner().invoke(cli, [*arguments, "--json", path, str(model)])
        assert done.exit_code != 0
        assert isinstance(done.exception, OptionError | SystemExit)
        assert not Path(path).exists()
