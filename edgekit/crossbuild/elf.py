"""Facts of one ELF file: what it runs on, what it needs from the system, where its code is.

Headers, the dynamic table and versions are read by pyelftools, tables of symbols as arrays. The file may be a
stranger's: pyelftools follows counts and links without a bound, so it reads through a stream that ends its patience.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.paths import plain
from edgekit.errors import FileFormatError, MissingDependencyError

MAGIC = b"\x7fELF"
MAX_BYTES = 512 << 20
_FEW_READS, _BYTES_A_READ = 50_000, 8
"""pyelftools asks for a few bytes at a time, most often for the buckets of hash tables: libllama.so of 3.9 MB takes
31,308 reads, OpenBLAS of 28.7 MB 16,377. A file may have one read for every 8 bytes, and 50,000 in any case."""
_MAX_PIECE = 1 << 16
_MAX_SECTIONS, _MAX_TAGS, _MAX_VERSIONS, _MAX_SYMBOLS = 4096, 4096, 4096, 1 << 21
_EXECUTE, _STATIC_PIE, _TEXTREL = 0x4, 0x0800_0000, 0x4
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("at", "<u8"), ("size", "<u8")]
)
_TAGS = ("DT_NEEDED", "DT_RPATH", "DT_RUNPATH", "DT_SONAME")
_MACHINES = {
    "EM_AARCH64": "AArch64", "EM_X86_64": "x86-64", "EM_386": "32-bit x86", "EM_ARM": "32-bit ARM",
    "EM_RISCV": "RISC-V",
}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """A stretch of instructions."""

    address: int
    """Of the first word, as the file counts."""
    words: NDArray[np.uint32]


@dataclass(frozen=True)
class Symbols:
    """Functions, sorted by address."""

    table: NDArray[Any]
    names: bytes

    def spans(self, name: str) -> list[tuple[int, int]]:
        """Start and end of each function of that name; a name stands in the table once, or as the end of another."""
        at = self.names.find(b"\0" + name.encode() + b"\0") + 1
        rows = self.table[self.table["name"] == at] if at else self.table[:0]
        return [(int(row["at"]), int(row["at"]) + int(row["size"])) for row in rows]

    def place(self, address: int) -> str:
        """`function+0x1c` of an address, or the address itself where no function is known."""
        at = int(np.searchsorted(self.table["at"], address, side="right")) - 1
        if at >= 0 and (row := self.table[at])["at"] <= address < int(row["at"]) + max(int(row["size"]), 1):
            name, offset = _text(self.names, int(row["name"])), address - int(row["at"])
            return f"{name}+{offset:#x} ({address:#x})" if offset else f"{name} ({address:#x})"
        return f"{address:#x}"


@dataclass(frozen=True)
class Elf:
    """What :func:`read` finds; strings are printable and short."""

    size: int
    """Bytes."""
    machine: str
    """ "AArch64", "x86-64" …; with " (big-endian)" or " (32-bit)" where that is so."""
    kind: Literal["program", "library"]
    interpreter: str
    """Path of the dynamic loader; empty: none is asked for."""
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]
    """Entries of RPATH and RUNPATH."""
    versions: tuple[tuple[str, str], ...]
    """(library, version of its symbols), such as ("libc.so.6", "GLIBC_2.34")."""
    executable_stack: bool
    text_relocations: bool
    debug_bytes: int
    has_symbols: bool
    """Names beyond those that the dynamic loader needs."""
    dynamic_names: bytes
    """Names of all symbols that it imports and exports, each ended by a zero byte."""
    code: tuple[Code, ...]
    symbols: Symbols

    @property
    def python_module(self) -> bool:
        """Whether it exports PyInit_…, which Python's import looks for."""
        return b"\0PyInit_" in self.dynamic_names

    def names_function(self, name: str) -> bool:
        """Whether it imports or exports a function whose name ends in `name`: linkers merge equal ends of names."""
        return name.encode() + b"\0" in self.dynamic_names

    @property
    def is_aarch64(self) -> bool:
        """64-bit little-endian ARM."""
        return self.machine == "AArch64"


