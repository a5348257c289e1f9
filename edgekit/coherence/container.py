"""The file of a reference: an .npz that `numpy.load` can read, written byte for byte reproducibly.

The entries are stored, not compressed: no decompressor can be fed a bomb, and the bytes do not depend on a zlib
version. Shapes and types of all arrays follow from `meta.json`, so that a stranger's array header is compared with the
one expected and never interpreted; nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.coherence.distribution import Positions
from edgekit.coherence.ragged import Ragged
from edgekit.coherence.reference import Meta, Reference
from edgekit.coherence.scoring import MAX_OPTIONS, Answers, Questions
from edgekit.errors import FileFormatError, InputNotFoundError, OptionError
from edgekit.files import whole_file

MAX_BYTES = 64 << 20
"""Largest reference file that is written or read."""
_MAX_META = 64 << 10
_MAX_DIRECTORY = 8 << 10
_META = "meta.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SUM_TOLERANCE = 1e-3
_MAX_DIVISOR = 4096
"""Bytes of the longest option."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
Arrays = dict[str, NDArray[Any]]


def save(reference: Reference, path: Path, *, force: bool = False) -> None:
    """Write `reference` to `path` under a temporary name, then rename; the same reference always gives the same bytes.

    Raises:
        OptionError: it would be larger than 64 MiB.
        OutputExistsError, OutputError: see :func:`edgekit.files.whole_file`.
    """
    entries = {_META: msgspec.json.format(msgspec.json.encode(reference.meta), indent=1)}
    arrays = _arrays(reference)
    for name, (dtype, shape) in _layout(reference.meta).items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, its metadata says {shape}")
        entries[f"{name}.npy"] = _header(dtype, shape) + arrays[name].astype(dtype).tobytes()
    if sum(map(len, entries.values())) > MAX_BYTES - _MAX_DIRECTORY:
        raise OptionError(
            "the reference would be larger than 64 MiB",
            remedy="use fewer or shorter sequences, or keep fewer tokens (k, draws)",
        )
    with whole_file(path, force=force) as fresh, zipfile.ZipFile(fresh, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)


def load(path: Path) -> Reference:
    """Read and fully check a reference, which may come from a stranger.

    Raises:
        InputNotFoundError: there is no file at `path`.
        FileFormatError: it is not a reference; says what is wrong.
    """
    if not path.is_file():
        raise InputNotFoundError(f"there is no reference file at {path}", remedy="give a bundle made by edgekit build")
    try:
        meta, arrays = _read(path)
        _check(meta, arrays)
    except _BadError as error:
        raise _refusal(path, str(error)) from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise _refusal(path, f"its zip container is damaged: {error}") from error
    return _build(meta, arrays)


class _BadError(Exception):
    """What is wrong with the file, as a clause."""


def _refusal(path: Path, clause: str) -> FileFormatError:
    return FileFormatError(
        f"{path} is not a coherence reference: {clause}",
        expected="a .npz file sealed by edgekit",
        remedy="copy it again or build the bundle anew",
    )


def _require(right: bool | np.bool_, clause: str) -> None:
    if not right:
        raise _BadError(clause)


def _arrays(reference: Reference) -> Arrays:
    arrays: Arrays = {}
    for name in ("sequence", "prompt", "continuation"):
        lists: Ragged = getattr(reference, f"{name}s")
        arrays |= {f"{name}_ids": lists.ids, f"{name}_lengths": lists.lengths}
    return arrays | vars(reference.positions) | _item_arrays(reference.answers)


def _item_arrays(answers: Answers | None) -> Arrays:
    if answers is None:
        return {}
    asked = answers.questions
    return {
        "option_ids": asked.options.ids,
        "option_lengths": asked.options.lengths,
        "option_divisors": asked.divisors,
        "option_logp": answers.logp,
        "item_counts": asked.counts,
        "item_starts": asked.starts,
        "item_right": asked.right,
    }


def _build(meta: Meta, arrays: Arrays) -> Reference:
    lists = {n: Ragged(arrays[f"{n}_ids"], arrays[f"{n}_lengths"]) for n in ("sequence", "prompt", "continuation")}
    positions = Positions(**{field.name: arrays[field.name] for field in fields(Positions)})
    return Reference(meta, lists["sequence"], positions, lists["prompt"], lists["continuation"], _answers(meta, arrays))


