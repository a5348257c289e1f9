"""--accel cuda: compiled in NVIDIA's image and nowhere else, told as such, and never run without a GPU.

The docker command runs what it is given right here, with compilers that only pretend. Nothing here shows that NVIDIA's
own compile the sources.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
from test_crossbuild_native import CMAKE, NINJA, Bar, Compiler, sources
from tiny_elf import TinyElf

from edgekit import targets
from edgekit.crossbuild import docker, native, recipe, toolchains
from edgekit.crossbuild.audit import audit_file
from edgekit.crossbuild.model import Native
from edgekit.engines.accelerator import needs_gpu
from edgekit.engines.opening import open_engine
from edgekit.errors import BundleError, EdgekitError, MissingDependencyError, OptionError, ToolchainError

ORIN = "jetson-orin-nano"
FEATURES = ("CRC32", "DOTPROD", "FP16_SCALAR_ARITHMETIC", "FP16_VECTOR_ARITHMETIC", "ATOMICS", "QRDMX")
DOCKER = """
import json, os, sys
from pathlib import Path
here, words = Path(__file__).parent, sys.argv[1:]
with open(here / "log", "a") as log: log.write(json.dumps(words) + "\\n")
if words[0] == "image":
    images = (here / "images").read_text().split()
    sys.exit(0 if words[-1] in images and not print("sha256:" + "a" * 64) else 1)
if words[0] != "run":
    sys.exit(print("[]" if words[0] == "info" else "28.0.0"))
