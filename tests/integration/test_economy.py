"""`edgekit economy` on tiny models: counts are those of the model, and a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bench_results  # noqa: E402
import tiny_families  # noqa: E402
from conftest import Cli  # noqa: E402

from edgekit import api, economizing, skipping  # noqa: E402
from edgekit.bench.result import to_json  # noqa: E402
from edgekit.bundle import manifest  # noqa: E402
from edgekit.checkpoint.source import resolve  # noqa: E402
from edgekit.coherence import metrics  # noqa: E402
from edgekit.coherence.distribution import kl_full  # noqa: E402
from edgekit.counting import Counted, counted  # noqa: E402
from edgekit.economy.gating import gated  # noqa: E402
from edgekit.engines.torch import TorchEngine  # noqa: E402
from edgekit.errors import (  # noqa: E402
    BundleError,
    FileFormatError,
    GridError,
    InputNotFoundError,
    OptionError,
    OutputExistsError,
    UnknownTargetError,
)
from edgekit.options import Options  # noqa: E402
from edgekit.targets import load  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("module_cache")]
OPTIONS = Options(sequences=4, length=32)
SHARES = (0.1, 0.3, 0.5)
ARGUMENTS = ("--sequences", "4", "--length", "32", "--shares", "0.1,0.3,0.5")


@pytest.fixture(scope="module", params=["gpt2", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("economy") / "model", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make(tmp_path_factory.mktemp("economy") / "llama", "llama-biases")


@pytest.fixture(scope="module")
def bundle(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = Options(formats=("gguf",), sequences=2, length=24, bits=8)
    return api.build(llama, target="rpi4", output=tmp_path_factory.mktemp("bundles"), options=options).bundle


def test_the_counts_are_those_of_the_model(model: Path) -> None:
    found = api.economy(model, shares=SHARES, options=OPTIONS)
    spec = resolve(str(model)).spec
    linear = sum(tensor.parameters for tensor in spec.tensors if tensor.rule.kind == "linear")
    assert found.linear == linear
    assert found.connections == linear + spec.vocab_size * spec.hidden_size
    assert found.multiply_adds > found.connections
    assert [point.asked for point in found.points] == [0.0, *SHARES]
    whole, *others = found.points
    assert whole.skipped == 0
    assert whole.unread == 0
    assert whole.kl_mean == pytest.approx(0, abs=1e-6)
    for point in others:
        assert point.skipped == pytest.approx(point.asked, abs=0.1)  # the texts differ
        assert 0 < point.unread < found.bytes_per_token
    assert others[0].kl_mean < others[-1].kl_mean
    assert sum(part.connections for part in found.blocks) == linear
    assert sum(part.connections for part in found.roles) == found.connections
    assert [part.fired for part in found.roles if part.name in ("embedding", "head")] == [1.0]


def test_a_block_costs_what_it_costs_alone(llama: Path) -> None:
    """Computed again without what the layers before gave."""
    found = api.economy(llama, shares=[0.5], max_kl=100, uniform=True, options=OPTIONS)
    assert found.chosen == 0.5
    assert found.uniform
    assert [point.predicted_kl for point in found.points] == [None, None]
    engine, spec = TorchEngine(llama), resolve(str(llama)).spec
    linear = [tensor for tensor in spec.tensors if tensor.rule.kind == "linear"]
    seen: list[tuple[Any, list[np.ndarray[Any, Any]]]] = []
    own = economizing._Run.blocks

    def noting(run: Any, share: float, allotment: None) -> list[float]:
        for layer in range(spec.layers):
            limits = {t.hf: run.limit(t.hf, share) for t in linear if t.layer == layer}
            rows = run.calibration.sequences
            whole = [engine.logits(ids) for ids in rows]
            with gated(engine.module, limits):
                seen.append((layer, [kl_full(p, engine.logits(ids)) for p, ids in zip(whole, rows, strict=True)]))
        return own(run, share, allotment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(economizing._Run, "blocks", noting)
        again = api.economy(llama, shares=[0.5], max_kl=100, uniform=True, options=OPTIONS)
    assert again == found
    for part, (_, parts) in zip(found.blocks, seen, strict=True):
        assert part.kl == pytest.approx(float(np.concatenate(parts).mean()), rel=1e-3)
        assert part.kl is not None
        assert part.kl > 0


def test_what_is_allotted_costs_less_than_the_same_everywhere(model: Path) -> None:
    """How well the sum predicts is a matter of real models: a few tokens of a tiny one are all chance."""
    even = api.economy(model, shares=SHARES, uniform=True, options=OPTIONS)
    found = api.economy(model, shares=SHARES, options=OPTIONS)
    assert not found.uniform
    assert found.points[0].predicted_kl == 0
    for point, other in zip(found.points[1:], even.points[1:], strict=True):
        assert point.predicted_kl is not None
        assert point.kl_mean < 1.1 * other.kl_mean + 1e-4
        assert point.skipped > other.skipped - 0.05
    predicted = [point.predicted_kl or 0.0 for point in found.points]
    assert predicted == sorted(predicted)
    assert predicted[-1] > 0


def test_a_format_has_damage_and_bytes_of_its_own(llama: Path) -> None:
    plain = api.economy(llama, shares=SHARES, options=OPTIONS)
    coarse = api.economy(llama, shares=SHARES, grid="int3-sym-b32", options=OPTIONS)
    assert plain.weights == ""
    assert coarse.weights == "int3-sym-b32"
    assert coarse.points[0].kl_mean > 0.01
    assert coarse.best.kl_mean <= coarse.points[0].kl_mean + coarse.max_kl
    assert coarse.bytes_per_token != plain.bytes_per_token


def test_what_was_measured_is_kept(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.economy(llama, shares=[0.25], options=OPTIONS)
    monkeypatch.setattr(metrics, "evaluate", None)
    monkeypatch.setattr(skipping, "inputs", None)
    assert api.economy(llama, shares=[0.25], options=OPTIONS) == first


def test_a_killed_run_goes_on(llama: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(sequences=3, length=32)
    done: list[None] = []
    own = metrics.evaluate

    def killed(*arguments: Any, **named: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(None)
        return own(*arguments, **named)

    monkeypatch.setattr(metrics, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        api.economy(llama, shares=SHARES, options=options)
    measured: list[None] = []

    def counting(*arguments: Any, **named: Any) -> Any:
        measured.append(None)
        return own(*arguments, **named)

    monkeypatch.setattr(metrics, "evaluate", counting)
    api.economy(llama, shares=SHARES, options=options)
    assert len(measured) == 2  # of four


def test_a_bundle_has_formats_of_its_own(llama: Path, bundle: Path) -> None:
    found = api.economy(bundle, against=llama, shares=[0.3], options=OPTIONS)
    listed = manifest.from_json((bundle / "manifest.json").read_bytes()).artefacts[0]
    assert found.reference == "llama"
    assert found.target == "rpi4"
    assert api.economy(bundle, target="rpi5", shares=[0.3], options=OPTIONS).target == "rpi5"
    assert 0 < found.points[0].kl_mean < 0.05  # what 8 bits do
    assert found.bytes_per_token == sum(entry.bytes for entry in listed.plan)
    with pytest.raises(OptionError, match="formats of its own"):
        api.economy(bundle, grid="Q4_0", options=OPTIONS)


def test_a_bundle_without_weights_that_can_be_read_is_refused(bundle: Path, llama: Path) -> None:
    listed = manifest.from_json((bundle / "manifest.json").read_bytes()).artefacts[0]
    few = msgspec.structs.replace(listed, plan=listed.plan[1:])
    wrong = [msgspec.structs.replace(entry, grid="Q6_K") for entry in listed.plan]
    with pytest.raises(BundleError, match="does not list"):
        Counted("x", few).plan(resolve(str(llama)), load("rpi5"), "gguf", 4, None)
    with pytest.raises(BundleError, match="formats that do not fit"):
        Counted("x", msgspec.structs.replace(listed, plan=tuple(wrong))).plan(
            resolve(str(llama)), load("rpi5"), "gguf", 4, None
        )


def test_a_bundle_of_onnx_alone_is_refused(llama: Path, tmp_path: Path) -> None:
    options = Options(formats=("onnx",), sequences=2, length=24)
    made = api.build(llama, output=tmp_path, options=options).bundle
    with pytest.raises(BundleError, match="no GGUF file"):
        counted(made)


def test_what_is_no_share_no_format_or_no_parent_is_refused(llama: Path, tmp_path: Path) -> None:
    for share in (1.0, 0.96, -0.1, float("nan")):
        with pytest.raises(OptionError, match="no share"):
            api.economy(llama, shares=[share], options=OPTIONS)
    with pytest.raises(OptionError, match="no divergence"):
        api.economy(llama, max_kl=float("nan"), options=OPTIONS)
    with pytest.raises(GridError, match="does not fit"):
        api.economy(llama, grid="Q6_K", options=OPTIONS)
    with pytest.raises(GridError):
        api.economy(llama, grid="Q9", options=OPTIONS)
    stranger = tiny_families.make(tmp_path / "stranger", "gpt2", tokenizer="gpt2")
    with pytest.raises(OptionError, match="same tokenizer"):
        api.economy(llama, against=stranger, options=OPTIONS)


def test_what_a_board_measured_stands_beside(cli: Cli, llama: Path, tmp_path: Path) -> None:
    board, emulated = (bench_results.result(kind=kind) for kind in ("measured", "emulated"))
    found = api.economy(llama, shares=[0.3], measured=board, options=OPTIONS)
    decode = board.runs[0].decode
    assert decode is not None
    assert decode.energy is not None
    assert found.measured is not None
    assert found.measured.tokens_per_second == decode.speed.quantity.value
    assert found.measured.millijoules == decode.energy.quantity.value
    with pytest.raises(OptionError, match="emulated board"):
        api.economy(llama, measured=emulated, options=OPTIONS)
    with pytest.raises(OptionError, match="no decoding of onnx"):
        api.economy(llama, measured=board, container="onnx", options=OPTIONS)
    path = tmp_path / "bench.json"
    path.write_bytes(to_json(board))
    done = cli("economy", llama, *ARGUMENTS, "--bench", path)
    assert "Measured on Raspberry Pi 5" in done.out.replace("\n", " ")
    path.write_text("{}")
    cli("economy", llama, "--bench", path).refused(FileFormatError.exit_code, "bench.json")
    cli("economy", llama, "--bench", tmp_path / "none").refused(InputNotFoundError.exit_code, "none")


def test_the_command_writes_a_page_of_all(cli: Cli, llama: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    arguments = ("economy", llama, "--grids", "own, Q8_0", *ARGUMENTS, "-o", page, "--json", figures)
    done = cli(*arguments)
    assert done.code == 0, done.err
    found = json.loads(figures.read_text())
    assert [one["weights"] for one in found] == ["", "Q8_0"]
    text = page.read_text()
    assert text.count('<polyline class="curve"') == 2
    cli(*arguments).refused(OutputExistsError.exit_code, str(page))
    assert page.read_text() == text


def test_wrong_options_are_one_sentence(cli: Cli, llama: Path) -> None:
    cli("economy", llama, "--shares", "half").refused(OptionError.exit_code, "half", "separated by commas")
    missing = cli("economy", llama, llama / "none")
    missing.refused(InputNotFoundError.exit_code, "none")
    assert "write" not in missing.out
    cli("economy", llama, "--target", "toaster").refused(UnknownTargetError.exit_code, "toaster")