class _Patience(io.BytesIO):
    """A stream that may be read so often and no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = _FEW_READS + len(data) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("its tables lead in circles")
        return super().read(_MAX_PIECE if size is None or size < 0 else min(size, _MAX_PIECE))


def read(data: bytes, name: str) -> Elf:
    """The facts of an ELF file.

    Args:
        data: the whole file.
        name: of the file, for messages.

    Raises:
        FileFormatError: no ELF file, a damaged one, or one whose tables are larger than any of ours.
        MissingDependencyError: pyelftools is not installed.
    """
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise MissingDependencyError("pyelftools is not installed", remedy="pip install 'edgekit[cross]'") from error
    if data[:4] != MAGIC:
        raise FileFormatError(f"{name} is no ELF file", expected="a program or library for Linux")
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{name} has {len(data)} bytes", expected=f"at most {MAX_BYTES >> 20} MiB")
    try:
        return _facts(data, ELFFile(_Patience(data)))
    except Exception as error:  # pyelftools lets whatever a damaged table causes through: nine types were seen
        raise FileFormatError(
            f"{name} is a damaged ELF file ({plain(str(error)) or type(error).__name__})",
            remedy="get or build it again",
        ) from error


def _facts(data: bytes, file: Any) -> Elf:
    if file.num_sections() > _MAX_SECTIONS or file.num_segments() > _MAX_SECTIONS:
        raise ValueError(f"more than {_MAX_SECTIONS} sections or segments")
    sections, segments = list(file.iter_sections()), list(file.iter_segments())
    tags = _tags(sections, segments)
    flags = {name: value for name, value in tags if isinstance(value, int)}
    names = {key: [value for name, value in tags if name == key and isinstance(value, str)] for key in _TAGS}
    interpreter = next((plain(s.get_interp_name()) for s in segments if s["p_type"] == "PT_INTERP"), "")
    program = file["e_type"] == "ET_EXEC" or bool(interpreter) or bool(flags.get("DT_FLAGS_1", 0) & _STATIC_PIE)
    aarch64 = _machine(file) == "AArch64"
    return Elf(
        size=len(data),
        machine=_machine(file),
        kind="program" if program else "library",
        interpreter=interpreter,
        soname=next(iter(names["DT_SONAME"]), ""),
        needed=tuple(names["DT_NEEDED"]),
        search=tuple(part for key in ("DT_RPATH", "DT_RUNPATH") for value in names[key] for part in value.split(":")),
        versions=tuple(_versions(sections, "DT_VERNEED" in flags)),
        executable_stack=any(s["p_type"] == "PT_GNU_STACK" and s["p_flags"] & 1 for s in segments),
        text_relocations="DT_TEXTREL" in flags or bool(flags.get("DT_FLAGS", 0) & _TEXTREL),
        debug_bytes=sum(s["sh_size"] for s in sections if re.match(r"\.z?debug_", s.name)),
        has_symbols=any(s["sh_type"] == "SHT_SYMTAB" for s in sections),
        dynamic_names=b"".join(names for _, names in _symbol_tables(data, sections, "SHT_DYNSYM")) if aarch64 else b"",
        code=tuple(_code(data, sections, segments)) if aarch64 else (),
        symbols=_functions(data, sections) if aarch64 else Symbols(np.empty(0, _SYMBOL), b""),
    )


def _machine(file: Any) -> str:
    machine = str(file["e_machine"])
    name = _MACHINES.get(machine, plain(machine.removeprefix("EM_"), 30))
    if machine in ("EM_AARCH64", "EM_X86_64"):
        name += "" if file.elfclass == 64 else " (32-bit)"
    return name if file.little_endian else f"{name} (big-endian)"


def _tags(sections: list[Any], segments: list[Any]) -> list[tuple[str, int | str]]:
    """Name and value of each entry of the dynamic table; the four that are names have them as text."""
    table = next((s for s in segments if s["p_type"] == "PT_DYNAMIC"), None)
    if table is None:
        table = next((s for s in sections if s["sh_type"] == "SHT_DYNAMIC"), None)
    if table is None:
        return []
    found: list[tuple[str, int | str]] = []
    for tag in islice(table.iter_tags(), _MAX_TAGS):
        key = str(tag.entry.d_tag)
        text = getattr(tag, key[3:].lower()) if key in _TAGS else None
        found.append((key, int(tag.entry.d_val) if text is None else plain(str(text), 1000)))
    if len(found) == _MAX_TAGS:
        raise ValueError("its dynamic table has no end")
    return found


def _versions(sections: list[Any], asked: bool) -> Iterator[tuple[str, str]]:
    tables = [s for s in sections if s["sh_type"] == "SHT_GNU_verneed"]
    if asked and not tables:
        raise ValueError("it has no section headers, so what it needs cannot be told")
    count = 0
    for table in tables:
        for library, versions in table.iter_versions():
            for version in versions:
                count += 1
                if count > _MAX_VERSIONS:
                    raise ValueError(f"it needs more than {_MAX_VERSIONS} versions")
                yield plain(str(library.name)), plain(str(version.name))


# --- code and symbols ------------------------------------------------------------------------------------------------


def _code(data: bytes, sections: list[Any], segments: list[Any]) -> Iterator[Code]:
    """Sections that are executed, or segments of a file without sections; each byte once."""
    spans = sorted(
        (s["sh_offset"], s["sh_size"], s["sh_addr"])
        for s in sections
        if s["sh_flags"] & _EXECUTE and s["sh_type"] != "SHT_NOBITS"
    )
    if not sections:
        loaded = [s for s in segments if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1]
        spans = sorted((s["p_offset"], s["p_filesz"], s["p_vaddr"]) for s in loaded)
    done = 0
    for offset, size, address in spans:
        if offset + size > len(data):
            raise ValueError("its code lies beyond its end")
        start = max(offset, done)
        start += -(address + start - offset) % 4
        count = (offset + size - start) // 4
        if count > 0:
            words = np.frombuffer(data, "<u4", count, start).astype(np.uint32, copy=False)
            yield Code(address + start - offset, words)
            done = start + 4 * count


def _symbol_tables(data: bytes, sections: list[Any], *kinds: str) -> Iterator[tuple[NDArray[Any], bytes]]:
    for section in sections:
        if section["sh_type"] not in kinds:
            continue
        count = section["sh_size"] // _SYMBOL.itemsize
        if count > _MAX_SYMBOLS or section["sh_link"] >= len(sections):
            raise ValueError("its table of symbols is too large or has no names")
        start = section["sh_offset"]
        if start + count * _SYMBOL.itemsize > len(data):
            raise ValueError("its table of symbols lies beyond its end")
        names = sections[section["sh_link"]]
        yield (
            np.frombuffer(data, _SYMBOL, count, start),
            data[names["sh_offset"] : names["sh_offset"] + names["sh_size"]],
        )


def _functions(data: bytes, sections: list[Any]) -> Symbols:
    """The functions of the fuller of the two tables."""
    tables = list(_symbol_tables(data, sections, "SHT_SYMTAB", "SHT_DYNSYM"))
    if not tables:
        return Symbols(np.empty(0, _SYMBOL), b"")
    table, names = max(tables, key=lambda pair: len(pair[0]))
    functions = table[((table["info"] & 0xF) == 2) & (table["section"] != 0)]
    return Symbols(functions[np.argsort(functions["at"], kind="stable")], names)


def _text(names: bytes, start: int) -> str:
    end = names.find(b"\0", start, start + 200)
    return plain(names[start : end if end >= 0 else start + 200].decode("utf8", "replace")) or "?"
