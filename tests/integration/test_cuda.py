"""What can be checked of CUDA for a Jetson without NVIDIA's container: sources of ggml-cuda compile for its GPU."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from shutil import which

import pytest

from edgekit import targets
from edgekit.crossbuild import recipe
from edgekit.crossbuild.cuda import architecture, definitions_for
from edgekit.crossbuild.model import Setup
from edgekit.crossbuild.source import sdist
from edgekit.progress import Quiet

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
CXX = "aarch64-linux-gnu-g++"
HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cublas")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
CUDA, AARCH64 = 190, 183
"""Machines in ELF headers: EM_CUDA, EM_AARCH64."""


def _release() -> str:
    """Of nvcc: "13.0"."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", said)
    assert match is not None, said
    return match[1]


def _toolkit() -> Path:
    """Where nvcc keeps its own headers; the command on the PATH may be a script that calls it."""
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    match = re.search(r"^#\$ _HERE_=(.+)$", said, re.MULTILINE)
    assert match is not None, said
    return Path(match[1]).parent


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA's headers for 64-bit ARM, out of NVIDIA's packages on PyPI (550 MB, mostly cuBLAS)."""
    if which("nvcc") is None or which(CXX) is None:
        pytest.skip(f"nothing of CUDA was compiled: nvcc or {CXX} is missing")
    release = _release()
    if not release.startswith("13."):
        pytest.skip(f"nothing of CUDA was compiled: nvcc is of CUDA {release}, the packages of headers are for 13")
    folder = tmp_path_factory.mktemp("cuda")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder),
        *(f"--platform={name}" for name in PLATFORMS), *(f"{name}=={release}.*" for name in HEADERS),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"nothing of CUDA was compiled: pip cannot get the headers ({done.stderr.strip().splitlines()[-1]})"
        )
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if "/include/" in name])
        wheel.unlink()
    return next(folder.rglob("cuda_runtime.h")).parent


@pytest.mark.parametrize("board", ["jetson-orin-nano", "jetson-thor"])
def test_ggml_cuda_compiles_for_the_boards_gpu(board: str, headers: Path, tmp_path: Path) -> None:
    number = architecture(targets.load(board))
    ggml = sdist(Quiet(), offline=False).llama_cpp / "ggml"
    out = tmp_path / "quantize.o"
    includes = [headers, headers / "cccl", _toolkit() / "include"]
    command = [
        "nvcc", "-ccbin", CXX, "-std=c++17", "-gencode", f"arch=compute_{number},code=sm_{number}", "-DGGML_USE_CUDA",
        *(f"-I{path}" for path in [*includes, ggml / "include", ggml / "src"]),
        "-c", str(ggml / "src" / "ggml-cuda" / "quantize.cu"), "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    code = out.read_bytes()
    assert _machine(code, 0) == AARCH64
    inner = code.index(b"\x7fELF", 4)
    assert _machine(code, inner) == CUDA
    (flags,) = struct.unpack_from("<I", code, inner + 48)
    assert flags >> 8 & 0xFF == int(number), "code for this very GPU"


def test_the_recipe_takes_cuda_into_the_library(tmp_path: Path) -> None:
    """As far as cmake tells, with this machine's nvcc; cuBLAS and the driver are only names here."""
    for program in ("nvcc", "g++"):
        if which(program) is None:
            pytest.skip(f"the recipe was not configured with CUDA: {program} is missing")
    (tmp_path / "x.c").write_text("int x;")
    stubs = {name: tmp_path / f"lib{name.partition('_')[0]}.so" for name in ("cublas", "cublasLt", "cuda_driver")}
    for name, path in stubs.items():
        soname = f"-Wl,-soname,lib{name.partition('_')[0]}.so.1"
        subprocess.run(["gcc", "-shared", "-o", str(path), soname, str(tmp_path / "x.c")], check=True)
    added = resources.files("edgekit.crossbuild").joinpath("cmake/cuda.cmake").read_text(encoding="utf8")
    (tmp_path / "cuda.cmake").write_text(added)
    given = ["-DCMAKE_CUDA_COMPILER=nvcc", f"-DCMAKE_PROJECT_edgekit_runtime_INCLUDE={tmp_path}/cuda.cmake"]
    given += [f"-DCUDA_{name}_LIBRARY={path}" for name, path in stubs.items()]
    setup = Setup(definitions=(*given, *definitions_for("87")))
    tree = recipe.Tree(tmp_path, sdist(Quiet(), offline=False).llama_cpp)
    with (tmp_path / "lock").open("w") as lock:
        recipe.configure(tree, setup, lock.fileno())

    def linked(product: str) -> str:
        command = ["ninja", "-C", str(tree.build), "-t", "commands", f"out/{product}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **recipe.tools()})
        return said.stdout.splitlines()[-1]

    library = linked("lib/libggml.so")
    assert library.count("ggml-cuda.dir/") > 50
    assert all(f"lib{name}" in library for name in ("cudart", "cublas", "cuda.so"))
    assert "libggml-cuda.a" in linked("bin/llama-bench")
    for product in recipe.PRODUCTS:
        assert re.findall(r"rpath[,=](\S+)", linked(product)) == (['"\\$ORIGIN"'] if "libllama" in product else []), (
            product
        )


def _machine(code: bytes, at: int) -> int:
    (found,) = struct.unpack_from("<H", code, at + 18)
    return int(found)
