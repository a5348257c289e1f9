"""A killed build leaves nothing behind and the next one goes on where it was; a finished one is quickly made again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

from edgekit.bundle.bundle import open_bundle

pytestmark = pytest.mark.integration

MEASURED_NEW = "report.json", "report.html", "manifest.json"


@dataclass(frozen=True)
class Place:
    """A model, an output folder, and a cache of their own."""

    model: Path
    out: Path
    cache: Path

    def start(self, *arguments: str, code: str = "from edgekit.cli.main import main; main()") -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            code,
            "build",
            "--no-runtime",
            str(self.model),
            "-o",
            str(self.out),
            *arguments,
        ]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "EDGEKIT_CACHE": str(self.cache), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def build(self, *arguments: str, code: str = "from edgekit.cli.main import main; main()") -> str:
        """Run a build to its end; what it said on standard error."""
        process = self.start(*arguments, code=code)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def kill_at(self, stage: str, *arguments: str) -> list[str]:
        """Start a build and kill it when it announces `stage`; what it said."""
        process = self.start(*arguments)
        assert process.stderr is not None
        alarm = threading.Timer(200, process.kill)
        alarm.start()
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(stage) and line.rstrip().endswith("…") and "(from cache)" not in line:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        alarm.cancel()
        assert said[-1].startswith(stage), said
        return said

    def bundle(self) -> dict[str, bytes]:
        """Name → bytes of everything in the bundle that is not a measurement."""
        root = self.out / "model.rpi5"
        open_bundle(root)
        files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if name not in MEASURED_NEW}

    def stages(self) -> set[str]:
        return {path.parent.parent.name for path in self.cache.glob("stages/*/*/entry.json")}


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Place:
    return Place(sound, tmp_path / "dist", tmp_path / "cache")


@pytest.fixture(scope="module")
def finished(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished build with its filled cache, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    made = Place(sound, folder / "dist", folder / "cache")
    made.build()
    return made


@pytest.fixture
def copied(finished: Place, tmp_path: Path) -> Place:
    """The same cache, and no bundle."""
    shutil.copytree(finished.cache, tmp_path / "cache")
    return Place(finished.model, tmp_path / "dist", tmp_path / "cache")


def test_killed_everywhere_and_finished(place: Place, finished: Place) -> None:
    """Killed at one stage after the other; each run starts with what the ones before it finished."""
    for stage, done in (
        ("text:", set()), ("reference:", {"texts", "importance"}), ("GGUF: quantize", {"reference"}),
        ("ONNX: quantize", {"gguf"}), ("GGUF: compare logits", {"tokenizer"}), ("ONNX: coherence", {"coherence"}),
    ):  # fmt: skip
        before = place.stages()
        said = "".join(place.kill_at(stage))
        assert done <= place.stages(), f"before {stage}"
        assert len(before) <= said.count("(from cache) …"), "what earlier runs finished is not made again"
        assert not (place.out / "model.rpi5").exists()
    said = place.build()
    for title in ("text:", "calibration:", "reference:", "GGUF: quantize", "ONNX: quantize", "GGUF: coherence"):
        assert any(line.startswith(title) and "(from cache)" in line for line in said.splitlines()), title
    assert "load the full-precision model" not in said, "everything that needs it was finished"
    assert [path.name for path in place.out.iterdir()] == ["model.rpi5"], "leftovers"
    assert not [path.name for path in place.cache.rglob("*.tmp-*")]
    assert place.bundle() == finished.bundle(), "the same bytes as a build that was never stopped"


def test_killed_while_an_old_bundle_is_there(finished: Place, copied: Place) -> None:
    copied.build()
    before = (copied.out / "model.rpi5" / "manifest.json").read_bytes()
    copied.kill_at("text:", "--force", "--seed", "7")
    assert (copied.out / "model.rpi5" / "manifest.json").read_bytes() == before
    copied.build("--force")
    assert [path.name for path in copied.out.iterdir()] == ["model.rpi5"]
    assert copied.bundle() == finished.bundle()


def test_cached_rebuild_gives_the_same_and_loads_no_framework(finished: Place, copied: Place) -> None:
    code = (
        "import sys; from edgekit.cli.main import main\n"
        "try: main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'llama_cpp', 'onnxruntime'} & sys.modules.keys()\n"
        "    assert not heavy, heavy\n"
    )
    said = copied.build(code=code)
    titles = {line.split(": 0.")[0] for line in said.splitlines() if "…" not in line}
    assert {title for title in titles if "(from cache)" not in title} <= {"checksums", "checksums of the model's files"}
    assert copied.bundle() == finished.bundle()


def test_report_says_what_came_from_the_cache(finished: Place, copied: Place) -> None:
    copied.build()
    first, second = (
        json.loads((place.out / "model.rpi5" / "report.json").read_text())for place in (finished, copied)
    )  # fmt: skip
    assert not [stage for stage in first["seconds"] if "(from cache)" in stage]
    assert len([stage for stage in second["seconds"] if "(from cache)" in stage]) >= 9
    assert first["artefacts"] == second["artefacts"], "measurements are those of the first build"
    assert first["samples"] == second["samples"]


def test_without_the_cache_the_same_is_made(finished: Place, copied: Place) -> None:
    said = copied.build("--no-cache", "--format", "gguf")
    assert "(from cache)" not in said
    fresh = copied.bundle()
    whole = finished.bundle()
    said_now, said_then = (json.loads(bundle.pop("said.json"))["artefacts"] for bundle in (fresh, whole))
    assert said_now == {"gguf": said_then["gguf"]}, "one format was asked for"
    assert fresh == {name: whole[name] for name in fresh}


def test_limits_of_the_target_only_judge(copied: Place, tmp_path: Path) -> None:
    board = tmp_path / "strict.toml"
    head = 'schema_version = 1\ninherits = "rpi5"\nname = "strict"\ntitle = "Strict"\ntier = 3\n'
    board.write_text(f"{head}[limits.coherence.bits4]\nkl_mean_max = 0.000001\n", encoding="utf8")
    said = copied.build("--target", str(board))
    assert "load the full-precision model" not in said
    assert "coherence in llama.cpp (from cache)" in said


@pytest.mark.parametrize(
    ("arguments", "kept", "made"),
    [
        (["--bits", "8"], ["text:", "calibration:", "reference:"], ["GGUF: quantize", "GGUF: coherence"]),
        (["--no-calibration", "--format", "gguf"], [], ["text:", "GGUF: quantize"]),
        (["--seed", "1", "--format", "gguf"], [], ["text:", "reference:", "GGUF: coherence"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_make_only_what_depends_on_them(
    arguments: list[str], kept: list[str], made: list[str], copied: Place
) -> None:
    lines = copied.build(*arguments).splitlines()
    for title in kept:
        assert any(line.startswith(title) and "(from cache)" in line for line in lines), title
    for title in made:
        assert any(line.startswith(title) and "(from cache)" not in line for line in lines), title


def test_changed_model_is_made_anew(copied: Place, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny.make(model, tiny.Tiny(seed=3))
    said = Place(model, copied.out, copied.cache).build("--format", "gguf")
    assert "(from cache)" not in said


def test_damaged_cache_is_mended(finished: Place, copied: Place) -> None:
    (weights,) = copied.cache.glob("stages/gguf/*/files/gguf/model.gguf")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    said = copied.build()
    assert "the result in the cache is damaged and is made again" in said
    assert copied.bundle() == finished.bundle()


def test_two_builds_at_once(place: Place, finished: Place) -> None:
    other = Place(place.model, place.out.with_name("other"), place.cache)
    processes = [place.start(), other.start()]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum(text.count("\nload the full-precision model:") for text in said) <= 2
    assert any("waiting for another build" in text for text in said)
    assert place.bundle() == other.bundle() == finished.bundle()
