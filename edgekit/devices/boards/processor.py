"""Which processor a run used, and what its engine was built for: runs on CPU and GPU never share a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Processor:
    """Where the model's layers were computed."""

    used: Kind
    build: Kind
    """cuda: the engine could use a GPU."""

    @property
    def title(self) -> str:
        """For reports."""
        if self.used == "cuda":
            return "GPU (CUDA)"
        return "CPU (of a CUDA build)" if self.build == "cuda" else "CPU"


def of_onnxruntime(available: Sequence[str], used: Sequence[str]) -> Processor:
    """From `get_available_providers()` of the package and `get_providers()` of the session."""
    return Processor(_onnx(used), _onnx(available))


def of_llamacpp(system_info: str, gpu_layers: int) -> Processor:
    """From `llama_print_system_info()` and the number of layers that were asked onto the GPU."""
    build: Kind = "cuda" if any(part.strip().startswith("CUDA :") for part in system_info.split("|")) else "cpu"
    return Processor("cuda" if build == "cuda" and gpu_layers else "cpu", build)


def _onnx(providers: Sequence[str]) -> Kind:
    return "cuda" if {"CUDAExecutionProvider", "TensorrtExecutionProvider"} & set(providers) else "cpu"
