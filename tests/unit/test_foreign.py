"""The ways around edgekit's own exporters, without the exporters: stand-ins for a llama.cpp tree and for optimum."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Cli
from tiny import Tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("optimum.exporters.tasks")
pytest.importorskip("onnx")

from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.foreign import foreign_tensor, is_foreign, open_any, open_foreign
from edgekit.errors import (
    BadWeightsError,
    ConverterError,
    CorruptCheckpointError,
    EdgekitError,
    GridError,
    InputNotFoundError,
    MissingDependencyError,
    OptionError,
    OutputError,
    ParityError,
    TokenizerError,
    UnknownArchitectureError,
)
from edgekit.export import gguf, hatches, optimum_env
from edgekit.export.child import complaint
from edgekit.export.foreign import match, plan_of, spec_of
from edgekit.export.foreign_gguf import GgufSource
from edgekit.export.llama_tree import convert, tree_sha256
from edgekit.grids import get
from edgekit.options import Options
from edgekit.progress import Quiet
from edgekit.quantize.plan import full_precision_plan
from edgekit.targets import load

GRANITE: dict[str, Any] = {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}


def nothing(_: str) -> None:
    pass


# -- an unknown family


def test_a_granite_is_described_by_its_headers(tmp_path: Path) -> None:
    like = Tiny(tied=False, kv_heads=1)
    checkpoint = open_foreign(tiny.make(tmp_path / "granite", like, **GRANITE))
    spec = checkpoint.spec
    assert is_foreign(checkpoint)
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (2, 4, 1, 16)
    assert (spec.vocab_size, spec.context_length, spec.tied) == (like.vocab, like.context, False)
    kinds = {tensor.hf: (tensor.rule.kind, tensor.layer, tensor.role) for tensor in spec.tensors}
    assert kinds["model.layers.1.mlp.up_proj.weight"] == ("linear", 1, "mlp.up_proj")
    assert kinds["model.embed_tokens.weight"][0] == "embedding"
    assert kinds["lm_head.weight"][0] == "head"
    assert kinds["model.norm.weight"][0] == "norm"
    stored = tiny.weights(like)
    for tensor, array in checkpoint.tensors():
        np.testing.assert_array_equal(array, stored[tensor.hf])


def with_tensor(folder: Path, name: str, array: NDArray[Any]) -> Path:
    path = folder / "model.safetensors"
    save_file({**load_file(path), name: array}, path)
    return folder


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64])
def test_a_buffer_is_no_weight(kind: type[np.generic], tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "neox", architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    mask = np.tril(np.ones((1, 1, 8, 8), kind))
    checkpoint = open_foreign(with_tensor(folder, "gpt_neox.layers.0.attention.bias", mask))
    assert {tensor.hf for tensor in checkpoint.spec.tensors} == tiny.weights(Tiny()).keys()


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.qweight"])
def test_quantized_weights_are_refused_though_the_config_is_silent(name: str, tmp_path: Path) -> None:
    folder = with_tensor(tiny.make(tmp_path / "model", **GRANITE), name, np.ones((96, 64), np.int8))
    with pytest.raises(BadWeightsError, match=rf"{name} is stored as I8.*full-precision"):
        open_foreign(folder)


def test_a_config_without_a_feed_forward_size(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 512,
        "n_inner": None,
        "intermediate_size": None,
    }
    folder = tiny.make(tmp_path / "gptj", architectures=["GPTJForCausalLM"], model_type="gptj", **sizes)
    assert open_foreign(folder).spec.ffn_size == 4 * 64


def test_a_known_family_stays_known(sound: Path, tmp_path: Path) -> None:
    assert not is_foreign(open_any(sound))
    assert is_foreign(open_any(tiny.make(tmp_path / "granite", **GRANITE)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "fill-mask.*text-generation"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "text2text-generation"),
        ({"architectures": ["MadeUpForCausalLM"], "model_type": "made-up"}, "does not know.*MadeUp"),
        ({"architectures": ["AutoConfig"]}, "does not know|task"),
        ({**GRANITE, "quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)  # fmt: skip
def test_what_is_no_causal_language_model_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError, match=words):
        open_foreign(tiny.make(tmp_path / "model", **config))


@pytest.mark.parametrize(
    "config",
    [
        {**GRANITE, "num_hidden_layers": 0}, {**GRANITE, "num_hidden_layers": 1 << 40}, {**GRANITE, "vocab_size": "x"},
        {**GRANITE, "architectures": [7]}, {**GRANITE, "architectures": ["a.b"]}, {**GRANITE, "architectures": []},
        {**GRANITE, "rope_parameters": 3}, {**GRANITE, "auto_map": {"AutoConfig": "code.Config"}, "model_type": "x"},
    ],
)  # fmt: skip
def test_a_broken_config_is_one_sentence(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", **config)
    (folder / "code.py").write_text("raise SystemExit('a stranger was here')")
    with pytest.raises((CorruptCheckpointError, UnknownArchitectureError)):
        open_foreign(folder)


def test_cut_weights_are_one_sentence(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", **GRANITE)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        open_foreign(folder)


@pytest.mark.parametrize(
    ("name", "hf", "layer", "role"),
    [
        ("blk.12.attn_q.weight", "", 12, "attn_q"), ("token_embd.weight", "", None, "token_embd"),
        ("/model/layers.3/mlp/up_proj/MatMul", "", 3, "mlp/up_proj"), ("x", "h.7.mlp.weight", 7, "mlp"),
        ("7.weight", "", 7, "weight"), ("/MatMul", "", None, "/MatMul"),
    ],
)  # fmt: skip
def test_role_and_layer_come_from_the_name(name: str, hf: str, layer: int | None, role: str) -> None:
    tensor = foreign_tensor(name, (4, 2), "linear", hf=hf)
    assert (tensor.layer, tensor.role, tensor.gguf, tensor.hf) == (layer, role, name, hf or name)


# -- a child process


def test_a_child_tells_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = tmp_path / "exporter.py"
    script.write_text("import sys\nprint('first')\nsys.exit('the last\\x1b[31m words')\n")
    said = complaint(Path(sys.executable), script, [], output=tmp_path / "out")
    assert said == "the last [31m words", "no control characters"


def test_a_child_that_ends_well_and_its_surroundings(tmp_path: Path) -> None:
    """Arguments reach it, the hub is off, and a module of the current folder is not taken for a library's."""
    script = tmp_path / "exporter.py"
    script.write_text(
        "import os, sys, json\n"
        "seen = [sys.argv[1:], os.environ['HF_HUB_OFFLINE'], '' in sys.path, os.environ['OWN']]\n"
        "json.dump(seen, open(sys.argv[1], 'w'))\n"
    )
    out = tmp_path / "said.json"
    said = complaint(Path(sys.executable), script, [str(out), "a b"], output=out, environment={"OWN": "1"})
    assert said is None
    assert json.loads(out.read_text()) == [[str(out), "a b"], "1", False, "1"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    script = tmp_path / "exporter.py"
    script.write_text("import errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n")
    with pytest.raises(OutputError, match="no space left"):
        complaint(Path(sys.executable), script, [], output=tmp_path / "out")


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Its standard input is held open by edgekit alone."""
    script = tmp_path / "exporter.py"
    script.write_text("import os, stat\nassert stat.S_ISFIFO(os.fstat(0).st_mode)\n")
    assert complaint(Path(sys.executable), script, [], output=tmp_path / "out") is None


# -- a llama.cpp tree


def tree(folder: Path, script: str) -> Path:
    """A stand-in whose converter is `script`; the model, the output and the type are in `arguments`."""
    (folder / "gguf-py" / "gguf").mkdir(parents=True)
    (folder / "gguf-py" / "gguf" / "constants.py").write_text("")
    head = "import sys, shutil\nmodel, _, out, _, kind = sys.argv[1:]\n"
    (folder / "convert_hf_to_gguf.py").write_text(head + script)
    return folder


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Checkpoint, Path]:
    """A tiny Llama and its float16 GGUF file, in which q and k have other rows than in the checkpoint."""
    checkpoint = open_checkpoint(tiny.make(tmp_path / "model", Tiny(ffn=128)))
    path = tmp_path / "full.gguf"
    gguf.write_gguf(checkpoint, full_precision_plan(checkpoint.spec, "gguf"), path)
    return checkpoint, path


@pytest.mark.parametrize("missing", ["convert_hf_to_gguf.py", "gguf-py/gguf"])
def test_what_is_no_llama_cpp_tree(missing: str, sound: Path, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", "")
    (made / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputNotFoundError, match=missing):
        convert(made, sound, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("raise NotImplementedError('BPE pre-tokenizer was not recognized - update get_vocab_base_pre()')",
         TokenizerError, "does not know this tokenizer"),
        ("sys.exit('Model MadeUp is not supported')", UnknownArchitectureError, "MadeUp"),
        ("raise ValueError('Missing tokenizer.model')", ConverterError, r"Missing tokenizer\.model"),
        ("import absent_package", ConverterError, "absent_package"),
        ("", ConverterError, "wrote no file"),
        ("raise OSError(28, 'No space left on device')", OutputError, "no space left"),
    ],
)  # fmt: skip
def test_a_bad_converter(script: str, error: type[EdgekitError], words: str, sound: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        convert(tree(tmp_path / "tree", script), sound, tmp_path / "out.gguf")


def test_the_tree_brings_its_own_gguf_package(sound: Path, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", "import gguf\nopen(out, 'w').write(f'{gguf.__file__} {model} {kind}')")
    (made / "gguf-py" / "gguf" / "__init__.py").write_text("")
    said = convert(made, sound, tmp_path / "out.gguf").read_text()
    assert said == f"{made.resolve()}/gguf-py/gguf/__init__.py {sound.resolve()} f16"


def test_another_tree_has_another_hash(tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", "")
    before = tree_sha256(made)
    (made / "conversion").mkdir()
    (made / "conversion" / "granite.py").write_text("# better\n")
    assert tree_sha256(made) != before
    (made / "README").write_text("of no account")
    assert tree_sha256(made) == tree_sha256(made)


def test_matrices_are_recognised_by_their_values(converted: tuple[Checkpoint, Path]) -> None:
    """Whatever the converter calls them, and though it reorders the rows of q and k."""
    checkpoint, path = converted
    names = match(GgufSource(path), checkpoint)
    assert names == {tensor.gguf: tensor.hf for tensor in checkpoint.spec.tensors if tensor.rule.matrix}


def test_a_matrix_that_could_be_two_is_left_out(tmp_path: Path) -> None:
    like = Tiny(ffn=128)
    stored = tiny.weights(like)
    stored["model.layers.0.mlp.up_proj.weight"] = stored["model.layers.0.mlp.gate_proj.weight"][::-1].copy()
    folder = tiny.make(tmp_path / "model", like)
    tiny.write_weights(folder, stored, like)
    checkpoint, path = open_checkpoint(folder), tmp_path / "full.gguf"
    gguf.write_gguf(checkpoint, full_precision_plan(checkpoint.spec, "gguf"), path)
    names = match(GgufSource(path), checkpoint)
    assert {"blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"}.isdisjoint(names)
    assert names["blk.1.ffn_up.weight"] == "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_a_converted_file_is_quantized_tensor_by_tensor(
    bits: int, converted: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    """What llama.cpp needs in float32 stays, and all metadata goes along; same plan as edgekit's own exporter has."""
    checkpoint, path = converted
    source = GgufSource(path)
    spec = spec_of(source, checkpoint, match(source, checkpoint))
    plan = plan_of(source, spec, load("rpi5"), bits)
    out = tmp_path / "out.gguf"
    planned = source.write(plan, out, {}, nothing)
    source.check_bytes(plan, out, planned, nothing)
    before, after = GGUFReader(path), GGUFReader(out)
    grids = {tensor.name: tensor.tensor_type.name for tensor in after.tensors}
    assert grids == {entry.tensor.gguf: entry.grid for entry in plan.entries}
    assert grids["blk.0.attn_norm.weight"] == "F32"
    assert not {"F16"} & set(grids.values())
    own = {"general.file_type", "edgekit.requested_bits", "edgekit.effective_bits"}
    for name, field in before.fields.items():
        if name not in own:
            assert after.fields[name].contents() == field.contents(), name
    assert after.fields["edgekit.requested_bits"].contents() == str(bits)
    again = tmp_path / "float.gguf"
    source.write_dequantized(plan, out, again)
    shipped, floats = GgufSource(out), GgufSource(again)
    for entry in plan.entries:
        name = entry.tensor.gguf
        np.testing.assert_allclose(floats.read(name), shipped.read(name), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("grid", ["Q4_K", "Q6_K", "Q8_0"])
def test_the_label_of_the_type_is_that_of_our_own_exporter(grid: str, tmp_path: Path) -> None:
    checkpoint, path = open_checkpoint(tiny.make(tmp_path / "model", Tiny(hidden=256, ffn=256))), tmp_path / "full.gguf"
    gguf.write_gguf(checkpoint, full_precision_plan(checkpoint.spec, "gguf"), path)
    source = GgufSource(path)
    plan = plan_of(source, spec_of(source, checkpoint, {}), load("rpi5"), 8)
    entries = [
        replace(entry, grid=grid, nbytes=get(grid).nbytes((entry.tensor.shape[0], entry.tensor.shape[1])))
        if entry.tensor.rule.kind == "linear" and entry.tensor.shape[1] % 256 == 0
        else entry
        for entry in plan.entries
    ]
    plan = replace(plan, entries=tuple(entries))
    source.write(plan, tmp_path / "out.gguf", {}, nothing)
    label = LlamaFileType(GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents())
    names = {"Q4_K": "MOSTLY_Q4_K_S", "Q6_K": "MOSTLY_Q6_K", "Q8_0": "MOSTLY_Q8_0"}
    assert (plan.main_grid, label.name) == (grid, names[grid])


def test_an_altered_scale_is_caught(converted: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    checkpoint, path = converted
    source, out = GgufSource(path), tmp_path / "out.gguf"
    plan = plan_of(source, spec_of(source, checkpoint, {}), load("rpi5"), 8)
    planned = source.write(plan, out, {}, nothing)
    place = next(int(t.data_offset) for t in GGUFReader(out).tensors if t.name == "blk.1.ffn_down.weight")
    with out.open("r+b") as stream:
        stream.seek(place)
        stream.write((np.frombuffer(out.read_bytes()[place : place + 2], np.float16) * np.float16(1.01)).tobytes())
    with pytest.raises(ParityError, match=r"blk\.1\.ffn_down"):
        source.check_bytes(plan, out, planned, nothing)


def test_weights_beyond_float16_are_told(tmp_path: Path) -> None:
    like = Tiny(dtype="f32")
    stored = tiny.weights(like)
    stored["model.layers.0.mlp.down_proj.weight"][1, 2] = 1e6
    folder = tiny.make(tmp_path / "model", like)
    tiny.write_weights(folder, stored, like)
    path = tmp_path / "full.gguf"
    plan = full_precision_plan(open_checkpoint(folder).spec, "gguf")
    with pytest.raises(BadWeightsError):  # edgekit's own writer refuses: make the infinity by hand
        gguf.write_gguf(open_checkpoint(folder), plan, path)
    stored["model.layers.0.mlp.down_proj.weight"][1, 2] = 1
    tiny.write_weights(folder, stored, like)
    gguf.write_gguf(open_checkpoint(folder), plan, path)
    place = next(int(t.data_offset) for t in GGUFReader(path).tensors if t.name == "blk.0.ffn_down.weight")
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(np.array([np.inf], np.float16).tobytes())
    with pytest.raises(BadWeightsError, match=r"ffn_down.*float16"):
        GgufSource(path).read("blk.0.ffn_down.weight")


def test_what_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "full.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(ConverterError, match="cannot be read as GGUF"):
        GgufSource(tmp_path / "full.gguf").tensors()


# -- optimum's environment


def fake_python(path: Path, script: str) -> Path:
    """A stand-in for the interpreter: a shell script whose last argument, the output folder, is in $out."""
    path.write_text(f'#!/bin/sh\nfor out in "$@"; do :; done\nmkdir -p "$out"\n{script}\n')
    path.chmod(0o755)
    return path


def test_without_the_environment_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(optimum_env.PYTHON, raising=False)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingDependencyError, match=re.escape(optimum_env.COMMAND)):
        optimum_env.interpreter()
    half = optimum_env.environment() / "bin"
    half.mkdir(parents=True)
    (half / "python").touch()
    with pytest.raises(MissingDependencyError):
        optimum_env.interpreter()
    (optimum_env.environment() / "whole").touch()
    assert optimum_env.interpreter() == half / "python"


def test_two_at_once_make_one_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second neither removes what the first is installing into nor makes it again."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    begun: list[Path] = []
    both = threading.Event()

    def create(folder: Path, **_: object) -> None:
        folder.mkdir(parents=True)
        begun.append(folder)
        if len(begun) == 2:
            both.set()
        both.wait(0.3)

    monkeypatch.setattr("venv.create", create)
    monkeypatch.setattr(optimum_env, "_install", lambda *_: None)
    with ThreadPoolExecutor(2) as pool:
        made = [future.result() for future in [pool.submit(optimum_env.make) for _ in range(2)]]
    assert begun == [optimum_env.environment()]
    assert made == [optimum_env.environment() / "bin" / "python"] * 2
    assert (optimum_env.environment() / "whole").is_file()


def environment_with(folder: Path, **versions: str) -> Path:
    """An interpreter whose installed packages claim these versions."""
    for name, version in versions.items():
        info = folder / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/site exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def test_the_versions_that_run_are_those_in_key_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, seen = Options(formats=("onnx",), exporter="optimum"), set()
    for version in ("9.1", "9.2"):
        shutil.rmtree(tmp_path / "env", ignore_errors=True)
        python = environment_with(tmp_path / "env", optimum=version, optimum_onnx="7.7", torch="5.0")
        monkeypatch.setenv(optimum_env.PYTHON, str(python))
        seen.add(hatches.identity("onnx", options))
        words = hatches.in_words("onnx", options)
        assert f"(torch==5.0, optimum=={version}, optimum-onnx==7.7)" in words, "and no pin of ours"
    assert len(seen) == 2, "an environment that was upgraded in place is another one"


@pytest.mark.parametrize("script", ["exit 1", "echo '{'", "echo '[]'", "printf '\\377'", "echo '{}'"])
def test_an_interpreter_without_optimum(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setenv(optimum_env.PYTHON, str(python))
    with pytest.raises(MissingDependencyError, match="has no optimum"):
        optimum_env.versions()


def test_a_tree_that_is_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path / "my-tree", ""))
    assert "the llama.cpp tree my-tree (" in hatches.in_words("gguf", Options(llama_cpp=Path()))


def test_an_interpreter_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(optimum_env.PYTHON, str(tmp_path / "absent"))
    with pytest.raises(OptionError, match="absent"):
        optimum_env.interpreter()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo 'no such model' >&2; exit 1", "no such model"),
        ("exit 0", r"wrote no model\.onnx"),
        ('touch "$out/model.onnx"', "without one"),
    ],
)
def test_an_exporter_that_fails(
    script: str, words: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(optimum_env.PYTHON, str(fake_python(tmp_path / "python", script)))
    with pytest.raises(ConverterError, match=words):
        optimum_env.export(sound, tmp_path / "out")


def test_the_exporter_gets_a_checkpoint_as_it_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rope_theta at the top, a tokenizer class of version 4, weights as links, and nothing that could run."""
    folder = tiny.make(tmp_path / "model", Tiny(theta=50000.0), rope_theta=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "TokenizersBackend", "backend": "tokenizers"})
    )
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    seen = tmp_path / "seen"
    script = f'while [ "$1" != --model ]; do shift; done; cp -r "$2" {seen}; cd "$out"; touch model.onnx tokenizer.json'
    monkeypatch.setenv(optimum_env.PYTHON, str(fake_python(tmp_path / "python", script)))
    assert optimum_env.export(folder, tmp_path / "out") == tmp_path / "out" / "model.onnx"
    assert json.loads((seen / "config.json").read_text())["rope_theta"] == 50000.0
    tokenizer = json.loads((seen / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "backend" not in tokenizer
    assert tokenizer["chat_template"] == config["chat_template"]
    assert (seen / "model.safetensors").resolve() == folder / "model.safetensors"
    assert {"modeling.py", "pytorch_model.bin"}.isdisjoint(path.name for path in seen.iterdir())
    assert json.loads((folder / "config.json").read_text())["rope_theta"] is None, "the original is not touched"


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "llama3", "rope_theta": 5.0, "factor": 8.0},
         {"rope_theta": 5.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        ({"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5},
         {"rope_theta": 5.0, "partial_rotary_factor": 0.5}),
        ({"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 3.0}},
         {"rope_theta": 7.0, "rope_local_base_freq": 3.0}),
        ({}, {"rope_theta": 10000.0}),
    ],
)  # fmt: skip
def test_rotary_positions_in_the_older_spelling(rope: dict[str, Any], older: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", rope_parameters=rope, rope_theta=None)
    copy = optimum_env.older_copy(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    assert {key: config.get(key) for key in older} == older


def test_every_pin_is_exact() -> None:
    assert all(re.fullmatch(r"[a-z-]+(\[[a-z]+\])?==[0-9.]+", line) for line in optimum_env.requirements())
    assert optimum_env.requirements()[0].startswith("torch=="), "the index for torch is for torch alone"


# -- the command line


def test_the_remedy_for_an_unknown_family_names_both_ways(cli: Cli, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", **GRANITE)
    words = ("GraniteForCausalLM", "--llama-cpp DIR", "--exporter optimum")
    cli("build", "--no-runtime", folder, "-o", tmp_path / "out").refused(15, *words)


def test_a_folder_that_is_no_tree(cli: Cli, sound: Path, tmp_path: Path) -> None:
    cli("build", "--no-runtime", sound, "--llama-cpp", tmp_path, "-o", tmp_path / "out").refused(
        10, "convert_hf_to_gguf.py"
    )


def test_an_exporter_for_a_format_that_is_not_built(cli: Cli, sound: Path, tmp_path: Path) -> None:
    there = tree(tmp_path / "tree", "")
    cli("build", "--no-runtime", sound, "--llama-cpp", there, "--format", "onnx").refused(
        29, "--llama-cpp", "--format gguf"
    )
    cli("build", "--no-runtime", sound, "--exporter", "optimum", "--format", "gguf").refused(
        29, "--exporter", "--format onnx"
    )


def test_a_format_that_nobody_makes(cli: Cli, tmp_path: Path) -> None:
    folder, there = tiny.make(tmp_path / "model", **GRANITE), tree(tmp_path / "tree", "")
    asked = ("--format", "gguf", "--format", "onnx")
    cli("build", "--no-runtime", folder, "--llama-cpp", there, *asked).refused(
        15, "GraniteForCausalLM", "--exporter optimum"
    )


class Listener(Quiet):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def test_what_is_left_out_unasked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    folder = tiny.make(tmp_path / "model", **GRANITE)
    there, listener = tree(tmp_path / "tree", "sys.exit('far enough')"), Listener()
    with pytest.raises(ConverterError, match="far enough"):
        edgekit.build(folder, output=tmp_path / "out", options=Options(llama_cpp=there), progress=listener)
    assert [note for note in listener.notes if "left out" in note] == [
        "ONNX is left out: edgekit cannot export 'GraniteForCausalLM' by itself, see docs/escape-hatches.md"
    ]
    asked = Options(llama_cpp=there, asked=True)
    with pytest.raises(UnknownArchitectureError, match="--exporter optimum"):
        edgekit.build(folder, output=tmp_path / "out", options=asked, progress=Quiet())


def test_a_failed_conversion_leaves_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    folder = tiny.make(tmp_path / "model", **GRANITE)
    there = tree(tmp_path / "tree", "open(out, 'w').write('half')\nsys.exit('it broke')")
    said = cli("build", "--no-runtime", folder, "--llama-cpp", there, "-o", tmp_path / "out")
    assert said.code == 30
    assert "it broke" in said.err.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_format_that_the_writer_does_not_know_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny.make(tmp_path / "model", Tiny(dtype="f32")))
    known = {name: kind for name, kind in GGMLQuantizationType.__members__.items() if name != "F16"}
    monkeypatch.setattr("edgekit.export.gguf.GGMLQuantizationType", Enum("Types", known))
    with pytest.raises(GridError, match="F16 cannot be written: the installed package gguf"):
        gguf.write_gguf(checkpoint, full_precision_plan(checkpoint.spec, "gguf"), tmp_path / "full.gguf")
