"""Predictions: arithmetic by hand, and a refusal that says by how much and what would fit."""

from __future__ import annotations

import re

import pytest
import tiny
from tiny import Tiny

from edgekit.checkpoint.spec import Spec, spec_from_config
from edgekit.errors import DoesNotFitError
from edgekit.options import Container
from edgekit.quantize.choose import choose
from edgekit.quantize.plan import Plan
from edgekit.quantize.predict import predict, refuse_too_big
from edgekit.targets import Target, load, usable_mib

TINYLLAMA = Tiny(
    hidden=2048, ffn=5632, layers=22, heads=32, kv_heads=4, head_dim=64, vocab=32000, tied=False, context=2048
)
LLAMA_8B = Tiny(
    hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8, head_dim=128, vocab=128256, tied=False, context=131072
)


def made(like: Tiny, target: str, container: Container, bits: int = 4) -> tuple[Spec, Plan, Target]:
    spec, board = spec_from_config(tiny.config_of(like)), load(target)
    return spec, choose(spec, board, container, bits), board


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_too_big_says_by_how_much(container: Container) -> None:
    spec, plan, board = made(LLAMA_8B, "rpi5", container)
    with pytest.raises(DoesNotFitError) as told:
        refuse_too_big(spec, plan, board)
    text = str(told.value)
    figures = predict(spec, plan, board)
    assert f"needs about {figures.ram_mib:,.0f} MiB on rpi5" in text
    assert f"{figures.ram_mib - figures.usable_mib:,.0f} MiB more than the {figures.usable_mib:,} MiB usable" in text
    assert "of 4,096 MiB (predicted)" in text
    assert "million parameters at these bits" in text


def test_what_is_said_to_fit_does_fit() -> None:
    """The number of parameters in the message, put into a model of that size, is accepted."""
    spec, plan, board = made(LLAMA_8B, "rpi5", "gguf")
    with pytest.raises(DoesNotFitError) as told:
        refuse_too_big(spec, plan, board)
    found = re.search(r"at most about ([\d,]+) million", str(told.value))
    assert found is not None
    promised = int(found[1].replace(",", "")) * 1e6
    layers = int(32 * promised / spec.parameters)
    smaller = Tiny(
        hidden=4096, ffn=14336, layers=layers, heads=32, kv_heads=8, head_dim=128, vocab=round(128256 * layers / 32),
        tied=False, context=131072,
    )  # fmt: skip
    spec, plan, board = made(smaller, "rpi5", "gguf")
    assert spec.parameters > 0.8 * promised
    assert refuse_too_big(spec, plan, board).fits


def test_nothing_fits_when_the_cache_alone_is_too_big() -> None:
    monster = Tiny(hidden=4096, ffn=4096, layers=1000, heads=32, kv_heads=32, head_dim=128, vocab=500, context=8192)
    spec, plan, board = made(monster, "rpi-zero2w", "gguf")
    with pytest.raises(DoesNotFitError, match="at most about 0 million"):
        refuse_too_big(spec, plan, board)


@pytest.mark.parametrize(("container", "value_bytes"), [("gguf", 2), ("onnx", 4)])
def test_memory_by_hand(container: Container, value_bytes: int) -> None:
    """Weights twice (ram_multiplier 2: the file and its repacked copy), the cache of 2,048 tokens, 64 MiB of engine."""
    spec, plan, board = made(TINYLLAMA, "rpi5", container)
    cache = 2 * 22 * 4 * 64 * value_bytes * 2048
    quantized = [e for e in plan.entries if e.tensor.rule.matrix]
    scales = sum(e.tensor.parameters // 32 for e in quantized) if container == "onnx" else 0
    loaded = plan.nbytes + 2 * scales  # from float16 to float32
    figures = predict(spec, plan, board)
    assert figures.ram_mib == pytest.approx((2 * loaded + cache) / 2**20 + 64)
    assert figures.file_mib == pytest.approx(plan.nbytes / 2**20)
    assert figures.usable_mib == usable_mib(board)
    assert figures.fits


def test_what_the_own_operator_reads_is_there_once() -> None:
    """Nibbles for stock onnxruntime are copied when they are packed anew; tiles are read where the file is mapped."""
    spec, _, board = made(TINYLLAMA, "rpi5", "onnx")
    own, stock = (choose(spec, board, "onnx", 3, portable=portable) for portable in (False, True))
    tiles = sum(entry.nbytes for entry in own.own_operators)
    rest = own.loaded_nbytes - tiles
    cache = 2 * 22 * 4 * 64 * 4 * 2048
    assert predict(spec, own, board).ram_mib == pytest.approx((tiles + 2 * rest + cache) / 2**20 + 64)
    assert predict(spec, stock, board).ram_mib == pytest.approx((2 * stock.loaded_nbytes + cache) / 2**20 + 64)


def test_cache_is_no_longer_than_the_model_reads() -> None:
    short, long = made(TINYLLAMA, "rpi5", "gguf"), made(TINYLLAMA, "rpi5", "gguf")
    assert predict(*short, context=2048) == predict(*long, context=1_000_000)
    assert predict(*short, context=512).ram_mib < predict(*short, context=2048).ram_mib


def test_speed_by_hand() -> None:
    spec, plan, board = made(TINYLLAMA, "rpi5", "gguf")
    assert board.memory.decode_gbps is not None
    efficiency = board.runtime.gguf.efficiency  # of each format: a mixed plan takes the time of all its parts
    read = [e for e in plan.entries if e.tensor.rule.kind != "embedding"]  # not tied: a row of it is read
    seconds = sum(e.nbytes / efficiency.get(e.grid, 1.0) for e in read) / (board.memory.decode_gbps * 1e9)
    assert len({e.grid for e in read} & efficiency.keys()) == 2
    figures = predict(spec, plan, board)
    assert figures.tokens_per_second == pytest.approx(1 / seconds)
    assert figures.basis == f"{board.memory.decode_gbps} GB/s ({board.memory.decode_basis} there)"


def test_no_bandwidth_no_speed() -> None:
    figures = predict(*made(TINYLLAMA, "host", "gguf"))
    assert figures.tokens_per_second is None
    assert "no bandwidth" in figures.basis