def _answers(meta: Meta, arrays: Arrays) -> Answers | None:
    if not meta.items or meta.items_sha256 is None:
        return None
    questions = Questions(
        names=meta.items,
        sha256=meta.items_sha256,
        options=Ragged(arrays["option_ids"], arrays["option_lengths"]),
        divisors=arrays["option_divisors"],
        counts=arrays["item_counts"],
        starts=arrays["item_starts"],
        right=arrays["item_right"],
    )
    return Answers(questions, arrays["option_logp"])


def _layout(meta: Meta) -> Layout:
    """Type and shape of every array."""
    n = meta.sequence_tokens - meta.sequences
    return {
        "sequence_ids": ("<i4", (meta.sequence_tokens,)),
        "sequence_lengths": ("<i4", (meta.sequences,)),
        "prompt_ids": ("<i4", (meta.prompt_tokens,)),
        "prompt_lengths": ("<i4", (meta.prompts,)),
        "continuation_ids": ("<i4", (meta.continuation_tokens,)),
        "continuation_lengths": ("<i4", (meta.prompts,)),
        "top_ids": ("<i4", (n, meta.k)),
        "top_logp": ("<f4", (n, meta.k)),
        "tail_logp": ("<f4", (n,)),
        "next_logp": ("<f4", (n,)),
        "entropy": ("<f4", (n,)),
        "drawn_ids": ("<i4", (n, meta.draws)),
        "drawn_logp": ("<f4", (n, meta.draws)),
    } | (_item_layout(meta) if meta.items else {})


def _item_layout(meta: Meta) -> Layout:
    items, options = (len(meta.items),), (meta.options,)
    return {
        "option_ids": ("<i4", (meta.option_tokens,)),
        "option_lengths": ("<i4", options),
        "option_divisors": ("<i4", options),
        "option_logp": ("<f4", options),
        "item_counts": ("<i4", items),
        "item_starts": ("<i4", items),
        "item_right": ("<i4", items),
    }


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The .npy header, version 1.0, padded so that the data starts at a multiple of 64 bytes."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("ascii")


