"""What is timed, with an engine whose calls take a known time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_toys import LETTERS, Clock, Table, reference, said, write_tokenizer

from edgekit.bench import latency
from edgekit.bench.coherence import Asked, against_host, against_host_ids, judged, shortened
from edgekit.bench.engine_run import prompt_text
from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.coherence.metrics import evaluate
from edgekit.coherence.reference import Reference
from edgekit.errors import OptionError, ParityError, TokenizerError

ALL = Asked(sequences=99, sequence_tokens=99, prompts=99, continuation_tokens=99, items=True)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> Table:
    return Table(tick=clock.tick)


def letters(clock: Clock, seconds: float = 2.0) -> object:
    def encode(text: str) -> list[int]:
        clock.tick(seconds)
        return [LETTERS.index(letter) for letter in text]

    return encode


def test_a_prompt_that_is_too_short_is_refused(engine: Table) -> None:
    with pytest.raises(OptionError, match="3 tokens"):
        latency.read_prompt(engine, lambda _: [1, 2, 3], "abc", 4)


def test_reading_counts_tokenising_and_engine_apart(engine: Table, clock: Clock) -> None:
    run = latency.read_prompt(engine, letters(clock), "x" * 60, 50, clock=clock)  # type: ignore[arg-type]
    assert [run.encode, run.prefill, run.choose] == pytest.approx([2.0, 0.5, 0.0])
    assert run.end - run.begin == pytest.approx(2.5)


def test_generating_begins_with_an_empty_context_and_times_every_token(engine: Table, clock: Clock) -> None:
    run = latency.generate(engine, 5, clock=clock)
    assert run.tokens == pytest.approx([0.01, 0.1, 0.1, 0.1, 0.1])
    assert sum(run.tokens) == pytest.approx(run.end - run.begin)


def test_an_answer_goes_on_to_its_last_token(engine: Table, clock: Clock, tokenizer: Tokenizer) -> None:
    """Whatever the model says: an answer that ended earlier would be another measurement."""
    run = latency.talk(engine, tokenizer, 20, clock=clock)
    assert run.prompt_tokens == len(latency.QUESTION)
    assert run.tokens == pytest.approx([0.1] * 19)
    assert run.first_text == pytest.approx(run.prompt_tokens / 100)
    assert run.end - run.begin == pytest.approx(run.prompt_tokens / 100 + 1.9)
    assert not engine.closed


@pytest.mark.parametrize("tokens", [1, 7, 40, 159, 160, 161, 1000])
def test_prompts_are_long_enough_and_hardly_longer(tokens: int, tokenizer: Tokenizer) -> None:
    for known in (reference(Table()), None):
        found = len(tokenizer.encode(prompt_text(tokenizer, known, tokens)))
        assert tokens <= found <= 1.2 * tokens + 5


def test_a_tokenizer_that_knows_nothing_is_refused(tokenizer: Tokenizer) -> None:
    class Mute:
        def encode(self, _: str) -> list[int]:
            return []

        def decode(self, _: object) -> str:
            return ""

    with pytest.raises(TokenizerError, match="no tokens"):
        prompt_text(Mute(), None, 5)  # type: ignore[arg-type]


# --- coherence -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed() -> Reference:
    return reference(Table())


def ask(engine: Table, sealed: Reference, want: Asked, host: tuple[str, ...], tokenizer: Tokenizer) -> object:
    return judged(engine, sealed, want, tokenizer.decode, host, Clock())


def test_a_broken_engine_is_refused(sealed: Reference, tokenizer: Tokenizer) -> None:
    broken = Table()
    broken.rows[3] = np.nan
    with pytest.raises(ParityError, match="NaN"):
        ask(broken, sealed, ALL, (), tokenizer)


def test_all_of_a_reference_gives_what_the_build_measured(sealed: Reference, tokenizer: Tokenizer) -> None:
    engine = Table(noise=0.3)
    found = judged(engine, sealed, ALL, tokenizer.decode, tuple(said(engine, sealed)), Clock())
    assert found.whole
    assert found.coherence == evaluate(engine, sealed)
    assert found.against_host is not None
    assert found.against_host.first_divergent_token == (None, None, None)
    assert list(found.texts) == said(engine, sealed)


def test_the_first_part_of_a_reference_is_what_it_says(sealed: Reference, tokenizer: Tokenizer) -> None:
    """Cutting must not shift positions against their sequences: the full-precision model itself stays at zero."""
    want = Asked(sequences=2, sequence_tokens=10, prompts=1, continuation_tokens=5, items=False)
    found = judged(Table(), sealed, want, tokenizer.decode, (), Clock())
    assert not found.whole
    assert found.coherence.kl_mean == pytest.approx(0, abs=1e-9)
    assert (found.coherence.sequences, found.coherence.positions, found.coherence.same_top) == (2, 18, 1.0)
    assert found.coherence.generation is not None
    assert found.coherence.generation.identical_share == 1
    assert found.coherence.generation.token_limit == 5


def test_a_part_is_the_part_of_the_whole(sealed: Reference) -> None:
    part = shortened(sealed, Asked(sequences=3, sequence_tokens=7, prompts=2, continuation_tokens=4, items=False))
    for short, long in zip(part.sequences.lists(), sealed.sequences.lists(), strict=False):
        assert short.tolist() == long[:7].tolist()
    for short_rows, rows in zip(part.sequence_rows(), sealed.sequence_rows(), strict=False):
        assert (part.positions.top_ids[short_rows] == sealed.positions.top_ids[rows][:6]).all()
    assert part.meta.sequence_tokens == 21
    assert part.longest <= sealed.longest


def test_progress_reaches_its_end(sealed: Reference, tokenizer: Tokenizer) -> None:
    steps: list[tuple[int, int]] = []
    judged(Table(), sealed, ALL, tokenizer.decode, (), Clock(), lambda done, total: steps.append((done, total)))
    assert steps == [(index + 1, 7) for index in range(7)]


def decode(ids: object) -> str:
    return "".join(LETTERS[i] for i in ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("made", "host", "place"),
    [
        ("abcd", "abcd", None),
        ("abcd", "abcdef", None),  # the protocol stops earlier than the build did
        ("abcd", "abXd", 2),
        ("abcd", "", 0),
        ("abcd", "ab", 2),
    ],
)
def test_the_first_token_that_leaves_the_hosts_text(made: str, host: str, place: int | None) -> None:
    found = against_host([[LETTERS.index(letter) for letter in made]], [host], decode)
    assert found is not None
    assert found.first_divergent_token == (place,)
    assert found.identical_share == (place is None)
    assert found.compared_tokens == (4,)


@pytest.mark.parametrize(
    ("made", "host", "place"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2], [1, 2, 3], None),  # the protocol stops earlier than the build did
        ([1, 2, 3], [1, 2], 2),
        ([1, 9, 3], [1, 2, 3], 1),
        ([1], [], 0),
        ([], [1], None),
    ],
)
def test_the_first_token_that_is_another_than_the_hosts(made: list[int], host: list[int], place: int | None) -> None:
    found = against_host_ids([made, [5]], [host])
    assert found is not None
    assert found.first_divergent_token == (place,)
    assert (found.prompts, found.compared_tokens, found.identical_share) == (1, (len(made),), place is None)


def test_half_a_character_is_not_another_one() -> None:
    """The first of a character's two tokens decodes to a replacement character."""

    def halves(ids: object) -> str:
        return {(1,): "a", (1, 2): "a\ufffd", (1, 2, 3): "aé"}[tuple(ids)]  # type: ignore[arg-type]

    found = against_host([[1, 2, 3]], ["aé"], halves)
    assert found is not None
    assert found.first_divergent_token == (None,)


def test_without_a_record_of_the_host_nothing_is_claimed() -> None:
    assert against_host([[1, 2]], [], decode) is None
    assert against_host([], ["x"], decode) is None
    assert against_host_ids([[1]], []) is None
