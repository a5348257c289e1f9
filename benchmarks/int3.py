"""edgekit's 3-bit product against ONNX Runtime's own 4-bit one: `python -m benchmarks.int3`.

Both are graphs of many nodes with weights of their own, so that the weights come from the caches and the memory they
would come from in a model, and so that the time of starting a session's run is shared by all of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._measure import begin, pairs, parser, positive, versions
from benchmarks._result import Limit, Row
from edgekit.errors import EdgekitError
from edgekit.grids import Quantized, get
from edgekit.grids.threebit_columns import sparse
from edgekit.progress import Bars
from edgekit.threebit import library

SHAPES = (
    (576, 576), (192, 576), (1536, 576), (576, 1536),
    (2048, 2048), (8192, 2048), (2048, 8192),
)  # fmt: skip
"""Rows and columns of the linear layers of SmolLM2-135M and of models with about 10**9 weights."""
DECODE, PREFILL = 1, 128
"""Rows of activations."""
LEAST = {DECODE: 1.0, PREFILL: 0.7}
"""What our speed must be of the peer's."""
SECONDS = 0.15
"""Length of one measurement, at least."""
SETTLING = 0.1
"""Seconds between the sides where there are several threads."""
WEIGHTS = 40_000_000
"""In each graph; more than the first levels of caches hold."""
PEER = "MatMulNBits, 4 bits, blocks of 32, accuracy level 4"
METHOD = (
    "10**9 multiplications of a weight a second: activations from numpy, a graph of equal nodes that all read the same "
    "activations, their outputs summed. Both sides in one process, interleaved, with the same number of threads. The "
    "time of one thread is its processor time, that of several is wall-clock time."
)
Run = Callable[[], float]


def our_matrix(shape: tuple[int, int], block: int) -> dict[str, NDArray[Any]]:
    """Initializers with random codes and scales."""
    random, grid = np.random.default_rng(0), get(f"int3-sym-b{block}")
    scales = (0.01 * (1 + random.random((shape[0], -(-shape[1] // block))))).astype(np.float16)
    return grid.pack(Quantized(grid.name, shape, {"codes": random.integers(0, 8, shape, np.uint8), "scales": scales}))


def sparse_matrix(dense: dict[str, NDArray[Any]], shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The weights of `our_matrix`, blocks of 32, stored by columns."""
    columns = sparse(get("int3-sym-b32").unpack(dense, shape))
    return get(columns.grid).pack(columns)


def their_matrix(shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The same for 4 bits."""
    random, grid = np.random.default_rng(0), get("int4-sym-b32")
    scales = (0.01 * (1 + random.random((shape[0], -(-shape[1] // 32))))).astype(np.float16)
    fields = {"codes": random.integers(0, 16, shape, np.uint8), "scales": scales}
    return {**grid.pack(Quantized(grid.name, shape, fields)), "scales": scales.astype(np.float32)}


def graph(
    shape: tuple[int, int], operator: str, domain: str, matrix: dict[str, NDArray[Any]], bits: int, block: int,
    nodes: int, **more: float,
) -> bytes:  # fmt: skip
    """A model of `nodes` products with copies of `matrix`, and the sum of what they yield; `more`: attributes."""
    from onnx import TensorProto, helper, numpy_helper

    made, tensors, outputs = [], [], [f"y{index}" for index in range(nodes)]
    for index, output in enumerate(outputs):
        names = [f"{name}{index}" for name in matrix]
        tensors += [numpy_helper.from_array(array, name) for name, array in zip(names, matrix.values(), strict=True)]
        made.append(
            helper.make_node(
                operator, ["x", *names], [output], domain=domain,
                K=shape[1], N=shape[0], bits=bits, block_size=block, accuracy_level=4, **more,
            )
        )  # fmt: skip
    made.append(helper.make_node("Sum", outputs, ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", shape[1]])]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", shape[0]])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model = helper.make_model(helper.make_graph(made, "g", inputs, results, tensors), opset_imports=opsets)
    model.ir_version = 10
    return bytes(model.SerializeToString())


def runner(model: bytes, custom: Path | None, given: Sequence[NDArray[Any]], threads: int, work: int) -> Run:
    """Measures one side: 10**9 multiplications a second, over at least SECONDS, with `given` activations in turns."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if custom is not None:
        options.register_custom_ops_library(str(custom))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    # With one thread onnxruntime computes in the calling one; what else the machine does then does not count.
    clock = time.thread_time if threads == 1 else time.perf_counter

    def once() -> float:
        # The other side's idle threads spin for a while before they sleep, and would take a processor from this one.
        time.sleep(SETTLING if threads > 1 else 0)
        session.run(None, {"x": given[0]})
        times, start = 0, clock()
        while (taken := clock() - start) < SECONDS:
            session.run(None, {"x": given[times % len(given)]})
            times += 1
        return times * work / taken / 1e9

    return once


def row(shape: tuple[int, int], rows: int, block: int, threads: int, custom: Path, count: int, warmup: int) -> Row:
    """Measure one shape."""
    weights = shape[0] * shape[1]
    nodes = max(2, min(64, WEIGHTS // weights))
    x = np.random.default_rng(1).standard_normal((rows, shape[1])).astype(np.float32)
    work = nodes * weights * rows
    ours = graph(shape, library.OPERATOR, library.DOMAIN, our_matrix(shape, block), 3, block, nodes)
    theirs = graph(shape, "MatMulNBits", "com.microsoft", their_matrix(shape), 4, 32, nodes)
    found = pairs(runner(ours, custom, [x], threads, work), runner(theirs, None, [x], threads, work), count, warmup)
    return Row(
        title=f"{rows} x {shape[1]} by {shape[0]} x {shape[1]}, blocks of {block}, {threads} thread"
        + "s" * (threads > 1),
        peer=PEER, unit="G/s", ours=tuple(own for own, _ in found), peers=tuple(other for _, other in found),
        limit=Limit(measure="ratio_at_least", value=LEAST[rows]),
    )  # fmt: skip


def operators() -> Path:
    """The operators for this machine, compiled where they are not there; where they cannot be, the program ends."""
    try:
        return library.host_library(progress=Bars())
    except EdgekitError as error:
        raise SystemExit(f"edgekit: {error}") from error


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=9)
    options.add_argument("--threads", type=positive, action="append", help="default: 1")
    options.add_argument("--block", type=int, choices=(32, 64), default=32, help="columns that share a scale")
    chosen = options.parse_args(arguments)
    custom = operators()
    session = begin("int3", arguments)
    made = [
        row(shape, rows, chosen.block, threads, custom, chosen.pairs, chosen.warmup)
        for threads in chosen.threads or [1]
        for rows in (DECODE, PREFILL)
        for shape in SHAPES
    ]
    notes = f" Kernel: {library.kernels(custom)[0]}."
    session.finish(made, versions("edgekit", "onnxruntime"), METHOD + notes, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
