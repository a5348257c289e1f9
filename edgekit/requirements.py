"""What edgekit needs and what it was tested with, read from the package's own metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)[>=]=([0-9.]+)(?:\s*;\s*extra\s*==\s*['\"](\w+)['\"])?$")
_SHOWN = ("base", "gguf", "onnx", "cross", "build", "demo")


def extras() -> Mapping[str, Mapping[str, str]]:
    """Extra ("base" for none) → package → lowest version, from the installed distribution's metadata."""
    found: dict[str, dict[str, str]] = {name: {} for name in _SHOWN}
    for line in metadata.requires("edgekit") or []:
        if match := _REQUIREMENT.match(line):
            name, lowest, extra = match.groups()
            found.get(extra or "base", {})[name] = lowest
    for extra in ("gguf", "onnx", "cross"):  # the build extra holds them
        for name in found[extra]:
            found["build"].pop(name, None)
    return found


def tested() -> Mapping[str, str]:
    """Package → tested version, from constraints.txt (inside the wheel, or at the root of a checkout)."""
    inside = resources.files("edgekit").joinpath("constraints.txt")
    text = (
        inside.read_text("utf8")
        if inside.is_file()
        else (Path(__file__).parents[1] / "constraints.txt").read_text("utf8")
    )
    return dict(line.split("==") for line in text.splitlines() if "==" in line)
