"""A stranger's bundle: every rule that is broken is one sentence that names the file; an honest bundle opens."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import manifest as schema
from edgekit.bundle.bundle import open_bundle, write_manifest
from edgekit.bundle.manifest import Artefact, Figure, FileEntry, Manifest, Model, PlanEntry, TargetRef
from edgekit.bundle.paths import check_path
from edgekit.errors import BundleError, EdgekitError, InputNotFoundError

SHA = "ab" * 32


def bare_manifest() -> Manifest:
    entry = PlanEntry(
        tensor="blk.0.attn_q.weight",
        role="q_proj",
        shape=(64, 64),
        requested_bits=4,
        grid="Q4_0",
        bits=4.5,
        bytes=2304,
    )
    return Manifest(
        edgekit="0.1.0",
        name="tiny.rpi5",
        model=Model(name="tiny", architecture="llama", source="made in a test", sha256=SHA, parameters=4096),
        target=TargetRef(id="rpi5", sha256=SHA),
        artefacts=(
            Artefact(
                format="gguf",
                path="gguf/model.gguf",
                engine="llama.cpp",
                requested_bits=4,
                effective_bits=4.7,
                plan=(entry,),
            ),
        ),
        versions={"numpy": "2.4.6"},
        seeds={"sampling": 0},
        predicted={"gguf.decode": Figure(value=31.5, unit="tokens/s", source="bandwidth / bytes per token")},
    )


def fill(folder: Path) -> None:
    for path, data in {
        "gguf/model.gguf": b"GGUF" + bytes(1000),
        "tokenizer/tokenizer.json": b"{}",
        "reference.npz": b"reference",
        "report.html": b"<p>measured</p>",
        "report/plot.svg": b"<svg/>",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny.rpi5"
    folder.mkdir()
    fill(folder)
    write_manifest(folder, bare_manifest())
    return folder


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def refused(bundle: Path, *words: str, check: bool = True) -> str:
    """Opening fails with one line that has all `words`; returned."""
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, check=check)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    for word in words:
        assert word in message
    return message


def test_changed_byte_is_named(bundle: Path) -> None:
    data = bytearray((bundle / "gguf/model.gguf").read_bytes())
    data[500] ^= 1
    (bundle / "gguf/model.gguf").write_bytes(data)
    refused(bundle, "gguf/model.gguf", "changed")


def test_changed_report_is_named(bundle: Path) -> None:
    (bundle / "report.html").write_bytes(b"<p>improved</p>")
    refused(bundle, "report.html", "changed")


@pytest.mark.parametrize("check", [True, False])
def test_truncated_file_is_named_with_both_sizes(bundle: Path, check: bool) -> None:
    (bundle / "gguf/model.gguf").write_bytes(b"GGUF")
    refused(bundle, "gguf/model.gguf", "4 bytes", "1004 bytes", check=check)


@pytest.mark.parametrize("check", [True, False])
def test_missing_file_is_named(bundle: Path, check: bool) -> None:
    (bundle / "reference.npz").unlink()
    refused(bundle, "reference.npz", "missing", check=check)


@pytest.mark.parametrize("path", ["install.sh", "gguf/.hidden", "empty/", "report/second.svg"])
def test_extra_file_or_folder_is_named(bundle: Path, path: str) -> None:
    if path.endswith("/"):
        (bundle / path).mkdir()
    else:
        (bundle / path).write_bytes(b"")
    refused(bundle, path.rstrip("/"), "not in its manifest", check=False)


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "gguf/../../outside",
        "/etc/passwd",
        "./reference",
        "a//b",
        "a/",
        "a/.",
        "..",
        "",
        "..\\outside",
        "C:\\x",
        "C:x",
        "nul\0byte",
        "line\nbreak",
        "\x1b[31mred",
        "right\u202eleft",
        "n" * 256,
        "d/" * 40 + "x",
        unicodedata.normalize("NFD", "caf\u00e9"),
    ],
)
def test_path_that_leads_out_or_hides_is_refused(bundle: Path, path: str) -> None:
    edit(bundle, lambda data: data["files"].update({path: {"sha256": SHA, "size": 1}}))
    refused(bundle)


def test_artefact_outside_the_bundle_is_refused(bundle: Path) -> None:
    edit(bundle, lambda data: data["artefacts"][0].update(path="../model.gguf"))
    refused(bundle, "../model.gguf")


def test_artefact_that_is_not_listed_is_refused(bundle: Path) -> None:
    edit(bundle, lambda data: data["artefacts"][0].update(path="gguf/other.gguf"))
    refused(bundle, "gguf/other.gguf")


@pytest.mark.parametrize(
    ("path", "link"),
    [("gguf/model.gguf", "../reference.npz"), ("gguf/model.gguf", "/etc/hostname"), ("extra", "reference.npz")],
)
def test_symbolic_link_is_refused_wherever_it_leads(bundle: Path, path: str, link: str) -> None:
    (bundle / path).unlink(missing_ok=True)
    (bundle / path).symlink_to(link)
    refused(bundle, path, "symbolic link")


def test_linked_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "gguf").rename(tmp_path / "elsewhere")
    (bundle / "gguf").symlink_to(tmp_path / "elsewhere")
    refused(bundle, "'gguf'", "symbolic link")


def test_linked_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    refused(bundle, "manifest.json")


@pytest.mark.parametrize("path", ["gguf/pipe", "manifest.json"])
def test_fifo_is_refused_without_waiting(bundle: Path, path: str) -> None:
    (bundle / path).unlink(missing_ok=True)
    os.mkfifo(bundle / path)
    refused(bundle, path)


def test_undecodable_name_is_refused(bundle: Path) -> None:
    name = os.fsencode(bundle) + b"/bad\xff"
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    refused(bundle, "bad")


@pytest.mark.parametrize(
    ("first", "second"),
    [("a/X.bin", "a/x.bin"), ("A/one", "a/two"), ("stra\u00dfe", "STRASSE"), ("\ufb01", "fi"), ("Manifest.json", "x")],
)
def test_names_that_meet_on_other_file_systems_are_refused(bundle: Path, first: str, second: str) -> None:
    entry = {"sha256": SHA, "size": 1}
    edit(bundle, lambda data: data["files"].update({first: entry, second: entry}))
    refused(bundle, "same name")


def test_duplicate_key_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"name": "tiny.rpi5"', '"name": "x", "name": "tiny.rpi5"'))
    refused(bundle, "twice", "name")


def test_file_listed_as_report_is_refused(bundle: Path) -> None:
    edit(bundle, lambda data: data["reports"].update({"gguf/model.gguf": data["files"].pop("gguf/model.gguf")}))
    refused(bundle, "gguf/model.gguf", "wrong one")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"schema_version": 1',
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"schema_version":1,"files":' + b'{"a":' * 200_000,
        b'{"schema_version": 1e999}',
        b'{"schema_version": "1"}',
    ],
    ids=range(11),
)
def test_manifest_that_is_not_one_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)
    refused(bundle, "manifest.json")


def test_other_schema_version_names_both(bundle: Path) -> None:
    edit(bundle, lambda data: data.update(schema_version=2, something_new=1))
    refused(bundle, "version 2", "version 1")


@pytest.mark.parametrize("size", ["NaN", "-1", "1.5", "1e3", "Infinity", "9" * 400, '"4"', "null", "true"])
def test_size_that_is_no_size_is_refused(bundle: Path, size: str) -> None:
    text = (bundle / "manifest.json").read_text()
    assert '"size": 1004' in text
    (bundle / "manifest.json").write_text(text.replace('"size": 1004', f'"size": {size}'))
    refused(bundle, "manifest.json")


@pytest.mark.parametrize("value", ["AB" * 32, "ab" * 31, "ab" * 32 + "\n", "zz" * 32])
def test_checksum_that_is_no_checksum_is_refused(bundle: Path, value: str) -> None:
    edit(bundle, lambda data: data["files"]["reference.npz"].update(sha256=value))
    refused(bundle, "sha256")


def test_unknown_key_is_named_and_made_harmless(bundle: Path) -> None:
    edit(bundle, lambda data: data.update({"\x1b[31mevil": 1}))
    refused(bundle, "evil")


def test_manifest_of_100_mb_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as stream:
        stream.truncate(100 << 20)  # sparse
    refused(bundle, "manifest.json", "larger")


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_not_a_bundle(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "file":
        path.write_bytes(b"{}")
    elif what == "empty":
        path.mkdir()
    with pytest.raises(InputNotFoundError if what == "nothing" else BundleError):
        open_bundle(path)


def test_bundle_without_tokenizer_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "tokenizer/tokenizer.json").rename(tmp_path / "tokenizer/vocab.json")
    write_manifest(tmp_path, bare_manifest())
    refused(tmp_path, "tokenizer/tokenizer.json")


def test_link_is_not_sealed(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "link").symlink_to("reference.npz")
    with pytest.raises(BundleError, match="symbolic link"):
        write_manifest(tmp_path, bare_manifest())
    assert not (tmp_path / "manifest.json").exists()


def test_number_that_is_none_is_not_sealed(tmp_path: Path) -> None:
    fill(tmp_path)
    figure = Figure(value=float("nan"), unit="tokens/s")
    with pytest.raises(BundleError, match="predicted"):
        write_manifest(tmp_path, msgspec.structs.replace(bare_manifest(), predicted={"x": figure}))
    assert not (tmp_path / "manifest.json").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def read(data: bytes) -> Manifest | None:
    """The manifest, or None when it was refused in one printable sentence; anything else is a failure."""
    fault = ""
    try:
        return schema.from_json(data)
    except EdgekitError as error:
        fault = str(error)
    assert fault.isprintable()
    return None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_one_sentence(data: bytes) -> None:
    assert read(data) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_manifest_opens_or_gives_one_sentence(bundle: Path, data: st.DataObject) -> None:
    original = json.loads((bundle / "manifest.json").read_text())
    spoilt = json.loads(json.dumps(original))
    place = spoilt
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    manifest = read(json.dumps(spoilt).encode())
    assert manifest is None or "gguf/model.gguf" in manifest.files


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_accepted_path_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except BundleError:
        return
    assert Path(os.path.normpath(Path("/root") / path)) == Path("/root") / path
    assert Path("/root") / path != Path("/root")


def test_honest_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.root == bundle
    assert opened.artefacts == {"gguf": bundle / "gguf/model.gguf"}
    assert opened.artefact().engine == "llama.cpp"
    assert opened.tokenizer == bundle / "tokenizer"
    assert opened.reference == bundle / "reference.npz"
    assert opened.manifest.files["reference.npz"].size == 9
    assert set(opened.manifest.reports) == {"report.html", "report/plot.svg"}
    with pytest.raises(BundleError, match="onnx"):
        opened.artefact("onnx")


def test_link_to_a_bundle_is_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle)
    assert open_bundle(tmp_path / "latest").root == bundle


def test_hard_links_are_plain_files(bundle: Path, tmp_path: Path) -> None:
    os.link(bundle / "gguf/model.gguf", tmp_path / "second-name")
    open_bundle(bundle)


def test_unchecked_opening_skips_only_the_hashes(bundle: Path) -> None:
    (bundle / "reference.npz").write_bytes(b"REFERENCE")
    open_bundle(bundle, check=False)
    refused(bundle, "reference.npz")


def test_progress_counts_every_byte_once(bundle: Path) -> None:
    calls: list[tuple[int, int]] = []
    opened = open_bundle(bundle, progress=lambda done, total: calls.append((done, total)))
    entries = [*opened.manifest.files.values(), *opened.manifest.reports.values()]
    total = sum(entry.size for entry in entries)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_two_builds_differ_in_reports_only(tmp_path: Path) -> None:
    written = []
    for name, report in (("one", b"12 ms"), ("two", b"13 ms")):
        folder = tmp_path / name
        folder.mkdir()
        fill(folder)
        (folder / "report.json").write_bytes(report)
        written.append(write_manifest(folder, bare_manifest()))
    assert written[0].reports != written[1].reports
    assert schema.identity(written[0]) == schema.identity(written[1])
    changed = msgspec.structs.replace(written[1], files={"x": FileEntry(sha256=SHA, size=1)})
    assert schema.identity(changed) != schema.identity(written[0])


def test_manifest_bytes_are_canonical(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    assert schema.to_json(schema.from_json(data)) == data
    loaded = json.loads(data)
    assert data.decode() == json.dumps(loaded, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_manifest(bundle, bare_manifest())
    assert (bundle / "manifest.json").read_bytes() == data


def test_committed_schema_is_the_generated_one() -> None:
    committed = Path(__file__).parents[2] / "docs/schemas/manifest.schema.json"
    assert committed.read_text(encoding="utf8") == schema.schema_text()


def test_schema_agrees_with_the_reader(bundle: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    data = json.loads((bundle / "manifest.json").read_text())
    assert validator.is_valid(data)
    changes: list[dict[str, Any]] = [{"schema_version": 2}, {"surprise": 1}, {"artefacts": []}]
    for change in [*changes, {"files": {"a": {"size": -1, "sha256": SHA}}}]:
        assert not validator.is_valid({**data, **change})
