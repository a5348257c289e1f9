"""A stranger's GGUF file: its header is read here with bounds, and before the official reader, which has none, is."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgekit.errors import FileFormatError

_MAX_ENTRIES = 1 << 17
"""Metadata keys, and tensors."""
_MAX_NAME = 65_535
"""Bytes of a metadata key (ggml docs/gguf.md)."""
_MAX_ITEMS = 1 << 21
"""Array items in all. The official reader makes an object of each; vocabularies of today have up to a million."""
MAX_VALUES = 8
"""Longest array whose values are kept."""
_SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "?"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
"""Number of a type → its name and struct's letter."""
_STRING, _ARRAY, _MAX_NESTING, _MAX_DIMS = 8, 9, 4, 8


@dataclass(frozen=True)
class GgufField:
    """One metadata entry."""

    kind: str
    """"uint32", "string", "array", … as gguf-py names them in lower case."""
    value: Any
    """Of an array only when it has at most MAX_VALUES items, else None."""
    item: str = ""
    """Kind of an array's items."""
    count: int = 1


@dataclass(frozen=True)
class GgufTensor:
    """One tensor; its bytes lie in the file."""

    name: str
    type: str
    """"F32", "Q4_K", …"""
    parameters: int
    nbytes: int
    shape: tuple[int, ...]
    """As the file has it: the length of a row first."""
    at: int
    """Where its bytes begin in the file."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself, without its long arrays."""

    version: int
    byte_order: str
    """"little" or "big"."""
    fields: Mapping[str, GgufField]
    tensors: tuple[GgufTensor, ...]


class _Walk:
    """Steps over a GGUF header (ggml docs/gguf.md); every count is bounded by the file's size before anything is built,
    and of long arrays nothing is. Raises ValueError.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._items, self._order = data, 4, 0, "<"
        if self._number("I") & 0xFFFF == 0:  # a version is small: its bytes are swapped
            self._order = ">"
        self._at = 4
        self._version = self._number("I")
        if self._version not in (2, 3):
            raise ValueError(f"its version is {self._version}, not 2 or 3")

    def header(self) -> GgufHeader:
        """Walk the whole header."""
        tensors, keys = self._count("tensors"), self._count("metadata keys")
        fields: dict[str, GgufField] = {}
        for _ in range(keys):
            name = self._text(_MAX_NAME, "metadata key")
            if name in fields:  # readers disagree on which of the two counts
                raise ValueError("it has a metadata key twice")
            fields[name] = self._value(self._number("I"), 0)
        places = [self._tensor() for _ in range(tensors)]
        start = self._start(fields)
        found = tuple(replace(tensor, at=start + tensor.at) for tensor in places)
        self._check_places(found)
        return GgufHeader(self._version, "little" if self._order == "<" else "big", fields, found)

    def _number(self, form: str) -> int:
        value: int = self._scalar(form)
        return value

    def _scalar(self, form: str) -> Any:
        begin = self._at
        self._skip(struct.calcsize(form))
        return struct.unpack_from(self._order + form, self._data, begin)[0]

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > _MAX_ENTRIES:
            raise ValueError(f"it claims {count} {what}")
        return count

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends early")

    def _text(self, most: int = 0, what: str = "") -> str:
        size = self._number("Q")
        self._skip(size)
        if most and size > most:
            raise ValueError(f"it has a {what} of {size} bytes")
        return self._data[self._at - size : self._at].decode()

    def _value(self, kind: int, depth: int) -> GgufField:
        if kind in _SCALARS:
            name, form = _SCALARS[kind]
            return GgufField(name, self._scalar(form))
        if kind == _STRING:
            return GgufField("string", self._text())
        if kind == _ARRAY and depth < _MAX_NESTING:
            return self._array(depth)
        raise ValueError(f"it has a value of type {kind}")

    def _array(self, depth: int) -> GgufField:
        inner, count = self._number("I"), self._number("Q")
        self._items += count
        if self._items > _MAX_ITEMS:
            raise ValueError(f"its arrays hold more than {_MAX_ITEMS} items")
        item = _SCALARS[inner][0] if inner in _SCALARS else {_STRING: "string", _ARRAY: "array"}.get(inner, "")
        values = None
        if count <= MAX_VALUES:
            values = [self._value(inner, depth + 1).value for _ in range(count)]
        elif inner in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[inner][1]))
        elif inner == _STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self._value(inner, depth + 1)
        return GgufField("array", values, item or "nothing", count)

    def _skip_strings(self, count: int) -> None:
        """A vocabulary has hundreds of thousands: this loop is the whole cost of a header."""
        length, end, at = struct.Struct(self._order + "Q").unpack_from, len(self._data) - 8, self._at
        for _ in range(count):
            if at > end:
                raise ValueError("it ends early")
            at += 8 + length(self._data, at)[0]
        self._at = at
        self._skip(0)

    def _tensor(self) -> GgufTensor:
        """A tensor; its place is counted from the start of all data."""
        name, dims = self._text(_MAX_NAME, "tensor's name"), self._number("I")
        if dims > _MAX_DIMS:
            raise ValueError(f"it has a tensor of {dims} dimensions")
        shape = [self._number("Q") for _ in range(dims)]
        kind, offset = GGMLQuantizationType(self._number("I")), self._number("Q")
        parameters, (block, size) = prod(shape), GGML_QUANT_SIZES[kind]
        if parameters >= 1 << 56 or offset > len(self._data):
            raise ValueError("it has a tensor that is larger than the file")
        if shape and shape[0] % block:
            raise ValueError(f"it has rows of {shape[0]} weights in {kind.name}, whose blocks have {block}")
        return GgufTensor(name, kind.name, parameters, parameters // block * size, tuple(shape), offset)

    def _start(self, fields: Mapping[str, GgufField]) -> int:
        """Where the tensors' data begin."""
        align = fields["general.alignment"].value if "general.alignment" in fields else 32
        if not isinstance(align, int) or not 0 < align <= 1 << 20:
            raise ValueError("its alignment is no number of bytes")
        return -(-self._at // align) * align

    def _check_places(self, tensors: Sequence[GgufTensor]) -> None:
        if any(tensor.at + tensor.nbytes > len(self._data) for tensor in tensors):
            raise ValueError("it has a tensor that is larger than the file")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("it has a tensor twice")


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


def read_header(path: Path) -> GgufHeader:
    """What the file says of itself. Time and memory grow with the header, but never with what it claims.

    Raises:
        FileFormatError: not a GGUF file, cut short, or with counts that the file cannot hold.
    """
    with gguf_errors(path), path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF" if path.stat().st_size else "it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data).header()


def open_gguf(path: Path) -> Any:
    """The official reader (gguf.GGUFReader) on a header whose counts the file can hold. It maps the file; no weight is
    read. It makes objects of every array item: about 17 µs and 1.5 KiB each.

    Raises:
        FileFormatError: see :func:`read_header`.
    """
    read_header(path)
    with gguf_errors(path):
        from gguf import GGUFReader

        return GGUFReader(path)
