"""The real packages: they resolve for every board's Python, and are enough to run a bundle from nothing.

The wheelhouse is also made for this machine, where it can be installed and run without emulation.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("llama_cpp")

import edgekit
from edgekit import targets
from edgekit.bundle.bundle import open_bundle, write_manifest
from edgekit.bundle.manifest import MANIFEST, from_json
from edgekit.crossbuild import audit, closure, package, wheelhouse
from edgekit.crossbuild.model import Native, NativeRecord
from edgekit.errors import WheelError
from edgekit.options import Container, Options, RuntimeOptions
from edgekit.progress import Quiet
from edgekit.targets import Target
from edgekit.threebit.library import LIBRARY, host_library

pytestmark = pytest.mark.integration

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ENGINES: Sequence[Container] = ("gguf", "onnx")
FIND = """
import importlib.util, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.util.find_spec(name) is not None)
    except ImportError:  # not even its parent is there
        print(name, False)
"""


def own_target(folder: Path, text: str) -> Target:
    path = folder / "own.toml"
    path.write_text(f'schema_version = 1\nname = "own"\ntitle = "Own"\ntier = 3\n{text}', encoding="utf8")
    return targets.load(str(path))


def gathered(target: Target, folder: Path) -> wheelhouse.Wheelhouse:
    folder.mkdir(exist_ok=True)
    return wheelhouse.wheelhouse(target, None, ("onnx",), folder, offline=False, progress=Quiet())


# -- every board's Python


@pytest.mark.parametrize(("name", "tag"), [("rpi5", "cp311"), ("jetson-orin-nano", "cp311"), ("jetson-thor", "cp312")])
def test_every_wheel_exists_for_the_board(tmp_path: Path, name: str, tag: str) -> None:
    made = gathered(targets.load(name), tmp_path / "out")
    assert tag in made.file_of("onnxruntime")
    assert {wheel.name: wheel.mismatch for wheel in made.wheels if wheel.mismatch} == {}
    assert next(wheel.version for wheel in made.wheels if wheel.name == "numpy") == metadata.version("numpy")


def test_a_users_own_target_for_trixie(tmp_path: Path) -> None:
    target = own_target(tmp_path, 'inherits = "rpi5"\n[runtime]\npython = "3.13"\n[toolchain]\nglibc_max = "2.41"\n')
    assert "cp313" in gathered(target, tmp_path / "out").file_of("onnxruntime")


def test_jetpacks_own_python_is_refused_with_the_packages_name(tmp_path: Path) -> None:
    target = own_target(tmp_path, 'inherits = "jetson-orin-nano"\n[runtime]\npython = "3.10"\n')
    with pytest.raises(WheelError, match=r"no wheel of (numpy|onnxruntime).* for Python 3\.10"):
        gathered(target, tmp_path / "out")


# -- from nothing to an answer


def this_machine(folder: Path) -> Target:
    return own_target(
        folder,
        f'inherits = "host"\n[runtime]\npython = "{PYTHON}"\n[toolchain]\ntriple = "{platform.machine()}-linux-gnu"\n'
        f'march = "native"\nglibc_max = "{platform.libc_ver()[1]}"\nglibcxx_max = "3.4.30"\n',
    )


def installed_llama(folder: Path) -> tuple[Path, Path]:
    """The source tree and the compiled libraries, from the llama-cpp-python that is installed here."""
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None
    assert found.origin is not None
    package_folder, source, native = Path(found.origin).parent, folder / "source", folder / "native"
    shutil.copytree(package_folder, source / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    described = metadata.distribution("llama-cpp-python")
    (source / "PKG-INFO").write_text(described.read_text("METADATA") or "", encoding="utf8")
    (source / "LICENSE.md").write_text(described.read_text("licenses/LICENSE.md") or "MIT", encoding="utf8")
    (native / "lib").mkdir(parents=True)
    for path in (package_folder / "lib").glob("lib*.so*"):
        if "mtmd" not in path.name and path.suffix in (".so", ".0"):
            shutil.copyfile(path, native / "lib" / path.name)
    for name in ("bin/llama-bench", "LICENSES/llama.cpp"):
        (native / name).parent.mkdir()
        (native / name).write_text("stands in for the real one", encoding="utf8")
    return source, native


@pytest.fixture(scope="module")
def bundle(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model whose runtime is for this very machine, edgekit's own operators included."""
    folder = tmp_path_factory.mktemp("real")
    options = Options(bits=3, formats=("gguf", "onnx"), sequences=2, length=24)
    built = edgekit.build(sound, output=folder, options=options).bundle
    source, native = installed_llama(folder)
    record = NativeRecord(
        llama_cpp_python=metadata.version("llama-cpp-python"), source_sha256="0" * 64, ggml="", toolchain="installed",
        toolchain_version="", march="native", mtune="", features=(), glibc="", flags=(), seconds=0.0, files={},
    )  # fmt: skip
    checked = SimpleNamespace(faults=(), files=(), started="not tried")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "build_native", lambda *_args, **_options: Native(native, record))
        patch.setattr(wheelhouse, "sdist", lambda *_args: SimpleNamespace(folder=source))
        patch.setattr(
            package, "build_operators", lambda *_args, **_options: SimpleNamespace(folder=host_library().parent)
        )
        patch.setattr(audit, "audit_bundle", lambda *_args, **_options: checked)
        package.package(this_machine(folder), ENGINES, built, RuntimeOptions(), Quiet(), operators=True)
    write_manifest(built, from_json((built / MANIFEST).read_bytes()))
    return Path(shutil.copytree(built, folder / "the board's own copy"))


