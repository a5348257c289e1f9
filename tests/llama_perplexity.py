"""llama.cpp's own KL divergence (tools/perplexity/perplexity.cpp), as a program and as the formula it uses.

The program reads the base model's log-probabilities and the tokens from one file, so it can be given exactly the tokens
and the base model that a reference was sealed with. It looks at the second half of every chunk alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.files import cache_dir

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_CACHE = cache_dir()
"""The user's, which tests do not otherwise see: cross-compiling takes minutes."""
_RANGE = 16.0
"""Nats below the largest logit that the base file holds, in 65535 steps."""
_SYSROOT = Path("/usr/aarch64-linux-gnu")


@dataclass(frozen=True)
class Found:
    """What llama-perplexity says."""

    kl_mean: float
    same_top: float
    ln_ppl_ratio: float
    ppl_base: float


def program() -> list[str] | None:
    """The command: $EDGEKIT_LLAMA_PERPLEXITY, or one that was cross-compiled here, run by QEMU; None without either."""
    if own := os.environ.get("EDGEKIT_LLAMA_PERPLEXITY"):
        return [own]
    built = sorted(_CACHE.glob("runtimes/*/bin/llama-perplexity"))
    emulator = shutil.which("qemu-aarch64-static")
    if not built or emulator is None or not _SYSROOT.is_dir():
        return None
    return [emulator, "-cpu", "max", "-L", str(_SYSROOT), str(built[-1])]


def halves(chunk: int) -> slice:
    """The positions of a chunk of so many tokens whose prediction is judged; the last predicts nothing."""
    return slice(chunk // 2, chunk - 1)


def packed(logits: F32) -> tuple[F32, NDArray[np.uint16]]:
    """Log-probabilities of logits (n, V) as the base file holds them: (n, 2) scale and least, and (n, V) steps."""
    top = logits.max(axis=1, keepdims=True)
    least = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(_RANGE))
    total = np.log(np.exp(logits - top, dtype=np.float32).astype(np.float64).sum(axis=1, keepdims=True))
    scale = (top - least) / np.float32(65535)
    steps = np.where(logits > least, np.rint((logits - least) / scale), 0).astype(np.uint16)
    head = np.concatenate([scale, least - top - total.astype(np.float32)], axis=1).astype(np.float32)
    return head, steps


def write_base(path: Path, sequences: Sequence[Sequence[int]], logits: Sequence[F32]) -> Path:
    """The base file of chunks of one length; `logits` (T, V) of each."""
    chunk, vocab = len(sequences[0]), logits[0].shape[1]
    with path.open("wb") as out:
        out.write(b"_logits_" + np.array([chunk, vocab, len(sequences)], np.int32).tobytes())
        out.write(np.array(sequences, np.int32).tobytes())
        for rows in logits:
            head, steps = packed(rows[halves(chunk)])
            for two, row in zip(head, steps, strict=True):
                padding = np.zeros(vocab % 2, np.uint16)
                out.write(two.tobytes() + np.concatenate([row, padding]).tobytes())
    return path


def formula(base: Sequence[F32], other: Sequence[F32], following: Sequence[NDArray[np.int64]]) -> Found:
    """The same figures in numpy, of rows (n, V) of both models; `following` (n,) are the tokens that really follow."""
    kl, same, rise, nll = list[float](), list[bool](), list[float](), list[float]()
    for p_logits, q_logits, tokens in zip(base, other, following, strict=True):
        head, steps = packed(p_logits)
        p_log = head[:, :1] * steps + head[:, 1:]
        top = q_logits.max(axis=1, keepdims=True)
        q_log = q_logits - top - np.log(np.exp(q_logits - top).astype(np.float64).sum(axis=1, keepdims=True))
        kl += np.where(p_log > -_RANGE, np.exp(p_log) * (p_log - q_log), 0).sum(axis=1).tolist()
        same += (p_log.argmax(axis=1) == q_logits.argmax(axis=1)).tolist()
        ours, theirs = (np.take_along_axis(x, tokens[:, None], axis=1)[:, 0] for x in (q_log, p_log))
        rise += (theirs - ours).tolist()
        nll += (-theirs).tolist()
    return Found(float(np.mean(kl)), float(np.mean(same)), float(np.mean(rise)), float(np.exp(np.mean(nll))))


def run(command: Sequence[str], model: Path, base: Path, chunk: int) -> Found:
    """Ask the program. Raises AssertionError with its last words when it fails."""
    arguments = ["-m", model, "--kl-divergence", "--kl-divergence-base", base, "-c", chunk, "-b", chunk, "-t", 2]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, errors="replace", check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = done.stdout + done.stderr

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)}\s*:\s*(-?[0-9.]+)", text, re.MULTILINE)
        assert found, text[-2000:]
        return float(found[1])

    return Found(
        value("Mean    KLD"), value("Same top p") / 100, value("Mean ln(PPL(Q)/PPL(base))"), value("Mean PPL(base)")
    )
