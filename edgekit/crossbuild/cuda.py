"""What a CUDA runtime takes: NVIDIA's compiler in a container. Where that is missing, nothing else takes its place."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgekit.crossbuild import cpu_features, docker
from edgekit.crossbuild.model import Cpu, Setup
from edgekit.crossbuild.places import write
from edgekit.errors import OptionError, ToolchainError
from edgekit.targets import Target

_RECIPES = {"87": "cross-jetson", "110": "cross-jetson-thor"}
"""GPU architecture → target of docker-bake.hcl: Orin with JetPack 6, Thor with JetPack 7."""
_TOOLCHAIN_FILE = """\
set(CMAKE_C_COMPILER gcc)
set(CMAKE_CXX_COMPILER g++)
set(CMAKE_CUDA_COMPILER nvcc)
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_CXX_FLAGS_INIT "{flags}")
set(CMAKE_ASM_FLAGS_INIT "{flags}")
"""


def architecture(target: Target) -> str:
    """Of a target's GPU, as CMAKE_CUDA_ARCHITECTURES takes it: "87".

    Raises:
        OptionError: the target has no CUDA accelerator.
        ToolchainError: its file does not say which, or no image is made for that one.
    """
    if target.accelerator.kind != "cuda":
        raise OptionError(
            f"--accel cuda was asked for, and target {target.name} has no CUDA accelerator",
            expected="a Jetson",
            remedy="leave --accel out: the CPU's engines run on every board",
        )
    match = re.fullmatch(r"sm_(\d{2,3})", target.accelerator.arch)
    if match is None or match[1] not in _RECIPES:
        raise ToolchainError(
            f"accelerator.arch of target {target.name} is {target.accelerator.arch!r}",
            expected=" or ".join(f"sm_{number}" for number in _RECIPES),
            remedy="correct the target file, or leave --accel out",
        )
    return match[1]


def definitions(target: Target) -> tuple[str, ...]:
    """For llama.cpp's cmake, besides those of the CPU's runtime; errors as :func:`architecture`."""
    return definitions_for(architecture(target))


def definitions_for(number: str) -> tuple[str, ...]:
    """As :func:`definitions`, for an architecture."""
    return ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={number}")


def image(target: Target) -> str:
    """Name of the local image that compiles for the target's GPU; errors as :func:`architecture`."""
    return Cuda(architecture(target)).image


@dataclass(frozen=True)
class Cuda:
    """NVIDIA's and GNU's compilers in a container; see :class:`edgekit.crossbuild.model.Toolchain`.

    The image is one for 64-bit ARM, so its compilers are native ones.
    """

    architecture: str
    """Of the GPU: "87"."""
    name: str = "cuda"

    @property
    def image(self) -> str:
        """The local image; it is never pulled."""
        return docker.local_image(_RECIPES[self.architecture])

    def version(self) -> str:
        """See Toolchain.version; names the image, and its content by the first digits of its ID."""
        recipe = _RECIPES[self.architecture]
        remedy = f"{docker.how_to_make(recipe)}; without --accel cuda the bundle uses the CPU"
        identity = docker.present(self.image, remedy)
        nvcc = self._said(["nvcc", "--version"], r"release (\d+\.\d+)", "nvcc")
        gcc = self._said(["gcc", "-dumpfullversion"], r"^(\d+(?:\.\d+)*)$", "gcc")
        return f"nvcc {nvcc} and gcc {gcc} (glibc {self._glibc()}) in {self.image} {identity[:12]}"

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        """See Toolchain.setup; the build tree is expected beside `folder`."""
        folder = folder.absolute()
        container = docker.compiling(self.image, folder)
        flags = (f"-march={cpu.march}", *([f"-mtune={cpu.mtune}"] if cpu.mtune else []), "-fno-semantic-interposition")
        macros = docker.ask(container.command(["gcc", *flags, "-E", "-dM", "-x", "c", os.devnull]), self.image)
        if macros.returncode:
            raise ToolchainError(
                f"gcc in {self.image} does not compile for {cpu.march} and {cpu.mtune}",
                expected="an architecture and a core that it knows",
                remedy="correct toolchain.march and mtune in the target file",
            )
        cpu_features.check(macros.stdout, cpu, compiler="gcc", needed=cpu_features.asked(cpu.march))
        toolchain = write(folder / "toolchain.cmake", _TOOLCHAIN_FILE.format(flags=" ".join(flags)))
        added = resources.files("edgekit.crossbuild").joinpath("cmake/cuda.cmake").read_text(encoding="utf8")
        library = write(folder / "cuda.cmake", added)
        gpu = definitions_for(self.architecture)
        return Setup(
            definitions=(
                f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DCMAKE_PROJECT_edgekit_runtime_INCLUDE={library}", *gpu
            ),
            command=container.command,
            local=False,
            end=lambda: docker.ended(container.name),
            flags=(*flags, *gpu, f"cuda.cmake {hashlib.sha256(added.encode()).hexdigest()[:12]}"),
            glibc=self._glibc(),
            first_use="Code for the GPU is compiled besides: expect an hour and more, and longer in an emulated image.",
        )  # fmt: skip

    def _glibc(self) -> str:
        return self._said(["getconf", "GNU_LIBC_VERSION"], r"^glibc (\d+\.\d+)$", "glibc")

    def _said(self, command: Sequence[str], pattern: str, what: str) -> str:
        said = docker.ask(docker.Container(self.image).command(command), self.image).stdout
        match = re.search(pattern, said, re.MULTILINE)
        if match is None:
            raise ToolchainError(
                f"the image {self.image} has no {what}", remedy=docker.how_to_make(_RECIPES[self.architecture])
            )
        return match[1]
