"""Fetches llama.cpp's converter: the source archive of the llama-cpp-python that is installed carries it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edgekit.files import cache_dir, sha256, whole_folder

KNOWN = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""SHA-256 of the archives that this benchmark was written with."""
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")


@dataclass(frozen=True)
class Converter:
    """convert_hf_to_gguf.py and where it came from."""

    script: Path
    archive_sha256: str


def converter() -> Converter:
    """Download once into the cache (77 MB), unpack what the converter needs.

    Raises:
        SystemExit: the archive is not the known one of its version, or pip cannot fetch it.
    """
    release = version("llama-cpp-python")
    folder = cache_dir() / "benchmarks" / f"llama_cpp_python-{release}"
    if not folder.is_dir():
        with whole_folder(folder) as fresh:
            _fetch(release, fresh)
    return Converter(folder / "convert_hf_to_gguf.py", (folder / "archive.sha256").read_text(encoding="ascii"))


def _fetch(release: str, folder: Path) -> None:
    print(f"fetching the source of llama-cpp-python {release} (77 MB), once", file=sys.stderr)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
        f"llama-cpp-python=={release}", "--dest", str(folder),
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("pip could not fetch the source of llama-cpp-python")
    archive = next(folder.glob("*.tar.gz"))
    digest = sha256(archive)
    if digest != KNOWN.get(release, digest):
        raise SystemExit(f"{archive.name} has SHA-256 {digest}, expected {KNOWN[release]}")
    _unpack(archive, folder)
    archive.unlink()
    (folder / "archive.sha256").write_text(digest, encoding="ascii")


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if name.startswith(_WANTED):
                tar.extract(member.replace(name=name, deep=False), folder, filter="data")
