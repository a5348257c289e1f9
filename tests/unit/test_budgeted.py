"""Plans under a budget and plan files, on a tiny model with a made-up map."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny
from test_sensitivity_map import made_up

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import BudgetError, FileFormatError, GridError, InputNotFoundError, OptionError
from edgekit.options import Budget, Container
from edgekit.quantize.budgeted import Allotment, curve, plan_under
from edgekit.quantize.plan_file import follow, read, to_json
from edgekit.quantize.predict import predict
from edgekit.report.pareto import render
from edgekit.targets import Target, load


@pytest.fixture
def checkpoint(sound: Path) -> Checkpoint:
    return open_checkpoint(sound)


def allotment(
    checkpoint: Checkpoint, container: Container = "gguf", target: str = "rpi5", beside: int = 0
) -> Allotment:
    return Allotment(checkpoint.spec, load(target), container, made_up(checkpoint, container), beside)


def without_fast(target: Target) -> Target:
    runtime = msgspec.structs.replace(
        target.runtime, gguf=msgspec.structs.replace(target.runtime.gguf, fast=()),
        onnx=msgspec.structs.replace(target.runtime.onnx, bits=()),
    )  # fmt: skip
    return msgspec.structs.replace(target, runtime=runtime)


# -- what cannot be met


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_a_size_below_the_smallest_names_the_nearest_which_can_be_met(
    container: Container, checkpoint: Checkpoint
) -> None:
    given = allotment(checkpoint, container, beside=1000)
    smallest = given.by_size.base + given.fixed + 1000
    with pytest.raises(BudgetError, match="keeps to at most") as refused:
        plan_under(Budget("size", smallest - 1), given)
    assert f"{smallest / 1e6:.2f} MB" in refused.value.expected
    assert plan_under(Budget("size", smallest), given).nbytes + 1000 == smallest


def test_bits_kl_and_speed_that_nothing_meets(checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint)
    for budget, word in (
        (Budget("bits", 3.5), "bits per weight"), (Budget("max-kl", 1e-9), "nats"),
        (Budget("min-speed", 1e9), "tokens/s"),
    ):  # fmt: skip
        with pytest.raises(BudgetError) as refused:
            plan_under(budget, given)
        assert word in refused.value.expected


def test_a_speed_on_a_board_without_bandwidth(checkpoint: Checkpoint) -> None:
    with pytest.raises(OptionError, match="no decode bandwidth"):
        plan_under(Budget("min-speed", 5), allotment(checkpoint, target="host"))


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_a_target_that_calls_nothing_fast(container: Container, checkpoint: Checkpoint) -> None:
    given = replace(allotment(checkpoint, container), target=without_fast(load("rpi5")))
    with pytest.raises(OptionError, match="names no format"):
        plan_under(Budget("size", 1e9), given)


def test_a_map_without_a_format_that_the_target_calls_fast(checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint)
    poor = [
        msgspec.structs.replace(g, errors={"IQ4_NL": 1.0}, bytes={"IQ4_NL": g.bytes["IQ4_NL"]})
        for g in given.map.groups
    ]
    with pytest.raises(OptionError, match="says nothing of"):
        plan_under(Budget("size", 1e9), replace(given, map=msgspec.structs.replace(given.map, groups=tuple(poor))))


# -- what can


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_more_bytes_never_mean_more_damage(container: Container, checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint, container)
    beside = given.fixed
    sizes = range(given.by_size.base + beside, 2 * (given.by_size.base + beside), 997)
    found = [plan_under(Budget("size", size), given) for size in sizes]
    assert all(plan.nbytes <= size for plan, size in zip(found, sizes, strict=True))
    damages = [plan.predicted_kl or 0.0 for plan in found]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(damages))
    assert damages[-1] < damages[0] / 50
    assert all(plan.gap == 0 for plan in found), "a tiny problem is solved exactly"


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_a_plan_uses_fast_formats_and_one_in_each_group(container: Container, checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint, container)
    plan = plan_under(Budget("size", 1.3 * (given.by_size.base + given.fixed)), given)
    by_name = {entry.tensor.hf: entry.grid for entry in plan.entries}
    for group, names in given.groups:
        assert len({by_name[name] for name in group.names}) == 1
        assert by_name[group.names[0]] in names
    assert len({by_name[group.names[0]] for group, _ in given.groups}) > 1, "a mix"
    assert not any(entry.grid in ("F16", "Q5_0") for entry in plan.entries)
    assert plan.budget.startswith("at most")
    assert "at most" in plan.title()


def test_the_most_sensitive_groups_get_the_bits(checkpoint: Checkpoint) -> None:
    """All made-up errors are equal, so the last groups, whose damage is largest, come first at equal bytes."""
    given = allotment(checkpoint)
    plan = plan_under(Budget("size", 1.3 * (given.by_size.base + given.fixed)), given)
    bits = {entry.tensor.hf: entry.bits for entry in plan.entries}
    assert bits["model.layers.1.self_attn.q_proj.weight"] >= bits["model.layers.0.self_attn.q_proj.weight"]
    assert bits["model.layers.1.mlp.down_proj.weight"] > bits["model.embed_tokens.weight"]


def test_a_limit_on_damage_gives_the_smallest_that_keeps_it(checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint)
    plan = plan_under(Budget("max-kl", 0.3), given)
    assert plan.predicted_kl is not None
    assert plan.predicted_kl <= 0.3 * (1 + 1e-9)
    smaller = plan_under(Budget("size", plan.nbytes - 1), given)
    assert (smaller.predicted_kl or 0) > 0.3
    corrected = plan_under(Budget("max-kl", 0.3), replace(given, factor=2.0))
    assert corrected.nbytes > plan.nbytes


def test_a_limit_on_speed_keeps_the_predicted_speed(checkpoint: Checkpoint) -> None:
    given = allotment(checkpoint)
    fastest = predict(
        checkpoint.spec, plan_under(Budget("size", given.by_size.base + given.fixed), given), given.target
    )
    assert fastest.tokens_per_second is not None
    wanted = 0.8 * fastest.tokens_per_second
    plan = plan_under(Budget("min-speed", wanted), given)
    speed = predict(checkpoint.spec, plan, given.target).tokens_per_second
    assert speed is not None
    assert wanted <= speed < 1.1 * wanted


def test_an_untied_embedding_costs_no_speed(tmp_path: Path) -> None:
    untied = open_checkpoint(tiny.make(tmp_path / "m", tiny.Tiny(tied=False)))
    given = allotment(untied)
    plan = plan_under(Budget("min-speed", 1.0), given)
    assert {entry.grid for entry in plan.entries if entry.tensor.rule.matrix} == {"Q8_0"}
    tight = Budget("min-speed", 0.9 * 11.82e9 * 0.98 / (given.by_time.base * 0.98 + given.fixed))
    grids = {entry.tensor.role: entry.grid for entry in plan_under(tight, given).entries}
    assert grids["embedding"] == "Q8_0"


def test_boards_without_dot_product_may_use_what_nothing_there_repacks(checkpoint: Checkpoint) -> None:
    assert {"Q5_0", "Q5_1"} <= set(allotment(checkpoint, target="rpi4").groups[0][1])
    assert not {"Q5_0", "Q5_1"} & set(allotment(checkpoint, target="rpi5").groups[0][1])


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_the_curve_falls_and_its_page_has_every_point(container: Container, checkpoint: Checkpoint) -> None:
    points = curve(allotment(checkpoint, container, beside=500))
    sizes = [point.file_bytes for point in points]
    damages = [point.plan.predicted_kl or 0.0 for point in points]
    assert len(points) > 5
    assert sizes == sorted(set(sizes))
    assert damages == sorted(damages, reverse=True)
    assert all(point.file_bytes == point.plan.nbytes + 500 for point in points)
    page = render("<b>model</b>", "Board & Co", {container: points})
    assert page == render("<b>model</b>", "Board & Co", {container: points})
    assert "<b>model" not in page
    assert page.count("<circle") == 2 * len(points), "against size and against speed"
    for point in points:
        assert f"<td>{point.file_bytes / 1e6:.2f}</td>" in page


def test_the_page_without_speeds_or_with_one_point(checkpoint: Checkpoint) -> None:
    (point, *_) = curve(allotment(checkpoint, target="host"))
    assert render("m", "t", {"gguf": [point]}).count("<circle") == 1


# -- plan files


def edited(
    checkpoint: Checkpoint, path: Path, change: Callable[[dict[str, Any]], None], kind: Container = "gguf"
) -> Path:
    found = json.loads(to_json(checkpoint, [plan_under(Budget("size", 1e9), allotment(checkpoint, kind))]))
    change(found)
    path.write_text(json.dumps(found))
    return path


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"model.layers.9.nonsense": "Q4_0"}, FileFormatError, "nonsense"),
        ({"model.norm.weight": "Q8_0"}, FileFormatError, r"model\.norm\.weight"),
        ({Q: "Q4_O"}, GridError, "Q4_O"),
        ({Q: "Q4_K"}, GridError, "not divisible by 256"),
        ({Q: "int4-sym-b32"}, GridError, "one of gguf"),
        ({Q: None}, FileFormatError, "not a plan"),
        ({Q: 4}, FileFormatError, "not a plan"),
    ],
)
def test_a_plan_edited_badly(
    tensors: dict[str, Any], error: type[Exception], words: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = edited(checkpoint, tmp_path / "plan.json", lambda found: found["plans"][0]["tensors"].update(tensors))
    with pytest.raises(error, match=words):
        follow(read(path), checkpoint, load("rpi5"), "gguf")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({Q: "int4-sym-b32"}, "one node of the graph"),
        ({"model.embed_tokens.weight": "int4-sym-b32"}, "begins with embed-"),
        ({Q: "embed-int8-sym-b32"}, "for a linear layer"),
    ],
)
def test_an_onnx_plan_edited_badly(tensors: dict[str, str], words: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "p.json", lambda found: found["plans"][0]["tensors"].update(tensors), "onnx")
    with pytest.raises(GridError, match=words):
        follow(read(path), checkpoint, load("rpi5"), "onnx")


def test_a_plan_that_leaves_out_a_tensor(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = edited(checkpoint, tmp_path / "plan.json", lambda found: found["plans"][0]["tensors"].pop(Q))
    with pytest.raises(FileFormatError, match=f"leaves out {Q}"):
        follow(read(path), checkpoint, load("rpi5"), "gguf")


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(more=1), lambda found: found.pop("model_sha256"),
        lambda found: found.update(plans=[]),
        lambda found: found["plans"].append(found["plans"][0]), lambda found: found.update(schema_version=2),
        lambda found: found["plans"][0].update(format="exe"),
    ],
)  # fmt: skip
def test_what_is_no_plan(change: Callable[[dict[str, Any]], None], checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"is not a plan|lists a format twice"):
        read(edited(checkpoint, tmp_path / "plan.json", change))


def test_a_plan_that_is_not_there_or_for_another_model_or_container(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read(tmp_path / "none.json")
    found = read(edited(checkpoint, tmp_path / "plan.json", lambda _: None))
    other = open_checkpoint(tiny.make(tmp_path / "other", tiny.Tiny(seed=3)))
    with pytest.raises(OptionError, match="plan is for model"):
        follow(found, other, load("rpi5"), "gguf")
    with pytest.raises(OptionError, match="lists no onnx"):
        follow(found, checkpoint, load("rpi5"), "onnx")


@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_a_plan_that_is_written_is_followed(container: Container, checkpoint: Checkpoint, tmp_path: Path) -> None:
    given = allotment(checkpoint, container)
    plan = plan_under(Budget("size", 1.3 * (given.by_size.base + given.fixed)), given)
    (tmp_path / "plan.json").write_bytes(to_json(checkpoint, [plan]))
    followed = follow(read(tmp_path / "plan.json"), checkpoint, load("rpi5"), container)
    assert followed.entries == plan.entries
    assert (followed.bits, followed.session) == (plan.bits, plan.session)
    assert followed.predicted_kl is None, "nobody knows what an edited plan does"
