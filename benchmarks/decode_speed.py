"""Decode speed of edgekit's engines against the raw peers on the same files: `python -m benchmarks.decode_speed`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks._decoders import Kind, Run, Setup, Side
from benchmarks._measure import begin, pairs, parser, positive, versions
from benchmarks._result import Limit, Row, first_difference
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.machine import cores

LIMIT = 0.95
BUNDLE = Path("dist/smollm2-135m.rpi5")
PROMPT = "Here is a long story about a small robot that lived in a lighthouse by the sea. Once upon a time"
FILES = {"gguf": "gguf/model.gguf", "onnx": "onnx/model.onnx"}
PEERS: dict[str, tuple[Kind, Kind]] = {
    "gguf": ("edgekit-gguf", "llama_cpp.Llama"),
    "onnx": ("edgekit-onnx", "onnxruntime_genai"),
}
METHOD = (
    "Greedy decoding; same file, prompt, number of tokens, threads and context on both sides. The clock starts after "
    "the first token, so prefill is excluded. Each side is a process that stays loaded, and only one of them works at "
    "a time."
)


def agreement(ours: Run, peer: Run) -> str:
    """Whether both sides said the same, in words."""
    place = first_difference(ours.tokens, peer.tokens)
    if place is None:
        return f"both sides generate the same {len(ours.tokens)} tokens"
    return f"the first different token is number {place + 1} of {len(ours.tokens)}"


def measure(container: str, setup: Setup, ids: Sequence[int], count: int, warmup: int) -> Row:
    """Compare one format's two sides."""
    own, peer = PEERS[container]
    print(f"{container}: {own} and {peer}", file=sys.stderr)
    with Side(own, setup) as left, Side(peer, setup) as right:
        found = pairs(lambda: left.run(ids), lambda: right.run(ids), count, warmup)
    return Row(
        title=f"{container.upper()} decode", peer=f"`{peer}`", unit="tokens/s",
        ours=tuple(one.tokens_per_second for one, _ in found), peers=tuple(two.tokens_per_second for _, two in found),
        limit=Limit(measure="ratio_at_least", value=LIMIT),
        notes=(agreement(*found[-1]), f"{setup.tokens} tokens after {len(ids)}, {setup.threads} threads"),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parser(__doc__, pairs_default=9)
    options.add_argument("--bundle", type=Path, default=BUNDLE, help="a built bundle")
    options.add_argument("--format", choices=tuple(FILES), action="append", help="default: both")
    options.add_argument("--tokens", type=positive, default=128, help="tokens to generate in a run")
    options.add_argument("--threads", type=positive, default=cores(), help="of either side; default: physical cores")
    options.add_argument("--context", type=positive, default=2048, help="size of the key-value cache in tokens")
    options.add_argument("--prompt", default=PROMPT, help="text to continue")
    chosen = options.parse_args(arguments)
    if chosen.tokens < 2:
        options.error("--tokens must be at least 2, because the first one is not timed")
    wanted = chosen.format or tuple(FILES)
    for container in wanted:
        if not (chosen.bundle / FILES[container]).is_file():
            options.error(f"{chosen.bundle / FILES[container]} is missing: `make demo` builds it")
    ids = load_tokenizer(chosen.bundle / "tokenizer").encode(chosen.prompt)
    session = begin("decode_speed", arguments)
    rows = [
        measure(
            container, Setup(chosen.bundle / FILES[container], chosen.threads, chosen.context, chosen.tokens), ids,
            chosen.pairs, chosen.warmup,
        )
        for container in wanted
    ]  # fmt: skip
    found = versions("edgekit", "llama-cpp-python", "onnxruntime", "onnxruntime-genai", "numpy")
    session.finish(rows, found, METHOD, chosen.json)


if __name__ == "__main__":
    main(sys.argv[1:])
