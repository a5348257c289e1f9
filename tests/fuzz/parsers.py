"""Every reader of a stranger's bytes, as a function of bytes that may only return or raise an EdgekitError."""

from __future__ import annotations

import itertools
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import board_sensors
import bundles
import device_answers
import measurements
import mutations
import numpy as np
import planning
import samples
import tiny
import tiny_tokenizers
from mutations import Mutate

from edgekit import targets
from edgekit.bundle.template import render
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.gguf_source import convert, read_gguf
from edgekit.checkpoint.lora import read_adapter
from edgekit.coherence import container, text
from edgekit.crossbuild.audit import audit
from edgekit.errors import AuditError, EdgekitError
from edgekit.export.gguf_vocab import read_vocab
from edgekit.inspecting_files import gguf_file, safetensors_file
from edgekit.inspecting_onnx import onnx_file
from edgekit.quantize import imatrix
from edgekit.report.model import from_json
from edgekit.toml_lines import TooDeepError, key_lines

Target = Callable[[bytes], None]
MAX_SENTENCE = 8000


@dataclass(frozen=True)
class Parser:
    """One parser under attack."""

    name: str
    reads: str
    """What it reads, and the public function that does."""
    prepare: Callable[[Path], tuple[tuple[bytes, ...], Target]]
    """Given a folder of its own: valid inputs, and the target."""
    mutate: Mutate
    seconds: float = 2.0
    """CPU time that one input may take."""


def attack(target: Target, data: bytes) -> str | None:
    """The sentence that refuses `data`, None when it is accepted; anything else is raised.

    Raises:
        AssertionError: the sentence is no single printable line of a bounded length.
    """
    try:
        target(data)
    except EdgekitError as error:
        sentence = error.sentence()
        assert sentence.isprintable(), f"unprintable: {sentence!r:.300}"
        assert len(sentence) <= MAX_SENTENCE, f"{len(sentence)} characters: {sentence:.300}"
        return sentence
    return None


def _file(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
    def target(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)

    return target


def _simple(seeds: Callable[[Path], tuple[bytes, ...]], name: str, read: Callable[[Path], object]) -> Any:
    """prepare() of a parser that reads one file by itself."""

    def prepare(folder: Path) -> tuple[tuple[bytes, ...], Target]:
        made, target = seeds(folder), _file(name, read)
        return made, lambda data: target(folder, data)

    return prepare


# --- targets ---------------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, item in items for leaf in _leaves(item, (*path, key))]
    return below if below or not path else [path]


def _toml_lines(data: bytes) -> None:
    """What tomllib reads, the line scanner must have placed, within the file."""
    source = data.decode("utf8", "replace").replace("\r\n", "\n")
    try:
        lines = key_lines(source)
        value = tomllib.loads(source)
    except (TooDeepError, tomllib.TOMLDecodeError, ValueError, RecursionError):
        return
    last = source.count("\n") + 1
    assert all(1 <= line <= last for line in lines.values())
    for leaf in _leaves(value):
        escaped = any(isinstance(key, str) and not key.isascii() for key in leaf) or "\\" in source
        assert escaped or leaf in lines, f"{leaf} has no line"


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _model_part(name: str) -> Any:
    """prepare() of one file of a model folder: open it and read every tensor."""

    def prepare(folder: Path) -> tuple[tuple[bytes, ...], Target]:
        root = tiny.make(folder / "model", samples.SMALL)
        seeds = [(root / name).read_bytes()] if (root / name).is_file() else []
        if name == "model.safetensors.index.json":
            names = list(tiny.weights(samples.SMALL))
            seeds.append(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}).encode())

        def target(data: bytes) -> None:
            (root / name).write_bytes(data)
            checkpoint = open_checkpoint(root)
            for tensor in checkpoint.spec.tensors[:40]:
                checkpoint.read(tensor)

        return tuple(seeds), target

    return prepare


