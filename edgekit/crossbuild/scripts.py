"""What a person runs on the board: install.sh, chat.sh, bench.sh: POSIX shell, with this bundle's values filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from edgekit.errors import WheelError
from edgekit.files import sha256
from edgekit.options import Container

INSTALL, CHAT, BENCH, SUMS = "install.sh", "chat.sh", "bench.sh", "SHA256SUMS"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+, -]*")
_IMPORTS: Mapping[Container, str] = {"gguf": "llama_cpp", "onnx": "onnxruntime"}
_BASE = ("edgekit.cli.main", "edgekit.bundle.tokenizer")


def imports(formats: Sequence[Container]) -> tuple[str, ...]:
    """What must be importable before an installation counts as whole."""
    return (*_BASE, *(_IMPORTS[form] for form in formats))


def write_sums(runtime: Path) -> Path:
    """Write SHA256SUMS over everything in the runtime's folder, as `sha256sum -c` reads it there."""
    paths = sorted(path.relative_to(runtime).as_posix() for path in runtime.rglob("*") if path.is_file())
    lines = [f"{sha256(runtime / path)}  {path}" for path in paths if path != SUMS]
    (runtime / SUMS).write_text("\n".join([*lines, ""]), encoding="utf8")
    return runtime / SUMS


def write_scripts(
    folder: Path, *, sums: Path, python: str, machine: str, glibc: str, pip: str, formats: Sequence[Container]
) -> None:
    """Write install.sh, chat.sh and bench.sh into a bundle.

    Args:
        folder: the bundle's.
        sums: what :func:`write_sums` wrote; the scripts trust the runtime as it is now and no other.
        python: the one that the wheels are for, such as "3.11".
        machine: as `uname -m` says it.
        glibc: oldest C library that the wheels run on.
        pip: file name of pip's wheel.
        formats: of the artefacts: their engines must be importable.

    Raises:
        WheelError: a value holds what a shell could misread.
    """
    values = {
        "PYTHON": python, "MACHINE": machine, "GLIBC": glibc, "PIP": pip, "IMPORTS": ", ".join(imports(formats)),
        "SUMS": sha256(sums),
    }  # fmt: skip
    for name in (INSTALL, CHAT, BENCH):
        text = resources.files("edgekit.crossbuild").joinpath("board", name).read_text(encoding="utf8")
        (folder / name).write_text(_filled(text, values), encoding="utf8")
        (folder / name).chmod(0o755)


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        if not _SAFE.fullmatch(value):
            raise WheelError(f"{name} of {INSTALL} is {value!a}", expected="letters, digits and . _ + , -")
        text = text.replace(f"@{name}@", value)
    return text
