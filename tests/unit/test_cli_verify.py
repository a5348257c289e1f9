"""Verify: a difference is named with both numbers, and what was not tried is never called ok."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers

from edgekit.bundle.bundle import write_manifest
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Artefact, Manifest, Model, TargetRef
from edgekit.bundle.tokenizer import load_tokenizer
from edgekit.cli.main import main
from edgekit.coherence.container import save
from edgekit.coherence.gates import Verdict
from edgekit.coherence.metrics import evaluate
from edgekit.coherence.reference import Origin, Reference, seal
from edgekit.engines import opening
from edgekit.report import model as reports

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHA = "ab" * 32
VOCAB, LENGTH = 24, 12
F32 = NDArray[np.float32]
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}"


class Bigram:
    """Row i of the table holds the logits after token i; the graph in the bundle computes the same."""

    name = "bigram"
    vocab_size, max_context = VOCAB, 64

    def __init__(self, table: F32, shift: int = 0) -> None:
        self.table, self.shift = table, shift

    def logits(self, ids: NDArray[np.int64]) -> F32:
        return np.asarray(self.table[ids])

    def start(self, ids: NDArray[np.int64]) -> F32:
        return np.asarray(self.table[ids[-1]])

    def step(self, token: int) -> F32:
        return np.asarray(self.table[token])

    def tokenize(self, text: str) -> list[int]:
        return [i + self.shift for i in byte_ids(text)]

    def close(self) -> None:
        pass


def table(noise: float = 0.0) -> F32:
    exact = 3 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB))
    return (exact + noise * np.random.default_rng(1).standard_normal((VOCAB, VOCAB))).astype(np.float32)


def backend() -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>"])
    return made


def byte_ids(text: str) -> list[int]:
    return list(backend().encode(text, add_special_tokens=False).ids)


def write_tokenizer(folder: Path, template: str = CHATML) -> None:
    folder.mkdir()
    backend().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    shipped = load_tokenizer(folder)
    write_golden(folder, shipped.encode, shipped.chat_ids)


def write_graph(folder: Path, weights: F32) -> None:
    """A decoder whose one layer does nothing: one Gather from token id to logits, and a cache that nobody reads."""
    folder.mkdir(exist_ok=True)
    make, types = onnx.helper, onnx.TensorProto
    inputs = [make.make_tensor_value_info(n, types.INT64, [1, "t"]) for n in ("input_ids", "attention_mask")]
    sides = ("past_key_values.0.key", "past_key_values.0.value")
    inputs += [make.make_tensor_value_info(side, types.FLOAT, [1, 1, "p", 8]) for side in sides]
    output = make.make_tensor_value_info("logits", types.FLOAT, [1, "t", VOCAB])
    node = make.make_node("Gather", ["table", "input_ids"], ["logits"])
    graph = make.make_graph([node], "bigram", inputs, [output], [onnx.numpy_helper.from_array(weights, "table")])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    decoder = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 8}
    config = {"model": {"vocab_size": VOCAB, "context_length": 64, "decoder": decoder}}
    (folder / "genai_config.json").write_text(json.dumps(config))


def sealed() -> Reference:
    texts = np.random.default_rng(2).integers(0, VOCAB, (4, LENGTH)).tolist()
    origin = Origin(model="bigram", model_sha256=SHA, seed=0, text="self-generated", text_sha256=SHA, versions={})
    return seal(Bigram(table()), texts, [[1], [2]], origin=origin, k=8, continuation_tokens=8)


def report_of(formats: tuple[str, ...], kl: float | None = None) -> bytes:
    coherence = evaluate(Bigram(table(0.3)), sealed())
    if kl is not None:
        coherence = msgspec.structs.replace(coherence, kl_mean=kl)
    artefacts = tuple(
        reports.Artefact(
            format=form,  # type: ignore[arg-type]
            engine="x", title="x", requested_bits=4, effective_bits=5.0, bytes=1, shares={}, fallbacks=(),
            predicted=reports.Predicted(ram_mib=1, usable_mib=2, bytes_per_token=3, tokens_per_second=None, basis="x"),
            parity=reports.Parity(tokenizer_strings=1, tensors=1, full_precision_kl=0, activation_kl=0, positions=1),
            coherence=coherence, truncation_kl=0.0, verdict=Verdict(result="PASS", checks=(), sentence="PASS"),
        )
        for form in formats
    )  # fmt: skip
    host = reports.Host(machine="x", system="x", python="3", cpus=1, versions={})
    return reports.to_json(
        reports.Report(
            edgekit="0", name="tiny", model="tiny", source="a test", parameters=1, caveats=(), target="rpi5",
            target_title="x", text="x", calibration="x", artefacts=artefacts, samples=(), seconds={}, host=host,
        )
    )  # fmt: skip


def seal_bundle(folder: Path, formats: tuple[str, ...] = ("onnx",)) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    made = tuple(
        Artefact(
            format=form,  # type: ignore[arg-type]
            path=f"{form}/model.{form}", engine="onnxruntime" if form == "onnx" else "llama.cpp", requested_bits=4,
            effective_bits=5, plan=(),
        )
        for form in formats
    )  # fmt: skip
    model = Model(name="tiny", architecture="bigram", source="a test", sha256=SHA, parameters=VOCAB * VOCAB)
    write_manifest(
        folder, Manifest(edgekit="0", name="tiny", model=model, target=TargetRef(id="rpi5", sha256=SHA), artefacts=made)
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny.rpi5"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer")
    write_graph(folder / "onnx", table(0.3))
    save(sealed(), folder / "reference.npz")
    (folder / "report.json").write_bytes(report_of(("onnx",)))
    seal_bundle(folder)
    return folder


def verify(bundle: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["verify", str(bundle), *options])
    return int(left.value.code or 0)


def with_gguf(bundle: Path, monkeypatch: pytest.MonkeyPatch, shift: int = 0) -> None:
    """Add a GGUF artefact whose engine is the bigram with a tokenizer of its own."""
    (bundle / "gguf").mkdir()
    (bundle / "gguf/model.gguf").write_bytes(b"GGUF")
    (bundle / "report.json").write_bytes(report_of(("onnx", "gguf")))
    seal_bundle(bundle, ("onnx", "gguf"))
    real = opening.open_engine

    def fake(container: str, path: Path, **options: Any) -> Any:
        return Bigram(table(0.3), shift) if container == "gguf" else real(container, path, **options)

    monkeypatch.setattr(opening, "open_engine", fake)


def test_missing_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "nothing") == 10
    assert "nothing" in capsys.readouterr().err


def test_changed_byte(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((bundle / "onnx/model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "onnx/model.onnx").write_bytes(data)
    assert verify(bundle) == 20
    captured = capsys.readouterr()
    assert "onnx/model.onnx" in captured.err
    assert "ok" not in captured.out


def test_other_weights_are_named_with_both_numbers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_graph(bundle / "onnx", table(1.5))
    seal_bundle(bundle)
    assert verify(bundle) == 21
    captured = capsys.readouterr()
    recorded = evaluate(Bigram(table(0.3)), sealed(), generate=False).kl_mean
    measured = evaluate(Bigram(table(1.5)), sealed(), generate=False).kl_mean
    for word in ("onnx/model.onnx", f"{recorded:.4f}", f"{measured:.4f}"):
        assert word in captured.err
    assert "logits" not in captured.out


@pytest.mark.parametrize(("change", "code"), [(0.009, 0), (-0.009, 0), (0.011, 21), (-0.011, 21), (1e300, 21)])
def test_tolerance(bundle: Path, change: float, code: int) -> None:
    kl = evaluate(Bigram(table(0.3)), sealed(), generate=False).kl_mean
    (bundle / "report.json").write_bytes(report_of(("onnx",), kl + change))
    seal_bundle(bundle)
    assert verify(bundle) == code


def test_other_tokenizer_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = backend()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    made.save(str(bundle / "tokenizer/tokenizer.json"))
    seal_bundle(bundle)
    assert verify(bundle) == 21
    assert "shipped tokenizer" in capsys.readouterr().err


def test_other_chat_template_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "tokenizer/tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML + "!"}))
    seal_bundle(bundle)
    assert verify(bundle) == 21
    assert "chat template" in capsys.readouterr().err


def test_engine_with_another_tokenizer_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gguf(bundle, monkeypatch, shift=1)
    assert verify(bundle) == 21
    captured = capsys.readouterr()
    assert "the tokenizer of bigram" in captured.err
    assert "logits (onnx): ok" in captured.out


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema_version": 1}'])
def test_spoilt_report(bundle: Path, data: bytes) -> None:
    (bundle / "report.json").write_bytes(data)
    seal_bundle(bundle)
    assert verify(bundle) == 20


def test_spoilt_reference(bundle: Path) -> None:
    (bundle / "reference.npz").write_bytes(b"PK")
    seal_bundle(bundle)
    assert verify(bundle) == 26


def test_contradicting_options(bundle: Path) -> None:
    assert verify(bundle, "--checksums-only", "--engine", "onnx") == 29


def test_format_that_is_not_there(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(bundle, "--engine", "gguf") == 20
    assert "gguf" in capsys.readouterr().err


def test_engine_that_is_not_installed_is_not_called_ok(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert verify(bundle) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("logits (onnx): not checked: ")
    assert "onnxruntime" in lines[-2]
    assert lines[-1].startswith("No artefact was run")


def test_engine_that_was_asked_for_must_be_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert verify(bundle, "--engine", "onnx") == 24


@pytest.mark.parametrize("name", ["reference.npz", "report.json"])
def test_bundle_without_a_record_is_not_called_verified(
    bundle: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / name).unlink()
    seal_bundle(bundle)
    assert verify(bundle) == 0
    shown = capsys.readouterr().out
    assert f"logits (onnx): not checked: the bundle has no {name}" in shown
    assert "Verified" not in shown


def test_nothing_but_checksums(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (bundle / "tokenizer/golden.json").unlink()
    seal_bundle(bundle)
    assert verify(bundle) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Only the checksums were checked")


def test_checksums_only_loads_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "tokenizer/tokenizer.json").write_bytes(b"no tokenizer")
    seal_bundle(bundle)
    assert verify(bundle, "--checksums-only") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("checksums: ok")
    assert len(lines) == 2
    assert lines[1].startswith("Only the checksums")


def test_template_with_a_date_leaves_chats_out_and_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for old in (bundle / "tokenizer").iterdir():
        old.unlink()
    (bundle / "tokenizer").rmdir()
    write_tokenizer(bundle / "tokenizer", "{{ strftime_now('%d %b %Y %S') }}" + CHATML)
    seal_bundle(bundle)
    assert verify(bundle) == 0
    assert "chats not checked: the chat template shows the date" in capsys.readouterr().out


def test_whole_bundle_on_a_device_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gguf(bundle, monkeypatch)
    for host_side in ("torch", "onnx", "transformers", "safetensors", "optimum", "matplotlib"):
        monkeypatch.setitem(sys.modules, host_side, None)
    assert verify(bundle) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["checksums", "ok"],
        ["token ids (shipped tokenizer)", "ok"],
        ["logits (onnx)", "ok"],
        ["token ids (bigram)", "ok"],
        ["logits (gguf)", "ok"],
    ]
    assert lines[-1] == "Verified: all 5 checks are ok."


def test_json_holds_the_numbers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(bundle, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["passed"], data["complete"], data["failure"]) == (True, True, None)
    last = data["checks"][-1]
    assert last["kl_mean"] == pytest.approx(last["kl_recorded"], abs=1e-5)
    assert last["kl_mean"] > 0.001


def test_json_of_a_failure_names_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_graph(bundle / "onnx", table(1.5))
    seal_bundle(bundle)
    assert verify(bundle, "--json") == 21
    data = json.loads(capsys.readouterr().out)
    assert data["passed"] is False
    assert data["complete"] is False
    assert "onnx/model.onnx" in data["failure"]
    assert [check["status"] for check in data["checks"]] == ["ok", "ok"]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, edgekit.cli.main, edgekit.cli.verify, edgekit.cli.inspect, edgekit.cli.doctor; "
        "print(*sorted({'numpy', 'rich', 'msgspec', 'tokenizers', 'gguf', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
