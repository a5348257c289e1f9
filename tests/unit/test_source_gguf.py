"""A GGUF file as a model: its weights, its configuration and its tokenizer come back, and bad files are refused."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import tiny_gguf
import tiny_tokenizers
from conftest import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny

from edgekit.bundle.golden import CORPUS
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint import gguf_tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.demo import demo_checkpoint
from edgekit.checkpoint.gguf_source import convert, gguf_checkpoint, read_gguf
from edgekit.checkpoint.gguf_tokenizer import SPLITTINGS, write_tokenizer
from edgekit.checkpoint.source import resolve
from edgekit.errors import BadWeightsError, EdgekitError, TokenizerError
from edgekit.export import gguf_vocab

TINY = Tiny()
MISSING, CORRUPT, BAD_WEIGHTS, TOKENIZER, UNKNOWN, FORMAT = 10, 11, 13, 14, 15, 26


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def left(tmp_path: Path) -> list[str]:
    """What is in the cache besides locks."""
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


# -- files that are refused


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it is empty"),
        (b"GGUF", "it ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "it ends early"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"<!DOCTYPE html><html>404</html>", "does not begin with GGUF"),
    ],
)
def test_garbage(raw: bytes, words: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(raw)
    cli("plan", tmp_path / "model.gguf").refused(FORMAT, words, "model.gguf")
    assert not left(tmp_path)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.999))
def test_file_cut_short(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = tiny_gguf.write(folder / "whole.gguf", Tiny(layers=1)).read_bytes()
    (folder / "model.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EdgekitError) as caught:
        resolve(str(folder / "model.gguf"))
    assert caught.value.exit_code == FORMAT


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_never_end_in_a_traceback(data: st.DataObject, flipping: Path) -> None:
    """What is changed may still be a model; it may not be anything but a model or a refusal."""
    raw = bytearray((flipping / "whole.gguf").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 2000) | st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    (flipping / "model.gguf").write_bytes(raw)
    code = 0
    try:
        gguf_checkpoint(flipping / "model.gguf")
    except EdgekitError as error:
        code = error.exit_code
    assert code in (0, CORRUPT, BAD_WEIGHTS, TOKENIZER, UNKNOWN, FORMAT)


@pytest.fixture(scope="module")
def flipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flipping")
    tiny_gguf.write(folder / "whole.gguf", Tiny(layers=1, hidden=32, ffn=32, heads=2, kv_heads=2))
    return folder


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"arch": "mamba"}, UNKNOWN, "mamba"),
        ({"endian": gguf.GGUFEndian.BIG}, FORMAT, "big-endian"),
        ({"facts": {".split.count": 3}}, FORMAT, "llama-gguf-split --merge"),
        ({"facts": {"block_count": None}}, CORRUPT, "llama.block_count"),
        ({"facts": {"block_count": 3}}, CORRUPT, "blk.2."),
        ({"facts": {"block_count": 0}}, CORRUPT, "block_count = 0"),
        ({"facts": {"block_count": (1 << 32) - 1}}, CORRUPT, "block_count = 4294967295"),
        ({"facts": {"attention.head_count_kv": [2, 4]}}, CORRUPT, "the same for all layers"),
        ({"facts": {"attention.head_count": 3}}, CORRUPT, "3 heads and 2 key-value heads"),
        ({"facts": {"attention.layer_norm_rms_epsilon": None}}, CORRUPT, "epsilon"),
        ({"facts": {"rope.dimension_count": 8}}, CORRUPT, "rope.dimension_count = 8"),
        ({"facts": {"rope.scaling.type": "longrope"}}, UNKNOWN, "longrope"),
        ({"facts": {"expert_count": 8}}, UNKNOWN, "expert_count"),
        ({"facts": {"final_logit_softcapping": 1.0}}, UNKNOWN, "final_logit_softcapping = 1.0"),
        ({"facts": {"attn_logit_softcapping": 1.0}}, UNKNOWN, "attn_logit_softcapping = 1.0"),
        ({"facts": {"attention.scale": 1.0}}, UNKNOWN, "attention.scale = 1.0"),
        ({"facts": {"attention.temperature_scale": 1.0}}, UNKNOWN, "attention.temperature_scale = 1.0"),
        ({"facts": {"logit_scale": 2.0}}, UNKNOWN, "logit_scale = 2.0"),
        ({"facts": {"feed_forward_length": 128}}, BAD_WEIGHTS, "ffn_gate"),
        ({"facts": {"vocab_size": 400}}, CORRUPT, "vocab_size = 400"),
        ({"drop": "blk.1.attn_k.weight"}, CORRUPT, "blk.1.attn_k.weight"),
        ({"drop": "token_embd.weight"}, CORRUPT, "vocab_size"),
        ({"more": {"blk.0.ffn_gate_exps.weight": np.ones((8, 8), np.float32)}}, CORRUPT, "ffn_gate_exps"),
        ({"more": {"rope_freqs.weight": np.array([1, 5, 2, 7, 1, 1, 1, 3], np.float32)}}, UNKNOWN, "rope_freqs"),
        ({"more": {"output_norm.weight": np.full(64, np.nan, np.float32)}}, BAD_WEIGHTS, "output_norm"),
        ({"words": {"model": "bert"}}, TOKENIZER, "'bert'"),
        ({"words": {"model": None}}, TOKENIZER, "None"),
        ({"words": {"pre": "chatglm-bpe"}}, TOKENIZER, "chatglm-bpe"),
        ({"words": {"pre": None}}, TOKENIZER, "smollm"),
        ({"words": {"merges": ["a"]}}, TOKENIZER, "a merge is not two tokens"),
        ({"words": {"merges": ["xyz abc"]}}, TOKENIZER, "it makes no tokenizer"),
        ({"words": {"merges": None}}, TOKENIZER, "merges"),
        ({"words": {"tokens": ["a", "a"], "token_type": [1, 1]}}, TOKENIZER, "twice"),
        ({"words": {"tokens": [str(i) for i in range(400)], "token_type": [1] * 400}}, TOKENIZER, "384 rows"),
        ({"words": {"tokens": ["a", "b" * 1025], "token_type": [1, 1]}}, TOKENIZER, "1025 characters"),
        ({"words": {"token_type": [1]}}, TOKENIZER, "token_type has 1 entries"),
        ({"words": {"tokens": 7}}, TOKENIZER, "no list of str"),
        ({"made": Tiny(tokenizer="sentencepiece", vocab=400), "words": {"scores": None}}, TOKENIZER, "scores"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_model(changes: dict[str, Any], code: int, words: str, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", **changes)
    with pytest.raises(EdgekitError) as caught:
        resolve(str(path))
    assert caught.value.exit_code == code, caught.value
    assert words in caught.value.sentence()
    assert not left(tmp_path), "nothing half-written"


def test_merges_take_no_memory_that_the_file_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut of a token of the form a…ab…b is a pair of tokens."""
    tokens = [*"<>", *("a" * a + "b" * b for a in range(12) for b in range(12) if a + b)]
    words = {
        "model": "llama", "tokens": tokens, "token_type": [1] * len(tokens), "scores": [0.0] * len(tokens),
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    opened(tmp_path, words=words)
    monkeypatch.setattr(gguf_tokenizer, "_MOST_MERGES", 1000)
    with pytest.raises(TokenizerError, match="more than 1000 pairs"):
        write_tokenizer({f"tokenizer.ggml.{key}": value for key, value in words.items()}, 384, tmp_path, 64)


def test_cuts_of_a_long_token_are_not_held_at_once(tmp_path: Path) -> None:
    tokens = ["<", ">", "a" * 1024]
    words = {"model": "llama", "tokens": tokens, "token_type": [1] * 3, "scores": [0.0] * 3}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    write_tokenizer(metadata, 3, tmp_path, 64)  # imports
    tracemalloc.start()
    write_tokenizer(metadata, 3, tmp_path, 64)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200_000, "all its cuts take 1 MB"


def test_neutral_factors_are_no_variant(tmp_path: Path) -> None:
    neutral = {"logit_scale": 1.0, "residual_scale": 0.0, "attention.scale": 0.0, "final_logit_softcapping": 0.0}
    assert opened(tmp_path, facts=neutral).spec == opened(tmp_path / "plain").spec


def test_no_such_file(cli: Cli, tmp_path: Path) -> None:
    cli("plan", tmp_path / "gone.gguf").refused(MISSING, "gone.gguf")


def test_revision_of_a_file(cli: Cli, tmp_path: Path) -> None:
    cli("plan", tiny_gguf.write(tmp_path / "model.gguf"), "--revision", "main").refused(29, "--revision", "hub")


def test_full_disk(cli: Cli, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf")
    monkeypatch.setenv("EDGEKIT_CACHE", str(small_disk / "cache"))
    assert (outcome := cli("plan", path)).code == 27
    assert "no space left" in outcome.err
    assert not any(path.is_file() and path.suffix != ".lock" for path in small_disk.rglob("*"))


# -- what comes back


def opened(tmp_path: Path, made: Tiny = TINY, **changes: Any) -> Checkpoint:
    tmp_path.mkdir(exist_ok=True)
    return gguf_checkpoint(tiny_gguf.write(tmp_path / "model.gguf", made, **changes))


@pytest.mark.parametrize("kind", ["F16", "F32", "BF16"])
@pytest.mark.parametrize("tied", [True, False])
def test_unquantized_weights_come_back_exactly(kind: str, tied: bool, tmp_path: Path) -> None:
    made = Tiny(dtype={"F16": "f16", "F32": "f32", "BF16": "bf16"}[kind], tied=tied, kv_heads=1)
    checkpoint = opened(tmp_path, made, kind=kind)
    assert checkpoint.spec.tied is tied
    for tensor, weights in checkpoint.tensors():
        np.testing.assert_array_equal(weights, tiny.weights(made)[tensor.hf], err_msg=tensor.hf)
    assert checkpoint.caveat == ""
    assert checkpoint.source == "GGUF file model.gguf"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_quantized_weights_are_those_of_the_file_and_it_says_so(kind: str, tmp_path: Path) -> None:
    made = Tiny()
    checkpoint = opened(tmp_path, made, kind=kind)
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    named = {tensor.hf: weights for tensor, weights in checkpoint.tensors()}
    for role, name in (("ffn_up", "mlp.up_proj"), ("attn_v", "self_attn.v_proj")):
        exact = stored[f"blk.1.{role}.weight"]
        np.testing.assert_allclose(named[f"model.layers.1.{name}.weight"], exact, atol=np.abs(exact).max() * 2**-11)
    q, original = named["model.layers.0.self_attn.q_proj.weight"], tiny.weights(made)
    assert np.corrcoef(q.ravel(), original["model.layers.0.self_attn.q_proj.weight"].ravel())[0, 1] > 0.99
    assert f"({kind})" in checkpoint.caveat
    assert "flattered" in checkpoint.caveat
    assert checkpoint.source.endswith(f"dequantized from {kind}")


def test_weights_that_float16_cannot_hold_become_float32(tmp_path: Path) -> None:
    large = tiny_gguf.tensors(Tiny())["blk.0.ffn_up.weight"] * 1e6
    checkpoint = opened(tmp_path, kind="Q8_0", more={"blk.0.ffn_up.weight": large})
    back = {tensor.role: weights for tensor, weights in checkpoint.tensors() if tensor.layer == 0}["ffn_up"]
    np.testing.assert_allclose(back, large, atol=np.abs(large).max() / 127)
    assert checkpoint.config["dtype"] == "float32"


def test_rows_in_pieces_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", kind="Q8_0")
    whole = gguf_checkpoint(path).sha256
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("edgekit.checkpoint.gguf_source._PIECE", 1000)
    assert gguf_checkpoint(path).sha256 == whole


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    def peak(layers: int) -> int:
        model = read_gguf(tiny_gguf.write(tmp_path / "model.gguf", Tiny(layers=layers, hidden=256, ffn=512, heads=8)))
        (tmp_path / str(layers)).mkdir()
        tracemalloc.start()
        convert(model, tmp_path / str(layers))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    more_weights = 10 * 4 * 256 * 512 * 3  # bytes in float32 of ten layers' feed-forward matrices alone
    assert peak(12) - peak(2) < more_weights / 10


@pytest.mark.parametrize(
    "made",
    [Tiny(), Tiny(layers=1, heads=3, kv_heads=3, head_dim=32, ffn=160), Tiny(theta=500000.0, kv_heads=4, context=99)],
    ids=str,
)
def test_the_configuration_is_that_of_the_original(made: Tiny, tmp_path: Path) -> None:
    original = open_checkpoint(tiny.make(tmp_path / "folder", made))
    assert opened(tmp_path, made).spec == original.spec


def test_what_the_file_leaves_out_is_what_llama_cpp_assumes(tmp_path: Path) -> None:
    left_out = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count", "rope.freq_base")
    spec = opened(tmp_path, Tiny(kv_heads=4), facts=dict.fromkeys(left_out)).spec
    assert (spec.kv_heads, spec.head_dim, spec.rope_theta) == (4, 16, 10000.0)


@pytest.mark.parametrize(
    "facts",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scaling.type": "none", "rope.scaling.factor": 0.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.25},
    ],
    ids=str,
)
def test_rotary_scaling(facts: dict[str, Any], tmp_path: Path) -> None:
    spec = opened(tmp_path, facts=facts).spec
    scaling = spec.rope.scaling
    if facts.get("rope.scaling.type") == "none":
        assert scaling is None
        return
    assert scaling is not None
    assert scaling.factor == 4.0
    assert spec.rope.kind == facts.get("rope.scaling.type", "linear")
    assert (spec.yarn_original_context or 512) == facts.get("rope.scaling.original_context_length", 512)
    assert (spec.gguf_yarn_attention_factor or 1) == pytest.approx(facts.get("rope.scaling.attn_factor", 1))


@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_llama3_scaling_is_found_in_its_divisors(head_dim: int, tmp_path: Path) -> None:
    made = Tiny(hidden=4 * head_dim, heads=4, head_dim=head_dim, llama3_rope=True, layers=1)
    original = open_checkpoint(tiny.make(tmp_path / "folder", made)).spec
    scaling = original.rope.scaling
    assert scaling is not None
    divisors = scaling.divisors(head_dim, made.theta).astype(np.float32)
    found = opened(tmp_path, made, more={"rope_freqs.weight": divisors}).spec.rope.scaling
    assert found is not None
    np.testing.assert_allclose(found.divisors(head_dim, made.theta), divisors, rtol=1e-3)


# -- the tokenizer


@pytest.mark.parametrize("kind", ["smollm", "gpt2", "qwen2", "llama3", "sentencepiece"])
def test_ids_are_those_of_the_original(kind: str, tmp_path: Path) -> None:
    made = Tiny(tokenizer=kind, vocab=640, layers=1)
    original = load_tokenizer(tiny.make(tmp_path / "folder", made))
    template = {".tokenizer.chat_template": tiny_tokenizers.CHATML}
    back = load_tokenizer(opened(tmp_path, made, facts=template).root)
    for text in CORPUS:
        assert back.encode(text) == original.encode(text), ascii(text)
        ids = original.encode(text)
        assert back.decode(ids) == original.decode(ids), ascii(text)
    chat = [{"role": "user", "content": "Name a tea."}]
    assert back.template == tiny_tokenizers.CHATML
    assert back.chat_text(chat).startswith("<|im_start|>user")
    assert (back.bos_id, back.eos_id) == (original.bos_id, original.eos_id)


@pytest.mark.parametrize("name", SPLITTINGS)
def test_every_name_of_a_splitting_can_be_written_again(name: str, tmp_path: Path) -> None:
    """The tables of reading and of writing agree."""
    checkpoint = opened(tmp_path, words={"pre": name})
    assert SPLITTINGS[gguf_vocab.read_vocab(checkpoint.root, 384).pre] == SPLITTINGS[name]


def test_every_splitting_that_is_written_can_be_read() -> None:
    assert set(gguf_vocab._SHAPES.values()) <= SPLITTINGS.keys()


@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("kind", ["smollm", "llama3", "sentencepiece"])
def test_beginning_of_text(kind: str, told: bool | None, tmp_path: Path) -> None:
    back = load_tokenizer(opened(tmp_path, Tiny(tokenizer=kind, vocab=640), words={"add_bos_token": told}).root)
    begins = kind != "smollm" if told is None else told
    assert (back.encode("tea", add_special_tokens=True)[0] == back.bos_id) is begins


def test_user_defined_tokens_are_found_whole_and_shown(tmp_path: Path) -> None:
    words = tiny_gguf.vocabulary("smollm", 384)
    words["tokens"][300], words["token_type"][300] = "<table>", 4
    words["merges"] = [merge for merge in words["merges"] if merge.replace(" ", "") in words["tokens"]]
    words["merges"] = [m for m in words["merges"] if set(m.split(" ")) <= set(words["tokens"])]
    back = load_tokenizer(opened(tmp_path, words=words).root)
    assert 300 in back.encode("a <table> b")
    assert "<table>" in back.decode(back.encode("a <table> b"))


def test_unused_rows_of_the_embedding_are_no_tokens(tmp_path: Path) -> None:
    words = tiny_gguf.vocabulary("smollm", 384)
    words["tokens"] += [f"[PAD{i}]" for i in range(384, 400)]
    words["token_type"] += [5] * 16
    back = load_tokenizer(opened(tmp_path, Tiny(vocab=400), words=words).root)
    assert back.vocab_size == 384


def test_both_ends_of_a_turn_stop_it(tmp_path: Path) -> None:
    root = opened(tmp_path, words={"eot_token_id": 5}).root
    assert json.loads((root / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert {2, 5} <= load_tokenizer(root).stop_ids


# -- the cache


def test_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(tmp_path)
    before = (first.root / "model.safetensors").stat().st_ino
    monkeypatch.setattr("edgekit.checkpoint.gguf_source.convert", None)
    again = gguf_checkpoint(tmp_path / "model.gguf")
    assert again.root == first.root
    assert (again.root / "model.safetensors").stat().st_ino == before
    assert (again.source, again.name) == (first.source, "model")


def test_another_file_of_the_same_name_is_another_model(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert opened(tmp_path, Tiny(seed=1)).sha256 != first.sha256


def test_one_version_and_96_bits_of_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file must not be taken for another one, nor an old conversion for a new one, the demo's included."""
    path = tiny_gguf.write(tmp_path / "model.gguf")
    monkeypatch.setattr("edgekit.checkpoint.demo.packaged_gguf", lambda: path)
    monkeypatch.setattr("edgekit.checkpoint.gguf_source._FORMAT", 77)
    key = f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}-v77"
    assert gguf_checkpoint(path).root.name == f"model{key}"
    assert demo_checkpoint().root.name == f"smollm2-135m{key}"


def test_two_at_once(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf")
    found: list[Checkpoint] = []
    threads = [threading.Thread(target=lambda: found.append(gguf_checkpoint(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({checkpoint.root for checkpoint in found}) == 1
    assert len(found) == 4
    assert [p.name for p in (tmp_path / "cache" / "gguf").iterdir() if not p.name.endswith(".lock")] == [
        found[0].root.name
    ]


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf")

    def fail(*_: object) -> None:
        raise BadWeightsError("no")

    monkeypatch.setattr("edgekit.checkpoint.gguf_source.write_safetensors", fail)
    with pytest.raises(BadWeightsError):
        gguf_checkpoint(path)
    assert not left(tmp_path)


# -- verbs


def test_plan_and_inspect(cli: Cli, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "model.gguf", kind="Q8_0")
    plans = json.loads(cli("plan", path, "--json").out)
    assert {tensor["tensor"] for tensor in plans[0]["tensors"]} == tiny.weights(Tiny()).keys()
    assert json.loads(cli("inspect", path, "--json").out)["kind"] == "gguf"