def _gguf_model(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """A GGUF file as a source: opened, checked against its architecture, dequantized."""
    seeds = samples.gguf_models(folder)
    numbers = itertools.count()

    def target(data: bytes) -> None:
        (folder / "x.gguf").write_bytes(data)
        made = folder / f"made{next(numbers)}"
        made.mkdir()
        try:
            convert(read_gguf(folder / "x.gguf"), made)
        finally:
            shutil.rmtree(made)

    return seeds, target


def _imatrix(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """An importance matrix in both its forms, for the model that it is of."""
    spec = open_checkpoint(tiny.make(folder / "model", samples.IMATRIX_MODEL)).spec

    def read(path: Path) -> None:
        found = imatrix.read(path)
        for means in found.means.values():
            assert np.isfinite(means).all(), "not finite"
            assert (means >= 0).all(), "negative"
        imatrix.for_model(found, spec)

    target = _file("x.imatrix", read)
    return samples.imatrices(), lambda data: target(folder, data)


def _adapter(name: str) -> Any:
    """prepare() of one file of a LoRA adapter for a tiny model."""

    def prepare(folder: Path) -> tuple[tuple[bytes, ...], Target]:
        spec = open_checkpoint(tiny.make(folder / "model", samples.SMALL)).spec
        samples.adapter(folder / "adapter")
        path = folder / "adapter" / name
        seed = path.read_bytes()

        def target(data: bytes) -> None:
            path.write_bytes(data)
            adapter = read_adapter(path.parent, spec)
            for change in adapter.changes.values():
                for part in change.parts.values():
                    adapter.read(part)

        return (seed,), target

    return prepare


def _tokenizer_json(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    tiny_tokenizers.write(folder, "smollm", 300)
    seeds = samples.tokenizers(folder)

    def target(data: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(data)
        tokenizer = load_tokenizer(folder)
        for sentence in ("The kettle sings, naïvely: 水 1234 <|im_start|>x", "  two\n\n"):
            ids = tokenizer.encode(sentence)
            tokenizer.encode(sentence, add_special_tokens=True)
            tokenizer.decode(ids)
            list(tokenizer.stream(ids))
        tokenizer.decode([0, 7, 2**32 - 1])

    return seeds, target


def _tokenizer_config(name: str) -> Any:
    def prepare(folder: Path) -> tuple[tuple[bytes, ...], Target]:
        tiny_tokenizers.write(folder, "smollm", 300)
        config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_bytes())
        named = [{"name": "default", "template": tiny_tokenizers.CHATML}, {"name": "tool_use", "template": "x"}]
        seeds = [config, {**config, "chat_template": named, "eos_token": {"content": "<|im_end|>", "special": True}}]
        if name == "generation_config.json":
            seeds = [{"eos_token_id": [1, 2], "bos_token_id": 1}, {"eos_token_id": 2}]

        def target(data: bytes) -> None:
            (folder / name).write_bytes(data)
            tokenizer = load_tokenizer(folder)
            tokenizer.chat_ids([{"role": "user", "content": "Hi"}])

        return tuple(json.dumps(seed).encode() for seed in seeds), target

    return prepare


def _gguf_vocab(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    seeds = samples.tokenizers(folder)[:3]
    tiny_tokenizers.write(folder, "smollm", 300)

    def target(data: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(data)
        load_tokenizer(folder)  # as in a build, which refuses here what the tokenizers library cannot read
        read_vocab(folder, 512)

    return seeds, target


# --- bundles ---------------------------------------------------------------------------------------------------------


def _genai(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    import onnx

    from edgekit.engines.ort import OrtEngine

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    decoder = {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_size": 8}
    seed = {"model": {"vocab_size": 300, "context_length": 512, "decoder": decoder}}

    def target(data: bytes) -> None:
        (folder / "genai_config.json").write_bytes(data)
        engine = OrtEngine(folder, threads=1)
        assert 0 < engine.max_context <= 2048
        engine.close()

    return (json.dumps(seed).encode(),), target


def _report(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    def target(data: bytes) -> None:
        from_json(data)

    return (samples.report_json(),), target


def _template(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes? " * 5}]

    def target(data: bytes) -> None:
        render(data.decode("utf8", "replace"), chat, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")

    return samples.TEMPLATES, target


def _text(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    seed = "\n".join(tiny_tokenizers.SENTENCES).encode()
    target = _file("text.txt", lambda path: text.from_file(path, lambda said: list(said.encode()), 4, 32, bos=1))
    return (seed, b"\xef\xbb\xbf" + seed), lambda data: target(folder, data)


# --- runtimes --------------------------------------------------------------------------------------------------------


_RPI5 = targets.load("rpi5")


def _audited(path: Path) -> None:
    """The audit lists faults; an error says the first of them, as the verb does."""
    found = audit(path, _RPI5, start=False)
    assert all(len(fault) < MAX_SENTENCE for fault in found.faults)
    if found.faults:
        raise AuditError(found.faults[0])


_TEMPLATE = mutations.worded(samples.TEMPLATE_WORDS)
_TOML = mutations.worded(samples.TOML_WORDS)
_JSON = mutations.any_json
_ANSWERS = mutations.worded(device_answers.WORDS)

PARSERS = {
    parser.name: parser
    for parser in (
        Parser(
            "target", "a target file: `targets.validate`",
            _simple(lambda _: samples.targets(), "x.toml", targets.validate), _TOML,
        ),
        Parser(
            "toml-lines", "lines of keys: `toml_lines.key_lines`, compared with tomllib",
            lambda _: (samples.targets(), _toml_lines), _TOML,
        ),
        Parser("manifest", "manifest.json: `manifest.from_json`", bundles.manifest, _JSON),
        Parser("bundle", "a bundle's folder: `open_bundle`", bundles.bundle, _JSON),
        Parser(
            "reference", "reference.npz: `container.load`",
            _simple(samples.references, "x.npz", container.load), mutations.any_zip,
        ),
        Parser("golden", "golden.json: `read_golden`, `check_golden`", bundles.golden, _JSON),
        Parser("report", "report.json: `report.model.from_json`", _report, _JSON),
        Parser("genai", "genai_config.json: `OrtEngine`", _genai, _JSON),
        Parser("template", "a chat template: `template.render`", _template, _TEMPLATE),
        Parser("text", "an evaluation text: `text.from_file`", _text, mutations.any_bytes),
        Parser("tokenizer", "tokenizer.json: `load_tokenizer`, `encode`, `decode`", _tokenizer_json, _JSON),
        Parser(
            "tokenizer-config", "tokenizer_config.json: `load_tokenizer`, `chat_ids`",
            _tokenizer_config("tokenizer_config.json"), _JSON,
        ),
        Parser(
            "generation-config", "generation_config.json: `load_tokenizer`",
            _tokenizer_config("generation_config.json"), _JSON,
        ),
        Parser("gguf-vocab", "tokenizer.json on its way into GGUF: `read_vocab`", _gguf_vocab, _JSON),
        Parser("config", "config.json: `open_checkpoint`", _model_part("config.json"), _JSON),
        Parser(
            "index", "model.safetensors.index.json: `open_checkpoint`",
            _model_part("model.safetensors.index.json"), _JSON,
        ),
        Parser(
            "checkpoint", "model.safetensors: `open_checkpoint`, `Checkpoint.read`",
            _model_part("model.safetensors"), mutations.any_safetensors,
        ),
        Parser(
            "safetensors", "any .safetensors file: `safetensors_file`",
            _simple(samples.safetensors, "x.safetensors", safetensors_file), mutations.any_safetensors,
        ),
        Parser("gguf-model", "a GGUF model as source: `read_gguf`, `convert`", _gguf_model, mutations.any_bytes),
        Parser(
            "adapter", "adapter_model.safetensors: `read_adapter`",
            _adapter("adapter_model.safetensors"), mutations.any_safetensors,
        ),
        Parser("adapter-config", "adapter_config.json: `read_adapter`", _adapter("adapter_config.json"), _JSON),
        Parser(
            "gguf", "any .gguf file: `gguf_file`",
            _simple(samples.gguf_files, "x.gguf", gguf_file), mutations.any_bytes,
        ),
        Parser(
            "imatrix", "an importance matrix, GGUF or .dat: `imatrix.read`, `imatrix.for_model`",
            _imatrix, mutations.any_bytes,
        ),
        Parser("plan", "a plan's file: `plan_file.read`, `plan_file.follow`", planning.plan, _JSON),
        Parser("map", "a sensitivity map: `sensitivity_map.chosen`", planning.sensitivity, _JSON),
        Parser("recipe", "a recipe: `recipe.load`", planning.recipes, mutations.worded(planning.RECIPE_WORDS)),
        Parser(
            "codes", "trained codes: `trained.places`, `trained.fits`", planning.codes, mutations.any_safetensors,
        ),
        Parser(
            "onnx", "any .onnx file: `onnx_file`",
            _simple(lambda _: (samples.onnx_model(),), "model.onnx", onnx_file), mutations.any_onnx,
        ),
        Parser(
            "elf", "a program or library: `crossbuild.audit`",
            _simple(samples.elf_files, "tool", _audited), mutations.any_bytes,
        ),
        Parser(
            "wheel", "a wheel with native code: `crossbuild.audit`",
            _simple(lambda folder: (samples.wheel_file(folder),), samples.WHEEL, _audited), mutations.any_zip,
        ),
        Parser(
            "board-answers", "vcgencmd, tegrastats, nvpmodel, jetson_clocks: `devices.boards`",
            board_sensors.answers, mutations.worded(board_sensors.WORDS),
        ),
        Parser("board", "a board's files and programs: `detect`, `Board.sample`", board_sensors.machines, _JSON),
        Parser("meter", "a power meter's CSV: `CsvMeter`", board_sensors.meter, mutations.worded(board_sensors.ROWS)),
        Parser("probe", "what a device says it is: `probe.parse`", device_answers.probes, _ANSWERS),
        Parser("survey", "what a device says it holds: `upload.parse_survey`", device_answers.surveys, _ANSWERS),
        Parser("look", "how a measurement there is: `follow.parse`; ssh's words", device_answers.looks, _ANSWERS),
        Parser(
            "inventory", "inventory.toml: `inventory.parse`",
            device_answers.inventories, mutations.worded(device_answers.NAMES),
        ),
        Parser("journal", "a measurement's journal: `open_journal`", measurements.journals, measurements.any_journal),
        Parser("bench", "bench.json: `bench.result.from_json`, `words.lines`", measurements.results, _JSON),
        Parser(
            "bundle-target", "a bundle's target.toml: `bundle_target`", bundles.bundle_target, _TOML,
        ),
    )
}  # fmt: skip

__all__ = ["PARSERS", "Parser", "attack"]
