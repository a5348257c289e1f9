"""Chats that a model writes itself, to train it on: `python -m benchmarks.own_chats OUT.jsonl [MODEL] [--count 144]`.

Sampled at temperature 1 from the whole vocabulary, from the model's own system prompt and the beginning of a user's
turn on: it asks and answers (Magpie, arXiv:2406.08464). A line is one chat of --length tokens, special tokens as text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.source import resolve
from edgekit.engines.torch import TorchEngine
from edgekit.files import whole_file
from edgekit.progress import Bars

_MARK, _BATCH = "QUESTION", 48


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--count", type=int, default=144)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = resolve(options.model).root
    tokenizer, engine = load_tokenizer(root), TorchEngine(root)
    from transformers import AutoTokenizer

    templated = AutoTokenizer.from_pretrained(root, trust_remote_code=False).apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False
    )
    start = [int(token) for token in tokenizer.encode(templated[: templated.index(_MARK)])]
    with Bars().step(f"{options.count} chats") as advance, whole_file(options.out) as fresh, fresh.open("w") as out:
        for done in range(0, options.count, _BATCH):
            rows = _sampled(engine, start, min(_BATCH, options.count - done), options.length, options.seed + done)
            for row in rows:
                out.write(json.dumps({"text": tokenizer.backend.decode(row, skip_special_tokens=False)}) + "\n")
            advance(done + len(rows), options.count)


@torch.inference_mode()
def _sampled(engine: TorchEngine, start: list[int], count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([start] * count)
    rows, cache = [ids], None
    for _ in range(length - len(start)):
        said = engine.module(rows[-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = said.past_key_values
        rows.append(torch.multinomial(torch.softmax(said.logits[:, -1].float(), dim=-1), 1, generator=generator))
    found: list[list[int]] = torch.cat(rows, dim=1).tolist()
    return found


if __name__ == "__main__":
    main()
