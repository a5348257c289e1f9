"""A module imports only from floors below its own, and the device side imports nothing heavy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "edgekit"
FLOORS = {
    "errors": 0, "files": 0, "locks": 0, "hashes": 0, "cache": 0, "making": 0, "stages": 0, "machine": 0,
    "options": 0, "progress": 0, "sampling": 0, "requirements": 0, "gguf_header": 0, "sizes": 0,
    "grids": 1, "targets": 1, "target_schema": 1, "target_files": 1, "toml_lines": 1, "recipes": 1,
    "checkpoint": 2, "engines": 2, "bundle": 2, "coherence": 2, "board_files": 2, "threebit": 2,
    "quantize": 3, "dispersion": 3, "economy": 3, "chat": 3, "doctor": 3,
    "export": 4, "report": 4, "training": 4, "inspecting": 5, "inspecting_files": 3, "inspecting_onnx": 3,
    "emulator": 4, "devices": 4, "bench": 5, "bench_report": 6, "crossbuild": 5, "original": 5, "records": 5,
    "weighing": 6, "steps": 6, "rounding": 6, "mapping": 6, "refining": 6, "building": 6, "contradictions": 6,
    "condensing": 6, "surviving": 7, "surviving_artefacts": 6, "dispersing": 6, "disperse_stage": 6, "against": 6,
    "counting": 6, "skipping": 6, "economizing": 7, "opened": 7, "api": 8,
    "cli": 9, "__main__": 10,
}  # fmt: skip
HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "optimum", "accelerate", "safetensors", "onnxruntime_genai"}
DEVICE = (
    "errors", "files", "machine", "grids", "targets", "target_", "toml_lines", "engines/base", "engines/opening",
    "engines/ort", "engines/llamacpp", "bundle", "coherence", "chat", "sampling", "progress", "options", "devices",
    "bench", "threebit",
)  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "__init__.py")

ON_DEVICE = [path for path in MODULES if path.relative_to(PACKAGE).as_posix().startswith(DEVICE)]


def imported(path: Path, *, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.get(parts[1]) if len(parts) > 1 and parts[0] == "edgekit" else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOORS, f"{own} has no floor: add it here and to docs/architecture.md"
    for module in imported(path, top_only=False):
        other = floor_of(module)
        if other is not None and module.split(".")[1] != own:
            assert other <= FLOORS[own], f"{own} imports {module} from a higher floor"


@pytest.mark.parametrize("path", ON_DEVICE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_device_side_is_light(path: Path) -> None:
    heavy = {module.split(".")[0] for module in imported(path, top_only=False)} & HEAVY
    assert not heavy
