"""The twins' text: one file, a tokenizer made from its beginning, its end held out."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.dispersion.arms import LENGTH, VOCABULARY
from edgekit.engines.base import Ids

_HELD = 0.02
"""Share of the file, at its end, that no tokenizer and no model is made from."""
JUDGED, CALIBRATION, PROMPTS = 24, 32, 24
"""Sequences that are judged on (held out), that rounding looks at (trained on), and prompts."""


@dataclass(frozen=True)
class Texts:
    """What the twins read."""

    sha256: str
    training: NDArray[np.int64]
    """All tokens of the training part."""
    judged: tuple[Ids, ...]
    calibration: tuple[Ids, ...]

    def batch(self, step: int, seed: int, size: int) -> NDArray[np.int64]:
        """Sequences (size, LENGTH) of a step: shuffled by the seed, none twice before all were seen."""
        count = len(self.training) // LENGTH
        rows = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, count)
            start = int(np.random.default_rng((seed, epoch)).permutation(count)[place]) * LENGTH
            rows.append(self.training[start : start + LENGTH])
        return np.stack(rows)


def parts(data: bytes) -> tuple[str, str]:
    """What is trained on, and what is held out."""
    cut = data.rfind(b"\n", 0, int(len(data) * (1 - _HELD))) + 1
    return data[:cut].decode("utf-8", errors="replace"), data[cut:].decode("utf-8", errors="replace")


def read(text: Path) -> bytes:
    """The file's bytes; where it cannot be read, the program ends."""
    try:
        return text.read_bytes()
    except OSError as error:
        raise SystemExit(f"{text} cannot be read ({error.strerror}): --text takes a file of plain text") from error


def written(text: Path, folder: Path) -> tuple[Path, Path]:
    """Both parts as files of `folder`: what is trained on, and what is held out."""
    known, held = folder / "known.txt", folder / "held.txt"
    for place, part in zip((known, held), parts(read(text)), strict=True):
        place.write_text(part, encoding="utf-8")
    return known, held


def load(text: Path, folder: Path) -> Texts:
    """Tokenize `text` and leave `tokenizer.json` in `folder`, both from its training part only."""
    data = read(text)
    digest = hashlib.sha256(data).hexdigest()
    training, held = parts(data)
    tokenizer = _tokenizer(folder, training, digest)
    ids = np.array(tokenizer.encode(training).ids, np.int64)
    wanted = np.array(tokenizer.encode(held).ids, np.int64)
    if len(wanted) < JUDGED * LENGTH or len(ids) < 10 * len(wanted):
        raise SystemExit(f"{text} is too short: 50 times {JUDGED * LENGTH} tokens are needed")
    # Spread over what there is: the held-out end holds several kinds of text.
    starts = np.linspace(0, len(wanted) - LENGTH, JUDGED).astype(int)
    known = np.linspace(0, len(ids) - LENGTH, CALIBRATION).astype(int)
    return Texts(
        sha256=digest, training=ids,
        judged=tuple(wanted[start : start + LENGTH] for start in starts),
        calibration=tuple(ids[start : start + LENGTH] for start in known),
    )  # fmt: skip


def _tokenizer(folder: Path, training: str, digest: str) -> Tokenizer:
    """Byte-level BPE with SmolLM's pre-tokenizer; the same text gives the same one, another text a new one."""
    path, made_from = folder / "tokenizer.json", folder / "text.sha256"
    if not (path.is_file() and made_from.is_file() and made_from.read_text() == digest):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        made.train_from_iterator(training.splitlines(keepends=True), trainer)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"tokenizer.{os.getpid()}.part"  # several processes may begin at once
        made.save(str(part))
        part.rename(path)
        words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(words))
        made_from.write_text(digest)
    return Tokenizer.from_file(str(path))
