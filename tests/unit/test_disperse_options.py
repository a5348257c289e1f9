"""`edgekit build --disperse`: what is refused before any work, how the bundle is called, what the report shows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from conftest import Cli
from html_pages import Page, section
from test_report_html import EVIL
from test_report_model import artefact, coherence, report

from edgekit import cache, contradictions, disperse_stage
from edgekit.errors import OptionError
from edgekit.options import Budget, Options
from edgekit.report import compared
from edgekit.report.html import render
from edgekit.report.model import Artefact, Dispersed, Sample, Training, from_json, to_json
from edgekit.report.terminal import show

WORDS = "Rivers carry sand to the sea, and the wind takes it back to the hills where they begin. "


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(WORDS * 20)
    return path


def trained(recipe: str = "int4", **changes: object) -> Artefact:
    training = Training(
        recipe=recipe, minutes=12.5, text_sha256="ab" * 32, text_tokens=123_456, held_out_tokens=4096,
        held_out_kl_first=0.4, held_out_kl_last=0.08, grids={"Q4_0": 210},
    )  # fmt: skip
    plain = coherence(kl_mean=0.777, same_top=0.61, ppl_engine=43.21, **changes)
    return artefact(dispersed=Dispersed(training=training, plain=plain))


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--train-text", "CORPUS"], 29, ["--train-text", "without --disperse"]),
        (["--restart"], 29, ["--restart", "without --disperse"]),
        (["--disperse", "int4"], 29, ["no text to train on", "--train-text"]),
        (["--disperse", "int5", "--train-text", "CORPUS"], 10, ["no recipe int5", "laptop"]),
        (["--disperse", "int4", "--train-text", "nowhere.txt"], 10, ["nowhere.txt"]),
        (["--disperse", "int4", "--train-text", "hub:nothing"], 29, ["hub:nothing"]),
        (["--disperse", "int4", "--train-text", "CORPUS", "--size", "90kB"], 29, ["budget"]),
        (["--disperse", "int4", "--train-text", "CORPUS", "--max-kl", "0.1"], 29, ["budget"]),
        (["--disperse", "int4", "--train-text", "CORPUS", "--exporter", "optimum"], 29, ["another tool", "ONNX"]),
        (["--disperse", "int4", "--train-text", "CORPUS", "--text", "CORPUS"], 29, ["same text", "to train on"]),
    ],
)
def test_contradictions(
    arguments: list[str], code: int, words: list[str], cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    given = [str(corpus) if argument == "CORPUS" else argument for argument in arguments]
    cli("build", tmp_path / "no-model", "-o", tmp_path / "dist", *given).refused(code, *words)
    assert not (tmp_path / "dist").exists()


def test_a_recipe_file_that_is_none(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("grid = 7")
    given = ("--disperse", tmp_path / "own.toml", "--train-text", corpus)
    cli("build", tmp_path / "no-model", *given).refused(29, "own.toml is not a recipe")


def test_a_judged_passage_within_the_training_text(corpus: Path, tmp_path: Path) -> None:
    judged = tmp_path / "judged.txt"
    judged.write_text(WORDS * 3 + "And one sentence that is in no other text at all.")
    with pytest.raises(OptionError, match="of the passages of --text stand in --train-text"):
        contradictions.refuse(Options(disperse="int4", train_text=(str(tmp_path),), text=judged))


def test_the_calibration_text_is_trained_on_where_no_other_is_given(corpus: Path) -> None:
    contradictions.refuse(Options(disperse="int4", calibration_text=corpus))


def test_a_budget_is_refused_whatever_it_limits(corpus: Path) -> None:
    with pytest.raises(OptionError, match="budget"):
        contradictions.refuse(Options(disperse="int4", calibration_text=corpus, budget=Budget("bits", 3.5)))


# -- names


@pytest.mark.parametrize(
    ("recipe", "name"),
    [(None, ""), ("int3", ".int3"), ("some/My Recipe_2.toml", ".my-recipe-2"), ("é/ü.toml", ".recipe"), ("a..b", ".a")],
)
def test_the_bundle_is_called_after_the_recipe(recipe: str | None, name: str) -> None:
    assert disperse_stage.suffix(Options(disperse=recipe)) == name


# -- the cache


def test_what_a_killed_training_left_is_listed_and_cleaned(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    left = tmp_path / cache.TRAININGS / "model-int4-0123.training"
    (left / "start").mkdir(parents=True)
    (left / "start" / "block").write_bytes(b"x" * 1000)
    said = cli("cache", "list")
    assert said.code == 0
    assert "unfinished trainings" in said.out
    assert cli("cache", "clean").code == 0
    assert left.is_dir(), "the bound does not count it"
    assert cli("cache", "clean", "--all").code == 0
    assert not left.exists()


# -- the report


def test_nothing_is_said_of_a_training_that_was_not() -> None:
    assert compared.lines(artefact()) == []
    assert 'id="training"' not in render(report())
    old = msgspec.json.decode(to_json(report()))
    for item in old["artefacts"]:
        del item["dispersed"]
    assert from_json(msgspec.json.encode(old)) == report(), "reports of older bundles are read"


def test_original_plain_and_trained_side_by_side() -> None:
    found = {line.title: line for line in compared.lines(trained())}
    mean = found["Mean KL divergence, nats"]
    assert (mean.original, mean.plain, mean.trained) == ("0", "0.777", "0.0521")
    assert found["Same top token"].plain == "61 %"
    assert found["Perplexity"].plain == "43.21"
    page = section(render(report(artefacts=(trained(),))), "training")
    for words in ("Without training", "0.777", "0.0521", "123,456", "abababababab", "210 matrices on Q4_0", "0.0800"):
        assert words in page, words


def test_what_was_not_measured_is_said() -> None:
    bare = msgspec.structs.replace(trained(generation=None, items=None), coherence=coherence(generation=None))
    found = {line.title: line for line in compared.lines(bare)}
    assert (found["seq-rep-4"].plain, found["seq-rep-4"].trained) == ("not measured", "not measured")
    assert found["Accuracy on the questions"].plain == "not measured"


def test_a_recipe_called_like_a_script() -> None:
    page = render(report(artefacts=(trained(EVIL),)))
    assert "<script" not in page
    assert Page(page).tags == Page(render(report(artefacts=(trained("x"),)))).tags


def test_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(report(artefacts=(trained(),)))
    said = capsys.readouterr().out
    assert "without training" in said
    assert "0.777" in said
    show(report())
    assert "without training" not in capsys.readouterr().out


def test_samples_of_all_three() -> None:
    sample = Sample(prompt="Once", original="upon a", artefacts={"gguf": "upon an"}, plain={"gguf": "uppp"})
    page = section(render(report(samples=(sample,))), "samples")
    order = [page.index(title) for title in ("<h4>Original</h4>", "<h4>GGUF without training</h4>", "<h4>GGUF</h4>")]
    assert order == sorted(order)
