"""Importance of inputs, on a tiny checkpoint: what hooks gather is the second moment's diagonal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.quantize.importance import gather

torch_engine = pytest.importorskip("edgekit.engines.torch")


@pytest.mark.parametrize("tied", [True, False])
def test_importance_is_the_mean_square_of_each_input(tmp_path: Path, tied: bool) -> None:
    checkpoint = open_checkpoint(tiny.make(tmp_path / "m", tiny.Tiny(tied=tied)))
    engine = torch_engine.TorchEngine(checkpoint.root)
    sequences = [np.arange(3, 40, dtype=np.int64), np.arange(50, 60, dtype=np.int64)]
    seen: list[tuple[int, int]] = []
    importance = gather(engine, checkpoint.spec, sequences, lambda done, total: seen.append((done, total)))

    linear = {t.hf for t in checkpoint.spec.tensors if t.rule.kind in ("linear", "head")}
    head = next(t.hf for t in checkpoint.spec.tensors if t.rule.kind == ("embedding" if tied else "head"))
    assert set(importance) == linear | {head}
    assert seen == [(1, 2), (2, 2)]
    for tensor in checkpoint.spec.tensors:
        if tensor.hf in importance:
            assert importance[tensor.hf].shape == (tensor.shape[1],)
            assert (importance[tensor.hf] >= 0).all()

    # The input of the first layer's q, k and v is the normalised embedding: its mean square follows by hand.
    embedding = checkpoint.read(next(t for t in checkpoint.spec.tensors if t.rule.kind == "embedding"))
    norm = checkpoint.read(next(t for t in checkpoint.spec.tensors if t.role == "attn_norm" and t.layer == 0))
    x = embedding[np.concatenate(sequences)].astype(np.float64)
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + checkpoint.spec.norm_epsilon) * norm
    np.testing.assert_allclose(importance["model.layers.0.self_attn.q_proj.weight"], (x**2).mean(axis=0), rtol=1e-4)
