"""Instructions of our 3-bit and ONNX Runtime's 4-bit product, emulated: `python -m benchmarks.int3_emulated`.

Almost deterministic: it tells regressions of code, never a board's speed. Needs `make emulator`, a
cross-compiler and root; downloads the board's onnxruntime. With --fires, `SparseMatMul3Bits` against `MatMul3Bits`
instead, one row of activations, of which a share is above the threshold.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import int3
from benchmarks._measure import begin, parser, positive, versions
from benchmarks._result import Limit, Row
from edgekit.board_files import write_cpu_files
from edgekit.crossbuild.model import Toolchain, cpu_of
from edgekit.crossbuild.toolchains import chosen as toolchain_of
from edgekit.crossbuild.wheel_platform import platform_of
from edgekit.emulator import userland
from edgekit.emulator.board import qemu_cpu
from edgekit.emulator.counting import instructions
from edgekit.errors import EdgekitError
from edgekit.progress import Bars
from edgekit.targets import Target, load
from edgekit.threebit import headers, library

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
NODES = 8
CALLS = {1: (2, 202), 32: (2, 12)}
"""Calls of the two runs whose difference is counted, by rows of activations."""
MOST, WITHOUT_DOTPROD = 1.15, 0.5
"""What we may need of the peer's instructions; where there are no dot products, the peer computes in float32."""
METHOD = (
    "Instructions that QEMU executes for a multiplication of a weight, one thread: a run with more calls of a session "
    f"minus one with fewer, over the calls, {NODES} nodes, the rows of activations and the size of the matrix."
)
SCRIPT = """
import sys
sys.path.insert(0, {packages!r})
import numpy as np, onnxruntime as ort
model, rows, calls, *custom = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
for path in custom:
    options.register_custom_ops_library(path)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
columns = session.get_inputs()[0].shape[1]
x = np.ones((int(rows), columns), np.float32) * np.linspace(-1, 1, columns, dtype=np.float32)
for _ in range(int(calls)):
    session.run(None, {{"x": x}})
"""


class Board:
    """An arm64 Python with onnxruntime and our library, below `folder`."""

    def __init__(self, target: Target, toolchain: Toolchain, folder: Path) -> None:
        self.cpu, self.folder, self.root = qemu_cpu(target), folder, folder / "root"
        self.dotprod = "asimddp" in cpu_of(target).features
        system = userland.ready(userland.release_of(target), progress=Bars())
        write_cpu_files(target, self.root)
        for path in system.iterdir():
            if not (self.root / path.name).exists():
                (self.root / path.name).symlink_to(path)
        platform = platform_of(target)
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages"),
            "--only-binary=:all:", "--python-version", platform.python, "--implementation", "cp",
            *(part for name in platform.names for part in ("--platform", name)),
            *(f"{name}=={version}" for name, version in versions("numpy", "onnxruntime", "flatbuffers").items()),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        self.python = next((system / "usr" / "bin").glob("python3.[0-9]*"))
        self.library = self._compiled(target, toolchain)
        self.script = folder / "run.py"
        self.script.write_text(SCRIPT.format(packages=str(folder / "packages")), encoding="ascii")

    def _compiled(self, target: Target, toolchain: Toolchain) -> Path:
        place = self.folder / "library"
        (place / "toolchain").mkdir(parents=True)
        setup = toolchain.setup(cpu_of(target), place / "toolchain")
        definitions = [*setup.definitions, f"-DEDGEKIT_ORT_HEADERS={headers.header_folder(progress=Bars())}"]
        library.compile_into(place, definitions, "edgekit_ops", environment=setup.environment)
        return place / library.LIBRARY

    def count(self, model: bytes, rows: int, *custom: Path) -> float:
        """Instructions of one call of a session, without what starts it."""
        path = self.folder / "model.onnx"
        path.write_bytes(model)
        few, many = CALLS[rows]
        command = [str(self.python), str(self.script), str(path), str(rows)]
        found = [
            instructions([*command, str(calls), *map(str, custom)], self.cpu, root=self.root) for calls in (few, many)
        ]
        return (found[1] - found[0]) / (many - few)


