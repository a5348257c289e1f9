"""Tokenizer files and generated text: bad files and bad options are one sentence; text comes whole and stops."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from edgekit.bundle.tokenizer import Tokenizer, load_tokenizer
from edgekit.chat import generate_text, picker, prompt_ids
from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError, OptionError, TokenizerError

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<stop>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One token for each byte, so that characters are cut by tokens; then the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.token_to_id("<|endoftext|>"))]
    )
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = byte_tokenizer()
    made.enable_truncation(4)  # as training runs leave it; must not cut anything here
    made.enable_padding(length=64)
    made.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "<|endoftext|>"}, "bos_token": "<|im_start|>", "chat_template": CHATML}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


class Script:
    """An engine that says the given ids, whatever it is asked."""

    name = "script"

    def __init__(self, ids: Iterable[int], *, vocab_size: int = 260, max_context: int = 512) -> None:
        self.ids, self.vocab_size, self.max_context = list(ids), vocab_size, max_context
        self.prompt: Ids | None = None
        self.steps = 0

    def _row(self) -> F32:
        row = np.zeros(self.vocab_size, dtype=np.float32)
        row[self.ids[self.steps % len(self.ids)]] = 9
        return row

    def logits(self, ids: Ids) -> F32:
        raise NotImplementedError

    def start(self, ids: Ids) -> F32:
        self.prompt, self.steps = ids, 0
        return self._row()

    def step(self, token: int) -> F32:
        self.steps += 1
        return self._row()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"model": {"type": "Nothing"}}'])
def test_spoilt_tokenizer_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_missing_tokenizer_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"[" * 100_000, b"\xff"])
def test_spoilt_configuration(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(folder)


def test_template_of_a_wrong_type_or_encoding(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"chat_template": 7}')
    with pytest.raises(TokenizerError, match="chat_template"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="UTF-8"):
        load_tokenizer(folder)


@pytest.mark.parametrize("ids", [[-1], [2**40]])
def test_ids_that_are_none(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match="ids"):
        tokenizer.decode(ids)
    with pytest.raises(TokenizerError, match="ids"):
        list(tokenizer.stream(ids))


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
)
def test_option_out_of_range_is_refused_before_the_engine_runs(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    engine = Script([1])
    with pytest.raises(OptionError):
        generate_text(engine, tokenizer, "hi", **options)
    assert engine.prompt is None


def test_prompt_longer_than_the_context_names_both_lengths(tokenizer: Tokenizer) -> None:
    length = len(prompt_ids(tokenizer, "hi"))
    with pytest.raises(OptionError, match=rf"{length} tokens.*fewer than the {length} "):
        generate_text(Script([1], max_context=length), tokenizer, "hi")


def test_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="200 tokens"):
        generate_text(Script([1], vocab_size=200), tokenizer, "hi")


def test_logits_that_are_not_numbers(tokenizer: Tokenizer) -> None:
    engine = Script([1])
    engine._row = lambda: np.full(260, np.nan, dtype=np.float32)  # type: ignore[method-assign]
    with pytest.raises(BadWeightsError):
        list(generate_text(engine, tokenizer, "hi"))


def test_system_message_needs_a_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    bare = load_tokenizer(folder)
    with pytest.raises(OptionError, match="system"):
        prompt_ids(bare, "hi", system="Be brief.")
    with pytest.raises(TokenizerError, match="no chat template"):
        bare.chat_ids([{"role": "user", "content": "hi"}])
    assert bare.decode(prompt_ids(bare, "hi"), skip_special_tokens=False) == "<|endoftext|>hi"


def test_empty_prompt_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    plain_backend = byte_tokenizer()
    plain_backend.post_processor = processors.ByteLevel()
    plain_backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(OptionError, match="empty"):
        generate_text(Script([1]), load_tokenizer(folder), "")


def test_stop_ids_come_from_every_place(folder: Path) -> None:
    backend = byte_tokenizer()
    end, turn, stop = (backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>", "<stop>"))
    assert load_tokenizer(folder).stop_ids == {end, turn}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, "x", None, -1, True]}))
    assert load_tokenizer(folder).stop_ids == {end, turn, stop}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    assert load_tokenizer(folder).stop_ids == {end, turn, stop}


def test_special_tokens(tokenizer: Tokenizer) -> None:
    backend = byte_tokenizer()
    assert tokenizer.eos_id == backend.token_to_id("<|endoftext|>")
    assert tokenizer.bos_id == backend.token_to_id("<|im_start|>")
    assert tokenizer.vocab_size == 260
    assert tokenizer.encode("<|im_end|>") == [backend.token_to_id("<|im_end|>")]


def test_template_file_goes_before_the_configuration(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    loaded = load_tokenizer(folder)
    assert loaded.chat_text([{"role": "user", "content": "hi"}]) == "hi!"


def test_named_templates_give_the_default_one(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(folder).chat_text([{"role": "user", "content": "hi"}]) == "yes"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: "<" not in text))
def test_stream_gives_the_text_and_never_half_a_character(text: str) -> None:
    loaded = Tokenizer(backend=byte_tokenizer(), template=None, special={}, stop_ids=frozenset())
    ids = loaded.encode(text)
    assert len(ids) == len(text.encode())
    whole = "".join(loaded.stream(ids))
    # A replacement character at the very end cannot be told from a cut character and is held back.
    assert whole == text.rstrip("\ufffd")
    for cut in range(len(ids)):
        assert text.startswith("".join(loaded.stream(ids[:cut])))


def test_text_streams_and_stops_at_the_end_of_the_turn(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode("caf\u00e9 \U0001f375<|im_end|>never said")
    engine = Script(said)
    pieces = list(generate_text(engine, tokenizer, "hi", system="Be brief.", max_tokens=100))
    assert "".join(pieces) == "caf\u00e9 \U0001f375"
    assert "\U0001f375" in pieces
    assert engine.prompt is not None
    assert tokenizer.decode([int(i) for i in engine.prompt], skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_limits_of_tokens_and_context(tokenizer: Tokenizer) -> None:
    letter = tokenizer.encode("a")
    assert "".join(generate_text(Script(letter), tokenizer, "hi", max_tokens=3)) == "aaa"
    context = len(prompt_ids(tokenizer, "hi")) + 5
    assert "".join(generate_text(Script(letter, max_context=context), tokenizer, "hi", max_tokens=99)) == "aaaaa"


def test_greedy_takes_the_largest() -> None:
    row = np.array([0.1, 3.0, 2.9, -np.inf], dtype=np.float32)
    assert picker(temperature=0, top_p=1, seed=0)(row) == 1


def test_draws_follow_the_softmax_and_repeat_with_the_seed() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2, 1e-30], dtype=np.float32))
    draws = [[pick(row) for _ in range(4000)] for pick in (picker(temperature=1, top_p=1, seed=7) for _ in range(2))]
    assert draws[0] == draws[1]
    shares = np.bincount(draws[0], minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2, 0], atol=0.03)
    assert [picker(temperature=1, top_p=1, seed=8)(row)] * 4000 != draws[0]


def test_temperature_sharpens() -> None:
    row = np.log(np.array([0.6, 0.4], dtype=np.float32))
    pick = picker(temperature=0.5, top_p=1, seed=3)
    share = sum(pick(row) == 0 for _ in range(4000)) / 4000
    assert share == pytest.approx(0.36 / (0.36 + 0.16), abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2})])
def test_nucleus(top_p: float, kept: set[int]) -> None:
    pick = picker(temperature=1, top_p=top_p, seed=1)
    row = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    assert {pick(row) for _ in range(300)} == kept
