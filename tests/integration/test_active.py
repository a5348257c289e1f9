"""`edgekit build --active` on tiny models: small inputs are left out by the engine as they are in torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import tiny_families  # noqa: E402
from conftest import Cli  # noqa: E402

from edgekit import api  # noqa: E402
from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from edgekit.economy.gating import Counts, gated  # noqa: E402
from edgekit.engines.base import Ids  # noqa: E402
from edgekit.engines.opening import open_engine  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.errors import OptionError, ParityError  # noqa: E402
from edgekit.export import artefacts  # noqa: E402
from edgekit.export.digests import Digest  # noqa: E402
from edgekit.export.onnx import without_thresholds  # noqa: E402
from edgekit.export.onnx_decoder import tensors_of_nodes  # noqa: E402
from edgekit.export.onnx_reading import check_bytes, read_weights  # noqa: E402
from edgekit.options import Budget, Options  # noqa: E402
from edgekit.quantize.plan import Plan, make_plan  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("module_cache")]
OPTIONS = Options(bits=3, formats=("onnx",), sequences=4, length=32, active=0.7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("active") / "model", "gpt2")


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Built:
    return api.build(model, target="rpi5", output=tmp_path_factory.mktemp("bundles"), options=OPTIONS)


def thresholds(bundle: Path) -> dict[str, float]:
    """Node → threshold, of those that have one."""
    graph = onnx.load(str(bundle / "onnx" / "model.onnx"), load_external_data=False).graph
    return {
        node.name: next(attribute.f for attribute in node.attribute if attribute.name == "threshold")
        for node in graph.node if node.op_type == "SparseMatMul3Bits"
    }  # fmt: skip


def test_the_engine_leaves_out_what_torch_does(model: Path, bundle: api.Built) -> None:
    checkpoint = open_checkpoint(model)
    limits = thresholds(bundle.bundle)
    assert limits
    assert all(limit > 0 for limit in limits.values())
    weights = dict(read_weights(bundle.bundle / "onnx", checkpoint.spec))
    linear = {tensor.hf: tensor for tensor in checkpoint.spec.tensors if tensor.rule.kind == "linear"}
    nodes = tensors_of_nodes(checkpoint.spec)
    by_layer = {tensor.hf: limit for node, limit in limits.items() for tensor in nodes[node]}
    ids = np.arange(3, 35)
    torch_engine = TorchEngine(model)
    own = open_engine("onnx", bundle.bundle / "onnx" / "model.onnx", context=64)
    counts = Counts()
    try:
        torch_engine.replace(
            (name, array.T if name in linear and linear[name].rule.transposed else array)
            for name, array in weights.items()
        )
        whole = torch_engine.logits(ids)
        with gated(torch_engine.module, by_layer, counts):
            expected = torch_engine.logits(ids)
        found = own.logits(ids)
    finally:
        own.close()
        torch_engine.close()
    # Activations in 8 bits put some inputs on the other side of their threshold, so the two are not the same.
    ours, theirs = (found - whole).ravel(), (expected - whole).ravel()
    assert np.abs(theirs).mean() > 0.05, "nothing was left out"
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.6
    fired = sum(one.fired for one in counts.layers.values()) / sum(one.seen for one in counts.layers.values())
    assert 0.4 < fired < 0.95


def test_other_thresholds_than_the_plans_are_a_parity_error(model: Path, bundle: api.Built, tmp_path: Path) -> None:
    spec = open_checkpoint(model).spec
    folder = shutil.copytree(bundle.bundle / "onnx", tmp_path / "onnx")
    entries = make_plan(
        spec, "onnx", 3, lambda tensor: [_grid(tensor.rule.kind)], lambda _tensor: 3
    ).entries  # the same matrices, none of which has a threshold
    digests = {name: _digest(weights) for name, weights in read_weights(folder, spec)}
    with pytest.raises(ParityError, match=r"are left out below .*; expected 0"):
        check_bytes(folder, spec, Plan("onnx", 3, entries), digests)


def _grid(kind: str) -> str:
    return "embed-int8-sym-b32" if kind == "embedding" else "int3-sym-b32"


def _digest(weights: NDArray[np.float32]) -> str:
    found = Digest()
    found.update(weights)
    return found.text()


def test_the_report_says_so(bundle: api.Built) -> None:
    (artefact,) = bundle.report.artefacts
    assert bundle.bundle.name.endswith(".bits3.active0.7")
    assert artefact.title.endswith("70% of the linear layers' connections are to fire")
    assert "connections are to fire" in (bundle.bundle / "report.html").read_text(encoding="utf8")


def test_verify_measures_the_same(bundle: api.Built, cli: Cli) -> None:
    done = cli("verify", str(bundle.bundle))
    assert done.code == 0, done.err


def test_where_nothing_can_be_skipped_it_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the linear layers are in int4-sym-b32"):
        api.build(model, target="rpi5", output=tmp_path, options=Options(bits=4, formats=("onnx",), active=0.7))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(bits=3, formats=("gguf",), active=0.7), "no ONNX of edgekit's own"),
        (Options(bits=3, active=0.7, portable=True), "--portable"),
        (Options(active=0.7, budget=Budget("bits", 4.0)), "a budget"),
        (Options(active=0.7, disperse="laptop", train_text=(__file__,)), "--disperse"),
    ],
)
def test_what_does_not_go_together_is_refused(options: Options, words: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"--active is given with {words}"):
        api.build(model, target="rpi5", output=tmp_path, options=options)


def test_the_text_that_is_judged_has_no_say(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--active and --no-calibration contradict each other"):
        api.build(model, target="rpi5", output=tmp_path, options=replace(OPTIONS, calibrate=False))


def test_an_engine_that_leaves_nothing_out_is_a_parity_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are right, the engine is not."""
    own = artefacts._engine_logits

    def other(container: str, path: Path, sequences: Sequence[Ids]) -> list[NDArray[np.float32]]:
        if "SparseMatMul3Bits" not in {
            node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node
        }:
            return own(container, path, sequences)
        with without_thresholds(path) as whole:
            return own(container, whole, sequences)

    monkeypatch.setattr(artefacts, "_engine_logits", other)
    with pytest.raises(ParityError, match="with thresholds the ONNX artefact differs"):
        api.build(model, target="rpi5", output=tmp_path, options=replace(OPTIONS, active=0.3, cache=False))


@pytest.mark.parametrize("share", ["0", "1", "1.5", "much"])
def test_a_share_is_a_share(share: str, cli: Cli) -> None:
    done = cli("build", "--active", share)
    assert done.code == 2
    assert "--active" in done.err


def test_no_number_is_no_share(cli: Cli) -> None:
    cli("build", "--active", "nan").refused(OptionError.exit_code, "nan is no share", "such as 0.8")
