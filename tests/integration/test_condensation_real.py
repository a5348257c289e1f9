"""Condensation of real models: by the command line, and as the authors of the measure measure it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import tiny_families  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from edgekit import api  # noqa: E402
from edgekit.bundle.tokenizer import load_tokenizer  # noqa: E402
from edgekit.cli.main import cli  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.options import Options  # noqa: E402

pytestmark = pytest.mark.integration
WORDS = "The lighthouse keeper counted the ships that came in before the storm, and wrote each name into a book. "


@pytest.fixture(scope="module", params=["llama-biases", "qwen3", "gemma3", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("condensation") / "model", request.param)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number}: {WORDS}" for number in range(60)))
    return path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The authors' package without what it needs to download texts."""
    folder = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, "embedding-condensation==2.0"], check=True, timeout=300)
    with pytest.MonkeyPatch.context() as patch:
        datasets, nltk = types.ModuleType("datasets"), types.ModuleType("nltk.tokenize")
        datasets.load_dataset = nltk.word_tokenize = str.split  # type: ignore[attr-defined]
        for name, module in {"datasets": datasets, "nltk": types.ModuleType("nltk"), "nltk.tokenize": nltk}.items():
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("embedding_condensation")


def test_the_figures_are_those_of_the_authors_package(model: Path, text: Path, package: Any) -> None:
    found = api.condensation(model, options=Options(text=text, sequences=3, length=40))
    tokenizer, engine = load_tokenizer(model), TorchEngine(model)
    ids = tokenizer.encode(text.read_text())
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    each = 40 - len(bos)
    rows = [[*bos, *ids[index * each : (index + 1) * each]] for index in range(3)]

    def tokenize(name: str, **_settings: Any) -> dict[str, Any]:
        return {"input_ids": torch.tensor([rows[int(name)]])}

    theirs = package.measure_embedding_condensation(
        engine.module, tokenize, texts=["0", "1", "2"], repetitions=3, plot=False, save_path=None, show_progress=False
    ).cossim_by_layer
    assert len(found.layers) == len(theirs)
    for layer, cosines in zip(found.layers, theirs, strict=True):
        assert layer.mean_cosine == pytest.approx(float(cosines.mean()), abs=1e-5)
        density, _ = np.histogram(cosines.flatten(), bins=len(layer.density), density=True, range=(-1, 1))
        moved = np.abs(np.cumsum(density) - np.cumsum(layer.density)).max() * 2 / len(density)
        assert moved < 0.01  # a cosine at the edge of a bin may fall into the next


def test_the_command_writes_a_page_and_figures(model: Path, text: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    arguments = ["condensation", str(model), str(model), "--text", str(text), "--sequences", "2", "--length", "24"]
    done = CliRunner().invoke(cli, [*arguments, "--html", str(page), "--json", str(figures)])
    assert done.exit_code == 0, done.output
    assert "Spearman" in done.output
    first, second = json.loads(figures.read_text())
    assert first == second
    assert (first["sequences"], first["length"]) == (2, 24)
    assert first["layers"][0]["weight_kurtosis"] is None
    assert first["layers"][1]["weight_kurtosis"] is not None
    assert page.read_text().count("<svg") == 2


def test_nothing_is_overwritten_and_nothing_is_measured_before_that_is_known(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    done = CliRunner().invoke(cli, ["condensation", str(model), "--html", str(page)])
    assert done.exit_code != 0
    assert page.read_text() == "mine"


def test_text_of_its_own_is_never_longer_than_its_context(model: Path) -> None:
    found = api.condensation(model, options=Options(sequences=2, length=4096))
    assert found.length == 256
    assert "of the model's own" in found.text
