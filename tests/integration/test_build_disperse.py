"""`edgekit build --disperse` on a tiny model: train, quantize, export, prove; killed, repeated, without a cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import tiny_tokenizers
from conftest import Cli
from tiny import Tiny

for _package in ("accelerate", "torch", "transformers", "onnx", "onnxruntime", "llama_cpp", "gguf"):
    pytest.importorskip(_package)

from test_trained_codes_exported import missing  # noqa: E402

from edgekit.bundle.bundle import open_bundle  # noqa: E402
from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgekit.quantize import trained  # noqa: E402
from edgekit.quantize.rounded import load  # noqa: E402
from edgekit.report.model import Report, from_json  # noqa: E402

pytestmark = pytest.mark.integration

SHORT = 'grid = "int4"\nlength = 32\n[blockwise]\nsequences = 8\niterations = 4\n[end_to_end]\nsteps = 6\nbatch = 2\n'
FULL_PRECISION = "length = 32\n[objective]\ndispersion = 0.5\n[end_to_end]\nsteps = 3\nbatch = 2\n"
SLOW = SHORT.replace("iterations = 4", "iterations = 40").replace("steps = 6", "steps = 60")
MEASURED_NEW = ("report.json", "report.html", "manifest.json", "report")


@dataclass(frozen=True)
class Place:
    """A model, texts and recipes, an output folder, a cache."""

    root: Path
    cache: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    def start(self, recipe: str, *more: str | Path, out: str = "dist") -> subprocess.Popen[str]:
        arguments = (
            "build", self.model, "--no-runtime", "--disperse", self.root / f"{recipe}.toml",
            "--train-text", self.root / "corpus.txt", "-o", self.root / out, *more,
        )  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", "edgekit", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "EDGEKIT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )  # fmt: skip

    def build(self, recipe: str, *more: str | Path, out: str = "dist") -> str:
        """Build to the end; what was said on both streams."""
        process = self.start(recipe, *more, out=out)
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said[1][-3000:]
        return "".join(said)

    def bundle(self, recipe: str, out: str = "dist") -> Path:
        return self.root / out / f"model.rpi5.{recipe}"

    def report(self, recipe: str, out: str = "dist") -> Report:
        return from_json((self.bundle(recipe, out) / "report.json").read_bytes())

    def children(self) -> list[Path]:
        return sorted(self.cache.glob("stages/disperse/*/files/model"))

    def kill_when(self, pattern: str, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and not list(self.cache.glob(pattern)):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said[-3000:]


def made(root: Path) -> Place:
    tiny.make(root / "model", Tiny(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=384))
    (root / "corpus.txt").write_text("\n".join(tiny_tokenizers.SENTENCES * 40))
    for name, recipe in (("short", SHORT), ("full", FULL_PRECISION), ("slow", SLOW)):
        (root / f"{name}.toml").write_text(recipe)
    return Place(root, root / "cache")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return made(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With a build by the recipe short, of both formats."""
    found = made(tmp_path_factory.mktemp("finished"))
    found.build("short")
    return found


# -- what cannot be


def test_nothing_to_train_is_told_before_anything_is_made(place: Place, cli: Cli) -> None:
    """At 16 bits a plan has no format that can be trained on."""
    tensors = {tensor.hf: "F16" for tensor in open_checkpoint(place.model).spec.tensors if tensor.rule.matrix}
    plan = {
        "schema_version": 1, "kind": "edgekit plan", "model": "model",
        "model_sha256": open_checkpoint(place.model).sha256, "plans": [{"format": "gguf", "tensors": tensors}],
    }  # fmt: skip
    (place.root / "plan.json").write_text(json.dumps(plan))
    given = ("--disperse", place.root / "short.toml", "--train-text", place.root / "corpus.txt", "--format", "gguf")
    out = cli("build", place.model, "-o", place.root / "dist", "--plan", place.root / "plan.json", *given)
    out.refused(29, "nothing to train for GGUF", "F16")
    assert not (place.root / "dist").exists()


def test_too_little_text_leaves_nothing_behind(place: Place) -> None:
    (place.root / "corpus.txt").write_text("Too few words.")
    process = place.start("short", "--format", "gguf")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 28, said[-3000:]
    assert "Traceback" not in said
    assert not place.bundle("short").exists()
    assert place.children() == []


# -- what must be


def test_the_bundle_is_whole(finished: Place, cli: Cli) -> None:
    assert [path.name for path in (finished.root / "dist").iterdir()] == ["model.rpi5.short"]
    open_bundle(finished.bundle("short"))
    assert cli("verify", finished.bundle("short")).code == 0
    pages = sorted(path.name for path in (finished.bundle("short") / "report").iterdir())
    assert pages == ["training-gguf.html", "training-onnx.html"]
    assert list((finished.cache / "training").iterdir()) == [], "what was trained is a stage's result now"
    assert not list(finished.bundle("short").rglob("plain*"))


