"""LoRA adapters: what is merged is what peft computes unmerged, and adapters that do not fit are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Cli
from numpy.typing import NDArray
from tiny import Tiny

pytest.importorskip("peft")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import peft
import torch
import transformers

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.source import resolve
from edgekit.engines.torch import TorchEngine
from edgekit.errors import UnknownArchitectureError
from edgekit.options import SourceOptions
from edgekit.progress import Quiet

pytestmark = [  # of peft, when it makes and saves an adapter
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
]
MISSING, CORRUPT, UNSAFE, BAD_WEIGHTS, UNKNOWN = 10, 11, 12, 13, 15
IDS = np.array([5, 77, 300, 12, 250, 9, 128, 33], dtype=np.int64)
Q, V, DOWN = "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def adapter(base: Path, folder: Path, **settings: Any) -> NDArray[np.float32]:
    """Save a random adapter of peft's for the model in `base`; the logits of the model with it, unmerged."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    made = peft.get_peft_model(model, peft.LoraConfig(**{**plain, **settings})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        for name, weights in made.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weights.add_(0.1 * torch.randn(weights.shape, generator=generator))
        logits: NDArray[np.float32] = made(torch.as_tensor(IDS)[None]).logits[0].numpy()
    made.save_pretrained(folder)
    return logits


def logits(checkpoint: Checkpoint) -> NDArray[np.float32]:
    return TorchEngine(checkpoint.root).logits(IDS)


def merged(base: Path, folder: Path) -> Checkpoint:
    return resolve(str(base), SourceOptions(lora=folder))


# -- what is refused


@pytest.fixture
def saved(sound: Path, tmp_path: Path) -> Path:
    """A sound adapter of `sound` that a test may damage."""
    adapter(sound, tmp_path / "adapter")
    return tmp_path / "adapter"


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def test_no_adapter(cli: Cli, sound: Path, tmp_path: Path) -> None:
    cli("plan", sound, "--lora", tmp_path / "gone").refused(MISSING, "gone", "adapter_config.json", "--lora")
    cli("plan", sound, "--lora", sound).refused(MISSING, "adapter_config.json")


def test_pickle_is_refused_and_never_opened(cli: Cli, sound: Path, saved: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    (saved / "adapter_model.safetensors").unlink()
    (saved / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    cli("plan", sound, "--lora", saved).refused(UNSAFE, "adapter_model.bin", "save_pretrained")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"peft_type": "IA3"}, UNKNOWN, "'IA3'"),
        ({"peft_type": None}, UNKNOWN, "LORA"),
        ({"init_lora_weights": "pissa"}, UNKNOWN, "init_lora_weights"),
        ({"init_lora_weights": []}, UNKNOWN, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, UNKNOWN, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, UNKNOWN, "alora_invocation_tokens"),
        ({"a_setting_of_tomorrow": "x"}, UNKNOWN, "a_setting_of_tomorrow"),
        ({"r": 8}, BAD_WEIGHTS, "lora_"),
        ({"r": -1}, CORRUPT, "r = -1"),
        ({"r": 1.5}, CORRUPT, "r = 1.5"),
        ({"lora_alpha": "nan"}, CORRUPT, "lora_alpha"),
        ({"rank_pattern": {"(a+)+$": 4}}, CORRUPT, "rank_pattern"),
        ({"rank_pattern": 7}, CORRUPT, "rank_pattern"),
        ({"use_dora": True}, BAD_WEIGHTS, "lora_magnitude_vector"),
    ],
)
def test_adapters_that_cannot_be_merged(
    changes: dict[str, Any], code: int, words: str, cli: Cli, sound: Path, saved: Path
) -> None:
    configure(saved, **changes)
    cli("plan", sound, "--lora", saved).refused(code, words)


