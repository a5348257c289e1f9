"""A bundle carries edgekit's operators where its artefacts need them, also when a budget is yet to choose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgekit import steps
from edgekit.options import Budget, Options, RuntimeOptions
from edgekit.progress import Quiet
from edgekit.quantize.groups import stock
from edgekit.targets import Target, load


def with_three_bits(target: Target) -> Target:
    onnx = target.runtime.onnx
    runtime = msgspec.structs.replace(
        target.runtime, onnx=msgspec.structs.replace(onnx, fast=(*onnx.fast, "int3-sym-b32"))
    )
    return msgspec.structs.replace(target, runtime=runtime)


@pytest.mark.parametrize(
    ("own", "budget", "formats", "expected"),
    [
        (True, Budget("bits", 4), ("onnx",), True),
        (True, Budget("bits", 4), ("gguf",), False),
        (True, None, ("onnx",), False),
        (False, Budget("bits", 4), ("onnx",), False),
    ],
)
def test_under_a_budget_what_it_may_choose_counts(
    own: bool, budget: Budget | None, formats: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("edgekit.crossbuild.package.package", lambda *_, operators: asked.append(operators))
    options = Options(runtime=RuntimeOptions(), budget=budget, formats=formats)
    target = with_three_bits(load("rpi5"))
    work: Any = SimpleNamespace(options=options, folder=None, progress=Quiet())
    steps.runtime(work, target if own else stock(target), [])
    assert asked == [expected]
