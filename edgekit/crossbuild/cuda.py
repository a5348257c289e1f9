"""What a CUDA runtime takes: NVIDIA's compiler in a container. Where that is missing, nothing else takes its place."""

from __future__ import annotations

import re

from edgekit.crossbuild import docker
from edgekit.errors import OptionError, ToolchainError
from edgekit.targets import Target

_RECIPES = {"87": "cross-jetson", "110": "cross-jetson-thor"}
"""GPU architecture → target of docker-bake.hcl: Orin with JetPack 6, Thor with JetPack 7."""


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
    return ("-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture(target)}")


def image(target: Target) -> str:
    """Name of the local image that compiles for the target's GPU; errors as :func:`architecture`."""
    return docker.local_image(_RECIPES[architecture(target)])


def refuse_without_image(target: Target) -> str:
    """ID of the image that compiles for the target's GPU.

    Raises:
        MissingDependencyError: there is no docker command.
        ToolchainError: its engine does not answer or has no such image; a CPU runtime is no substitute.
        OptionError: the target has no CUDA accelerator.
    """
    recipe = _RECIPES[architecture(target)]
    return docker.present(image(target), f"{docker.how_to_make(recipe)}; without --accel cuda the bundle uses the CPU")