def row(board: Board, shape: tuple[int, int], rows: int, times: int) -> Row:
    """Count both sides for one shape."""
    ours = int3.graph(shape, library.OPERATOR, library.DOMAIN, int3.our_matrix(shape, 32), 3, 32, NODES)
    theirs = int3.graph(shape, "MatMulNBits", "com.microsoft", int3.their_matrix(shape), 4, 32, NODES)
    work = NODES * rows * shape[0] * shape[1]
    found = [(board.count(ours, rows, board.library) / work, board.count(theirs, rows) / work) for _ in range(times)]
    print(f"  {rows} x {shape}: {found[-1][0]:.3f} and {found[-1][1]:.3f}", file=sys.stderr, flush=True)
    return Row(
        title=f"{rows} x {shape[1]} by {shape[0]} x {shape[1]}, {board.cpu}, emulated", peer=int3.PEER,
        unit="instructions", ours=tuple(own for own, _ in found), peers=tuple(other for _, other in found),
        limit=Limit(measure="ratio_at_most", value=MOST if board.dotprod else WITHOUT_DOTPROD),
    )  # fmt: skip


def sparse_row(board: Board, shape: tuple[int, int], share: float, times: int) -> Row:
    """Count what skips against what does not, on the same weights; `share` of the inputs is above the threshold."""
    dense = int3.our_matrix(shape, 32)
    # The script's activations lie evenly between -1 and 1.
    columns = int3.sparse_matrix(dense, shape)
    ours = int3.graph(shape, library.SPARSE, library.DOMAIN, columns, 3, 32, NODES, threshold=1 - share)
    theirs = int3.graph(shape, library.OPERATOR, library.DOMAIN, dense, 3, 32, NODES)
    work = NODES * shape[0] * shape[1]
    found = [
        (board.count(ours, 1, board.library) / work, board.count(theirs, 1, board.library) / work) for _ in range(times)
    ]
    print(f"  {share:.0%} of {shape}: {found[-1][0]:.3f} and {found[-1][1]:.3f}", file=sys.stderr, flush=True)
    return Row(
        title=f"1 x {shape[1]} by {shape[0]} x {shape[1]}, {share:.0%} of the inputs fire, {board.cpu}, emulated",
        peer="MatMul3Bits, which reads all", unit="instructions",
        ours=tuple(own for own, _ in found), peers=tuple(other for _, other in found),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Count and print."""
    options = parser(__doc__, pairs_default=1, warmup=0)
    options.add_argument("--target", default="rpi5", help="whose CPU")
    options.add_argument("--toolchain", default="zig", help="zig or gcc")
    options.add_argument("--rows", type=positive, choices=CALLS, action="append", help="of activations; default: all")
    options.add_argument("--fires", type=float, action="append", metavar="SHARE", help="above 0, at most 1")
    chosen = options.parse_args(arguments)
    if not all(0 < share <= 1 for share in chosen.fires or ()):
        options.error("--fires takes shares above 0 and at most 1")
    if chosen.fires and chosen.rows:
        options.error("--fires is about one row of activations: drop --rows")
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as folder:
        try:
            target = load(chosen.target)
            board = Board(target, toolchain_of(chosen.toolchain, target), Path(folder))
            session = begin("int3_emulated", arguments)
            if chosen.fires:
                rows = [sparse_row(board, shape, share, chosen.pairs) for share in chosen.fires for shape in SHAPES]
            else:
                rows = [row(board, shape, each, chosen.pairs) for each in chosen.rows or CALLS for shape in SHAPES]
        except EdgekitError as error:
            raise SystemExit(f"edgekit: {error}") from error
    session.finish(rows, versions("edgekit", "onnxruntime", "ziglang"), METHOD, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
