"""Sealing a folder as a bundle and opening a stranger's bundle: checked whole before anything in it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit.bundle.manifest import (
    MANIFEST,
    MAX_BYTES,
    REFERENCE,
    TOKENIZER,
    Artefact,
    FileEntry,
    Manifest,
    from_json,
    is_report,
    to_json,
)
from edgekit.bundle.paths import digest, names, plain, read_bounded, scan
from edgekit.errors import BundleError, InputNotFoundError
from edgekit.files import whole_file

Progress = Callable[[int, int], None]
"""Called with bytes hashed so far and bytes to hash in all."""

_GET_AGAIN = "get the bundle again from who built it"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Paths are absolute and were checked to lie in `root`."""

    root: Path
    manifest: Manifest

    @property
    def artefacts(self) -> dict[str, Path]:
        """Path of the model file of each format, "gguf" or "onnx"."""
        return {artefact.format: self.root / artefact.path for artefact in self.manifest.artefacts}

    def artefact(self, form: str | None = None) -> Artefact:
        """The artefact of a format ("gguf" or "onnx"), by default the first.

        Raises:
            BundleError: the bundle has none of that format.
        """
        for artefact in self.manifest.artefacts:
            if form in (None, artefact.format):
                return artefact
        there = ", ".join(artefact.format for artefact in self.manifest.artefacts)
        raise BundleError(f"{self.root} has no {form} artefact", expected=f"one of: {there}", remedy="ask for that one")

    @property
    def tokenizer(self) -> Path:
        """The folder with tokenizer.json, tokenizer_config.json and golden.json."""
        return self.root / TOKENIZER

    @property
    def reference(self) -> Path:
        """The sealed record of what the full-precision model says.

        Raises:
            BundleError: the bundle was built without it.
        """
        if REFERENCE not in self.manifest.files:
            raise BundleError(f"{self.root} has no {REFERENCE}", remedy="build the bundle again with its reference")
        return self.root / REFERENCE


def write_manifest(folder: Path, manifest: Manifest, *, progress: Progress | None = None) -> Manifest:
    """Hash everything in `folder`, write manifest.json there, and return the manifest with `files` and `reports`.

    `files` and `reports` of the given manifest are replaced. A manifest.json that is there already is replaced.

    Raises:
        BundleError: a link, a special file, an unsafe name or an empty folder below `folder`, or a value outside
            the manifest's schema.
        OutputError: the disk is full or not writable.
    """
    found, folders = scan(folder)
    found.pop(MANIFEST, None)
    if empty := folders - _parents(found):
        raise BundleError(
            f"empty folder in the bundle: {names(empty)}", remedy="remove it, a manifest lists files only"
        )
    hashes = _hash_all(folder, found, progress)
    entries = {path: FileEntry(sha256=hashes[path], size=found[path]) for path in sorted(found)}
    full = msgspec.structs.replace(
        manifest,
        files={path: entry for path, entry in entries.items() if not is_report(path)},
        reports={path: entry for path, entry in entries.items() if is_report(path)},
    )
    data = to_json(full)
    written = from_json(data)
    with whole_file(folder / MANIFEST, force=True) as fresh:
        fresh.write_bytes(data)
    return written


def open_bundle(path: Path, *, check: bool = True, progress: Progress | None = None) -> Bundle:
    """Verify a bundle and open it. Nothing but the manifest is parsed.

    The manifest, all names, kinds of file and sizes are always checked; `check=False` skips only the hashing.

    Raises:
        InputNotFoundError: nothing is there.
        BundleError: not a bundle, or any rule of docs/bundle.md is broken; names the file.
    """
    root = _root(path)
    manifest = from_json(read_bounded(root, MANIFEST, MAX_BYTES))
    listed = {**manifest.files, **manifest.reports}
    found, folders = scan(root)
    found.pop(MANIFEST, None)
    _compare_names(listed, found, folders)
    _compare_sizes(listed, found)
    if f"{TOKENIZER}/tokenizer.json" not in listed:
        raise BundleError(f"{root} has no {TOKENIZER}/tokenizer.json", remedy="build the bundle again")
    if check:
        _compare_hashes(listed, _hash_all(root, found, progress))
    return Bundle(root=root, manifest=manifest)


def _root(path: Path) -> Path:
    """The bundle's folder, resolved: the path that the user gave may be a link, what is inside may not."""
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputNotFoundError(
            f"there is no bundle at '{plain(str(path))}'", remedy="give the folder that edgekit build wrote"
        ) from error
    manifest = root / MANIFEST
    if not root.is_dir() or not (manifest.is_symlink() or manifest.exists()):
        raise BundleError(
            f"{root} is not a bundle",
            expected=f"a folder with {MANIFEST}",
            remedy="give the folder that edgekit build wrote",
        )
    return root


def _parents(paths: Mapping[str, object]) -> set[str]:
    return {path[:index] for path in paths for index, letter in enumerate(path) if letter == "/"}


def _compare_names(listed: Mapping[str, FileEntry], found: Mapping[str, int], folders: set[str]) -> None:
    if missing := listed.keys() - found.keys():
        raise BundleError(f"missing from the bundle: {names(missing)}", remedy=_GET_AGAIN)
    if extra := (found.keys() - listed.keys()) | (folders - _parents(listed)):
        raise BundleError(
            f"in the bundle but not in its manifest: {names(extra)}",
            expected="the files of the manifest and no others",
            remedy=f"remove what you added, or {_GET_AGAIN}",
        )


def _compare_sizes(listed: Mapping[str, FileEntry], found: Mapping[str, int]) -> None:
    for path in sorted(listed):
        if found[path] != listed[path].size:
            raise BundleError(
                f"'{plain(path)}' has {found[path]} bytes", expected=f"{listed[path].size} bytes", remedy=_GET_AGAIN
            )


def _compare_hashes(listed: Mapping[str, FileEntry], hashes: Mapping[str, str]) -> None:
    if changed := [path for path, entry in listed.items() if hashes[path] != entry.sha256]:
        raise BundleError(
            f"changed since the bundle was built: {names(changed)}",
            expected="the SHA-256 of the manifest",
            remedy=_GET_AGAIN,
        )


def _hash_all(root: Path, sizes: Mapping[str, int], progress: Progress | None) -> dict[str, str]:
    total, done = sum(sizes.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    hashes = {}
    for path in sorted(sizes):
        value = digest(root, path, sizes[path], advance)
        if value is None:
            raise BundleError(f"'{plain(path)}' changed while it was read", remedy="stop what writes to it, run again")
        hashes[path] = value
    return hashes
