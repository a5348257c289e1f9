"""Tiny ELF files for 64-bit ARM, written by hand: a few instructions, what they need from the system, two symbols.

Instructions are words of the Arm Architecture Reference Manual (DDI 0487, chapter C7), named in WORDS.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BASE = 0x400000
LOADER = "/lib/ld-linux-aarch64.so.1"
NOP, RET = 0xD503201F, 0xD65F03C0
EXIT = (0xD2800BA8, 0xD2800000, 0xD4000001)
"""mov x8, #93; mov x0, #0; svc #0: Linux's exit(0)."""
WORDS = {
    # word, the feature that it needs; Armv8.0 where that is empty
    "add v0.4s, v1.4s, v2.4s": (0x4EA28420, ""),
    "fadd v0.4s, v1.4s, v2.4s": (0x4E22D420, ""),
    "fcvt h0, s1": (0x1E23C020, ""),
    "fcvt s0, h1": (0x1EE24020, ""),
    "fcvtl v0.4s, v1.4h": (0x0E217820, ""),
    "fcvtn v0.4h, v1.4s": (0x0E216820, ""),
    "ldr h0, [x1]": (0x7D400020, ""),
    "dup v0.8h, w1": (0x4E020C20, ""),
    "mov v0.h[1], v1.h[0]": (0x6E060420, ""),
    "add v0.8h, v1.8h, v2.8h": (0x4E628420, ""),
    "pmull v0.8h, v1.8b, v2.8b": (0x0E22E020, ""),
    "cnt v0.8b, v1.8b": (0x0E205820, ""),
    "ldaxr w0, [x1]": (0x885FFC20, ""),
    "ldar w0, [x1]": (0x88DFFC20, ""),
    "stlr w0, [x1]": (0x889FFC20, ""),
    "paciasp": (0xD503233F, ""),
    "autiasp": (0xD50323BF, ""),
    "bti c": (0xD503245F, ""),
    "dc cvau, x0": (0xD50B7B20, ""),
    "dc zva, x0": (0xD50B7420, ""),
    "mrs x0, id_aa64isar0_el1": (0xD5380600, ""),
    "mrs x0, tpidr_el0": (0xD53BD040, ""),
    "brk #1": (0xD4200020, ""),
    "bl": (0x94000010, ""),
    "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, "asimddp"),
    "udot v0.4s, v1.16b, v2.16b": (0x6E829420, "asimddp"),
    "sdot v0.4s, v1.16b, v2.4b[0]": (0x4F82E020, "asimddp"),
    "usdot v0.4s, v1.16b, v2.16b": (0x4E829C20, "i8mm"),
    "sudot v0.4s, v1.16b, v2.4b[0]": (0x4F02F020, "i8mm"),
    "smmla v0.4s, v1.16b, v2.16b": (0x4E82A420, "i8mm"),
    "bfdot v0.4s, v1.8h, v2.8h": (0x6E42FC20, "bf16"),
    "bfcvt h0, s1": (0x1E634020, "bf16"),
    "fadd h0, h1, h2": (0x1EE22820, "fphp"),
    "fmov h0, w1": (0x1EE70020, "fphp"),
    "scvtf h0, w1": (0x1EE20020, "fphp"),
    "fmla v0.8h, v1.8h, v2.8h": (0x4E420C20, "asimdhp"),
    "fmla v0.8h, v1.8h, v2.h[0]": (0x4F021020, "asimdhp"),
    "fcmeq v0.8h, v1.8h, #0.0": (0x4EF8D820, "asimdhp"),
    "faddp h0, v1.2h": (0x5E30D820, "asimdhp"),
    "fmlal v0.4s, v1.4h, v2.4h": (0x4E22EC20, "asimdfhm"),
    "sqrdmlah v0.4s, v1.4s, v2.4s": (0x6E828420, "asimdrdm"),
    "aese v0.16b, v1.16b": (0x4E284820, "aes"),
    "aesmc v0.16b, v1.16b": (0x4E286820, "aes"),
    "pmull v0.1q, v1.1d, v2.1d": (0x0EE2E020, "pmull"),
    "pmull2 v0.1q, v1.2d, v2.2d": (0x4EE2E020, "pmull"),
    "sha1c q0, s1, v2.4s": (0x5E020020, "sha1"),
    "sha256h q0, q1, v2.4s": (0x5E024020, "sha2"),
    "sha512h q0, q1, v2.2d": (0xCE628020, "sha512"),
    "eor3 v0.16b, v1.16b, v2.16b, v3.16b": (0xCE020C20, "sha3"),
    "sm4e v0.4s, v1.4s": (0xCEC08420, "sm4"),
    "crc32b w0, w1, w2": (0x1AC24020, "crc32"),
    "crc32cx w0, w1, x2": (0x9AC25C20, "crc32"),
    "ldadd w0, w1, [x2]": (0xB8200041, "atomics"),
    "stadd w0, [x2]": (0xB820005F, "atomics"),
    "casal x0, x1, [x2]": (0xC8E0FC41, "atomics"),
    "casp x0, x1, x2, x3, [x4]": (0x48207C82, "atomics"),
    "swp w0, w1, [x2]": (0xB8208041, "atomics"),
    "ldapr w0, [x1]": (0xB8BFC020, "lrcpc"),
    "ldapur w0, [x1]": (0x99400020, "ilrcpc"),
    "fcmla v0.4s, v1.4s, v2.4s, #0": (0x6E82C420, "fcma"),
    "fjcvtzs w0, d1": (0x1E7E0020, "jscvt"),
    "dc cvap, x0": (0xD50B7C20, "dcpop"),
    "pacia x0, x1": (0xDAC10020, "paca"),
    "retaa": (0xD65F0BFF, "paca"),
    "mrs x0, rndr": (0xD53B2400, "rng"),
    "irg x0, x1, x2": (0x9AC21020, "mte"),
    "cfinv": (0xD500401F, "flagm"),
    "frint32z s0, s1": (0x1E284020, "frint"),
    "sb": (0xD50330FF, "sb"),
    "ptrue p0.b": (0x2518E3E0, "sve"),
    "whilelo p0.b, x1, x2": (0x25221C20, "sve"),
    "cntw x0": (0x04A0E3E0, "sve"),
    "rdvl x0, #1": (0x04BF5020, "sve"),
    "add z0.s, z1.s, z2.s": (0x04A20020, "sve"),
    "ld1w {z0.s}, p0/z, [x0]": (0xA540A000, "sve"),
    "sqrdmlah z0.s, z1.s, z2.s": (0x44827020, "sve2"),
    "smmla z0.s, z1.b, z2.b": (0x45029820, "svei8mm"),
    "bfdot z0.s, z1.h, z2.h": (0x64628020, "svebf16"),
    "aese z0.b, z0.b, z1.b": (0x4522E020, "sveaes"),
    "smstart": (0xD503477F, "sme"),
    "fmopa za0.s, p0/m, p0/m, z0.s, z2.s": (0x80820000, "sme"),
}  # fmt: skip
SDOT = WORDS["sdot v0.4s, v1.16b, v2.16b"][0]
LDADD = WORDS["ldadd w0, w1, [x2]"][0]
OUTLINED = (0x90000010, 0x39400210, 0x34000070, LDADD, RET)
"""adrp x16, …; ldrb w16, [x16]; cbz w16, …; ldadd; ret: libgcc's __aarch64_ldadd4_relax."""


