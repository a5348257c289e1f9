"""A decoder as an ONNX graph. Which nodes it has follows from the roles of the family's tensors, never from its name.

Operators are those that onnxruntime's own fused graphs have (its docs/ContribOperators.md): GroupQueryAttention with a
shared key-value cache, MatMulNBits, GatherBlockQuantized, and normalization fused with the residual sum. Inputs and
outputs are named as onnxruntime-genai expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgekit import __version__
from edgekit.checkpoint.rope import Rope
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.export.onnx_store import FLOAT, Store
from edgekit.grids import get
from edgekit.grids.onnx import OnnxGrid
from edgekit.grids.threebit_columns import SparseThreeBitGrid
from edgekit.quantize.plan import Entry, Plan

OPSET = 21
MOST_POSITIONS = 8192
"""Rotary tables are float32 and as long as the context: Gemma 3 270M's of 32,768 positions would take 67 MB."""
Tick = Callable[[str], None]
_MICROSOFT = "com.microsoft"
_INT8 = 4
"""Accuracy level: activations in 8 bits."""


def positions(spec: Spec) -> int:
    """The longest context of the graph, in tokens."""
    return min(spec.context_length, MOST_POSITIONS)


def tensors_of_nodes(spec: Spec) -> dict[str, list[TensorSpec]]:
    """The matrices that each node of the graph holds, in the order of its rows."""
    fused = {role: node for node, roles in spec.family.fused.items() for role in roles}
    found: dict[str, list[TensorSpec]] = {}
    for tensor in spec.tensors:
        if tensor.rule.kind == "embedding":
            found["/embedding/Gather"] = [tensor]
        if tensor.rule.kind == "head" or (tensor.rule.kind == "embedding" and spec.tied):
            found["/lm_head/MatMul"] = [tensor]
        if tensor.rule.kind == "linear":
            node = fused.get(tensor.role, tensor.role)
            found.setdefault(f"/layers/{tensor.layer}/{node}/MatMul", []).append(tensor)
    return found


