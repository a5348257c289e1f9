"""A bundle's own files, as parsers under attack: its manifest, folder, target and golden corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import samples

from edgekit import targets
from edgekit.bundle import manifest as manifests
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.golden import check_golden, read_golden
from edgekit.bundle.target import NAME as TARGET
from edgekit.bundle.target import bundle_target as read_target
from edgekit.bundle.target import to_toml

Target = Callable[[bytes], None]


def manifest(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    seed = (samples.bundle(folder / "seed") / "manifest.json").read_bytes()

    def target(data: bytes) -> None:
        manifests.to_json(manifests.from_json(data))

    return (seed,), target


def bundle(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    root = samples.bundle(folder / "tiny.rpi5")

    def target(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        opened = open_bundle(root)
        assert all(path.resolve().is_relative_to(root.resolve()) for path in opened.artefacts.values())

    return ((root / "manifest.json").read_bytes(),), target


def bundle_target(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """As of a bundle whose manifest lists whatever is in the file."""
    opened = open_bundle(samples.bundle(folder / "tiny.rpi5"))
    ref = manifests.TargetRef(id="my-board", sha256="0" * 64)
    entry = manifests.FileEntry(sha256="0" * 64, size=0)
    known = msgspec.structs.replace(opened.manifest, target=ref, files={**opened.manifest.files, TARGET: entry})
    opened = replace(opened, manifest=known)
    mine = [msgspec.structs.replace(targets.load(name), name="my-board") for name in ("rpi5", "jetson-thor", "host")]

    def target(data: bytes) -> None:
        (opened.root / TARGET).write_bytes(data)
        assert read_target(opened).name == "my-board"

    return tuple(to_toml(each).encode() for each in mine), target


def golden(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    def target(data: bytes) -> None:
        (folder / "golden.json").write_bytes(data)
        golden = read_golden(folder)
        check_golden(golden, "x", lambda text: list(text.encode()[:40]), lambda chat: [len(chat)])

    return (samples.golden(folder),), target