def _read(path: Path) -> tuple[Meta, Arrays]:
    size = path.stat().st_size
    _require(size <= MAX_BYTES, f"it has {size} bytes, more than {MAX_BYTES}")
    raw = path.read_bytes()
    _check_directory(raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        _require(len(sizes) == len(archive.infolist()), "it holds an entry twice")
        for info in archive.infolist():
            stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
            _require(stored, f"its entry {info.filename[:40]!r} is compressed")
        meta = _read_meta(archive, sizes)
        layout = _layout(meta)
        _require(set(sizes) == {_META, *(f"{name}.npy" for name in layout)}, "it misses an entry or has one too many")
        return meta, {name: _read_array(archive, sizes, name, *kind) for name, kind in layout.items()}


def _check_directory(raw: bytes) -> None:
    """Refuse a huge directory before zipfile makes an object of each entry; the record must be the last 22 bytes."""
    _require(len(raw) >= 22 and raw[-22:-18] == b"PK\x05\x06", "it does not end as a zip file does")
    _require(raw[-42:-38] != b"PK\x06\x07", "it is a zip64 file")
    entries, directory, _, comment = struct.unpack("<HIIH", raw[-12:])
    _require(entries <= 64 and directory <= _MAX_DIRECTORY and comment == 0, "its zip directory is too large")


def _read_meta(archive: zipfile.ZipFile, sizes: dict[str, int]) -> Meta:
    _require(sizes.get(_META, _MAX_META + 1) <= _MAX_META, f"it has no {_META} of at most {_MAX_META} bytes")
    try:
        meta = msgspec.json.decode(archive.read(_META), type=Meta)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _BadError(f"its {_META} is wrong ({error})") from error
    _require(meta.k <= meta.vocab_size, f"it keeps {meta.k} tokens of a vocabulary of {meta.vocab_size}")
    _require(meta.draws == 0 or meta.k < meta.vocab_size, f"it draws {meta.draws} tokens from a tail of none")
    _require(all(i < meta.vocab_size for i in meta.eot_ids), "an end-of-text id is outside the vocabulary")
    _require(meta.sequence_tokens >= 2 * meta.sequences, "a sequence has fewer than two tokens")
    _require(len(set(meta.items)) == len(meta.items), "it names an item twice")
    _require(bool(meta.items) == (meta.items_sha256 is not None), "its items and their hash do not go together")
    _require(bool(meta.items) or meta.options == meta.option_tokens == 0, "it has options of no item")
    return meta


def _read_array(
    archive: zipfile.ZipFile, sizes: dict[str, int], name: str, dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    header = _header(dtype, shape)
    need = len(header) + math.prod(shape) * np.dtype(dtype).itemsize
    clause = f"array {name} is not {np.dtype(dtype).name} of shape {shape} as its metadata says"
    _require(sizes[f"{name}.npy"] == need, clause)
    data = archive.read(f"{name}.npy")
    _require(len(data) == need and data.startswith(header), clause)
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape)


def _check(meta: Meta, arrays: Arrays) -> None:
    for name, least in (("sequence", 2), ("prompt", 1), ("continuation", 1)):
        ids, lengths = arrays[f"{name}_ids"], arrays[f"{name}_lengths"]
        _require((lengths >= least).all() and lengths.sum(dtype=np.int64) == len(ids), f"{name}_lengths do not add up")
        _require(((ids >= 0) & (ids < meta.vocab_size)).all(), f"{name}_ids leave the vocabulary")
    _require((arrays["continuation_lengths"] <= meta.token_limit).all(), "a continuation is longer than its limit")
    _check_positions(meta, arrays)
    _check_draws(meta, arrays)
    if meta.items:
        _check_items(meta, arrays)


def _check_items(meta: Meta, arrays: Arrays) -> None:
    ids, lengths, counts = arrays["option_ids"], arrays["option_lengths"], arrays["item_counts"]
    _require((lengths >= 2).all() and lengths.sum(dtype=np.int64) == len(ids), "option_lengths do not add up")
    _require(((ids >= 0) & (ids < meta.vocab_size)).all(), "option_ids leave the vocabulary")
    options = ((counts >= 2) & (counts <= MAX_OPTIONS)).all()
    _require(options and counts.sum(dtype=np.int64) == meta.options, "item_counts do not add up")
    starts = arrays["item_starts"]
    _require((starts >= 1).all() and (np.repeat(starts, counts) < lengths).all(), "item_starts leave an option")
    right = arrays["item_right"]
    _require(((right >= 0) & (right < counts)).all(), "item_right names an option that is not there")
    divisors = arrays["option_divisors"]
    _require(((divisors >= 1) & (divisors <= _MAX_DIVISOR)).all(), "option_divisors are out of range")
    logp = arrays["option_logp"]
    _require((np.isfinite(logp) & (logp <= 0)).all(), "option_logp holds no log-probabilities")


def _check_positions(meta: Meta, arrays: Arrays) -> None:
    ids, logp, tail = arrays["top_ids"], arrays["top_logp"], arrays["tail_logp"]
    _require(((ids >= 0) & (ids < meta.vocab_size)).all(), "top_ids leave the vocabulary")
    _require((np.diff(np.sort(ids, axis=1), axis=1) > 0).all(), "top_ids name a token twice")
    for name in ("top_logp", "next_logp"):
        _require((np.isfinite(arrays[name]) & (arrays[name] <= 0)).all(), f"{name} holds no log-probabilities")
    _require((logp[:, 1:] <= logp[:, :-1]).all(), "top_logp does not descend")
    whole = meta.k == meta.vocab_size
    _require((np.isneginf(tail) if whole else np.isfinite(tail) & (tail <= 0)).all(), "tail_logp is out of range")
    mass = np.exp(logp.astype(np.float64)).sum(axis=1) + np.exp(tail.astype(np.float64))
    _require((np.abs(mass - 1) <= _SUM_TOLERANCE).all(), "probabilities do not add up to 1")
    entropy = arrays["entropy"]
    most = math.log(meta.vocab_size) + _SUM_TOLERANCE
    _require((np.isfinite(entropy) & (entropy >= 0) & (entropy <= most)).all(), "entropy is out of range")


def _check_draws(meta: Meta, arrays: Arrays) -> None:
    if not meta.draws:
        return
    ids, logp, tail = arrays["drawn_ids"], arrays["drawn_logp"], arrays["tail_logp"].astype(np.float64)
    _require(((ids >= 0) & (ids < meta.vocab_size)).all(), "drawn_ids leave the vocabulary")
    # One number per row and token, so that a single sort finds what a row both keeps and draws.
    first = np.arange(len(ids), dtype=np.int64)[:, None] * meta.vocab_size
    doubled = np.isin(first + ids, first + arrays["top_ids"], kind="sort")
    _require(not doubled.any(), "drawn_ids name one of the top_ids")
    _require((np.isfinite(logp) & (logp <= 0)).all(), "drawn_logp holds no log-probabilities")
    _require((logp <= arrays["top_logp"][:, -1:]).all(), "drawn_logp is above the least of top_logp")
    most = tail * (1 - 1e-6) + _SUM_TOLERANCE
    _require((logp <= most[:, None]).all(), "drawn_logp is above tail_logp")
