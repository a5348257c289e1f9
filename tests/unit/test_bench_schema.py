"""docs/schemas/bench.schema.json: what the code makes, and what agrees with the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bench_results import result, run, turned

from edgekit.bench.result import BenchResult, Failure, Instructions, figure, from_json, schema_text, to_json
from edgekit.bench.words import lines
from edgekit.errors import FileFormatError

COMMITTED = Path(__file__).parents[2] / "docs/schemas/bench.schema.json"
BARE: dict[str, Any] = {"sweep": (), "loading": (), "prefill": (), "decode": None, "talk": None, "coherence": None}
COUNTED = figure([36.9, 36.9], "M instructions/token", "emulated")
RESULTS = {
    "measured": result(run(requested_bits=4, effective_bits=4.97, types=("IQ4_NL",)), run("onnx")),
    "emulated": result(kind="emulated"),
    "in turns": turned(1.5, energy=0.8, more={"accelerator": "cuda"}),
    "failed": result(run(failure=Failure(kind="crash", sentence="signal 11", exit_code=37), **BARE)),
    "counted": result(
        run(
            kind="emulated", **BARE,
            instructions=Instructions(decode=COUNTED, prefill=COUNTED, cpu="cortex-a76", program="runtime/bin/x"),
        ),
        kind="emulated",
    ),
}  # fmt: skip


def validator() -> Any:
    schema = json.loads(COMMITTED.read_text(encoding="utf8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_the_generated_one() -> None:
    assert COMMITTED.read_text(encoding="utf8") == schema_text(), "run: make schemas"


@pytest.mark.parametrize("found", RESULTS.values(), ids=RESULTS.keys())
def test_a_result_obeys_the_schema(found: BenchResult) -> None:
    validator().validate(json.loads(to_json(found)))


CHANGES: dict[str, dict[str, Any]] = {
    "another version": {"schema_version": 2},
    "an unknown field": {"surprise": 1},
    "no runs": {"runs": []},
    "a word for a number": {"seconds": "long"},
    "a kind that is none": {"measured_on": "guessed"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_schema_and_reader_refuse_the_same(change: dict[str, Any]) -> None:
    data = {**json.loads(to_json(RESULTS["measured"])), **change}
    assert not validator().is_valid(data)
    with pytest.raises(FileFormatError):
        from_json(json.dumps(data).encode())


@pytest.mark.parametrize("change", [{"values": []}, {"unit": "y" * 41}, {"interval": "y" * 41}])
def test_a_figure_without_values_or_with_a_long_unit_is_refused(change: dict[str, Any]) -> None:
    data = json.loads(to_json(RESULTS["counted"]))
    figure = data["runs"][0]["instructions"]["decode"]
    (figure if "values" in change else figure["quantity"]).update(change)
    assert not validator().is_valid(data)
    with pytest.raises(FileFormatError):
        from_json(json.dumps(data).encode())


def test_a_stranger_s_unit_cannot_write_to_the_terminal() -> None:
    data = to_json(RESULTS["measured"]).replace(b'"tokens/s"', b'"\\u001b[2Jtokens"')
    found = list(lines(from_json(data)))
    assert any("tokens" in line for line in found)
    assert all(line.isprintable() for line in found)


@pytest.mark.parametrize("bits", [0, -4, 65])
def test_bits_that_no_file_has_are_refused(bits: float) -> None:
    data = json.loads(to_json(RESULTS["measured"]))
    data["runs"][0]["requested_bits"] = bits
    assert not validator().is_valid(data)
    with pytest.raises(FileFormatError):
        from_json(json.dumps(data).encode())


def test_a_result_from_before_bits_were_in_it_is_read() -> None:
    data = json.loads(to_json(RESULTS["measured"]))
    for one in data["runs"]:
        for key in ("requested_bits", "effective_bits", "types", "instructions"):
            del one[key]
    assert from_json(json.dumps(data).encode()).runs[0].requested_bits is None


@pytest.mark.parametrize("accelerator", ["", "npu", "GPU (CUDA)", 1])
def test_an_accelerator_that_nobody_knows_is_refused(accelerator: Any) -> None:
    data = json.loads(to_json(RESULTS["in turns"]))
    data["runs"][0]["accelerator"] = accelerator
    assert not validator().is_valid(data)
    with pytest.raises(FileFormatError):
        from_json(json.dumps(data).encode())


def test_a_result_from_before_accelerators_and_energy_in_turns_is_read() -> None:
    data = json.loads(to_json(RESULTS["in turns"]))
    one = data["runs"][0]
    del one["accelerator"], one["turns"]["energy"]
    read = from_json(json.dumps(data).encode()).runs[0]
    assert (read.accelerator, read.computed_on, read.turns and read.turns.energy) == (None, None, None)
    one["loading"][0]["processor"] = "GPU (CUDA)"
    assert from_json(json.dumps(data).encode()).runs[0].computed_on == "cuda", "it stood in its loading"
