"""Measuring sensitivity on a tiny model: one true divergence a group, the model as it was afterwards, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.coherence.distribution import kl_full
from edgekit.errors import BadWeightsError, OptionError, TextError
from edgekit.grids import get
from edgekit.options import Budget, Options
from edgekit.progress import Advance
from edgekit.quantize.budgeted import Allotment, plan_under
from edgekit.quantize.groups import groups
from edgekit.quantize.plan import Plan
from edgekit.quantize.sensitivity import Probe, sample
from edgekit.quantize.sensitivity_map import SensitivityMap
from edgekit.targets import load

torch_engine = pytest.importorskip("edgekit.engines.torch")

SEQUENCES = [np.arange(3, 40, dtype=np.int64), np.arange(60, 90, dtype=np.int64)]


@pytest.fixture(scope="module")
def checkpoint(sound: Path) -> Checkpoint:
    return open_checkpoint(sound)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Any:
    return torch_engine.TorchEngine(checkpoint.root)


def test_a_text_without_two_tokens_is_refused() -> None:
    with pytest.raises(TextError, match="sensitivity"):
        sample([np.array([5])], 4, 100)


def test_a_sample_is_bounded_by_number_and_by_memory() -> None:
    many = [np.zeros(128, np.int64)] * 16
    assert len(sample(many, 4, 50_000)) == 4
    assert len(sample(many, 16, 262_144)) == 4
    assert len(sample(many, 16, 10_000_000)) == 1


def test_nan_in_the_statistics_names_the_layer(checkpoint: Checkpoint, engine: Any) -> None:
    group = groups(checkpoint.spec, "gguf")[3]
    importance = {group.names[0]: np.full(group.tensors[0].shape[1], np.nan, np.float32)}
    probe = Probe(lambda: engine, checkpoint, "gguf", SEQUENCES, importance)
    with pytest.raises(BadWeightsError, match=group.names[0]):
        probe.damage(group, ["Q4_0", "Q8_0"])


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_the_divergence_is_that_of_the_model_with_this_group_alone(
    container: Any, checkpoint: Checkpoint, engine: Any
) -> None:
    before = [engine.logits(ids) for ids in SEQUENCES]
    probe = Probe(lambda: engine, checkpoint, container, SEQUENCES, {})
    formats = ["Q4_0", "Q8_0"] if container == "gguf" else ["int4-sym-b32", "int8-sym-b32"]
    for group in groups(checkpoint.spec, container):
        found = probe.damage(group, formats)
        weights = {t.hf: get(found.anchor).quantize(checkpoint.read(t)) for t in group.tensors}
        fresh = torch_engine.TorchEngine(checkpoint.root)
        fresh.replace((name, get(found.anchor).dequantize(rounded)) for name, rounded in weights.items())
        expected = np.concatenate([kl_full(p, fresh.logits(ids)) for p, ids in zip(before, SEQUENCES, strict=True)])
        assert found.kl == pytest.approx(float(expected.mean()), rel=1e-3, abs=1e-9)
        other = next(name for name in found.errors if name != found.anchor)
        assert found.damage(other) < found.kl / 50
        assert found.tensors == group.names
    assert all(np.array_equal(engine.logits(ids), rows) for ids, rows in zip(SEQUENCES, before, strict=True))


def test_importance_weighs_the_error(checkpoint: Checkpoint, engine: Any) -> None:
    group = groups(checkpoint.spec, "gguf")[1]
    columns = group.tensors[0].shape[1]
    plain, heavy = (
        Probe(lambda: engine, checkpoint, "gguf", SEQUENCES, {group.names[0]: np.full(columns, w, np.float32)})
        for w in (1.0, 9.0)
    )
    one, nine = plain.damage(group, ["Q4_0"]), heavy.damage(group, ["Q4_0"])
    assert nine.errors["Q4_0"] == pytest.approx(9 * one.errors["Q4_0"], rel=1e-3)
    assert nine.kl == pytest.approx(one.kl, rel=1e-6)


def test_weights_on_the_anchors_grid_do_no_damage(tmp_path: Path) -> None:
    """Nothing to divide by: the group costs nothing in any format that the map can tell."""
    made = tiny.Tiny(seed=5)
    folder = tiny.make(tmp_path / "m", made)
    checkpoint = open_checkpoint(folder)
    zero = {name: np.zeros_like(array) if "q_proj" in name else array for name, array in tiny.weights(made).items()}
    tiny.write_weights(folder, zero, made)
    checkpoint = open_checkpoint(folder)
    engine = torch_engine.TorchEngine(folder)
    group = next(g for g in groups(checkpoint.spec, "gguf") if "q_proj" in g.names[0])
    found = Probe(lambda: engine, checkpoint, "gguf", SEQUENCES, {}).damage(group, ["Q4_0", "Q8_0"])
    assert (found.kl, found.damage("Q8_0")) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("source", "container", "formats", "anchor"),
    [
        ("Q4_0", "onnx", ("int4-sym-b32", "int4-asym-b64", "int8-sym-b32"), "int4-asym-b64"),
        ("Q4_0", "gguf", ("Q4_0", "IQ4_NL", "Q8_0"), "IQ4_NL"),
        ("IQ4_NL", "gguf", ("IQ4_NL", "Q4_0", "Q8_0"), "Q4_0"),
    ],
)
def test_weights_from_a_quantized_file_are_asked_in_a_format_that_changes_them(
    source: str, container: Any, formats: tuple[str, ...], anchor: str, tmp_path: Path
) -> None:
    made = tiny.Tiny(seed=5)
    folder = tiny.make(tmp_path / "m", made)

    def rounded(name: str, array: Any) -> Any:
        grid = get(source)
        return grid.dequantize(grid.quantize(array.astype(np.float32))) if "down_proj" in name else array

    tiny.write_weights(folder, {name: rounded(name, array) for name, array in tiny.weights(made).items()}, made)
    checkpoint = open_checkpoint(folder)
    engine = torch_engine.TorchEngine(folder)
    group = next(g for g in groups(checkpoint.spec, container) if "down_proj" in g.names[0])
    found = Probe(lambda: engine, checkpoint, container, SEQUENCES, {}).damage(group, formats)
    assert found.anchor == anchor
    assert found.kl > 1e-5
    assert all(found.damage(name) <= 1.01 * found.kl for name in formats)


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_damages_add_up_to_about_the_divergence_of_a_mixed_plan(
    container: Any, checkpoint: Checkpoint, engine: Any
) -> None:
    """On other text than they were measured on; and of two plans of one size the map knows the better one."""
    own, formats = groups(checkpoint.spec, container), {"gguf": ("IQ4_NL", "Q4_0", "Q8_0")}.get(container)
    probe = Probe(lambda: engine, checkpoint, container, SEQUENCES, {})
    parts = tuple(probe.damage(group, formats or ("int4-sym-b32", "int8-sym-b32")) for group in own)
    found = SensitivityMap(
        model="m", model_sha256=checkpoint.sha256, container=container, text_sha256="0" * 64,
        tokens=67, groups=parts,
    )  # fmt: skip
    board = load("rpi5")
    names = ("int4-sym-b32", "int8-sym-b32")
    runtime = msgspec.structs.replace(
        board.runtime,
        gguf=msgspec.structs.replace(board.runtime.gguf, fast=("IQ4_NL", "Q8_0")),
        onnx=msgspec.structs.replace(board.runtime.onnx, fast=names),
    )
    given = Allotment(checkpoint.spec, msgspec.structs.replace(board, runtime=runtime), container, found)
    middle = given.fixed + int(1.3 * given.by_size.base)
    best = plan_under(Budget("size", middle), given)
    backwards = tuple(msgspec.structs.replace(part, kl=1 / (part.kl + 1e-9)) for part in parts)
    worst = plan_under(Budget("size", middle), replace(given, map=msgspec.structs.replace(found, groups=backwards)))

    other = [np.arange(100, 160, dtype=np.int64), np.arange(300, 360, dtype=np.int64)]
    originals = [engine.logits(ids) for ids in other]

    def true(plan: Plan) -> float:
        fresh = torch_engine.TorchEngine(checkpoint.root)
        for entry in (entry for entry in plan.entries if entry.tensor.rule.matrix):
            grid, weights = get(entry.grid), checkpoint.read(entry.tensor)
            fresh.replace([(entry.tensor.hf, grid.dequantize(grid.quantize(weights)))])
        kl = [kl_full(p, fresh.logits(ids)) for p, ids in zip(originals, other, strict=True)]
        return float(np.concatenate(kl).mean())

    assert best.predicted_kl == pytest.approx(true(best), rel=0.5)
    assert true(best) < true(worst) / 1.3


# -- the stage


class Counting:
    """A Progress that remembers titles and stops a run when told to."""

    def __init__(self, stop_at: str = "") -> None:
        self.titles: list[str] = []
        self.stop_at = stop_at

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        self.titles.append(title)
        if self.stop_at and self.stop_at in title:
            raise KeyboardInterrupt
        yield lambda _done, _total: None

    def note(self, line: str) -> None:
        self.titles.append(line)


@pytest.mark.usefixtures("own_cache")
def test_a_killed_measurement_goes_on_where_it_was(checkpoint: Checkpoint) -> None:
    from edgekit.building import sensitivity_of

    options = Options(length=16, sequences=4, probes=2)
    killed = Counting(stop_at="groups 9 to")
    with pytest.raises(KeyboardInterrupt):
        sensitivity_of(checkpoint, "gguf", options, killed)
    again = Counting()
    found = sensitivity_of(checkpoint, "gguf", options, again)
    assert "GGUF: sensitivity, groups 1 to 8 of 15 (from cache)" in again.titles
    assert "GGUF: sensitivity, groups 9 to 15 of 15" in again.titles
    third = Counting()
    assert sensitivity_of(checkpoint, "gguf", options, third) == found
    assert not any("groups" in title and "cache" not in title for title in third.titles)
    assert (found.tokens, len(found.groups)) == (32, 15)


@pytest.mark.usefixtures("own_cache")
def test_without_calibration_there_is_nothing_to_measure_on(checkpoint: Checkpoint) -> None:
    from edgekit.building import sensitivity_of

    with pytest.raises(OptionError, match="--sensitivity FILE"):
        sensitivity_of(checkpoint, "gguf", Options(length=16, sequences=2, calibrate=False), Counting())
