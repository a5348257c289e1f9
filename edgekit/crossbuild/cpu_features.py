"""Which instructions a compiler would use, told by its predefined macros, against those that the cores have.

Names of features are those of /proc/cpuinfo (Linux, Documentation/arch/arm64/elf_hwcaps.rst); macros are those of the
Arm C Language Extensions; from which architecture on a feature is mandatory is in the Arm Architecture Reference
Manual (DDI 0487, chapter A2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edgekit.crossbuild.model import Cpu
from edgekit.errors import ToolchainError

MACROS = {
    "AES": "aes", "SHA2": "sha2", "SHA3": "sha3", "SHA512": "sha512", "SM3": "sm3", "SM4": "sm4", "CRC32": "crc32",
    "ATOMICS": "atomics", "QRDMX": "asimdrdm", "RCPC": "lrcpc", "DOTPROD": "asimddp",
    "FP16_SCALAR_ARITHMETIC": "fphp", "FP16_VECTOR_ARITHMETIC": "asimdhp", "FP16_FML": "asimdfhm", "JCVT": "jscvt",
    "COMPLEX": "fcma", "FRINT": "frint", "MATMUL_INT8": "i8mm", "BF16": "bf16", "SVE": "sve", "SVE2": "sve2",
    "SVE_MATMUL_INT8": "svei8mm", "SVE_MATMUL_FP32": "svef32mm", "SVE_MATMUL_FP64": "svef64mm", "SVE2_AES": "sveaes",
    "SVE2_BITPERM": "svebitperm", "SVE2_SHA3": "svesha3", "SVE2_SM4": "svesm4", "SVE_BF16": "svebf16", "SME": "sme",
    "SME2": "sme2", "RNG": "rng", "MEMORY_TAGGING": "mte", "LS64": "ls64", "MOPS": "mops",
}  # fmt: skip
"""__ARM_FEATURE_… → feature."""
_MANDATORY = {
    8.1: ("crc32", "atomics", "asimdrdm"), 8.3: ("lrcpc", "jscvt", "fcma"), 8.4: ("asimddp",), 8.5: ("frint",),
    8.6: ("i8mm", "bf16"),
}  # fmt: skip
"""Architecture → what it brings; 9.0 is 8.5 with SVE2."""
_IMPLIED = {"i8mm": "svei8mm", "bf16": "svebf16"}
"""With SVE the vector form of these comes along; kernels list it by itself, target files need not."""


def allowed(cpu: Cpu) -> frozenset[str]:
    """Features that code for `cpu` may use: those of all cores, and those that the architecture of `march` brings."""
    match = re.match(r"armv(\d)(?:\.(\d))?-a", cpu.march)
    if match is None:
        raise ToolchainError(
            f"toolchain.march is {cpu.march!r}", expected="an architecture such as armv8-a or armv8.2-a+dotprod"
        )
    level = int(match[1]) + int(match[2] or 0) / 10 + (-0.5 if match[1] == "9" else 0)
    found = set(cpu.features)
    for since, features in _MANDATORY.items():
        if level + 1e-9 >= since:
            found |= set(features)
    if "sve" in found:
        found |= {vector for scalar, vector in _IMPLIED.items() if scalar in found}
    return frozenset(found)


def used(macros: str) -> frozenset[str]:
    """Features that a compiler uses, from what `-E -dM` prints."""
    found = set(re.findall(r"^#define __ARM_FEATURE_(\w+) ", macros, re.MULTILINE))
    return frozenset(feature for macro, feature in MACROS.items() if macro in found)


def check(macros: str, cpu: Cpu, *, compiler: str, needed: Iterable[str] = ()) -> None:
    """Raise ToolchainError when a compiler would use what `cpu` lacks, or would not use what it is asked to.

    Args:
        macros: what the compiler prints for `-E -dM` with the flags of the build.
        cpu: the target's.
        compiler: its name, for the message.
        needed: features that must be in use.
    """
    has, uses = allowed(cpu), used(macros)
    name = cpu.mtune or cpu.march
    if too_many := sorted(uses - has):
        raise ToolchainError(
            f"{compiler} would use {', '.join(too_many)} for {name}, which the target's cores do not list",
            expected="instructions that every core has",
            remedy="correct toolchain.march and mtune, or the isa of soc.clusters, in the target file",
        )
    if missing := sorted(set(needed) - uses):
        raise ToolchainError(
            f"{compiler} does not use {', '.join(missing)} for {name}",
            expected="what toolchain.march asks for",
            remedy="choose another --toolchain",
        )


_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "dotprod": ("asimddp",), "fp16": ("fphp", "asimdhp"), "fp16fml": ("asimdfhm",), "i8mm": ("i8mm",),
    "bf16": ("bf16",), "sve": ("sve",), "sve2": ("sve", "sve2"), "sme": ("sme",), "crc": ("crc32",),
    "lse": ("atomics",), "rdm": ("asimdrdm",), "rcpc": ("lrcpc",), "aes": ("aes",), "sha2": ("sha2",),
    "sha3": ("sha3",), "sm4": ("sm4",), "crypto": ("aes", "sha2"),
}  # fmt: skip


def asked(march: str) -> frozenset[str]:
    """Features that the extensions of an architecture string name: "armv8-a+crc" asks for crc32."""
    extensions = march.split("+")[1:]
    return frozenset(feature for extension in extensions for feature in _EXTENSIONS.get(extension, ()))