@pytest.fixture(scope="module")
def on_board(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run something with nothing of this user's environment and, where that is allowed, without a network."""
    home = tmp_path_factory.mktemp("home")
    without_network = ["unshare", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*without_network, "true"], check=False, capture_output=True).returncode
    ):
        without_network = []

    def run(*command: str | Path) -> str:
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(home), "EDGEKIT_PYTHON": sys.executable, "LC_ALL": "C"}
        child = subprocess.run(
            [*without_network, *command], env=clean, cwd=home, capture_output=True, text=True, check=False
        )
        assert child.returncode == 0, (command, child.stdout[-2000:], child.stderr[-2000:])
        return child.stdout

    run("sh", bundle / "install.sh")
    return run


@pytest.fixture(scope="module")
def python(bundle: Path, on_board: Callable[..., str]) -> Path:
    return Path(on_board("sh", bundle / "install.sh", "--place").strip()) / "venv" / "bin" / "python"


@pytest.mark.parametrize("engine", ENGINES)
def test_it_answers_as_this_machine_does(bundle: Path, on_board: Callable[..., str], engine: Container) -> None:
    said = on_board("sh", bundle / "chat.sh", "The kettle", "--engine", engine, "--max-tokens", "8")
    with edgekit.open_bundle(bundle) as opened:
        answer = "".join(opened.answer("The kettle", form=engine, max_tokens=8)).strip()
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in answer)  # as a terminal may show it
    assert said.strip() == shown


def test_every_verb_of_a_board_works(bundle: Path, on_board: Callable[..., str], python: Path) -> None:
    verified = on_board(python, "-I", "-m", "edgekit", "verify", bundle, "--engine", "gguf", "--engine", "onnx")
    assert "ok" in verified
    assert "gguf" in on_board(python, "-I", "-m", "edgekit", "inspect", bundle)
    on_board(python, "-I", "-m", "edgekit", "inspect", bundle / "gguf" / "model.gguf")
    assert "rpi5" in on_board(python, "-I", "-m", "edgekit", "targets")
    open_bundle(bundle)  # nothing was written into it


def test_it_has_the_operators_that_its_model_needs(on_board: Callable[..., str], python: Path) -> None:
    where = "import pathlib, edgekit.threebit.library as library; print(library.host_library(offline=True))"
    said = on_board(python, "-I", "-c", where).strip()
    assert said == str(
        python.parents[1] / "lib" / f"python{PYTHON}" / "site-packages" / "edgekit" / "threebit" / LIBRARY
    )


def test_what_is_left_out_is_not_there(on_board: Callable[..., str], python: Path) -> None:
    names = {"protobuf": "google.protobuf", "markdown-it-py": "markdown_it", "huggingface-hub": "huggingface_hub"}
    modules = [names.get(each.name, each.name) for each in closure.EXCLUSIONS]
    lines = on_board(python, "-I", "-c", FIND, *modules, "torch", "transformers", "pip").splitlines()
    assert {line.split()[1] for line in lines} == {"False"}
    assert len(lines) == len(modules) + 3
