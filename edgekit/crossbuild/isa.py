"""Which instructions need which CPU feature beyond Armv8.0-A with Advanced SIMD, and where a program has them.

Features are spelt as the kernel spells them in /proc/cpuinfo. Names and what they cover: Arm Architecture Reference
Manual for A-profile, DDI 0487, chapter A2 (features) and C4 (encodings); Documentation/arch/arm64/elf_hwcaps.rst of
Linux. Every instruction is one aligned word and means the same wherever it stands, so each different word is looked at
once, and data between functions cannot throw the reading out of step.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.board_files import core_groups
from edgekit.errors import MissingDependencyError, TargetFileError
from edgekit.target_schema import Target

Words = NDArray[np.uint32]

# --- one instruction -------------------------------------------------------------------------------------------------


def _rows(table: Mapping[str, str]) -> dict[str, str]:
    return {name: feature for feature, names in table.items() for name in names.split()}


_PLAIN = _rows({
    "asimddp": "sdot udot",
    "i8mm": "smmla ummla usmmla usdot sudot",
    "bf16": "bfdot bfmmla bfmlalb bfmlalt bfcvt bfcvtn bfcvtn2",
    "asimdfhm": "fmlal fmlal2 fmlsl fmlsl2",
    "asimdrdm": "sqrdmlah sqrdmlsh",
    "fcma": "fcmla fcadd",
    "jscvt": "fjcvtzs",
    "aes": "aese aesd aesmc aesimc",
    "sha1": "sha1c sha1h sha1m sha1p sha1su0 sha1su1",
    "sha2": "sha256h sha256h2 sha256su0 sha256su1",
    "sha512": "sha512h sha512h2 sha512su0 sha512su1",
    "sha3": "eor3 bcax rax1 xar",
    "sm3": "sm3partw1 sm3partw2 sm3ss1 sm3tt1a sm3tt1b sm3tt2a sm3tt2b",
    "sm4": "sm4e sm4ekey",
    "crc32": "crc32b crc32h crc32w crc32x crc32cb crc32ch crc32cw crc32cx",
    "lrcpc": "ldapr ldaprb ldaprh",
    "ilrcpc": "ldapur ldapurb ldapurh ldapursb ldapursh ldapursw stlur stlurb stlurh",
    "flagm": "cfinv rmif setf8 setf16",
    "flagm2": "axflag xaflag",
    "frint": "frint32z frint32x frint64z frint64x",
    "sb": "sb",
    "wfxt": "wfet wfit",
    # Only those outside the hint space: paciasp, autiasp, xpaclri and bti do nothing on older cores.
    "paca": """pacia pacib pacda pacdb paciza pacizb pacdza pacdzb autia autib autda autdb autiza autizb autdza autdzb
        xpaci xpacd retaa retab braa brab braaz brabz blraa blrab blraaz blrabz ldraa ldrab""",
    "pacg": "pacga",
    "mte": "irg addg subg gmi subp subps ldg stg st2g stzg stz2g ldgm stgm stzgm stgp",
    # Scalable vectors whose operands name no z or p register.
    "sve": """cntb cnth cntw cntd incb inch incw incd decb dech decw decd rdvl addvl addpl setffr ctermeq ctermne
        sqincb sqinch sqincw sqincd uqincb uqinch uqincw uqincd sqdecb sqdech sqdecw sqdecd uqdecb uqdech uqdecw uqdecd
        """,
    "sme": "smstart smstop rdsvl addsvl addspl zero",
})  # fmt: skip

_SCALABLE = _rows({
    "svei8mm": "smmla ummla usmmla usdot sudot",
    "svebf16": "bfdot bfmmla bfmlalb bfmlalt bfcvt bfcvtnt",
    "sveaes": "aese aesd aesmc aesimc",
    "svesha3": "rax1",
    "svesm4": "sm4e sm4ekey",
    "svebitperm": "bdep bext bgrp",
    "sve2": """adclb adclt addhnb addhnt bcax bsl bsl1n bsl2n nbsl cadd cdot cmla eor3 eorbt eortb faddp fcvtlt fcvtnt
        fcvtx fcvtxnt flogb fmaxnmp fmaxp fminnmp fminp fmlalb fmlalt fmlslb fmlslt histcnt histseg match nmatch pmul
        pmullb pmullt raddhnb raddhnt rshrnb rshrnt rsubhnb rsubhnt saba sabalb sabalt sabdlb sabdlt sadalp saddlb
        saddlbt saddlt saddwb saddwt sbclb sbclt shadd shrnb shrnt shsub shsubr sli smaxp sminp smlalb smlalt smlslb
        smlslt smullb smullt sqabs sqcadd sqdmlalb sqdmlalbt sqdmlalt sqdmlslb sqdmlslbt sqdmlslt sqdmulh sqdmullb
        sqdmullt sqneg sqrdcmlah sqrdmlah sqrdmlsh sqrdmulh sqrshl sqrshlr sqrshrnb sqrshrnt sqrshrunb sqrshrunt sqshl
        sqshlr sqshlu sqshrnb sqshrnt sqshrunb sqshrunt sqsubr sqxtnb sqxtnt sqxtunb sqxtunt srhadd sri srshl srshlr
        srshr srsra sshllb sshllt ssra ssublb ssublbt ssublt ssubltb ssubwb ssubwt subhnb subhnt suqadd tbx uaba uabalb
        uabalt uabdlb uabdlt uadalp uaddlb uaddlt uaddwb uaddwt uhadd uhsub uhsubr umaxp uminp umlalb umlalt umlslb
        umlslt umullb umullt uqrshl uqrshlr uqrshrnb uqrshrnt uqshl uqshlr uqshrnb uqshrnt uqsubr uqxtnb uqxtnt urecpe
        urhadd urshl urshlr urshr ursqrte ursra ushllb ushllt usqadd usra usublb usublt usubwb usubwt whilege whilegt
        whilehi whilehs whilerw whilewr xar""",
})  # fmt: skip

_ATOMIC = re.compile(r"(cas|casp|swp|(ld|st)(add|clr|eor|set|[su]max|[su]min))(a|l|al)?[bh]?")
_SCALABLE_REGISTER = re.compile(r"(?<![a-z0-9_])(z|p|pn)\d")
_MATRIX_REGISTER = re.compile(r"(?<![a-z0-9_])(za|zt0)")
_HALF_VECTOR = re.compile(r"v\d+\.(\d?h\b)")
_HALF_SCALAR = re.compile(r"(?<![a-z0-9_])h\d+\b")
_FLOATING = re.compile(r"f|[su]cvtf$")
_HALF_TO_SINGLE = frozenset({"fcvt", "fcvtl", "fcvtl2", "fcvtn", "fcvtn2"})
"""Conversions between half and single precision are part of Armv8.0; only computing in half precision is not."""
_SYSTEM = {
    "dc cvap": "dcpop", "dc cvadp": "dcpodp", "dc gva": "mte", "dc gzva": "mte", "mrs rndr": "rng", "mrs rndrrs": "rng",
    "mrs svcr": "sme", "msr svcr": "sme", "mrs tpidr2_el0": "sme", "msr tpidr2_el0": "sme", "mrs ssbs": "ssbs",
    "msr ssbs": "ssbs", "mrs dit": "dit", "msr dit": "dit",
}  # fmt: skip


_FURTHER = ("pmull", "atomics", "fphp", "asimdhp", "svepmull", "svef32mm", "svef64mm")
ALL = frozenset({*_PLAIN.values(), *_SCALABLE.values(), *_SYSTEM.values(), *_FURTHER})
"""Every feature that :func:`feature_of` can tell."""


def feature_of(mnemonic: str, operands: str) -> str:
    """The feature that an instruction, as capstone writes it, needs beyond Armv8.0-A; "" for none.

    One that needs several is told by the one that its mnemonic belongs to (fcmla on half precision: fcma).
    """
    if _MATRIX_REGISTER.search(operands):
        return "sme"
    if _SCALABLE_REGISTER.search(operands):
        return _scalable(mnemonic, operands)
    if mnemonic in _PLAIN:
        return _PLAIN[mnemonic]
    if mnemonic in ("pmull", "pmull2"):
        return "pmull" if ".1q" in operands else ""
    if _ATOMIC.fullmatch(mnemonic):
        return "atomics"
    if mnemonic in ("dc", "mrs", "msr"):
        return next((_SYSTEM[key] for part in operands.split(", ") if (key := f"{mnemonic} {part}") in _SYSTEM), "")
    if _FLOATING.match(mnemonic) and mnemonic not in _HALF_TO_SINGLE:
        if _HALF_VECTOR.search(operands):
            return "asimdhp"
        if _HALF_SCALAR.search(operands):
            return "fphp"
    return ""


def _scalable(mnemonic: str, operands: str) -> str:
    if mnemonic in ("pmullb", "pmullt") and ".q" in operands:
        return "svepmull"
    if mnemonic == "fmmla":
        return "svef64mm" if ".d" in operands else "svef32mm"
    if mnemonic.startswith("ld1ro"):
        return "svef64mm"
    return _SCALABLE.get(mnemonic, "sve")


# --- what a target has -----------------------------------------------------------------------------------------------

_BASE = frozenset({"fp", "asimd"})
# Mandatory from that version on, each with what came before: DDI 0487, A2.
_VERSIONS = (
    ("8.0", ""),
    ("8.1", "crc32 atomics asimdrdm"),
    ("8.2", "dcpop"),
    ("8.3", "jscvt fcma lrcpc paca pacg"),
    ("8.4", "dit uscat ilrcpc flagm asimddp"),
    ("8.5", "ssbs sb dcpodp flagm2 frint bti"),
    ("8.6", "i8mm bf16 ecv dgh"),
    ("8.7", "wfxt afp"),
)
_SAME = {"9": "8.5", "9.0": "8.5", "9.1": "8.6", "9.2": "8.7"}
_FLAGS = {
    "crc": "crc32", "lse": "atomics", "rdm": "asimdrdm", "rdma": "asimdrdm", "fp16": "fphp asimdhp",
    "fp16fml": "fphp asimdhp asimdfhm", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "aes": "aes pmull",
    "sha2": "sha1 sha2", "crypto": "aes pmull sha1 sha2", "sha3": "sha1 sha2 sha3 sha512", "sm4": "sm3 sm4",
    "rcpc": "lrcpc", "sve": "sve fphp asimdhp fcma", "sve2": "sve sve2 fphp asimdhp fcma", "flagm": "flagm",
    "ssbs": "ssbs", "sb": "sb", "rng": "rng", "pauth": "paca pacg", "memtag": "mte", "sme": "sme",
}  # fmt: skip
_SVE2 = {"sve", "fphp", "asimdhp"} | {f for _, features in _VERSIONS[:6] for f in features.split()}
_IMPLIED: tuple[tuple[set[str], set[str]], ...] = (
    # SVE2 exists from Armv9.0 on, whose mandatory features a target file may leave out; vector forms come with both.
    ({"sve2"}, _SVE2),
    ({"sve", "i8mm"}, {"svei8mm"}),
    ({"sve", "bf16"}, {"svebf16"}),
    ({"dit", "asimdhp"}, {"asimdfhm"}),  # from Armv8.4 on
)


def _of_version(version: str) -> frozenset[str]:
    wanted, found = _SAME.get(version, version), set(_BASE)
    for name, features in _VERSIONS:
        found |= set(features.split())
        if name == wanted:
            return frozenset(found)
    raise TargetFileError(
        f"the target's march names Armv{version}",
        expected="8.0 to 8.7 or 9.0 to 9.2",
        remedy="correct toolchain.march, or list the cores' features in soc.clusters",
    )


def march_features(march: str) -> frozenset[str]:
    """What `-march=` lets a compiler use: "armv8.2-a+dotprod+fp16" → asimd, atomics, asimddp, fphp …

    Raises:
        TargetFileError: no such version or extension.
    """
    name, *flags = march.split("+")
    match = re.fullmatch(r"armv(\d(?:\.\d)?)-a", name)
    if match is None:
        raise TargetFileError(
            f"the target's march is '{march}'", expected="armv8-a or newer, such as armv8.2-a+dotprod",
            remedy="correct toolchain.march",
        )  # fmt: skip
    found = set(_of_version("8.0" if match[1] == "8" else match[1]))
    for flag in flags:
        if flag not in _FLAGS:
            raise TargetFileError(
                f"the target's march has the extension '{flag}'", expected="one of " + ", ".join(sorted(_FLAGS)),
                remedy="correct toolchain.march, or list the cores' features in soc.clusters",
            )  # fmt: skip
        found |= set(_FLAGS[flag].split())
    return frozenset(found)


def target_features(target: Target) -> frozenset[str]:
    """Features that all cores of the target have: of its clusters, or of its march when it lists none.

    Raises:
        OptionError: the target is no 64-bit ARM board.
        TargetFileError: its march is unknown.
    """
    if target.soc.clusters:
        common = set.intersection(*(set(group.isa) for group in core_groups(target)))
    elif target.toolchain is not None:
        common = set(march_features(target.toolchain.march))
    else:
        core_groups(target)  # says what is wrong with the target
        common = set()
    for given, more in _IMPLIED:
        if given <= common:
            common |= more
    return frozenset(common) | _BASE


# --- a program -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One encoding that goes beyond Armv8.0-A."""

    word: int
    mnemonic: str
    operands: str
    feature: str


