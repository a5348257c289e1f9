"""Accuracy and flips: a model that was damaged must lose, the same model must not change its mind."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coherence_engine import F32, ORIGIN, Bigram, Ids, table, text
from test_reference import change, change_meta, entries, npy, put, rewrite, same

from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.coherence.container import load, save
from edgekit.coherence.items import encode_items, fixed_items
from edgekit.coherence.metrics import evaluate
from edgekit.coherence.ragged import ragged
from edgekit.coherence.reference import Reference, seal
from edgekit.coherence.scoring import Answers, ItemScores, Questions, choices, compare, option_logp
from edgekit.errors import FileFormatError, OptionError, ParityError

V = 384


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizers.write(folder, "smollm", V)
    return encode_items(fixed_items(), load_tokenizer(folder), limit=512)


class Reader(Bigram):
    """The next token depends on the last three, through a hash that picks one of 4096 states; the head maps to logits.

    Its head is what a bigram's table is: shuffling the columns is shuffling the rows of a model's head.
    """

    def __init__(self, head: F32, max_context: int = 512) -> None:
        super().__init__(head, max_context)
        self.vocab_size = head.shape[1]

    def logits(self, ids: Ids) -> F32:
        return super().logits(states(ids))


def states(ids: Ids) -> Ids:
    before = np.concatenate([[0, 0], ids])
    hashed: Ids = (before[2:] * 31 + before[1:-1] * 1009 + before[:-2] * 3571) % 4096
    return hashed


@pytest.fixture(scope="module")
def knowing(questions: Questions) -> Reader:
    """A model that has read the right options: counts in logarithms, softened."""
    counts = np.full((4096, V), 0.05)
    lists = questions.options.lists()
    for where, right in zip(questions.slices(), questions.right, strict=True):
        ids = lists[where][right]
        np.add.at(counts, (states(ids[:-1]), ids[1:]), 1.0)
    return Reader(np.log(counts).astype(np.float32))


@pytest.fixture(scope="module")
def reference(questions: Questions, knowing: Reader) -> Reference:
    return seal(knowing, text(V, n=2), [[1]], origin=ORIGIN, k=16, continuation_tokens=4, questions=questions)


def scores(engine: Bigram, reference: Reference) -> ItemScores:
    found = evaluate(engine, reference, generate=False).items
    assert found is not None
    return found


def small(*logp: list[float], right: list[int] | None = None, divisors: list[int] | None = None) -> Answers:
    """Answers with the given log-probabilities, item by item."""
    flat = [value for row in logp for value in row]
    asked = Questions(
        names=tuple(f"facts-{index:02}" for index in range(len(logp))),
        sha256="c" * 64,
        options=ragged([[0, 1 + index] for index in range(len(flat))]),
        divisors=np.array(divisors or [1] * len(flat), np.int32),
        counts=np.array([len(row) for row in logp], np.int32),
        starts=np.ones(len(logp), np.int32),
        right=np.array(right or [0] * len(logp), np.int32),
    )
    return Answers(asked, np.array(flat, np.float32))


# --- what must not pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_name_the_item(questions: Questions, bad: float) -> None:
    class Broken(Bigram):
        def logits(self, ids: Ids) -> F32:
            rows = super().logits(ids)
            if len(self.asked) == 5:
                rows[2, 7] = bad
            return rows

    with pytest.raises(ParityError, match=r"item facts-\d+, position 2"):
        option_logp(Broken(table(V)), questions)


def test_a_context_that_is_too_short_is_refused(reference: Reference, knowing: Reader, questions: Questions) -> None:
    longest = int(questions.options.lengths.max())
    assert longest == reference.longest
    with pytest.raises(OptionError, match="does not fit"):
        evaluate(Reader(knowing.table, max_context=longest - 2), reference, generate=False)
    with pytest.raises(OptionError, match="does not fit"):
        seal(Bigram(table(V), max_context=longest - 2), [[1, 2]], [], origin=ORIGIN, questions=questions)


def test_ids_outside_the_vocabulary_are_refused(questions: Questions) -> None:
    with pytest.raises(OptionError, match="outside the vocabulary"):
        seal(Bigram(table(int(questions.options.ids.max()))), [[1, 2]], [], origin=ORIGIN, questions=questions)


# --- controls --------------------------------------------------------------------------------------------------------


def test_the_same_model_changes_its_mind_on_nothing(reference: Reference, knowing: Reader) -> None:
    found = scores(knowing, reference)
    assert found.flips == found.lost == found.gained == 0
    assert found.flipped == ()
    assert found.right_engine == found.right_reference
    assert found.accuracy_reference > found.chance + 0.3
    assert found.accuracy_difference == 0.0
    assert found.accuracy_difference_low < 0 < found.accuracy_difference_high
    assert found.flip_low == 0.0 < found.flip_high


def test_shuffled_rows_of_the_head_lose_accuracy_and_flip(reference: Reference, knowing: Reader) -> None:
    order = np.random.default_rng(3).permutation(V)
    found = scores(Reader(knowing.table[:, order]), reference)
    assert abs(found.accuracy_engine - found.chance) < 0.15
    assert found.accuracy_difference_high < 0
    assert found.flip_share > 0.3
    assert found.lost > 5 * found.gained


def test_a_model_that_knows_nothing_but_length_is_no_better_than_guessing(reference: Reference) -> None:
    found = scores(Bigram(np.zeros((V, V), np.float32)), reference)
    assert found.accuracy_engine < found.chance + 0.08
    assert found.flip_share > 0.3


def test_a_little_noise_flips_a_few(reference: Reference, knowing: Reader) -> None:
    shares = []
    for size in (0.05, 0.5, 4.0):
        noise = size * np.random.default_rng(4).standard_normal((4096, V)).astype(np.float32)
        shares.append(scores(Reader(knowing.table + noise), reference).flip_share)
    assert shares == sorted(shares)
    assert shares[0] < 0.1 < shares[-1]


def test_categories_add_up(reference: Reference, knowing: Reader) -> None:
    noise = np.random.default_rng(5).standard_normal((4096, V)).astype(np.float32)
    found = scores(Reader(knowing.table + noise), reference)
    for name in ("items", "right_reference", "right_engine", "lost", "gained", "flips"):
        assert sum(getattr(row, name) for row in found.categories) == getattr(found, name)
    assert found.right_engine - found.right_reference == found.gained - found.lost
    assert found.flips == len(found.flipped) >= found.lost + found.gained


# --- what is computed ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_worked_out_directly(questions: Questions) -> None:
    logits = table(V).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = option_logp(Bigram(table(V)), questions)
    for index, where in enumerate(questions.slices()):
        start = int(questions.starts[index])
        for option in range(where.start, where.stop):
            ids = questions.options.lists()[option] if option < 3 else None
            if ids is not None:
                assert found[option] == pytest.approx(logp[ids[start - 1 : -1], ids[start:]].sum(), rel=1e-6)


def test_options_that_differ_in_the_last_token_share_a_call(questions: Questions) -> None:
    engine = Bigram(table(V))
    option_logp(engine, questions)
    wholes = [ids[:-1].tobytes() for ids in questions.options.lists()]
    assert len(engine.asked) == len(set(wholes)) < len(wholes)


def test_a_cloze_is_judged_per_byte() -> None:
    answers = small([-6.0, -8.0], divisors=[3, 8])
    assert choices(answers.questions, answers.logp) == [1]
    assert choices(small([-6.0, -8.0]).questions, answers.logp) == [0]


def test_of_equal_options_the_first_is_chosen() -> None:
    answers = small([-2.0, -2.0, -2.0])
    assert choices(answers.questions, answers.logp) == [0]


def test_a_flip_between_two_wrong_options_changes_no_accuracy() -> None:
    answers = small([-3.0, -1.0, -2.0], [-1.0, -2.0])
    found = compare(answers, np.array([-3, -2, -1, -1, -2], np.float32))
    assert (found.flips, found.lost, found.gained, found.accuracy_difference) == (1, 0, 0, 0.0)
    assert [(flip.item, flip.right, flip.reference, flip.engine) for flip in found.flipped] == [("facts-00", 0, 1, 2)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-50, -0.1), min_size=2, max_size=8), min_size=1, max_size=20), st.randoms())
def test_counts_agree_with_a_count_by_hand(rows: list[list[float]], random: object) -> None:
    answers = small(*rows, right=[index % len(row) for index, row in enumerate(rows)])
    ours = np.roll(answers.logp, 1)
    found = compare(answers, ours)
    a, b = choices(answers.questions, answers.logp), choices(answers.questions, ours)
    right = answers.questions.right.tolist()
    assert found.flips == sum(x != y for x, y in zip(a, b, strict=True))
    assert found.right_engine == sum(x == y for x, y in zip(right, b, strict=True))
    assert found.accuracy_difference_low <= found.accuracy_difference <= found.accuracy_difference_high


# --- the sealed file -------------------------------------------------------------------------------------------------


@pytest.fixture
def path(reference: Reference, tmp_path: Path) -> Path:
    save(reference, tmp_path / "reference.npz")
    return tmp_path / "reference.npz"


def test_items_survive_the_file_bit_for_bit(path: Path, reference: Reference, knowing: Reader) -> None:
    again = load(path)
    assert same(again, reference)
    assert scores(knowing, again) == scores(knowing, reference)


def test_a_reference_without_items_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    save(seal(Bigram(table(16)), [[1, 2, 3]], [[1]], origin=ORIGIN, k=4, continuation_tokens=2), path)
    assert load(path).answers is None
    assert evaluate(Bigram(table(16)), load(path)).items is None
    data = entries(path)
    meta = data["meta.json"].decode()
    for key in ("items", "items_sha256", "options", "option_tokens"):
        assert f'"{key}"' in meta


def test_items_can_be_left_out(reference: Reference, knowing: Reader) -> None:
    assert evaluate(knowing, reference, generate=False, items=False).items is None


def test_progress_counts_the_items(reference: Reference, knowing: Reader) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(knowing, reference, progress=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == list(range(1, 2 + 1 + len(fixed_items()) + 1))
    assert {total for _, total in seen} == {len(seen)}


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("option_ids", 0, V, "option_ids leave the vocabulary"),
        ("option_ids", 0, -1, "option_ids leave the vocabulary"),
        ("option_lengths", 0, 1 << 30, "option_lengths do not add up"),
        ("option_lengths", 0, -5, "option_lengths do not add up"),
        ("item_counts", 0, 1, "item_counts do not add up"),
        ("item_counts", 0, 9, "item_counts do not add up"),
        ("item_counts", 0, -1, "item_counts do not add up"),
        ("item_starts", 0, 0, "item_starts leave an option"),
        ("item_starts", 0, 1 << 20, "item_starts leave an option"),
        ("item_right", 0, 3, "item_right names an option"),
        ("item_right", 0, -1, "item_right names an option"),
        ("option_divisors", 0, 0, "option_divisors are out of range"),
        ("option_divisors", 0, 1 << 20, "option_divisors are out of range"),
        ("option_logp", 0, np.nan, "option_logp holds no log-probabilities"),
        ("option_logp", 0, 0.1, "option_logp holds no log-probabilities"),
        ("option_logp", 0, -np.inf, "option_logp holds no log-probabilities"),
    ],
)
def test_wrong_values_are_refused(path: Path, name: str, index: int, value: float, message: str) -> None:
    change(path, name, lambda a: put(a, index, value))
    with pytest.raises(FileFormatError, match=message):
        load(path)


def test_wrong_types_and_shapes_are_refused(path: Path) -> None:
    change(path, "option_logp", lambda a: a.astype("<f8"))
    with pytest.raises(FileFormatError, match="array option_logp is not float32"):
        load(path)


def test_a_missing_array_is_refused(path: Path) -> None:
    data = entries(path)
    del data["item_right.npy"]
    rewrite(path, data)
    with pytest.raises(FileFormatError, match="misses an entry"):
        load(path)


def test_arrays_without_items_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    save(seal(Bigram(table(16)), [[1, 2, 3]], [[1]], origin=ORIGIN, k=4, continuation_tokens=2), path)
    rewrite(path, entries(path) | {"option_ids.npy": npy(np.zeros(0, "<i4"))})
    with pytest.raises(FileFormatError, match="one too many"):
        load(path)


@pytest.mark.parametrize(
    "values",
    [
        {"items": []},
        {"items": ["facts-01"]},
        {"items": ["facts-01"] * 250},
        {"items": [f"facts-{i:04}" for i in range(2000)]},
        {"items": ["../../etc/passwd"] * 250},
        {"items": "facts-01"},
        {"items_sha256": None},
        {"items_sha256": "x"},
        {"options": 0},
        {"options": 1 << 24},
        {"option_tokens": 1 << 24},
        {"option_tokens": 1 << 60},
    ],
)
def test_wrong_metadata_is_refused(path: Path, values: dict[str, object]) -> None:
    change_meta(path, **values)
    with pytest.raises(FileFormatError):
        load(path)


def test_numpy_reads_the_items(path: Path, reference: Reference) -> None:
    assert reference.answers is not None
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        assert (file["option_logp"] == reference.answers.logp).all()
