"""Shipped targets, inheritance, the JSON schema and `edgekit targets`."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgekit import targets
from edgekit.cli.targets import command
from edgekit.errors import TargetFileError, UnknownTargetError
from edgekit.toml_lines import key_lines

ROOT = Path(__file__).parents[2]
CHILD = 'schema_version = 1\ninherits = "rpi5"\nname = "mine"\ntitle = "Mine"\ntier = 3\n'
BOARDS = [
    "arm64-generic",
    "host",
    "jetson-agx-orin",
    "jetson-orin-nano",
    "jetson-thor",
    "rk3588",
    "rpi-zero2w",
    "rpi4",
    "rpi5",
]


def child(folder: Path, body: str, name: str = "mine.toml") -> targets.Target:
    path = folder / name
    path.write_text(CHILD + body)
    return targets.load(str(path))


def as_json(target: targets.Target) -> Any:
    return json.loads(msgspec.json.encode(target))


# ------------------------------------------------------------------------------------------------- shipped files


def test_names() -> None:
    assert targets.names() == BOARDS


@pytest.mark.parametrize("name", BOARDS)
def test_a_shipped_target_obeys_the_json_schema(name: str) -> None:
    target = targets.load(name)
    assert target.name == name
    assert target.schema_version == 1
    jsonschema.Draft202012Validator(targets.json_schema()).validate(as_json(target))


def test_the_json_schema_refuses_what_the_reader_refuses() -> None:
    good = as_json(targets.load("rpi5"))
    validator = jsonschema.Draft202012Validator(targets.json_schema())
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "vendr": "x"})
    assert not validator.is_valid({**good, "tier": 4})
    assert not validator.is_valid({**good, "memory": {**good["memory"], "usable_fraction": 2}})


def test_committed_schema_is_the_generated_one() -> None:
    committed = (ROOT / "docs/schemas/target.schema.json").read_text()
    told = subprocess.run(
        [sys.executable, "-m", "edgekit.targets"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert committed == told.stdout, "run: python -m edgekit.targets > docs/schemas/target.schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))


def test_aliases_are_unique_and_lead_to_their_target() -> None:
    aliases = [(alias, name) for name in BOARDS for alias in targets.load(name).aliases]
    called = [alias for alias, _ in aliases] + BOARDS
    assert len(called) == len(set(called))
    for alias, name in aliases:
        assert targets.load(alias).name == name
        assert targets.source_path(alias) == targets.source_path(name)


@pytest.mark.parametrize("name", BOARDS)
def test_promises_and_sources(name: str) -> None:
    target = targets.load(name)
    assert target.tier > 1, "tier 1 is a board tested on hardware in CI; there is none yet"
    for told, table in (
        (target.memory.copy_gbps, target.memory),
        (target.memory.theoretical_gbps, target.memory),
        (target.soc.clusters, target.soc),
        (target.power.wall_scale, target.power),
        (target.thermal.throttle_c, target.thermal),
        (target.toolchain, target.toolchain or target.soc),
        (target.runtime.gguf.efficiency, target.runtime.gguf),
    ):
        assert not told or table.source


@pytest.mark.parametrize("name", BOARDS)
def test_number_formats_are_ggml_types_and_end_with_one_that_every_row_can_take(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    runtime = targets.load(name).runtime.gguf
    for preference in (runtime.prefer, runtime.embedding_prefer):
        assert set(preference) >= {3, 4, 8}
        for types in preference.values():
            sizes = [gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] for kind in types]
            assert sizes[-1] == 32
            assert 256 not in sizes[sizes.index(32) :], "a 256-block type behind a 32-block type is never reached"
    for kind in runtime.efficiency:
        assert kind in gguf.GGMLQuantizationType.__members__


@pytest.mark.parametrize("name", BOARDS)
def test_the_cpu_has_what_the_compiler_may_use(name: str) -> None:
    target = targets.load(name)
    if target.toolchain is None:
        return
    features = [set(cluster.isa) for cluster in target.soc.clusters]
    for flag, feature in (("dotprod", "asimddp"), ("fp16", "asimdhp"), ("i8mm", "i8mm"), ("crc", "crc32")):
        if f"+{flag}" in target.toolchain.march:
            assert all(feature in isa for isa in features)
    if any("asimddp" not in isa for isa in features) or not features:
        assert "sdot" in target.toolchain.forbidden_insns
        assert not target.runtime.gguf.repack
    cores = sum(cluster.count for cluster in target.soc.clusters) or 1024
    assert (
        max(target.runtime.gguf.threads.decode, target.runtime.onnx.threads, *target.runtime.gguf.affinity, 0) <= cores
    )


def test_first_values_of_the_raspberry_pi_5() -> None:
    pi = targets.load("rpi5")
    assert (pi.memory.decode_gbps, pi.memory.decode_basis) == (11.82, "measured")
    assert pi.memory.read_gbps == targets.ReadRate(t1=13.78, t2=12.6, t4=10.7)
    assert pi.runtime.gguf.prefer[4] == ("IQ4_NL", "Q4_0")
    assert (pi.runtime.gguf.threads.prefill, pi.runtime.gguf.threads.decode) == (4, 2)
    assert pi.toolchain is not None
    assert pi.toolchain.cmake, "inherited from arm64-generic"
    assert "sdot" not in pi.toolchain.forbidden_insns


# ------------------------------------------------------------------------------------------------- what is asked


def test_ram_of_a_board_and_of_this_machine() -> None:
    pi, host = targets.load("rpi5"), targets.load("host")
    assert targets.ram_mib(pi) == 4096
    assert targets.usable_mib(pi) == int(4096 * 0.85)
    assert targets.ram_mib(host) == psutil.virtual_memory().total // 2**20


def test_threads_of_this_machine() -> None:
    assert targets.resolved_threads(3) == 3
    assert targets.resolved_threads(0) >= 1


@pytest.mark.parametrize(("bits", "kl"), [(16, 0.02), (8, 0.02), (6, 0.15), (5, 0.15), (4, 0.15), (3, 0.25), (2, None)])
def test_gates_by_bits(bits: int, kl: float | None) -> None:
    assert targets.coherence_limits(targets.load("rpi5"), bits).kl_mean_max == kl


# ------------------------------------------------------------------------------------------------- inheritance


def test_scalars_override_tables_merge_arrays_replace(tmp_path: Path) -> None:
    parent = targets.load("rpi5")
    mine = child(
        tmp_path, "[memory]\nusable_fraction = 0.5\nram_mib = [4096]\n[limits.coherence.bits4]\nkl_mean_max = 1\n"
    )
    assert (mine.name, mine.title, mine.aliases, mine.tier) == ("mine", "Mine", (), 3)
    assert mine.memory.usable_fraction == 0.5
    assert mine.memory.ram_mib == (4096,)
    assert mine.memory.decode_gbps == parent.memory.decode_gbps
    assert targets.coherence_limits(mine, 4).kl_mean_max == 1
    assert targets.coherence_limits(mine, 4).same_top_min == 0.78
    assert mine.soc == parent.soc
    assert mine.runtime == parent.runtime


def test_plus_appends(tmp_path: Path) -> None:
    parent = targets.load("rpi5")
    anchor = 'model = "m"\ntype = "t"\nengine = "e"\nsource = "s"\ntrust = "C"\n'
    mine = child(tmp_path, f'[toolchain]\n"+cmake" = ["-DX=1"]\n[["+anchors"]]\n{anchor}')
    assert parent.toolchain is not None
    assert mine.toolchain is not None
    assert mine.toolchain.cmake == (*parent.toolchain.cmake, "-DX=1")
    assert mine.anchors[:-1] == parent.anchors
    assert mine.anchors[-1].model == "m"
    with pytest.raises(TargetFileError, match=r"mine\.toml:6: anchors\[6\]\.trust is missing"):
        child(tmp_path, '[["+anchors"]]\n' + anchor.replace('trust = "C"\n', ""))


def test_a_parent_beside_and_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.toml").write_text(CHILD + "[deploy]\nmin_free_mib = 7\n")
    (tmp_path / "leaf.toml").write_text(CHILD.replace('"rpi5"', '"sub/base.toml"'))
    assert targets.validate(tmp_path / "leaf.toml").deploy.min_free_mib == 7


def test_a_target_without_a_parent_needs_every_required_table(tmp_path: Path) -> None:
    path = tmp_path / "alone.toml"
    path.write_text('schema_version = 1\nname = "alone"\ntitle = "Alone"\ntier = 3\n')
    with pytest.raises(TargetFileError, match=r"alone\.toml:1: soc is missing"):
        targets.validate(path)


# ------------------------------------------------------------------------------------------------- lines of keys


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


@pytest.mark.parametrize("path", sorted((ROOT / "targets").glob("*.toml")), ids=lambda path: path.stem)
def test_every_key_of_a_file_has_the_line_that_names_it(path: Path) -> None:
    text = path.read_text()
    found, expected = key_lines(text), set(leaves(tomllib.loads(text)))
    assert set(found) == expected
    lines = text.splitlines()
    for key, line in found.items():
        if isinstance(key[-1], str):
            assert key[-1] in lines[line - 1]


TRICKY = '''a."b.c".'d' = """
x = 1
"""  # [no.table]
[t] # comment with ] and "
"q\\u0041" = { x = [1, # one
  {y = '=[', z = 1979-05-27 07:32:00}], w.v = 1.5 }
s = \'\'\'
[[fake]]\'\'\'
[[l]]
[l.m]
k = [[1], []]
[[l]]
[[l.n]]
e = -1e+5
'''


def test_lines_of_strings_comments_and_nested_tables() -> None:
    found = key_lines(TRICKY)
    assert set(found) == set(leaves(tomllib.loads(TRICKY)))
    assert found["a", "b.c", "d"] == 1
    assert found["t", "qA", "x", 1, "z"] == 6
    assert found["l", 0, "m", "k"] == 11
    assert found["l", 1, "n", 0, "e"] == 14


@given(st.text(alphabet="[]{}=,.\"'#\\\n a1", max_size=300))
def test_the_scanner_ends_and_is_exact_on_valid_text(text: str) -> None:
    try:
        found = key_lines(text)
    except ValueError:
        return
    try:
        data = tomllib.loads(text)
    except ValueError:
        return
    assert set(found) >= set(leaves(data))


# ------------------------------------------------------------------------------------------------- command and docs


def test_command_lists_shows_and_validates() -> None:
    runner = CliRunner()
    listed = runner.invoke(command, [], catch_exceptions=False)
    assert listed.exit_code == 0
    assert all(name in listed.output for name in BOARDS)
    assert "11.82 measured" in listed.output
    rows = json.loads(runner.invoke(command, ["list", "--json"], catch_exceptions=False).output)
    assert rows == json.loads(runner.invoke(command, ["--json"], catch_exceptions=False).output)
    assert [row["name"] for row in rows] == BOARDS
    shown = runner.invoke(command, ["show", "pi5"], catch_exceptions=False)
    assert "memory.decode_gbps" in shown.output
    data = json.loads(runner.invoke(command, ["show", "rpi5", "--json"], catch_exceptions=False).output)
    assert msgspec.convert(data, targets.Target, str_keys=True) == targets.load("rpi5")
    told = runner.invoke(command, ["validate", str(targets.source_path("rpi4"))], catch_exceptions=False)
    assert "rpi4 (Raspberry Pi 4 Model B) is a valid target" in told.output


def test_command_hands_mistakes_on(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("nmae = 'x'")
    runner = CliRunner()
    assert isinstance(runner.invoke(command, ["show", "nope"]).exception, UnknownTargetError)
    assert isinstance(runner.invoke(command, ["validate", str(tmp_path / "x.toml")]).exception, TargetFileError)
    assert "targets show --json" in runner.invoke(command, ["--json", "show", "rpi5"]).output


def test_the_docs_list_every_target_with_its_tier_and_speed() -> None:
    text = (ROOT / "docs/targets.md").read_text()
    for name in BOARDS:
        target = targets.load(name)
        speed = target.memory.decode_gbps
        told = "not " if speed is None else f"{speed:g} GB/s"
        assert f"| {name} | {target.title} | {target.tier} | {told}" in text


def test_the_example_in_the_docs(tmp_path: Path) -> None:
    text = (ROOT / "docs/targets.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    path = tmp_path / "my-kiosk.toml"
    path.write_text(example)
    assert targets.validate(path).memory.default_ram_mib == 2048
    path.write_text(example.replace("usable_fraction", "usable_fracton"))
    with pytest.raises(TargetFileError) as caught:
        targets.validate(path)
    assert str(caught.value).removeprefix(f"{tmp_path}/") in text


def field_rows(schema: dict[str, Any], definition: str = "Target", prefix: str = "") -> Iterator[str]:
    """The rows of the table in docs/targets.md, made from the JSON schema."""
    for name, field in schema["$defs"][definition]["properties"].items():
        inner = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(field))
        many = '"array"' in json.dumps(field) and inner
        key = f"{prefix}{name}" + ("[]" if many else ".NAME" if "additionalProperties" in field and inner else "")
        if inner:
            yield from field_rows(schema, inner[0], f"{key}.")
        else:
            must = "yes" if name in schema["$defs"][definition].get("required", ()) else ""
            told = re.findall(r'"description": "(.*?)"[,}]', json.dumps(field, ensure_ascii=False))
            yield f"| `{key}` | {must} | {told[-1]} |"


def test_the_table_in_the_docs_is_made_from_the_schema() -> None:
    written = [line for line in (ROOT / "docs/targets.md").read_text().splitlines() if line.startswith("| `")]
    expected = list(dict.fromkeys(re.sub(r"bits\d", "bitsN", row) for row in field_rows(targets.json_schema())))
    assert written == expected, "\n".join(difflib.unified_diff(written, expected, lineterm=""))