class Decoder:
    """Adds nodes, and stores their weights on the way; methods return the name of what they compute."""

    def __init__(self, spec: Spec, plan: Plan, store: Store, tick: Tick) -> None:
        self._spec, self._level, self._store, self._tick = spec, plan.accuracy_level, store, tick
        self._entries = {(entry.tensor.role, entry.tensor.layer): entry for entry in plan.entries}
        self._nodes: list[NodeProto] = []
        self._wide: dict[str, str] = {}
        """Name of a stored matrix → of its scales in float32."""

    def model(self) -> ModelProto:
        """The whole model: token ids to logits."""
        self._mask()
        residual = self._embed()
        normed = self._norm("attn_norm", 0, residual)
        for layer in range(self._spec.layers):
            normed, residual = self._block(layer, normed, residual)
        self._head(normed)
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs(), self._outputs(), list(self._store.initializers.values())
        )
        domains = {node.domain for node in self._nodes} - {"", _MICROSOFT}
        opsets = [helper.make_opsetid(*known) for known in (("", OPSET), (_MICROSOFT, 1))]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=10, producer_name="edgekit", producer_version=__version__
        )

    # -- nodes

    def _op(self, kind: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        output = f"{name}/output_0"
        self._add(kind, inputs, [output], name, domain, **attributes)
        return output

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str, domain: str, **attributes: Any
    ) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain or None, **attributes))

    def _constant(self, values: Any, dtype: type = np.int64) -> str:
        name = f"/constants/{dtype.__name__}/{values}"
        if name not in self._store.initializers:
            self._store.initializers[name] = numpy_helper.from_array(np.asarray(values, dtype=dtype), name)
        return name

    def _matmul(self, values: str, roles: Sequence[str], layer: int | None, name: str) -> str:
        """`values` times the matrices of `roles`, rows of one below the other's, plus their biases if there are any."""
        entries = [self._entries[role, layer] for role in roles]
        self._store.matrices(name, entries)
        self._tick(name)
        return self._biased(self._product(values, name, name, entries), roles, layer, name)

    def _product(self, values: str, weights: str, name: str, entries: Sequence[Entry]) -> str:
        """`values` times stored matrices: the initializers that start with `weights`."""
        if entries[0].grid == FLOAT:
            return self._op("FusedMatMul", [values, f"{weights}.weight"], f"{name}/MatMul", domain=_MICROSOFT, transB=1)
        grid = get(entries[0].grid)
        assert isinstance(grid, OnnxGrid)  # noqa: S101  # a plan for ONNX has no others
        domain, operator = grid.operator
        parts = self._stored(weights, "codes", wide=domain == _MICROSOFT)
        return self._op(
            operator, [values, *parts], f"{name}/MatMul", domain=domain,
            K=entries[0].tensor.shape[1], N=sum(entry.tensor.shape[0] for entry in entries), bits=grid.stored_bits,
            block_size=grid.block, accuracy_level=self._accuracy(domain),
            **({"threshold": entries[0].threshold} if isinstance(grid, SparseThreeBitGrid) else {}),
        )  # fmt: skip

    def _accuracy(self, domain: str) -> int:
        """What an operator computes with: edgekit's own knows int8 activations (4) and float32 (0) alone."""
        return self._level if domain == _MICROSOFT or self._level == _INT8 else 0

    def _stored(self, weights: str, first: str, *, wide: bool) -> list[str]:
        """Names of a stored matrix's parts: codes, scales (`wide`: in float32, by a node) and zero points."""
        scales = self._widened(weights) if wide else f"{weights}.scales"
        points = f"{weights}.zero_points"
        return [f"{weights}.{first}", scales, *([points] if points in self._store.initializers else [])]

    def _widened(self, weights: str) -> str:
        """Float32 scales; onnxruntime computes the node once, when it loads the model."""
        if weights not in self._wide:
            self._wide[weights] = self._op("Cast", [f"{weights}.scales"], f"{weights}/Scales", to=TensorProto.FLOAT)
        return self._wide[weights]

    def _biased(self, values: str, roles: Sequence[str], layer: int | None, name: str) -> str:
        biases = [self._entries[f"{role}_bias", layer] for role in roles if (f"{role}_bias", layer) in self._entries]
        if not biases:
            return values
        stored = self._store.vectors(f"{name}.bias", [entry.tensor for entry in biases])
        return self._op("Add", [values, stored], f"{name}/Add")

    # -- inputs and outputs

    def _inputs(self) -> list[ValueInfoProto]:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_length"])
        return [ids, mask, *self._caches("past_key_values", "past_length")]

    def _outputs(self) -> list[ValueInfoProto]:
        shape = ["batch_size", "sequence_length", self._spec.vocab_size]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._caches("present", "total_length")]

    def _caches(self, name: str, length: str) -> list[ValueInfoProto]:
        shape = ["batch_size", self._spec.kv_heads, length, self._spec.head_dim]
        return [
            helper.make_tensor_value_info(f"{name}.{layer}.{side}", TensorProto.FLOAT, shape)
            for layer in range(self._spec.layers)
            for side in ("key", "value")
        ]

    def _mask(self) -> None:
        """What GroupQueryAttention wants to know of the mask: the last position of each sequence, and the length."""
        total = self._op("ReduceSum", ["attention_mask", self._constant([1])], "/mask/Sum", keepdims=0)
        last = self._op("Sub", [total, self._constant(1)], "/mask/Last")
        self._lengths = self._op("Cast", [last], "/mask/Lengths", to=TensorProto.INT32)
        shape = self._op("Shape", ["attention_mask"], "/mask/Shape")
        self._past_and_new = self._op("Gather", [shape, self._constant(1)], "/mask/Length")
        self._total = self._op("Cast", [self._past_and_new], "/mask/Total", to=TensorProto.INT32)

    def _embed(self) -> str:
        entry = self._entries["embedding", None]
        self._store.matrices("embedding", [entry])
        self._tick("embedding")
        values = self._lookup(entry)
        if self._spec.family.embedding_scaled:
            scale = self._constant(math.sqrt(self._spec.hidden_size), np.float32)
            values = self._op("Mul", [values, scale], "/embedding/Scale")
        if self._spec.family.positions == "learned":
            values = self._op("Add", [values, self._learned_positions()], "/position/Add")
        return values

    def _lookup(self, entry: Entry) -> str:
        if entry.grid == FLOAT:
            return self._op("Gather", ["embedding.weight", "input_ids"], "/embedding/Gather")
        grid = get(entry.grid)
        assert isinstance(grid, OnnxGrid)  # noqa: S101  # a plan for ONNX has no others
        domain, operator = grid.lookup
        if domain != _MICROSOFT:
            rows, columns = entry.tensor.shape
            return self._op(
                operator, ["input_ids", *self._stored("embedding", "codes", wide=False)], "/embedding/Gather",
                domain=domain, K=columns, N=rows, bits=grid.stored_bits, block_size=grid.block,
            )  # fmt: skip
        table, *scales = self._stored("embedding", "table", wide=True)
        return self._op(
            operator, [table, "input_ids", *scales], "/embedding/Gather", domain=domain,
            bits=grid.stored_bits, block_size=grid.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _learned_positions(self) -> str:
        """Rows of the position table from the first new token's place to the last one's."""
        table = self._store.vectors("position.weight", [self._entries["position", None].tensor])
        shape = self._op("Shape", ["input_ids"], "/position/Shape")
        new = self._op("Gather", [shape, self._constant(1)], "/position/New")
        first = self._op("Sub", [self._past_and_new, new], "/position/First")
        places = self._op("Range", [first, self._past_and_new, self._constant(1)], "/position/Range")
        return self._op("Gather", [table, places], "/position/Gather")

    # -- a block

    def _block(self, layer: int, normed: str, residual: str) -> tuple[str, str]:
        attended = self._after("post_attention_norm", layer, self._attention(layer, normed))
        normed, residual = self._skip_norm("ffn_norm", layer, residual, attended)
        computed = self._after("post_ffw_norm", layer, self._mlp(layer, normed))
        if layer + 1 < self._spec.layers:
            return self._skip_norm("attn_norm", layer + 1, residual, computed)
        return self._skip_norm("output_norm", None, residual, computed)

    def _after(self, role: str, layer: int, values: str) -> str:
        """A norm on what a block adds, where the family has one (Gemma)."""
        return self._norm(role, layer, values) if (role, layer) in self._entries else values

    def _norm_weights(self, role: str, layer: int | None) -> tuple[str, list[str]]:
        """Name of a norm's node, and its stored weight and, if it has one, bias."""
        name = f"/{role}" if layer is None else f"/layers/{layer}/{role}"
        weights = [
            self._store.vectors(f"{name}.{part}", [entry.tensor])
            for part, key in (("weight", role), ("bias", f"{role}_bias"))
            if (entry := self._entries.get((key, layer)))
        ]
        return name, weights

    def _norm(self, role: str, layer: int | None, values: str) -> str:
        name, weights = self._norm_weights(role, layer)
        kind = "SimplifiedLayerNormalization" if self._spec.family.norm == "rms" else "LayerNormalization"
        return self._op(kind, [values, *weights], name, axis=-1, epsilon=self._spec.norm_epsilon, stash_type=1)

    def _skip_norm(self, role: str, layer: int | None, residual: str, added: str) -> tuple[str, str]:
        """The norm of a residual sum, and the sum."""
        name, weights = self._norm_weights(role, layer)
        kind = "SkipSimplifiedLayerNormalization" if self._spec.family.norm == "rms" else "SkipLayerNormalization"
        outputs = [f"{name}/output_0", "", "", f"{name}/output_3"]
        outputs = outputs[:1] if role == "output_norm" else outputs
        self._add(kind, [residual, added, *weights], outputs, name, _MICROSOFT, epsilon=self._spec.norm_epsilon)
        return outputs[0], outputs[-1]

    def _attention(self, layer: int, normed: str) -> str:
        name, spec = f"/layers/{layer}/attn", self._spec
        roles = ["attn_qkv"] if ("attn_qkv", layer) in self._entries else ["attn_q", "attn_k", "attn_v"]
        projected = [self._matmul(normed, roles, layer, f"{name}_qkv"), "", ""]
        if ("attn_q_norm", layer) in self._entries:
            projected = self._normed_heads(layer, projected[0], name)
        rope = spec.layer_rope(layer)
        cache = [f"past_key_values.{layer}.{side}" for side in ("key", "value")]
        outputs = [f"{name}/output_0", *(f"present.{layer}.{side}" for side in ("key", "value"))]
        self._add(
            "GroupQueryAttention",
            [*projected, *cache, self._lengths, self._total, *(self._rope_tables(rope) if rope else ())],
            outputs, f"{name}/GroupQueryAttention", _MICROSOFT, num_heads=spec.heads, kv_num_heads=spec.kv_heads,
            scale=spec.head_dim**-0.5, do_rotary=int(rope is not None), rotary_interleaved=0,
            local_window_size=spec.layer_window(layer) or -1,
        )  # fmt: skip
        return self._matmul(outputs[0], ["attn_output"], layer, f"{name}_output")

    def _normed_heads(self, layer: int, projected: str, name: str) -> list[str]:
        """Query, key and value apart, every head of the first two normalized (Henry et al., 2020)."""
        spec = self._spec
        sizes = [spec.heads * spec.head_dim, *[spec.kv_heads * spec.head_dim] * 2]
        parts = [f"{name}/Split/output_{index}" for index in range(3)]
        self._add("Split", [projected, self._constant(sizes)], parts, f"{name}/Split", "", axis=-1)
        for index, side in enumerate("qk"):
            by_head = self._constant([0, -1, spec.head_dim])
            heads = self._op("Reshape", [parts[index], by_head], f"{name}/{side}/Heads")
            normed = self._norm(f"attn_{side}_norm", layer, heads)
            together = self._constant([0, -1, sizes[index]])
            parts[index] = self._op("Reshape", [normed, together], f"{name}/{side}/Together")
        return parts

    def _rope_tables(self, rope: Rope) -> tuple[str, str]:
        """Names of the cosine and sine tables of rotary positions; stored once for all layers that share them."""
        names = ("local_cos_cache", "local_sin_cache") if rope is self._spec.local_rope else ("cos_cache", "sin_cache")
        if names[0] not in self._store.initializers:
            for name, table in zip(names, rope.tables(self._spec.head_dim, positions(self._spec)), strict=True):
                self._store.array(name, table)
        return names

    def _mlp(self, layer: int, normed: str) -> str:
        name = f"/layers/{layer}/ffn"
        if ("ffn_gate", layer) in self._entries:
            gate = self._activated(self._matmul(normed, ["ffn_gate"], layer, f"{name}_gate"), name)
            values = self._op("Mul", [gate, self._matmul(normed, ["ffn_up"], layer, f"{name}_up")], f"{name}/Mul")
        else:
            values = self._activated(self._matmul(normed, ["ffn_up"], layer, f"{name}_up"), name)
        return self._matmul(values, ["ffn_down"], layer, f"{name}_down")

    def _activated(self, values: str, name: str) -> str:
        if self._spec.activation == "gelu_tanh":
            return self._op("Gelu", [values], f"{name}/Gelu", approximate="tanh")
        gate = self._op("Sigmoid", [values], f"{name}/Sigmoid")
        return self._op("Mul", [values, gate], f"{name}/SiLU")

    def _head(self, normed: str) -> None:
        """Logits; a tied head reads the very bytes of the embedding, under another shape."""
        if self._spec.tied:
            self._product(normed, "embedding", "/lm_head", [self._entries["embedding", None]])
        else:
            self._matmul(normed, ["head"], None, "/lm_head")
        self._nodes[-1].output[0] = "logits"
