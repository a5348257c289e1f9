"""The toolchains that `--toolchain` chooses from."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.crossbuild.cuda import Cuda, architecture
from edgekit.crossbuild.docker import Docker
from edgekit.crossbuild.gcc import Gcc
from edgekit.crossbuild.model import Toolchain
from edgekit.crossbuild.zig import Zig
from edgekit.errors import OptionError
from edgekit.targets import Target

TOOLCHAINS: Mapping[str, Toolchain] = {"zig": Zig(), "gcc": Gcc(), "docker": Docker()}


def chosen(name: str, target: Target, accel: str = "none") -> Toolchain:
    """The toolchain of that name, with what the target file says of it; for CUDA NVIDIA's, in a container.

    Raises:
        OptionError: there is none of that name, it has no CUDA, or the target has none.
        ToolchainError: the target's GPU is unknown.
    """
    if accel == "cuda":
        if name == "gcc":
            raise OptionError(
                "--toolchain gcc has no CUDA", expected="NVIDIA's compiler, in a container",
                remedy="leave --toolchain out",
            )  # fmt: skip
        return Cuda(architecture(target))
    if name not in TOOLCHAINS:
        raise OptionError(f"toolchain is {name!r}", expected=f"one of {', '.join(TOOLCHAINS)}")
    toolchain = TOOLCHAINS[name]
    return toolchain.of(target) if isinstance(toolchain, Docker) else toolchain
