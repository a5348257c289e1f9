"""What the processor under PyTorch computes by itself."""

from __future__ import annotations

import functools

import torch


@functools.cache
def bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; others emulate it, slower than float32."""
    ask = getattr(torch.cpu, "get_capabilities", dict)  # PyTorch 2.10
    known: dict[str, bool] = ask()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
