"""What an artefact said where it was built: a stranger's record is refused, a changed one is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_toys import seal_folder, table_bundle

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.manifest import identity
from edgekit.bundle.said import NAME, said_of
from edgekit.errors import BundleError

IDS = [[40, 41], [7]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return table_bundle(tmp_path / "toy", said_ids=IDS)


def resealed(bundle: Bundle, data: bytes, name: str = NAME) -> Bundle:
    (bundle.root / name).write_bytes(data)
    (bundle.root / "manifest.json").unlink()
    return seal_folder(bundle.root, "gguf", "gguf/model.gguf")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"[]", b"[" * 100_000, b'{"schema_version":2,"artefacts":{}}', b'{"artefacts":{"exe":[[1]]}}',
        b'{"artefacts":{"gguf":[[-1]]}}', b'{"artefacts":{"gguf":[[16777216]]}}', b'{"artefacts":{"gguf":[["1"]]}}',
        b'{"artefacts":{"gguf":[[1.5]]}}', b'{"artefacts":{"gguf":[[]]},"more":1}',
        json.dumps({"artefacts": {"gguf": [[]] * 5000}}).encode(), b'{"artefacts":{"\x1b[2J":[]}}',
    ],
)  # fmt: skip
def test_another_record_is_refused_in_one_sentence(bundle: Bundle, data: bytes) -> None:
    with pytest.raises(BundleError, match="said.json") as caught:
        said_of(resealed(bundle, data), "gguf")
    assert caught.value.sentence().isprintable()


def test_a_flipped_bit_is_found_before_anything_is_read(bundle: Bundle) -> None:
    data = bytearray((bundle.root / NAME).read_bytes())
    data[data.index(b"40")] ^= 1
    (bundle.root / NAME).write_bytes(data)
    with pytest.raises(BundleError, match="said.json"):
        open_bundle(bundle.root)


def test_another_text_of_the_host_is_another_bundle_where_another_report_is_not(bundle: Bundle) -> None:
    before = identity(bundle.manifest)
    report: dict[str, Any] = json.loads((bundle.root / "report.json").read_bytes())
    report["samples"][0]["artefacts"]["gguf"] = "something else"
    assert identity(resealed(bundle, json.dumps(report).encode(), "report.json").manifest) == before
    said = (bundle.root / NAME).read_bytes().replace(b"40", b"42")
    assert identity(resealed(bundle, said).manifest) != before


def test_ids_come_back_as_they_were(bundle: Bundle, tmp_path: Path) -> None:
    assert said_of(bundle, "gguf") == ((40, 41), (7,))
    assert said_of(bundle, "onnx") == ()
    assert said_of(table_bundle(tmp_path / "older"), "gguf") == ()
