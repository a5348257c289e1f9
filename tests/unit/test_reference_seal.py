"""Making a reference: what is sealed, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from test_coherence_engine import ORIGIN, Bigram, sealed, table, text
from test_reference import same

from edgekit.coherence.reference import Reference, seal
from edgekit.errors import OptionError, ParityError

V = 64


@pytest.fixture(scope="module")
def reference() -> Reference:
    return sealed(Bigram(table(V)))


def test_stored_figures_are_those_of_the_logits(reference: Reference) -> None:
    logits = table(V).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    first, after = reference.sequences.lists()[2][:2]
    row = reference.sequence_rows()[2].start
    said = reference.positions
    assert said.top_ids[row].tolist() == np.argsort(-logits[first])[:16].tolist()
    np.testing.assert_allclose(said.top_logp[row], np.sort(logp[first])[::-1][:16], rtol=1e-6)
    assert said.tail_logp[row] == pytest.approx(np.log(np.exp(np.sort(logp[first])[:-16]).sum()), rel=1e-6)
    np.testing.assert_allclose(said.drawn_logp[row], logp[first, said.drawn_ids[row]], rtol=1e-6)
    assert said.next_logp[row] == pytest.approx(logp[first, after], rel=1e-6)
    assert said.entropy[row] == pytest.approx(-(np.exp(logp[first]) * logp[first]).sum(), rel=1e-6)


def test_continuations_are_greedy_and_stop(reference: Reference) -> None:
    best = table(V).argmax(axis=1)
    for prompt, ids in zip(reference.prompts.lists(), reference.continuations.lists(), strict=True):
        expected: list[int] = []
        token = int(prompt[-1])
        while len(expected) < 40 and (not expected or expected[-1] != 0):
            token = int(best[token])
            expected.append(token)
        assert ids.tolist() == expected


def test_draws_follow_the_seed_and_differ_between_positions() -> None:
    """All positions have the same distribution, so that only the random numbers can make their draws differ."""
    engine = Bigram(np.tile(table(V)[:1], (V, 1)))
    first, again, other = (
        seal(engine, [[1, 2, 3]] * 2, [], origin=msgspec.structs.replace(ORIGIN, seed=seed), k=8) for seed in (3, 3, 4)
    )
    assert first.positions.drawn_ids.tolist() == again.positions.drawn_ids.tolist()
    rows = np.concatenate([first.positions.drawn_ids, other.positions.drawn_ids])
    assert len({tuple(row) for row in rows.tolist()}) == 8


def test_continuations_made_elsewhere_are_sealed_as_they_are() -> None:
    class Silent(Bigram):
        def start(self, ids: np.ndarray) -> np.ndarray:
            raise AssertionError("the engine was asked to continue a prompt")

    steps: list[tuple[int, int]] = []
    options: dict[str, Any] = {"origin": ORIGIN, "k": 16, "continuation_tokens": 40, "stop": frozenset({0})}
    prompts = [[i] for i in range(5)]
    own = seal(Bigram(table(V)), text(V), prompts, **options)
    made = [ids.tolist() for ids in own.continuations.lists()]
    given_ = seal(
        Silent(table(V)), text(V), prompts, continuations=made, progress=lambda *step: steps.append(step), **options
    )
    assert same(given_, own)
    assert steps == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("continuations", "message"),
    [
        ([[1]], "1 continuations for 2 prompts; expected one for each"),
        ([], "0 continuations for 2 prompts"),
        ([[1], []], "a continuation has 0 tokens; expected 1 to 3"),
        ([[1], [1, 2, 3, 4]], "a continuation has 4 tokens"),
        ([[1], [V]], "token id 64 is outside"),
    ],
)
def test_continuations_that_do_not_fit_the_prompts_are_refused(continuations: list[list[int]], message: str) -> None:
    options: dict[str, Any] = {"continuations": continuations, "continuation_tokens": 3}
    with pytest.raises(OptionError, match=message):
        seal(Bigram(table(V)), [[1, 2]], [[1], [2]], origin=ORIGIN, **options)


@pytest.mark.parametrize(
    ("sequences", "prompts", "options", "message"),
    [
        ([], [], {}, "number of evaluation sequences is 0"),
        ([[1]], [], {}, "shortest evaluation sequence is 1"),
        ([[1, 2]], [[]], {}, "shortest prompt is 0"),
        ([[1, 2]], [], {"k": 0}, r"\(k\) is 0"),
        ([[1, 2]], [], {"draws": -1}, r"\(draws\) is -1"),
        ([[1, 2]], [], {"continuation_tokens": 0}, "continuation tokens is 0"),
        ([[1, V]], [], {}, "token id 64 is outside"),
        ([[1, 2]], [[-1]], {}, "token id -1 is outside"),
        ([[1, 2]], [], {"stop": frozenset({99})}, "token id 99 is outside"),
        ([[1] * 600], [], {}, "does not fit into the context"),
        ([[1, 2]], [[1]], {"continuation_tokens": 512}, "does not fit into the context"),
    ],
)
def test_sealing_nonsense_is_refused(
    sequences: list[list[int]], prompts: list[list[int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        seal(Bigram(table(V)), sequences, prompts, origin=ORIGIN, **options)


def test_sealing_a_broken_model_is_refused() -> None:
    broken = table(V)
    broken[2, 2] = np.nan
    with pytest.raises(ParityError, match="sequence 1, position 1"):
        seal(Bigram(broken), [[1, 1, 1], [1, 2, 1]], [], origin=ORIGIN)
