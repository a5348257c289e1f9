"""Wrong target files: one sentence with file, line and key, and never anything but an EdgekitError."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import targets
from edgekit.errors import EdgekitError, TargetFileError, UnknownTargetError

CHILD = 'schema_version = 1\ninherits = "rpi5"\nname = "mine"\ntitle = "Mine"\ntier = 3\n'


def refused(folder: Path, text: str | bytes, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TargetFileError) as caught:
        targets.validate(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("vendr = 'x'", "mine.toml:6: vendr is an unknown key — did you mean vendor."),
        ("\n[memory]\nramm_mib = [1]", "mine.toml:8: memory.ramm_mib is an unknown key — did you mean ram_mib."),
        ("[limits.coherence.bits4]\nkl_mean = 1", "limits.coherence.bits4.kl_mean is an unknown key"),
        ("[limits.coherence.bits4]\nkl_mean = 1", "did you mean kl_mean_max"),
        ("[zzz]\na = 1", "expected one of schema_version, name, title"),
        ("[memory]\nram_mib = 'four'", "mine.toml:7: memory.ram_mib is 'four'; expected an array."),
        ("[memory]\nram_mib = [\n  1024,\n  true,\n]", "mine.toml:9: memory.ram_mib[1] is True; expected an integer"),
        ("[memory]\ndefault_ram_mib = 1.5", "memory.default_ram_mib is 1.5; expected an integer"),
        ("[memory]\nusable_fraction = 2", "memory.usable_fraction is 2; expected a number <= 1"),
        ("[memory]\ndecode_gbps = nan", "memory.decode_gbps is nan; expected a number"),
        ("memory = 5", "mine.toml:6: memory is an integer; expected a table"),
        ("url = 2024-01-01", "mine.toml:6: url is a date or time; expected a string"),
        ("[accelerator]\nkind = 'cudo'", "mine.toml:7: accelerator.kind is 'cudo'; expected one of none, cuda"),
        ("[runtime.gguf.prefer]\n4 = ['IQ4_NL', 'q4']", "mine.toml:7: runtime.gguf.prefer.4[1] is 'q4'"),
        ("[runtime.gguf.prefer]\nfour = ['Q4_0']", "prefer.four is 'four'; expected an integer"),
        ("[runtime.gguf.prefer]\n4 = []", "mine.toml:7: runtime.gguf.prefer.4 is empty"),
        ("[deploy]\nremote_dir = '../etc'", "deploy.remote_dir is '../etc'"),
        ("[deploy]\nremote_dir = 'a; reboot'", "deploy.remote_dir is 'a; reboot'"),
        ('[deploy]\nremote_dir = "a\\n"', "deploy.remote_dir is 'a\\n'"),
        ("[toolchain]\ncmake = ['-DA=$(x)']", "toolchain.cmake[0]"),
        ("[toolchain]\nimage = 'debian:12'", "toolchain.image"),
        ("[[anchors]]\nmodel = 'm'", "mine.toml:6: anchors[0].type is missing"),
        (
            "[[anchors]]\nmodel='m'\ntype='t'\nengine='e'\nsource='s'\ntrust='A'\ntg_tok_s=-1",
            "anchors[0].tg_tok_s is -1",
        ),
        ("soc.clusters = [\n\n {core='a', part='0xd0b', count=1, max_mhz=0}]", "mine.toml:8: soc.clusters[0].max_mhz"),
        ("[memory]\ndefault_ram_mib = 5000", "memory.default_ram_mib is 5000; expected one of ram_mib: 1024"),
        ("[accelerator]\ndecode_gbps = 5", "accelerator.decode_gbps has no decode_basis or no source"),
        ("[power]\ndefault_mode = 'fast'", "power.default_mode is 'fast'; expected one of power.modes: none"),
        ('[toolchain]\n"+cmake" = "x"', "mine.toml:7: toolchain.+cmake appends, but it is not an array"),
        ('aliases = []\n"+aliases" = ["a"]', "mine.toml:7: +aliases is beside aliases"),
        ('[soc]\n"+model" = ["x"]', "mine.toml:7: soc.+model appends, but it is not an array"),
        ('[toolchain]\n"+cmake" = ["-DA=1", 5]', "mine.toml:7: toolchain.cmake[7] is 5; expected a string"),
        ("[memory]\nx = 0x" + "f" * 9000, "memory.x is an unknown key"),
        ("[memory]\ndefault_ram_mib = 0x" + "f" * 9000, "is an integer of more than 64 bits"),
        ("x = " + "9" * 9000, "mine.toml: not TOML"),
        ("schema_version = 2", "mine.toml:6: not TOML: Cannot overwrite a value"),
        ("[memory", "mine.toml:6: not TOML"),
        ("a = 'unclosed", "not TOML"),
        ("a = " + "[" * 5000, "mine.toml:6: nested too deep"),
        (".".join("a" * 100_000) + " = 1", "mine.toml:6: nested too deep"),
        ("a = " + "{a=" * 20 + "1" + "}" * 20, "mine.toml:6: nested too deep"),
        ("[" + ".".join("abcdefghijklmnopqrstuvwxyz") + "]", "mine.toml:6: nested too deep"),
        ("x" * 300_000 + " = 1", "mine.toml is larger than 256 KiB"),
    ],
)
def test_one_sentence_names_file_line_and_key(tmp_path: Path, body: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, CHILD + body)


def test_schema_version_of_the_future(tmp_path: Path) -> None:
    text = CHILD.replace("schema_version = 1", "schema_version = 2")
    assert "mine.toml:1: schema_version is 2; expected one of 1" in refused(tmp_path, text)


@pytest.mark.parametrize("key", ["name", "title", "tier"])
def test_identity_and_promise_are_not_inherited(tmp_path: Path, key: str) -> None:
    text = "".join(line for line in CHILD.splitlines(True) if not line.startswith(key))
    assert f"mine.toml:1: {key} is missing — add it." in refused(tmp_path, text)


def test_not_text(tmp_path: Path) -> None:
    assert "mine.toml:2: a byte that is not UTF-8" in refused(tmp_path, b"a = 1\n\xff\n")
    assert "not TOML" in refused(tmp_path, b"\x00")


def test_an_error_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(CHILD + "[thermal]\nthrottle = 5\n")
    message = refused(tmp_path, CHILD.replace("rpi5", "base.toml"))
    assert message.startswith("base.toml:7: thermal.throttle is an unknown key")


@pytest.mark.parametrize(
    ("parent", "sentence"),
    [
        ("rpi55", "mine.toml:2: inherits: there is no target rpi55; expected one of"),
        ("_none", "mine.toml:2: inherits: there is no target _none"),
        ("../../etc/passwd", "mine.toml:2: inherits: there is no target ../../etc/passwd"),
        ("gone.toml", "mine.toml:2: inherits gone.toml is not there"),
        ("../up.toml", "mine.toml:2: inherits ../up.toml leaves"),
        ("/etc/x.toml", "mine.toml:2: inherits /etc/x.toml leaves"),
        ("link.toml", "mine.toml:2: inherits link.toml leaves"),
        ("a\\u0000.toml", "mine.toml:2: inherits"),
        ("x" * 5000 + ".toml", "mine.toml:2: inherits xxx"),
        ("mine.toml", "mine.toml:2: inherits goes round in a circle through mine.toml"),
        ("other.toml", "other.toml:1: inherits goes round in a circle through mine.toml"),
    ],
)
def test_parents_that_cannot_be(tmp_path: Path, parent: str, sentence: str) -> None:
    (tmp_path.parent / "up.toml").write_text(CHILD)
    home = tmp_path / "home"
    home.mkdir()
    (home / "link.toml").symlink_to(tmp_path.parent / "up.toml")
    (home / "other.toml").write_text('inherits = "mine.toml"\n')
    assert sentence in refused(home, CHILD.replace("rpi5", parent))


def test_inherits_must_be_a_string(tmp_path: Path) -> None:
    assert "mine.toml:2: inherits is not a string" in refused(tmp_path, CHILD.replace('"rpi5"', "[]"))


def test_a_chain_without_end(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"p{index}.toml").write_text(f'inherits = "p{index + 1}.toml"\n')
    assert "more than 8 parents" in refused(tmp_path, 'inherits = "p0.toml"\n')


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownTargetError, match=r"no target rpi-5; expected one of .*rpi4, rpi5 — did you mean rpi5"):
        targets.load("rpi-5")
    for name in ("_base", "", "..", "x" * 10_000, "a\0b"):
        with pytest.raises(UnknownTargetError, match="expected one of arm64-generic"):
            targets.load(name)
    with pytest.raises(UnknownTargetError, match=r"no target file .*gone\.toml"):
        targets.load(str(tmp_path / "gone.toml"))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path, tmp_path / "pipe.toml"):
        with pytest.raises(TargetFileError, match="not a regular file"):
            targets.load(f"{path}/" if path.is_dir() else str(path))
    with pytest.raises(EdgekitError):
        targets.load("a\0b/c.toml")
    with pytest.raises(TargetFileError, match="cannot be read"):
        targets.load("x" * 10_000 + ".toml")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ['\\"', '"\n', "'''x", '"""\\"', "[]", "a.", "[[a]]\n", "a=[1,", "'+a'=[]\n"])
@pytest.mark.parametrize("start", ["", '"""', '"'])
def test_hostile_text_takes_no_time(tmp_path: Path, start: str, piece: str) -> None:
    refused(tmp_path, start + piece * (100_000 // len(piece)))


def parse(text: str) -> None:
    """Only an EdgekitError may come out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.toml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(EdgekitError):
            targets.validate(path)


def all_keys(schema: Any) -> set[str]:
    found = set(schema.get("properties", {})) if isinstance(schema, dict) else set()
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return found.union(*map(all_keys, inside))


KEYS = sorted(all_keys(targets.json_schema()))
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["Q4_0", "0xd0b", "rpi5", "A", "measured", "2.36", "a.toml"]),
)
KEY = st.sampled_from([*KEYS, *(f"+{key}" for key in KEYS), "4"]) | st.text(max_size=4)
TREES = st.dictionaries(
    KEY,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3)),
    max_size=6,
)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return json.dumps(value, ensure_ascii=isinstance(value, str) and value.isascii())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_random_keys_and_values(tree: dict[str, Any]) -> None:
    body = "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in tree.items() if key != "inherits")
    parse('inherits = "rpi5"\n' + body)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="[]{}=,.\"'#\\\n a1+-", max_size=200))
def test_random_text(text: str) -> None:
    parse(text)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file(data: st.DataObject) -> None:
    text = targets.source_path("jetson-orin-nano").read_text()
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 12))
    parse(text[:start] + data.draw(st.text(alphabet="[]{}=,.\"'#\n a1+", max_size=6)) + text[start + length :])