@dataclass(frozen=True)
class Found:
    """Where a stretch of code goes beyond Armv8.0-A."""

    instructions: tuple[Instruction, ...]
    """The different ones."""
    at: NDArray[np.int64]
    """Indices of words, ascending."""
    which: NDArray[np.int64]
    """For each of `at`, the index in `instructions`."""
    skipped: int
    """Words that look like one of these but stand among data."""

    def counts(self) -> Counter[str]:
        """Number of instructions by feature."""
        features = [instruction.feature for instruction in self.instructions]
        return Counter(features[index] for index in self.which.tolist())

    def without(self, mask: NDArray[np.bool_]) -> Found:
        """All but those of `mask`, which has a value for each of `at`."""
        return replace(self, at=self.at[~mask], which=self.which[~mask])


_PLAIN_GROUPS = (
    (0x3B000000, 0x39000000),  # load/store, unsigned offset
    (0x3A000000, 0x28000000),  # load/store pair
    (0x3B000000, 0x18000000),  # load, PC-relative
    (0x3B200000, 0x38000000),  # load/store, unscaled, before and after
    (0x3B200C00, 0x38200800),  # load/store, register offset
    (0x1E000000, 0x0A000000),  # logical, add and subtract, registers
    (0x1FE00000, 0x1A800000),  # conditional select
    (0x1F000000, 0x1B000000),  # multiply-add
)
"""(mask, value) of groups of encodings in which every instruction is in Armv8.0-A; DDI 0487, C4.1."""


