"""A GGUF file from a stranger: its header is bounded before the official reader, which trusts it, is let at it."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from edgekit.errors import FileFormatError

_MAX_ENTRIES = 1 << 17
"""Metadata keys, and tensors."""
_MAX_NAME = 65_535
"""Bytes of a metadata key (ggml docs/gguf.md)."""
_MAX_ITEMS = 1 << 21
"""Array items in all. The official reader makes an object of each; vocabularies of today have up to a million."""
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _MAX_NESTING, _MAX_DIMS = 8, 9, 4, 8


class _Walk:
    """Steps over a GGUF header (ggml docs/gguf.md) and builds nothing, so that every count is bounded by the file's
    size before the official reader, which trusts them, is let at it. Raises ValueError.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._items, self._order = data, 4, 0, "<"
        if self._number("I") & 0xFFFF == 0:  # a version is small: its bytes are swapped
            self._order = ">"
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, not 2 or 3")

    def check(self) -> None:
        """Walk the whole header."""
        tensors, keys = self._count("tensors"), self._count("metadata keys")
        names: set[bytes] = set()
        for _ in range(keys):
            name = self._name()
            if name in names:  # readers disagree on which of the two counts
                raise ValueError("it has a metadata key twice")
            names.add(name)
            self._value(self._number("I"), 0)
        for _ in range(tensors):
            self._tensor()

    def _number(self, form: str) -> int:
        begin = self._at
        self._skip(struct.calcsize(form))
        value: int = struct.unpack_from(self._order + form, self._data, begin)[0]
        return value

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > _MAX_ENTRIES:
            raise ValueError(f"it claims {count} {what}")
        return count

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends early")

    def _name(self) -> bytes:
        size = self._number("Q")
        self._skip(size)
        if size > _MAX_NAME:
            raise ValueError(f"it has a metadata key of {size} bytes")
        return self._data[self._at - size : self._at]

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SCALAR_BYTES:
            self._skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self._skip(self._number("Q"))
        elif kind == _ARRAY and depth < _MAX_NESTING:
            self._array(depth)
        else:
            raise ValueError(f"it has a value of type {kind}")

    def _array(self, depth: int) -> None:
        inner, count = self._number("I"), self._number("Q")
        self._items += count
        if self._items > _MAX_ITEMS:
            raise ValueError(f"its arrays hold more than {_MAX_ITEMS} items")
        if inner in _SCALAR_BYTES:
            self._skip(count * _SCALAR_BYTES[inner])
            return
        for _ in range(count):
            self._value(inner, depth + 1)

    def _tensor(self) -> None:
        self._skip(self._number("Q"))
        dims = self._number("I")
        if dims > _MAX_DIMS:
            raise ValueError(f"it has a tensor of {dims} dimensions")
        parameters = prod(self._number("Q") for _ in range(dims))
        self._number("I")
        if parameters >= 1 << 56 or self._number("Q") > len(self._data):
            raise ValueError("it has a tensor that is larger than the file")


@contextmanager
def gguf_errors(path: Path) -> Iterator[None]:
    """Whatever the official reader stumbles over in `path` becomes a FileFormatError."""
    wrong = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, OSError, MemoryError)
    try:
        yield
    except wrong as error:
        clause = " ".join(str(error).split()) or type(error).__name__
        clause = "".join(c if c.isprintable() else "?" for c in clause)[:200]
        raise FileFormatError(
            f"{path} is not a whole GGUF file ({clause})",
            expected="GGUF version 2 or 3",
            remedy="download or build it again",
        ) from error


def open_gguf(path: Path) -> Any:
    """The official reader (gguf.GGUFReader) on a header whose counts the file can hold. It maps the file; no weight is
    read.

    Raises:
        FileFormatError: not a GGUF file, cut short, or with counts that the file cannot hold.
    """
    with gguf_errors(path):
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF" if path.stat().st_size else "it is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Walk(data).check()
        from gguf import GGUFReader

        return GGUFReader(path)
