"""Predicted decode speeds against published ones of a Raspberry Pi 5: `python -m benchmarks.prediction`.

Nothing is measured here: arithmetic on the target file and on benchmarks/data/rpi5_decode.toml, the same everywhere.
`python -m benchmarks.table` writes the figures into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import msgspec

from edgekit.quantize.predict import decode_speed
from edgekit.targets import Target, load

DATA = Path(__file__).parent / "data" / "rpi5_decode.toml"
TARGET = "rpi5"
MIB = 1 << 20
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What llama-quantize takes instead where a row is not divisible by the block (llama.cpp's llama-quant.cpp)."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of a decoder with a gated feed-forward part."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published speed."""

    model: str
    type: str
    grid: str
    """GGUF type of most of the linear layers."""
    threads: int
    tok_s: float
    streamed_mib: float | None = None
    """Read per token, as published."""
    fitted: bool = False
    """Whether a number of the target file comes from this row, so that agreement proves nothing."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who published the rows."""

    name: str
    url: str
    trust: str
    rows: tuple[Row, ...]


class Published(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data file."""

    models: dict[str, Shape]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Checked:
    """A published speed and what edgekit predicts."""

    row: Row
    source: Source
    predicted: float
    """Tokens/s."""

    @property
    def error(self) -> float:
        """Relative: positive when too much is promised."""
        return self.predicted / self.row.tok_s - 1


def published(path: Path = DATA) -> Published:
    """Read the data file.

    Raises:
        msgspec.ValidationError: it is something else.
    """
    return msgspec.toml.decode(path.read_bytes(), type=Published)


def streamed_bytes(shape: Shape, name: str) -> float:
    """Weights that decoding one token reads from a file that llama-quantize made as `name`.

    Linear layers and the head; of an untied embedding one row, which is nothing. Norms and biases are left out: below
    0.1 %. The head, or the tied embedding, is Q6_K in the 4-bit files; Q4_K_M also has Q6_K in the values' projection
    and the second matrix of the feed-forward part of half of the layers (llama.cpp's llama-quant.cpp).

    Raises:
        KeyError: `name` is not Q8_0, Q4_0 or Q4_K_M.
    """
    common = {"Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q4_K_M": "Q4_K"}[name]
    head = "Q8_0" if name == "Q8_0" else "Q6_K"
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = _nbytes(shape.hidden, shape.vocab, head)
    for layer in range(shape.layers):
        wide = "Q6_K" if name == "Q4_K_M" and _more_bits(layer, shape.layers) else common
        total += _nbytes(shape.hidden, query + kv + 2 * shape.ffn, common) + _nbytes(query, shape.hidden, common)
        total += _nbytes(shape.hidden, kv, wide) + _nbytes(shape.ffn, shape.hidden, wide)
    return total


def _more_bits(layer: int, layers: int) -> bool:
    """Layers whose sensitive matrices a "_M" recipe stores in more bits: the first and last eighth, a third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _nbytes(columns: int, rows: int, name: str) -> float:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if columns % block:
        return _nbytes(columns, rows, FALLBACKS[name])
    return columns * rows / int(block) * int(size)


def check(data: Published, target: Target) -> list[Checked]:
    """Predict every row.

    Raises:
        ValueError: the target has no decode bandwidth.
    """
    made = []
    for source in data.sources:
        for row in source.rows:
            size = row.streamed_mib and row.streamed_mib * MIB
            size = size or streamed_bytes(data.models[row.model], row.type)
            speed = decode_speed(target, size, row.grid, row.threads)
            if speed is None:
                raise ValueError(f"{target.name} has no decode bandwidth")
            made.append(Checked(row, source, speed))
    return made


GROUPS: tuple[tuple[str, Callable[[Checked], bool]], ...] = (
    ("fitted on", lambda one: one.row.fitted),
    ("not fitted on", lambda one: not one.row.fitted),
    ("… of them the same models, other types and thread counts", lambda one: not one.row.fitted and _same(one)),
    ("… of them other models and publishers, 4 threads", lambda one: not one.row.fitted and not _same(one)),
)


def _same(one: Checked) -> bool:
    """Rows with raw data are all of the two models that the target file was made with."""
    return one.source.trust == "A"


def markdown(checked: Sequence[Checked]) -> str:
    """Errors by group, then every row."""
    lines = ["| rows | number | median absolute error | largest | too high |", "|---|---|---|---|---|"]
    for title, wanted in GROUPS:
        errors = [one.error for one in checked if wanted(one)]
        middle, most = statistics.median(map(abs, errors)), max(errors, key=abs)
        high = sum(error > 0 for error in errors)
        lines.append(f"| {title} | {len(errors)} | {middle:.1%} | {most:+.1%} | {high} |")
    lines += [
        "",
        "| model | type | threads | published tok/s | predicted | error | fitted on | source |",
        "|---" * 8 + "|",
    ]
    lines += map(_line, checked)
    return "\n".join(lines)


def _line(one: Checked) -> str:
    row, source = one.row, one.source
    fitted = "yes" if row.fitted else "no"
    return (
        f"| {row.model} | {row.type} | {row.threads} | {row.tok_s:.4g} | {one.predicted:.4g} | {one.error:+.1%} "
        f"| {fitted} | [{source.name}]({source.url}), {source.trust} |"
    )


def figures() -> str:
    """What docs/benchmarks.md shows."""
    return markdown(check(published(), load(TARGET)))


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(arguments)
    print(figures())


if __name__ == "__main__":
    main(sys.argv[1:])