def _questionable(code: Words) -> NDArray[np.int64]:
    """Indices of words outside the groups that are Armv8.0-A throughout; most words of a program are in those."""
    plain = ((code & 0x1C000000) == 0x10000000) & ((code & 0x1F800000) != 0x11800000)  # immediates; memory tags
    plain |= ((code & 0x1C000000) == 0x14000000) & ((code & 0xFC000000) != 0xD4000000)  # branches; system
    for mask, value in _PLAIN_GROUPS:
        plain |= (code & mask) == value
    return np.flatnonzero(~plain)


_UNKNOWN = {0x04205800: ("addsvl", ""), 0x04605800: ("addspl", ""), 0x04A05800: ("rdsvl", "")}
"""What capstone 5.0 does not know, by value under the mask FFE0F800; DDI 0487, C9.2."""
_NEAR = 4
"""Words before and after one that is no instruction which are taken for data as well."""


def find(code: Words) -> Found:
    """All instructions of `code` (aligned words) that need a feature beyond Armv8.0-A.

    A word beside one that is no instruction at all is data (a constant pool, a table), and is counted as skipped.

    Raises:
        MissingDependencyError: capstone is not installed.
    """
    places = _questionable(code)
    words, inverse = np.unique(code[places], return_inverse=True)
    features, known = np.zeros(len(words), np.int64), []
    undefined = np.zeros(len(words), bool)
    for index, (mnemonic, operands) in enumerate(_disassembled(words)):
        word = int(words[index])
        mnemonic, operands = _UNKNOWN.get(word & 0xFFE0F800, ("", "")) if mnemonic == ".byte" else (mnemonic, operands)
        if mnemonic in ("", "udf"):
            undefined[index] = word != 0  # linkers fill with zeros
        elif feature := feature_of(mnemonic, operands):
            known.append(Instruction(word, mnemonic, operands, feature))
            features[index] = len(known)
    which = features[inverse] - 1
    hits = which >= 0
    data = _near(places[undefined[inverse]], len(code))
    beside = data[places] & hits
    kept = hits & ~beside
    used = np.unique(which[kept])
    return Found(
        tuple(known[index] for index in used.tolist()), places[kept], np.searchsorted(used, which[kept]),
        skipped=int(beside.sum()),
    )  # fmt: skip


def _near(undefined: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which of `size` words are at most _NEAR away from one of `undefined`."""
    edges = np.zeros(size + 1, np.int64)
    np.add.at(edges, np.maximum(undefined - _NEAR, 0), 1)
    np.add.at(edges, np.minimum(undefined + _NEAR + 1, size), -1)
    return np.cumsum(edges[:-1]) > 0


def _disassembled(words: Words) -> Iterator[tuple[str, str]]:
    """Mnemonic and operands of each word; ".byte" for what is no instruction."""
    for _, _, mnemonic, operands in _capstone().disasm_lite(words.astype("<u4").tobytes(), 0):
        yield mnemonic, operands


@cache
def _capstone() -> Any:
    try:
        import capstone
    except ImportError as error:
        raise MissingDependencyError(
            "the disassembler capstone is not installed", remedy="pip install 'edgekit[cross]'"
        ) from error
    engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    engine.skipdata = True
    return engine
