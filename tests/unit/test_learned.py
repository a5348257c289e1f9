"""Learned rounding: a block says more nearly what it should, in codes and steps that its format can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.engines.base import F32  # noqa: E402
from edgekit.errors import BadWeightsError  # noqa: E402
from edgekit.grids import get  # noqa: E402
from edgekit.grids.base import Quantized  # noqa: E402
from edgekit.quantize.learned import Text, learn  # noqa: E402

FIRST, SECOND = "up.weight", "down.weight"
FORMATS = (
    "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "int4-sym-b32", "int4-asym-b32",
    "int3-sym-b32",
)  # fmt: skip


def block(weights: Mapping[str, Any], states: Any) -> Any:
    """Two layers with something between them that is not linear."""
    return torch.nn.functional.silu(states @ weights[FIRST].t()) @ weights[SECOND].t()


class Case:
    """A block whose inputs lie in few directions, so that codes can make up for one another."""

    def __init__(self, grid: str, second: str | None = None, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.weights: dict[str, F32] = {
            FIRST: generator.normal(0, 0.05, (256, 256)).astype(np.float32),
            SECOND: generator.normal(0, 0.05, (32, 256)).astype(np.float32),
        }
        basis = generator.normal(size=(12, 256)).astype(np.float32)
        rows = [torch.from_numpy(generator.normal(size=(1, 20, 12)).astype(np.float32) @ basis) for _ in range(6)]
        self.rows = rows
        own = {name: torch.from_numpy(array) for name, array in self.weights.items()}
        self.text = Text([block(own, row) for row in rows], [torch.ones(20) for _ in rows])
        grids = {FIRST: grid, SECOND: second or grid}
        self.start = {name: get(grids[name]).quantize(array) for name, array in self.weights.items()}

    def forward(self, number: int, weights: Mapping[str, Any]) -> Any:
        return block(weights, self.rows[number])

    def learn(self, iterations: int = 40, seed: int = 0) -> dict[str, Quantized]:
        return learn(self.start, self.weights.__getitem__, self.text, self.forward, iterations=iterations, seed=seed)

    def error(self, matrices: Mapping[str, Quantized]) -> float:
        values = {name: torch.from_numpy(get(m.grid).dequantize(m)) for name, m in matrices.items()}
        return sum(float(self.text.error(n, self.forward(n, values))) for n in range(len(self.rows)))


@pytest.mark.parametrize("grid", FORMATS)
def test_the_block_is_closer_and_the_format_holds_it(grid: str) -> None:
    case = Case(grid)
    found = case.learn()
    assert case.error(found) < 0.9 * case.error(case.start)
    for name, matrix in found.items():
        known = get(matrix.grid)
        assert {part: array.dtype for part, array in matrix.fields.items()} == {
            part: array.dtype for part, array in case.start[name].fields.items()
        }
        again = known.unpack(known.pack(matrix), matrix.shape)
        np.testing.assert_array_equal(known.dequantize(again), known.dequantize(matrix))


def test_a_format_without_codes_of_single_weights_stays() -> None:
    case = Case("IQ4_NL", second="F16")
    found = case.learn()
    assert found[SECOND] is case.start[SECOND]
    assert case.error(found) < case.error(case.start)
    still = Case("F16")
    assert still.learn() == still.start


def test_the_same_seed_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.quantize.learned.BATCH", 2)
    one, two, other = (Case("IQ4_NL").learn(10, seed)[FIRST].fields["codes"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_what_is_not_better_is_not_taken() -> None:
    """One step moves every code that GPTQ had put at the edge of its cell, and helps nothing."""
    case = Case("IQ4_NL")
    case.text = Text([case.forward(n, _values(case.start)) for n in range(6)], case.text.counts)
    found = case.learn(3)
    assert found == case.start


def test_tokens_that_do_not_count_are_not_looked_at() -> None:
    case = Case("int3-sym-b32")
    half = [torch.cat([torch.full((10,), 2.0), torch.zeros(10)]) for _ in range(6)]
    even = case.learn()
    case.text = Text(case.text.targets, half)
    assert case.error(case.learn()) < case.error(even)


def test_an_error_that_is_not_a_number_is_told() -> None:
    case = Case("IQ4_NL")
    case.rows[0][0, 3, 5] = torch.nan
    with pytest.raises(BadWeightsError, match="NaN or infinite"):
        case.learn()


def _values(matrices: Mapping[str, Quantized]) -> dict[str, Any]:
    return {name: torch.from_numpy(get(m.grid).dequantize(m)) for name, m in matrices.items()}
