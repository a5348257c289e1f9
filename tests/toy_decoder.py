"""A toy decoder as an exporter without fused attention would write it: its cache is concatenated at every step.

Its "attention" is the running sum of what the tokens so far put into the cache, so that logits depend on all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

VOCAB, HIDDEN, FFN = 96, 64, 128
F32 = NDArray[np.float32]


def weights(seed: int = 0) -> dict[str, F32]:
    """embedding (VOCAB, HIDDEN), up (FFN, HIDDEN), bias (FFN,), down (HIDDEN, FFN), value (HIDDEN, HIDDEN)."""
    rng = np.random.default_rng(seed)

    def made(*shape: int) -> F32:
        array: F32 = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return array

    return {
        "embedding": made(VOCAB, HIDDEN), "up": made(FFN, HIDDEN), "bias": made(FFN), "down": made(HIDDEN, FFN),
        "value": made(HIDDEN, HIDDEN),
    }  # fmt: skip


def expected(w: dict[str, F32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits (T, VOCAB), in float64."""
    x = w["embedding"][ids].astype(np.float64)
    x = x + np.cumsum(x @ w["value"].T, axis=0) * 0.1
    out: NDArray[np.float64] = (x + np.maximum(x @ w["up"].T + w["bias"], 0) @ w["down"].T) @ w["embedding"].T * 4
    return out


def write(folder: Path, *, twice: bool = False, w: dict[str, F32] | None = None) -> Path:
    """model.onnx and genai_config.json below the new folder; `twice` stores the tied head's matrix once more."""
    folder.mkdir(parents=True)
    w = w or weights()
    node = helper.make_node
    nodes = [
        node("Identity", ["input_ids"], ["ids"], name="/ids"),
        node("Gather", ["embed", "ids"], ["x0"], name="/model/embed_tokens/Gather"),
        node("MatMul", ["x0", "value_t"], ["v"], name="/model/layers.0/self_attn/v_proj/MatMul"),
        node("Unsqueeze", ["v", "one"], ["v4"], name="/u"),
        node("Concat", ["past_key_values.0.value", "v4"], ["present.0.value"], axis=2, name="/c"),
        node("Concat", ["past_key_values.0.key", "v4"], ["present.0.key"], axis=2, name="/ck"),
        node("CumSum", ["present.0.value", "two"], ["sum"], name="/cs"),
        node("Shape", ["past_key_values.0.value"], ["before"], start=2, end=3, name="/s"),
        node("Slice", ["sum", "before", "far", "two_"], ["mine4"], name="/sl"),
        node("Squeeze", ["mine4", "one"], ["mine"], name="/sq"),
        node("Mul", ["mine", "tenth"], ["mixed"], name="/mu"),
        node("Add", ["x0", "mixed"], ["x1"], name="/a"),
        node("Reshape", ["x1", "flat"], ["x2"], name="/r"),
        node("Gemm", ["x2", "up", "bias"], ["h0"], transB=1, name="/model/layers.0/mlp/up_proj/Gemm"),
        node("Relu", ["h0"], ["h1"], name="/re"),
        node("MatMul", ["h1", "down_t"], ["h2"], name="/model/layers.0/mlp/down_proj/MatMul"),
        node("Unsqueeze", ["h2", "zero"], ["h3"], name="/u2"),
        node("Add", ["x1", "h3"], ["x3"], name="/a2"),
        *([] if twice else [node("Transpose", ["embed"], ["head_t"], perm=[1, 0], name="/t")]),
        node("MatMul", ["x3", "head_t"], ["l"], name="/lm_head/MatMul"),
        node("Mul", ["l", "four"], ["logits"], name="/mul"),
        # Nobody reads this: an exporter may leave such things behind.
        node("Identity", ["down_t"], ["unused"], name="/unused"),
    ]
    constants: dict[str, Any] = {
        "embed": w["embedding"], "value_t": w["value"].T, "up": w["up"], "bias": w["bias"], "down_t": w["down"].T,
        "one": np.array([1]), "zero": np.array([0]), "two": np.array(2), "two_": np.array([2]), "flat": [-1, HIDDEN],
        "far": np.array([1 << 40]), "tenth": np.float32(0.1), "four": np.float32(4),
        **({"head_t": w["embedding"].T} if twice else {}),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "toy", _inputs(), _outputs(),
        [from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    config = {"model": {"vocab_size": VOCAB, "context_length": 64}, "search": {"past_present_share_buffer": False}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder / "model.onnx"


def _inputs() -> list[onnx.ValueInfoProto]:
    value = helper.make_tensor_value_info
    cache = [value(f"past_key_values.0.{side}", TensorProto.FLOAT, ["b", 1, "p", HIDDEN]) for side in ("key", "value")]
    whole = [
        value(name, TensorProto.INT64, ["b", axis]) for name, axis in (("input_ids", "t"), ("attention_mask", "a"))
    ]
    return [*whole, *cache]


def _outputs() -> list[onnx.ValueInfoProto]:
    value = helper.make_tensor_value_info
    cache = [value(f"present.0.{side}", TensorProto.FLOAT, ["b", 1, "q", HIDDEN]) for side in ("key", "value")]
    return [value("logits", TensorProto.FLOAT, ["b", "t", VOCAB]), *cache]
