"""Every family becomes GGUF and ONNX files that say what transformers says; every trait left out shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("llama_cpp")

import tiny_families  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from original import Original, genai_says_what_our_engine_says  # noqa: E402

from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgekit.checkpoint.rope import Rope  # noqa: E402
from edgekit.checkpoint.spec import Spec  # noqa: E402
from edgekit.coherence.distribution import kl_full  # noqa: E402
from edgekit.engines.base import Engine  # noqa: E402
from edgekit.engines.llamacpp import LlamaCppEngine  # noqa: E402
from edgekit.engines.ort import OrtEngine  # noqa: E402
from edgekit.errors import ParityError  # noqa: E402
from edgekit.export import parity  # noqa: E402
from edgekit.options import Container  # noqa: E402

pytestmark = pytest.mark.integration

FORMATS: tuple[Container, ...] = ("gguf", "onnx")
ALL_FORMATS = pytest.mark.parametrize("container", FORMATS)
ALL_FAMILIES = pytest.mark.parametrize("name", tiny_families.CONFIGS)


Originals = Callable[[str], Original]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Originals]:
    made: dict[str, Original] = {}

    def get(name: str) -> Original:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "model"
            made[name] = Original(open_checkpoint(tiny_families.make(folder, name)))
        return made[name]

    yield get
    for item in made.values():
        item.engine.close()


@ALL_FAMILIES
def test_logits_have_structure(name: str, original: Originals) -> None:
    made = original(name)
    share = tiny.entropy(made.engine.logits(made.sequences[0]).astype(np.float64)) / math.log(tiny_families.VOCAB)
    assert 0.2 < share < 0.6


@ALL_FAMILIES
def test_a_batch_says_what_single_sequences_say(name: str, original: Originals) -> None:
    made = original(name)
    sequences = [made.sequences[0][:count] for count in (40, 7, 23)]
    together = made.engine.logits_batch(sequences)
    for ids, rows in zip(sequences, together, strict=True):
        assert rows.shape == (len(ids), tiny_families.VOCAB)
        assert kl_full(made.engine.logits(ids), rows).max() < 1e-8


@ALL_FAMILIES
@ALL_FORMATS
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_parity(name: str, container: Container, bits: int, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    found = made.check(made.write(container, bits, tmp_path / "out"))
    print(f"{name} {container} {bits}: export {found.full_precision_kl:.1e}, activations {found.activation_kl:.1e}")
    assert found.full_precision_kl < (parity.FULL_PRECISION_LIMIT if container == "gguf" else 1e-9)
    assert 0 < found.activation_kl <= parity.ACTIVATION_LIMIT


@ALL_FAMILIES
def test_official_readers_find_what_the_model_has(name: str, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    spec = made.checkpoint.spec
    reader = GGUFReader(made.write("gguf", 4, tmp_path / "gguf").path)
    extra = {"rope_freqs.weight"}
    assert {tensor.name for tensor in reader.tensors} - extra == {tensor.gguf for tensor in spec.tensors}
    assert reader.fields["general.architecture"].contents() == spec.family.gguf_arch
    model = onnx.load(str(made.write("onnx", 4, tmp_path / "onnx").path), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GroupQueryAttention") == spec.layers
    assert not {"MatMul", "FusedMatMul", "Gemm"} & set(kinds), "every matrix is quantized"


@pytest.mark.parametrize("name", ["qwen2", "qwen3-yarn", "smollm3", "gemma3", "gpt2"])
@ALL_FORMATS
def test_step_by_step_says_what_a_whole_pass_says(
    name: str, container: Container, original: Originals, tmp_path: Path
) -> None:
    """The cache, beyond the sliding window: what `start` and `step` return are the rows of `logits`."""
    made = original(name)
    built = made.write(container, 8, tmp_path / "out")
    engine: Engine = LlamaCppEngine(built.path) if container == "gguf" else OrtEngine(built.path.parent)
    ids = made.sequences[0][:64]
    whole = engine.logits(ids)
    rows = [engine.start(ids[:20])] + [engine.step(int(token)) for token in ids[20:]]
    engine.close()
    assert kl_full(whole[19:], np.stack(rows)).mean() < 5e-3, "other batch sizes round otherwise, no more"


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-untied", "qwen3", "smollm3", "gemma3", "gpt2"])
def test_genai_generates_what_our_engine_generates(name: str, original: Originals, tmp_path: Path) -> None:
    made = original(name)
    folder = made.write("onnx", 8, tmp_path / "out").path.parent
    genai_says_what_our_engine_says(folder, made.sequences[0][:12], 24)


# -- negative controls: the same comparison on a model with one trait forgotten


def without_bias(spec: Spec) -> Spec:
    kept = tuple(tensor for tensor in spec.tensors if tensor.rule.kind != "bias")
    return dataclasses.replace(spec, tensors=kept)


def without_norms_of_heads(spec: Spec) -> Spec:
    kept = tuple(t for t in spec.tensors if t.role not in ("attn_q_norm", "attn_k_norm"))
    return dataclasses.replace(spec, tensors=kept)


def without_norms_after(spec: Spec) -> Spec:
    kept = tuple(t for t in spec.tensors if t.role not in ("post_attention_norm", "post_ffw_norm"))
    return dataclasses.replace(spec, tensors=kept)


def family(**changes: object) -> Callable[[Spec], Spec]:
    return lambda spec: dataclasses.replace(spec, family=dataclasses.replace(spec.family, **changes))  # type: ignore[arg-type]


def unshifted(spec: Spec) -> Spec:
    kept = tuple(
        dataclasses.replace(t, rule=dataclasses.replace(t.rule, shift=0.0)) if t.rule.shift else t for t in spec.tensors
    )
    return dataclasses.replace(spec, tensors=kept)


FORGOTTEN: dict[str, tuple[str, Callable[[Spec], Spec]]] = {
    "bias": ("qwen2", without_bias),
    "q and k norms": ("qwen3", without_norms_of_heads),
    "norms after": ("gemma3", without_norms_after),
    "norm shift": ("gemma3", unshifted),
    "embedding scale": ("gemma3", family(embedding_scaled=False)),
    "window": ("gemma3", lambda spec: dataclasses.replace(spec, sliding_window=spec.context_length)),
    "window one too long": ("gemma3", lambda spec: dataclasses.replace(spec, sliding_window=17)),
    "local theta": ("gemma3", lambda spec: dataclasses.replace(spec, local_rope=Rope(20000.0))),
    "activation": ("gemma3", lambda spec: dataclasses.replace(spec, activation="silu")),
    "layers without positions": ("smollm3", lambda spec: dataclasses.replace(spec, no_rope=frozenset())),
    "yarn": ("qwen2-yarn", lambda spec: dataclasses.replace(spec, rope=Rope(spec.rope.theta))),
    "linear": ("llama-linear", lambda spec: dataclasses.replace(spec, rope=Rope(spec.rope.theta))),
    "epsilon": ("gpt2", lambda spec: dataclasses.replace(spec, norm_epsilon=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGOTTEN)
def test_forgotten_trait_is_caught_in_onnx(what: str, original: Originals, tmp_path: Path) -> None:
    name, forget = FORGOTTEN[what]
    made = original(name)
    wrong = forget(made.checkpoint.spec)
    with pytest.raises(ParityError, match="unquantized ONNX export differs"):
        made.check(made.write("onnx", 8, tmp_path / "out", wrong), wrong)


GGUF_FORGOTTEN = ("bias", "norm shift", "window", "local theta", "yarn", "linear", "epsilon")
"""What llama.cpp reads from the file; the rest it knows by the architecture's name."""


@pytest.mark.parametrize("what", GGUF_FORGOTTEN)
def test_forgotten_trait_is_caught_in_gguf(what: str, original: Originals, tmp_path: Path) -> None:
    name, forget = FORGOTTEN[what]
    made = original(name)
    wrong = forget(made.checkpoint.spec)
    with pytest.raises(ParityError, match="unquantized GGUF export differs"):
        made.check(made.write("gguf", 8, tmp_path / "out", wrong), wrong)


def test_checkpoint_without_the_prefix_is_read(tmp_path: Path) -> None:
    """GPT-2's own file names its tensors h.0.ln_1.weight, without "transformer.", and holds buffers nobody needs."""
    from safetensors.numpy import load_file, save_file

    folder = tiny_families.make(tmp_path / "model", "gpt2")
    tensors = load_file(folder / "model.safetensors")
    with_prefix = open_checkpoint(folder)
    expected = {tensor.hf: array for tensor, array in with_prefix.tensors()}
    short = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    short["h.0.attn.bias"] = np.tri(8, dtype=np.float32)
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    found = {tensor.hf: array for tensor, array in open_checkpoint(folder).tensors()}
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