command = [word for word in words[1:] if not word.startswith("--")][1:]
os.environ["PATH"] = f"{here / 'inside'}:/usr/bin:/bin"
os.execvp(command[0], command)
"""


class Play:
    """A docker command and the compilers in its images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "inside").mkdir(parents=True)
        self.program("docker", DOCKER)
        self.images(docker.local_image("cross-jetson"))
        head = "import os, sys, time\nfrom pathlib import Path\narguments = sys.argv[1:]\n"
        self.program("inside/cmake", head + CMAKE)
        self.program("inside/ninja", head + NINJA)
        self.program("inside/nvcc", "print('Cuda compilation tools, release 12.6, V12.6.68')")
        macros = "\n".join(f"#define __ARM_FEATURE_{name} 1" for name in FEATURES)
        self.program("inside/gcc", f"import sys\nprint('11.4.0' if '-dumpfullversion' in sys.argv else {macros!r})")
        self.glibc("2.35")

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!{sys.executable}\n{text}\n")
        (self.folder / name).chmod(0o755)

    def glibc(self, version: str) -> None:
        self.program("inside/getconf", f"print('glibc {version}')")

    def images(self, *names: str) -> None:
        (self.folder / "images").write_text("\n".join(names))

    def calls(self) -> list[list[str]]:
        path = self.folder / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    made = Play(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    got = sources(tmp_path / "cache" / "sources" / "llama")
    monkeypatch.setattr(native, "sdist", lambda _progress, _offline: got)
    return made


def build(name: str = ORIN, toolchain: str = "zig", bar: Bar | None = None) -> Native:
    return native.build_native(targets.load(name), toolchain=toolchain, accel="cuda", progress=bar or Bar())


def refused(kind: type[EdgekitError], words: str, name: str = ORIN, toolchain: str = "zig") -> None:
    with pytest.raises(kind, match=words):
        build(name, toolchain)


# --- never less than was asked for -----------------------------------------------------------------------------------


def test_without_the_image_nothing_is_compiled(play: Play) -> None:
    play.images(docker.local_image("cross-arm64"))
    refused(ToolchainError, r"no image edgekit/cross-jetson:\S+ .*bake cross-jetson .*without --accel cuda")
    refused(ToolchainError, r"no image edgekit/cross-jetson-thor:", "jetson-thor")
    assert not [call for call in play.calls() if call[0] == "run"]


def test_a_board_without_a_gpu(play: Play) -> None:
    refused(OptionError, "rpi5 has no CUDA accelerator", "rpi5")
    refused(OptionError, "--toolchain gcc has no CUDA", toolchain="gcc")
    assert not play.calls()


@pytest.mark.parametrize("program", ["nvcc", "gcc", "getconf"])
def test_an_image_that_lacks_a_compiler(play: Play, program: str) -> None:
    play.program(f"inside/{program}", "raise SystemExit(127)")
    refused(ToolchainError, r"the image edgekit/cross-jetson:\S+ has no (nvcc|gcc|glibc)")


def test_an_image_of_a_newer_system_than_the_boards(play: Play) -> None:
    play.glibc("2.39")
    refused(ToolchainError, r"cuda links .* glibc 2.39, and jetson-orin-nano has 2.35.*from the system of the board")


def test_a_compiler_that_would_use_what_the_board_lacks(play: Play) -> None:
    play.program(
        "inside/gcc", "import sys\nprint('11' if '-dumpfullversion' in sys.argv else '#define __ARM_FEATURE_SVE 1')"
    )
    refused(ToolchainError, "gcc would use sve")


# --- what is compiled ------------------------------------------------------------------------------------------------


def test_compiled_in_the_image_with_cuda_for_the_targets_gpu(play: Play) -> None:
    bar = Bar()
    made = build(bar=bar).record
    assert (made.toolchain, made.glibc, made.seconds) == ("cuda", "2.35", None)
    assert made.toolchain_version == (
        f"nvcc 12.6 and gcc 11.4.0 (glibc 2.35) in {docker.local_image('cross-jetson')} {'a' * 12}"
    )
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=87"} <= set(made.flags)
    assert any("hour" in note for note in bar.notes)
    configured = next(call for call in play.calls() if "cmake" in call)
    assert configured[configured.index("cmake") - 1] == docker.local_image("cross-jetson")
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=87", "--network=none", "--pull=never"} <= set(configured)
    assert next(call for call in play.calls() if "ninja" in call)


def test_finished_ones_are_kept_apart_from_the_cpus(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    assert "cuda" in first.folder.name
    calls = len(play.calls())
    assert build("jetson-agx-orin").folder == first.folder, "the same CPU and GPU"
    assert not [call for call in play.calls()[calls:] if "ninja" in call]
    monkeypatch.setattr(toolchains, "TOOLCHAINS", {"zig": Compiler()})
    monkeypatch.setattr(recipe, "tools", lambda: {"PATH": f"{play.folder / 'inside'}:/usr/bin:/bin"})
    cpus = native.build_native(targets.load(ORIN), progress=Bar())
    assert cpus.folder != first.folder
    assert not [flag for flag in cpus.record.flags if "CUDA" in flag]


def test_what_a_runtime_with_cuda_needs_is_on_a_jetson_only(tmp_path: Path) -> None:
    needed = ["libc.so.6", "libcudart.so.12", "libcublas.so.12", "libcuda.so.1"]
    path = tmp_path / "llama-bench"
    path.write_bytes(TinyElf(program=True, interpreter="/lib/ld-linux-aarch64.so.1", needed=needed).build())
    found = audit_file(path, targets.load(ORIN), start=True)
    assert (found.faults, found.started) == ((), "not started: it needs libcudart.so.12, which only the board has")
    assert len(audit_file(path, targets.load("rpi5")).faults) == 3
    path.write_bytes(TinyElf(needed=["libcuda.so.2", "libcudarting.so.12"]).build())
    assert len(audit_file(path, targets.load(ORIN)).faults) == 2


# --- what is run -----------------------------------------------------------------------------------------------------


def bundle(folder: Path, **record: object) -> Path:
    """As much of a bundle as tells which engines it carries; returns its model file."""
    for name in ("gguf", "runtime"):
        (folder / name).mkdir(parents=True)
    (folder / "manifest.json").touch()
    (folder / "gguf" / "model.gguf").touch()
    if record:
        (folder / "runtime" / "runtime.json").write_text(json.dumps(record))
    return folder / "gguf" / "model.gguf"


@pytest.mark.parametrize(
    ("record", "needs"),
    [
        ({"accel": "cuda", "machine": platform.machine()}, True),
        ({"accel": "none", "machine": platform.machine()}, False),
        ({"accel": "cuda", "machine": "another"}, False),
        ({"machine": platform.machine()}, False),
        ({}, False),
    ],
)
def test_only_a_bundle_with_cuda_for_this_machine_needs_a_gpu(
    record: dict[str, str], needs: bool, tmp_path: Path
) -> None:
    assert needs_gpu(bundle(tmp_path / "b", **record)) == needs


def test_a_model_file_by_itself_needs_none(tmp_path: Path) -> None:
    assert not needs_gpu(tmp_path / "model.gguf")
    model = bundle(tmp_path / "unfinished", accel="cuda", machine=platform.machine())
    (tmp_path / "unfinished" / "manifest.json").unlink()
    assert not needs_gpu(model), "a build checks its artefacts on the host's engines"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 1}', "[" * 100_000, "\xff", " " * (1 << 20) + " "])
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    model = bundle(tmp_path / "b", accel="cuda")
    (tmp_path / "b" / "runtime" / "runtime.json").write_text(text, encoding="latin1")
    with pytest.raises(BundleError, match=r"runtime/runtime.json"):
        needs_gpu(model)


def test_no_gpu_is_one_sentence_and_never_the_cpu(tmp_path: Path) -> None:
    """The llama.cpp that is installed with the tests has no CUDA."""
    lib = pytest.importorskip("llama_cpp")
    assert not lib.llama_supports_gpu_offload()
    with pytest.raises(MissingDependencyError, match="made for CUDA, and llama.cpp finds no GPU here") as refusal:
        open_engine("gguf", bundle(tmp_path / "b", accel="cuda", machine=platform.machine()))
    assert "\n" not in refusal.value.sentence()


def test_with_a_gpu_every_layer_is_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = pytest.importorskip("llama_cpp")
    asked: list[int] = []

    def load(_path: bytes, parameters: object) -> None:
        asked.append(parameters.n_gpu_layers)  # type: ignore[attr-defined]

    monkeypatch.setattr(lib, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(lib, "llama_model_load_from_file", load)
    for accel in ("cuda", "none"):
        with pytest.raises(EdgekitError, match="cannot load"):
            open_engine("gguf", bundle(tmp_path / accel, accel=accel, machine=platform.machine()))
    assert asked[0] > 1000
    assert asked[1] == 0