def test_what_was_trained_is_what_is_shipped(finished: Place) -> None:
    children = finished.children()
    assert len(children) == 2, "the containers have other formats"
    for child in children:
        checkpoint = open_checkpoint(child)
        codes = {name: load(name, place) for name, place in trained.places(checkpoint).items()}
        assert len(codes) == 14
        kind = "onnx" if next(iter(codes.values())).grid.startswith("int4") else "gguf"
        single = finished.root / f"only-{kind}"
        single.mkdir()
        (single / kind).symlink_to(finished.bundle("short") / kind)
        assert missing(single, checkpoint, codes) == []


def test_the_report_shows_all_three(finished: Place) -> None:
    report = finished.report("short")
    assert report.model == "model"
    assert report.name == "model.rpi5.short"
    assert "trained by the recipe short" in report.calibration
    for artefact in report.artefacts:
        assert artefact.codes["trained"] > 0.5
        assert artefact.dispersed is not None
        assert artefact.dispersed.plain.kl_mean != artefact.coherence.kl_mean
        assert artefact.dispersed.plain.ppl_reference == artefact.coherence.ppl_reference, "one reference"
        assert artefact.dispersed.training.recipe == "short"
        assert sum(artefact.dispersed.training.grids.values()) == 14
        assert abs(artefact.truncation_kl) < 0.005, "of the original's answers, not of the trained model's"
    page = (finished.bundle("short") / "report.html").read_text("utf8")
    assert "Without training" in page
    assert "GGUF without training" in page


def test_without_training_is_what_the_plain_build_ships(finished: Place, cli: Cli) -> None:
    """Otherwise the comparison would be with something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(finished.cache))
        assert cli("build", finished.model, "--no-runtime", "-o", finished.root / "plain").code == 0
    plain = from_json((finished.root / "plain" / "model.rpi5" / "report.json").read_bytes())
    for with_training, without in zip(finished.report("short").artefacts, plain.artefacts, strict=True):
        assert with_training.dispersed is not None
        assert with_training.dispersed.plain.kl_mean == pytest.approx(without.coherence.kl_mean, rel=0.05)
        assert without.dispersed is None


def test_the_second_build_comes_from_the_cache(finished: Place) -> None:
    said = finished.build("short", out="again")
    assert "training by the recipe short (from cache)" in said
    assert "train the whole model" not in said
    assert "load the full-precision model" not in said
    assert content(finished.bundle("short", "again")) == content(finished.bundle("short"))


def content(bundle: Path) -> dict[str, bytes]:
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name.split("/")[0] not in MEASURED_NEW}


def test_other_text_is_another_training(finished: Place) -> None:
    other = finished.root / "other.txt"
    other.write_text("\n".join(reversed(tiny_tokenizers.SENTENCES * 40)))
    said = finished.build("short", "--train-text", other, "--format", "gguf", out="other")
    assert "train the whole model" in said


@pytest.mark.nightly
def test_a_killed_training_goes_on(place: Place) -> None:
    """Killed among the blocks, then while the whole model is trained: the bytes come out as without it.

    Killed once more and begun anew, it does not go on, and the bytes are the same again.
    """
    for sign in ("training/*.training/start/block-0000.safetensors", "training/*.training/plain.json"):
        place.kill_when(sign, place.start("slow", "--format", "gguf"))
        assert not place.bundle("slow").exists()
    said = place.build("slow", "--format", "gguf")
    assert "going on with the training" in said
    assert list((place.cache / "training").iterdir()) == []
    fresh = Place(place.root, place.root / "fresh-cache")
    assert "going on" not in fresh.build("slow", "--format", "gguf", out="fresh")
    assert content(place.bundle("slow")) == content(place.bundle("slow", "fresh"))
    again = Place(place.root, place.root / "third-cache")
    again.kill_when("training/*.training/plain.json", again.start("slow", "--format", "gguf", out="third"))
    assert "going on" not in again.build("slow", "--format", "gguf", "--restart", out="third")
    assert content(again.bundle("slow", "third")) == content(place.bundle("slow"))


def test_a_recipe_without_a_grid_trains_once_for_both(place: Place) -> None:
    said = place.build("full")
    assert said.count("train the whole model …") == 1
    assert len(place.children()) == 1
    for artefact in place.report("full").artefacts:
        assert artefact.dispersed is not None
        assert artefact.dispersed.training.grids == {}
        assert "trained" not in artefact.codes
    assert "in full precision" in said


def test_without_a_cache_nothing_is_left(place: Place) -> None:
    said = place.build("short", "--no-cache", "--format", "gguf", "--effort", "good")
    assert "(from cache)" not in said
    assert [path.name for path in (place.root / "dist").iterdir()] == ["model.rpi5.short"]
    assert not (place.cache / "training").exists()
    open_bundle(place.bundle("short"))