def test_module_that_the_configuration_names_is_not_imported(
    sound: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    configure(saved, megatron_config={"a": 1}, megatron_core="evil", auto_mapping={"parent_library": "evil"})
    merged(sound, saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("raw", [b"", b"<html>", (1 << 40).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"])
def test_garbage_weights(raw: bytes, cli: Cli, sound: Path, saved: Path) -> None:
    (saved / "adapter_model.safetensors").write_bytes(raw)
    code = cli("plan", sound, "--lora", saved).code
    assert code in (CORRUPT, BAD_WEIGHTS)


def test_garbage_configuration(cli: Cli, sound: Path, saved: Path) -> None:
    (saved / "adapter_config.json").write_text("[" * 100_000)
    cli("plan", sound, "--lora", saved).refused(CORRUPT, "adapter_config.json")


def tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.numpy import load_file, save_file

    found = load_file(folder / "adapter_model.safetensors")
    change(found)
    save_file(found, folder / "adapter_model.safetensors")


def name_of(module: str, part: str, layer: int = 1) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.{part}.weight"


def test_part_without_its_other_half(cli: Cli, sound: Path, saved: Path) -> None:
    tensors(saved, lambda found: found.pop(name_of(Q, "lora_A")))
    cli("plan", sound, "--lora", saved).refused(BAD_WEIGHTS, "lora_A, lora_B", "q_proj")


def test_nan(sound: Path, saved: Path, cli: Cli) -> None:
    tensors(saved, lambda found: found[name_of(V, "lora_B")].fill(np.nan))
    outcome = cli("plan", sound, "--lora", saved)
    assert outcome.code == BAD_WEIGHTS
    assert "NaN" in outcome.err
    assert not list((saved.parent / "cache").rglob("*.safetensors"))


def test_changed_tensor_that_is_no_part_of_the_model(cli: Cli, sound: Path, saved: Path) -> None:
    tensors(saved, lambda found: found.update({"base_model.model.score.weight": np.ones((2, 64), np.float32)}))
    cli("plan", sound, "--lora", saved).refused(BAD_WEIGHTS, "score.weight")


@pytest.mark.parametrize("other", [Tiny(hidden=96, heads=6), Tiny(layers=1), Tiny(ffn=128)], ids=str)
def test_adapter_of_another_model(other: Tiny, cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("plan", tiny.make(tmp_path / "other", other), "--lora", saved).refused(BAD_WEIGHTS, "the adapter")


def test_head_of_another_size(cli: Cli, tmp_path: Path) -> None:
    base = tiny.make(tmp_path / "base", Tiny(tied=False))
    adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    larger = np.ones((390, 64), np.float32)
    tensors(tmp_path / "adapter", lambda found: found.update({"base_model.model.lm_head.weight": larger}))
    cli("plan", base, "--lora", tmp_path / "adapter").refused(BAD_WEIGHTS, "lm_head", "[390, 64]", "[384, 64]")


@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_tied_embedding(settings: dict[str, Any], cli: Cli, sound: Path, tmp_path: Path) -> None:
    adapter(sound, tmp_path / "adapter", **settings)
    cli("plan", sound, "--lora", tmp_path / "adapter").refused(UNKNOWN, "embedding and head at once")


# -- what is merged


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (Tiny(), {}),
        (Tiny(dtype="bf16", shards=2), {"use_rslora": True}),
        (Tiny(), {"use_dora": True}),
        (Tiny(), {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 32}}),
        (Tiny(), {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
        (Tiny(tied=False), {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
        (Tiny(tied=False), {"modules_to_save": ["lm_head", "embed_tokens"]}),
        (Tiny(tied=False), {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
        (Tiny(), {"target_modules": r".*\.1\.mlp\.(up|gate)_proj", "layers_to_transform": None}),
    ],
    ids=str,
)
def test_logits_are_those_of_peft_unmerged(base: Tiny, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "base", base)
    before = logits(resolve(str(folder)))
    wanted = adapter(folder, tmp_path / "adapter", **settings)
    assert np.abs(wanted - before).max() > 0.05, "the adapter changes something"
    np.testing.assert_allclose(logits(merged(folder, tmp_path / "adapter")), wanted, atol=2e-4 * np.abs(wanted).max())


def test_tensors_that_are_not_changed_stay_bit_for_bit(sound: Path, saved: Path) -> None:
    checkpoint, weights = merged(sound, saved), tiny.weights(Tiny())
    same = {t.hf for t, values in checkpoint.tensors() if np.array_equal(values, weights[t.hf])}
    assert weights.keys() - same == {f"model.layers.{i}.{m}.weight" for i in range(2) for m in (Q, V, DOWN)}


def test_source_names_both_and_the_tokenizer_is_there(sound: Path, saved: Path) -> None:
    checkpoint = merged(sound, saved)
    assert checkpoint.source.startswith("local folder model, merged with the LoRA adapter adapter@")
    assert checkpoint.name == "model-adapter"
    assert (checkpoint.root / "tokenizer.json").read_bytes() == (sound / "tokenizer.json").read_bytes()
    assert (checkpoint.root / "generation_config.json").is_file()


def test_codes_of_a_training_stay_behind_and_that_is_said(sound: Path, saved: Path, tmp_path: Path) -> None:
    base = shutil.copytree(sound, tmp_path / "base")
    (base / "edgekit").mkdir()
    (base / "edgekit" / "codes.safetensors").write_bytes(b"of the base's weights")
    said: list[str] = []

    class Told(Quiet):
        def note(self, line: str) -> None:
            said.append(line)

    for _ in range(2):  # merged, and from the cache
        root = resolve(str(base), SourceOptions(lora=saved), progress=Told()).root
        assert not (root / "edgekit").exists()
        assert "quantized anew" in said.pop()


def test_tokenizer_of_the_adapter_wins(sound: Path, saved: Path) -> None:
    (saved / "tokenizer.json").write_bytes((sound / "tokenizer.json").read_bytes())
    (saved / "tokenizer_config.json").write_text('{"chat_template": "mine"}')
    assert "mine" in (merged(sound, saved).root / "tokenizer_config.json").read_text()


def test_merged_once_for_the_same_inputs(sound: Path, saved: Path, tmp_path: Path) -> None:
    first = merged(sound, saved)
    inode = (first.root / "model.safetensors").stat().st_ino
    assert (merged(sound, saved).root / "model.safetensors").stat().st_ino == inode
    configure(saved, lora_alpha=16)
    assert merged(sound, saved).root != first.root
    other = tiny.make(tmp_path / "model", Tiny(seed=1))
    assert merged(other, saved).root.name != first.root.name


GRANITE: dict[str, Any] = {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}


def test_a_family_without_a_table_is_opened_again_as_it_was(tmp_path: Path) -> None:
    base = tiny.make(tmp_path / "granite", **GRANITE)
    unmerged = adapter(base, tmp_path / "adapter")
    made = resolve(str(base), SourceOptions(lora=tmp_path / "adapter", any_family=True))
    np.testing.assert_allclose(logits(made), unmerged, rtol=1e-3, atol=1e-3)


def test_transposed_weights_need_a_table(tmp_path: Path) -> None:
    base = tiny.make(tmp_path / "granite", **GRANITE)
    adapter(base, tmp_path / "adapter")
    configure(tmp_path / "adapter", fan_in_fan_out=True)
    with pytest.raises(UnknownArchitectureError, match="fan_in_fan_out"):
        resolve(str(base), SourceOptions(lora=tmp_path / "adapter", any_family=True))


def test_plan_and_inspect(cli: Cli, sound: Path, saved: Path) -> None:
    assert cli("plan", sound, "--lora", saved).code == 0
    facts = json.loads(cli("inspect", sound, "--lora", saved, "--json").out)["facts"]
    assert "LoRA adapter adapter@" in facts["source"]