@dataclass(frozen=True)
class TinyElf:
    """What goes into the file."""

    code: Sequence[int] = (*EXIT, RET)
    program: bool = False
    interpreter: str = ""
    needed: Sequence[str] = ()
    soname: str = ""
    rpath: str = ""
    runpath: str = ""
    versions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Library → versions of its symbols that are needed."""
    exports: Sequence[str] = ()
    """Functions, each one word long, from the start of the code."""
    imports: Sequence[str] = ()
    machine: int = 183
    stack: int = 6
    """Flags of PT_GNU_STACK; 7: executable."""
    text_relocations: bool = False
    debug: int = 0
    """Bytes of .debug_info."""
    headers: bool = True
    """Section headers."""

    def build(self) -> bytes:
        """The file."""
        return _Writer(self).file()


class _Writer:
    def __init__(self, made: TinyElf) -> None:
        self.made, self.body = made, bytearray(64 + 56 * 5)
        self.sections: list[tuple[str, int, int, int, int, int, int, int]] = [("", 0, 0, 0, 0, 0, 0, 0)]
        self.strings = bytearray(b"\0")

    def text(self, value: str) -> int:
        at = len(self.strings)
        self.strings += value.encode() + b"\0"
        return at

    def put(
        self, name: str, kind: int, data: bytes, *, flags: int = 2, link: int = 0, info: int = 0, size: int = 0
    ) -> int:
        """Add a section; returns its offset."""
        self.body += bytes(-len(self.body) % 16)
        at = len(self.body)
        self.body += data
        self.sections.append((name, kind, flags, at, len(data), link, info, size))
        return at

    def file(self) -> bytes:
        made = self.made
        code = self.put(".text", 1, struct.pack(f"<{len(made.code)}I", *made.code), flags=6)
        interp = self.put(".interp", 1, made.interpreter.encode() + b"\0") if made.interpreter else 0
        symbols = bytes(24)
        for index, name in enumerate((*made.exports, *made.imports)):
            defined = index < len(made.exports)
            symbols += struct.pack(
                "<IBBHQQ", self.text(name), 0x12, 0, int(defined), BASE + code + 4 * index if defined else 0, 4
            )
        tags = [(1, self.text(name)) for name in made.needed]
        tags += [
            (key, self.text(value)) for key, value in ((14, made.soname), (15, made.rpath), (29, made.runpath)) if value
        ]
        tags += [(22, 0)] if made.text_relocations else []
        versions = self._versions()
        strtab = len(self.sections)
        names = self.put(".dynstr", 3, bytes(self.strings))
        self.put(".dynsym", 11, symbols, link=strtab, info=1, size=24)
        if made.versions:
            at = self.put(".gnu.version_r", 0x6FFFFFFE, versions, link=strtab, info=len(made.versions))
            tags += [(0x6FFFFFFE, BASE + at), (0x6FFFFFFF, len(made.versions))]
        tags += [(5, BASE + names), (10, len(self.strings)), (0, 0)]
        dynamic = self.put(".dynamic", 6, b"".join(struct.pack("<QQ", *tag) for tag in tags), link=strtab, size=16)
        if made.debug:
            self.put(".debug_info", 1, bytes(made.debug), flags=0)
        return self._framed(code, interp, dynamic, 16 * len(tags))

    def _versions(self) -> bytes:
        data, libraries = b"", list(self.made.versions.items())
        for index, (library, names) in enumerate(libraries):
            after = 0 if index == len(libraries) - 1 else 16 + 16 * len(names)
            data += struct.pack("<HHIII", 1, len(names), self.text(library), 16, after)
            for number, name in enumerate(names):
                last = number == len(names) - 1
                data += struct.pack("<IHHII", 0, 0, number + 2, self.text(name), 0 if last else 16)
        return data

    def _framed(self, code: int, interp: int, dynamic: int, size: int) -> bytes:
        made = self.made
        dynamically = bool(made.needed or made.interpreter or not made.program)
        headers = [(1, 5, 0, len(self.body)), (0x6474E551, made.stack, 0, 0)]
        headers += [(2, 6, dynamic, size)] if dynamically else []
        headers += [(3, 4, interp, len(made.interpreter) + 1)] if interp else []
        for index, (kind, flags, at, length) in enumerate(headers):
            row = struct.pack(
                "<IIQQQQQQ", kind, flags, at, BASE + at, BASE + at, length, length, 0x1000 if kind == 1 else 8
            )
            self.body[64 + 56 * index : 120 + 56 * index] = row
        table = self._section_headers() if made.headers else (0, 0)
        ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
        count = len(self.sections) if made.headers else 0
        self.body[:64] = ident + struct.pack(
            "<HHIQQQIHHHHHH", 2 if made.program else 3, made.machine, 1, BASE + code, 64, table[0], 0, 64, 56,
            len(headers), 64, count, table[1],
        )  # fmt: skip
        return bytes(self.body)

    def _section_headers(self) -> tuple[int, int]:
        """Offset of the table, and the index of the names of sections."""
        names = bytearray(b"\0")
        places = []
        for name in [row[0] for row in self.sections] + [".shstrtab"]:
            places.append(len(names))
            names += name.encode() + b"\0"
        self.put(".shstrtab", 3, bytes(names), flags=0)
        self.body += bytes(-len(self.body) % 16)
        at = len(self.body)
        for place, (_, kind, flags, offset, length, link, info, size) in zip(places, self.sections, strict=True):
            address = BASE + offset if flags & 2 else 0
            self.body += struct.pack("<IIQQQQIIQQ", place, kind, flags, address, offset, length, link, info, 4, size)
        return at, len(self.sections) - 1


def wheel(folder: Path, name: str, files: Mapping[str, bytes], said: str = "") -> Path:
    """A wheel in `folder` with METADATA, and WHEEL that fits the name or says the tag `said`; returns its path."""
    package, version, tag = name.removesuffix(".whl").split("-", 2)
    pythons, abi, platforms = (said or tag).split("-")
    tags = "".join(f"Tag: {p}-{abi}-{platform}\n" for p in pythons.split(".") for platform in platforms.split("."))
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\n{tags}")
    return folder / name
