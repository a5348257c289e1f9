"""Training text of some megabytes with the tokenizer of the demo model: the ids of the whole, in bounded memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import SENTENCES

from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.checkpoint.demo import demo_checkpoint
from edgekit.progress import Quiet
from edgekit.training.corpus import prepare

pytestmark = pytest.mark.integration
MB = 1_000_000
PEAK = """
import json, resource, sys
from pathlib import Path
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.progress import Quiet
from edgekit.training.corpus import prepare

peaks = []
for source in sys.argv[2:]:
    found = prepare([source], load_tokenizer(Path(sys.argv[1])), 256, Path(source + ".out"), Quiet())
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_checkpoint().root


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def text(nbytes: int, seed: int = 0) -> str:
    """Words of many scripts, code and runs of white space; every few words a line end, now and then a blank line."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    spaces = [" "] * 14 + ["\n", "\n\n", "  ", "\t"]
    chance, made, size = random.Random(seed), [], 0
    while size < nbytes:
        made.append(chance.choice(words) + chance.choice(spaces))
        size += len(made[-1].encode())
    return "".join(made)


def test_a_file_in_pieces_has_the_ids_of_the_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = text(2 * MB)
    path = tmp_path / "text.txt"
    path.write_text(whole, "utf-8")
    corpus = prepare([str(path)], tokenizer, 256, tmp_path / "out", Quiet())
    end = tokenizer.backend.token_to_id("<|endoftext|>")
    assert np.array_equal(corpus.tokens, [*tokenizer.encode(whole), end])
    assert corpus.held_out == 16
    assert whole.startswith(tokenizer.decode(corpus.sequence(0).tolist()).rstrip("\ufffd"))


def test_memory_does_not_grow_with_the_text(tmp_path: Path, folder: Path) -> None:
    """As one file, and as one line of a .jsonl file after another."""
    small, large, lines = (tmp_path / name for name in ("small.txt", "large.txt", "lines.jsonl"))
    part = text(4 * MB)
    small.write_text(part, "utf-8")
    large.write_text(part * 4, "utf-8")
    lines.write_text(f"{json.dumps({'text': part[:MB]})}\n" * 8, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(small), str(large), str(lines)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, third = (peak * 1024 for peak in json.loads(done.stdout))
    assert second - first < 12 * MB, "what is more by 12 MB of text"
    assert third - first < 12 * MB
