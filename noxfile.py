"""Jobs that need more than edgekit's own environment. Run them with edgekit's `dev` extra installed, where `nox` is.

`nox -s optimum` makes the environment of optimum's exporter (once, in edgekit's cache) and tests with it;
`nox -s llama_cpp` gets llama.cpp's sources and tests with their converter. `nox` runs both.
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
from pathlib import Path

import nox

TESTS = ("-m", "pytest", "-m", "nightly", "tests/integration/test_hatches.py")
SOURCES = "llama_cpp_python"
"""The package whose source distribution holds a whole llama.cpp tree."""


def _constraint(package: str) -> str:
    """The tested version, as `package==version`."""
    text = Path("constraints.txt").read_text(encoding="utf8")
    found = re.search(rf"^{re.escape(package)}==\S+$", text, re.MULTILINE)
    return found.group(0) if found else package


@nox.session(venv_backend="none")
def optimum(session: nox.Session) -> None:
    """Make the environment for --exporter optimum, then test the exporter and read our folder with its library."""
    said = session.run(sys.executable, "-m", "edgekit.export.optimum_env", external=True, silent=True)
    environment = {"EDGEKIT_OPTIMUM_PYTHON": str(said).splitlines()[-1]}
    session.run(sys.executable, *TESTS, "-k", "onnx or optimum or theta or older", external=True, env=environment)


@nox.session(venv_backend="none")
def llama_cpp(session: nox.Session) -> None:
    """Test --llama-cpp with the tree of the llama-cpp-python that is tested with, or with $EDGEKIT_LLAMA_CPP."""
    tree = os.environ.get("EDGEKIT_LLAMA_CPP") or str(_tree(session, Path(session.create_tmp())))
    session.run(
        sys.executable,
        *TESTS,
        "-k",
        "gguf or converter or pre_tokenizer",
        external=True,
        env={"EDGEKIT_LLAMA_CPP": tree},
    )


def _tree(session: nox.Session, folder: Path) -> Path:
    """Download the source distribution and unpack it; nothing is compiled."""
    wanted = _constraint("llama-cpp-python")
    version = wanted.partition("==")[2]
    root = folder / f"{SOURCES}-{version}"
    if not root.is_dir():
        session.run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
            "--dest", str(folder), wanted, external=True,
        )  # fmt: skip
        with tarfile.open(folder / f"{SOURCES}-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return root / "vendor" / "llama.cpp"
