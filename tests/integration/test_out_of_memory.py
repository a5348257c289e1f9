"""Too little memory, in several amounts: one sentence and exit code 31 wherever it runs out, nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_tokenizers
from tiny import Tiny

from edgekit.errors import FileFormatError, MissingDependencyError, TokenizerError, memory_shortage

LARGE = Tiny(hidden=512, ffn=1024, layers=2, heads=8, kv_heads=4, head_dim=64, vocab=384)
"""A few MB: enough to be what an allocation fails for, quick enough to make."""


def limited(mib: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in `mib` MiB of address space."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True, check=False, timeout=300,
        preexec_fn=limit, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("mib", [330, 500, 780, 800, 950, 1050])
def test_build_with_too_little_memory(mib: int, tmp_path: Path, own_cache: Path) -> None:
    """Where it fails moves from the first libraries over PyTorch's to the weights."""
    pytest.importorskip("torch")
    model = tiny.make(tmp_path / "model", LARGE)
    (tmp_path / "text.txt").write_text(" ".join(tiny_tokenizers.SENTENCES) * 12)
    out = tmp_path / "out"
    text: list[str | Path] = ["--text", tmp_path / "text.txt", "--no-calibration"]
    ran = limited(mib, "build", "--no-runtime", model, "-o", out, "--format", "gguf", "--no-cache", *text)
    assert ran.returncode == 31, ran.stderr[-2000:]
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("edgekit: there is too little memory on this machine")
    assert "Traceback" not in ran.stderr
    assert not out.exists() or list(out.iterdir()) == []


def test_tensor_that_memory_cannot_hold(tmp_path: Path) -> None:
    """A sparse file of 8 GiB with an honest header."""
    import json

    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 15, 1 << 16], "data_offsets": [0, 1 << 33]}}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + (1 << 33))
    code = (
        "import resource, sys; from pathlib import Path; from edgekit.checkpoint.raw import read_tensor\n"
        "from edgekit.errors import memory_shortage\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: read_tensor(Path(sys.argv[1]), 'x')\n"
        "except Exception as error: sys.exit(memory_shortage(error).exit_code)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 31


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        MissingDependencyError("onnxruntime cannot be loaded (x.so: cannot allocate memory in static TLS block)"),
        FileFormatError("llama.cpp cannot start a context (failed to allocate buffer for kv cache)"),
        caused(FileFormatError("x.gguf is not a whole GGUF file (MemoryError)"), MemoryError()),
        caused(TokenizerError("the chat template cannot be used (MemoryError)"), MemoryError()),
    ],
    ids=repr,
)
def test_what_libraries_say_of_it(error: Exception) -> None:
    told = memory_shortage(error)
    assert told is not None
    assert told.exit_code == 31


@pytest.mark.parametrize(
    "error",
    [
        KeyError("MemoryError"),
        ValueError("out of memory"),
        FileFormatError("x.gguf is not a whole GGUF file (out of memory)"),
        TokenizerError("the chat template cannot be used (std::bad_alloc)"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("shapes do not match"),
    ],
    ids=repr,
)
def test_what_only_sounds_like_it(error: Exception) -> None:
    """A stranger's file may say what it likes."""
    assert memory_shortage(error) is None
