"""/proc/cpuinfo and /sys/devices/system/cpu as a target's kernel shows them, made from the target file.

onnxruntime, ggml and glibc read these to learn cores, caches and instructions; a program that runs emulated must see
the board's, not the host's. Formats: arch/arm64/kernel/cpuinfo.c, drivers/base/topology.c, drivers/base/cacheinfo.c and
Documentation/ABI/testing/sysfs-devices-system-cpu of Linux.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import OptionError
from edgekit.target_schema import Cluster, Target

FEATURES = (
    "fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid",
    "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm", "dit",
    "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg", "dcpodp", "sve2", "sveaes", "svepmull", "svebitperm",
    "svesha3", "svesm4", "flagm2", "frint", "svei8mm", "svef32mm", "svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng",
    "bti", "mte", "ecv", "afp", "rpres", "mte3", "sme", "smei16i64", "smef64f64", "smei8i32", "smef16f32", "smeb16f32",
    "smef32f32", "smefa64", "wfxt", "ebf16", "sveebf16",
)  # fmt: skip
"""Names of features in the kernel's order: hwcap_str in arch/arm64/kernel/cpuinfo.c, Linux 6.1."""

_MAX_CORES = 1024
_LINE = 64
"""Bytes of a cache line: of all cores that target files name."""
# Stepping (variant, revision) and first-level caches (data, instructions; KiB): not in a target file, since nothing is
# decided by them. https://github.com/ThomasKaiser/sbc-bench/blob/master/Results.md; the cores' reference manuals.
_STEPPING = {"0xd03": (0, 4), "0xd05": (2, 0), "0xd08": (0, 3), "0xd0b": (4, 1), "0xd42": (0, 1)}
_L1_KIB = {"0xd08": (32, 48), "0xd0b": (64, 64), "0xd42": (64, 64), "0xd83": (64, 64)}
_GENERIC = Cluster(core="ARMv8.0-A", part="0xd03", count=4, max_mhz=1000, isa=("asimd",))


@dataclass(frozen=True)
class _Core:
    number: int
    cluster: int
    siblings: range
    """Numbers of the cores of its cluster, itself among them."""
    kind: Cluster


def core_groups(target: Target) -> tuple[Cluster, ...]:
    """The target's clusters in the order of their CPU numbers; for a board that names none, four ARMv8.0-A cores.

    Those report themselves as Cortex-A53, the oldest design in use, at 1 GHz with Advanced SIMD and nothing more.

    Raises:
        OptionError: the target is no 64-bit ARM board, or has more than 1024 cores.
    """
    if target.soc.arch != "aarch64":
        raise OptionError(
            f"target {target.name} has no fixed processor ({target.soc.arch})",
            expected="a 64-bit ARM board",
            remedy="choose one of `edgekit targets`",
        )
    groups = target.soc.clusters or (_GENERIC,)
    if (count := sum(group.count for group in groups)) > _MAX_CORES:
        raise OptionError(
            f"target {target.name} has {count} cores", expected=f"at most {_MAX_CORES}", remedy="correct soc.clusters"
        )
    return groups


def cpuinfo(target: Target) -> str:
    """Text of /proc/cpuinfo, one block for each core; raises as :func:`core_groups`.

    Features are the target's and "fp", which every core with Advanced SIMD has; unknown names come last.
    """
    return "".join(_block(core) for core in _cores(target))


def write_cpu_files(target: Target, root: Path) -> None:
    """Write `root`/proc/cpuinfo and what is read of `root`/sys/devices/system/cpu; raises as :func:`core_groups`.

    The clock stands still at the cluster's highest: what is emulated has none.
    """
    _write(root / "proc/cpuinfo", cpuinfo(target))
    folder, cores = root / "sys/devices/system/cpu", list(_cores(target))
    everyone = range(len(cores))
    for name in ("online", "possible", "present"):
        _write(folder / name, _list(everyone))
    _write(folder / "offline", "\n")
    _write(folder / "kernel_max", f"{_MAX_CORES - 1}\n")
    for core in cores:
        own = folder / f"cpu{core.number}"
        for name, text in (*_topology(core, everyone), *_clock(core), *_caches(core, everyone, target.soc.l3_kib)):
            _write(own / name, text)
        _write(own / "regs/identification/midr_el1", f"0x{_midr(core.kind):016x}\n")


def _cores(target: Target) -> Iterator[_Core]:
    start = 0
    for index, group in enumerate(core_groups(target)):
        siblings = range(start, start + group.count)
        yield from (_Core(number, index, siblings, group) for number in siblings)
        start = siblings.stop


def _block(core: _Core) -> str:
    there = {*core.kind.isa, "fp"}
    features = [name for name in FEATURES if name in there] + sorted(there - {*FEATURES})
    variant, revision = _STEPPING.get(core.kind.part, (0, 0))
    # BogoMIPS is twice the timer's clock in MHz and tells nothing about the core.
    return (
        f"processor\t: {core.number}\n"
        "BogoMIPS\t: 108.00\n"
        f"Features\t: {' '.join(features)}\n"
        "CPU implementer\t: 0x41\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: {variant:#x}\n"
        f"CPU part\t: {core.kind.part}\n"
        f"CPU revision\t: {revision}\n"
        "\n"
    )


def _midr(kind: Cluster) -> int:
    """Main ID register: implementer, variant, architecture, part, revision (DDI 0487, MIDR_EL1)."""
    variant, revision = _STEPPING.get(kind.part, (0, 0))
    return 0x41 << 24 | variant << 20 | 0xF << 16 | int(kind.part, 16) << 4 | revision


def _topology(core: _Core, everyone: range) -> Iterator[tuple[str, str]]:
    alone = range(core.number, core.number + 1)
    numbers = {"core_id": core.number - core.siblings.start, "cluster_id": core.cluster, "physical_package_id": 0}
    for name, number in numbers.items():
        yield f"topology/{name}", f"{number}\n"
    groups = {"thread_siblings": alone, "core_cpus": alone, "cluster_cpus": core.siblings}
    for name, group in {**groups, "core_siblings": everyone, "package_cpus": everyone}.items():
        yield f"topology/{name}", _mask(group, len(everyone))
        yield f"topology/{name}_list", _list(group)


def _clock(core: _Core) -> Iterator[tuple[str, str]]:
    limits = [f"{who}_{end}_freq" for who in ("cpuinfo", "scaling") for end in ("min", "max")]
    for name in (*limits, "cpuinfo_cur_freq", "scaling_cur_freq"):
        yield f"cpufreq/{name}", f"{core.kind.max_mhz * 1000}\n"
    yield "cpufreq/scaling_governor", "performance\n"


def _caches(core: _Core, everyone: range, l3_kib: int | None) -> Iterator[tuple[str, str]]:
    """Index by index: L1 data, L1 instructions, and L2 and L3 where the target knows them."""
    alone, kind = range(core.number, core.number + 1), core.kind
    data, instructions = _L1_KIB.get(kind.part, (32, 32))
    caches: list[tuple[int, str, int, range]] = [(1, "Data", data, alone), (1, "Instruction", instructions, alone)]
    if kind.l2_kib:
        caches.append((2, "Unified", kind.l2_kib, core.siblings if kind.l2_shared else alone))
    if l3_kib:
        caches.append((3, "Unified", l3_kib, everyone))
    for index, (level, type_, kib, group) in enumerate(caches):
        facts = {"level": str(level), "type": type_, "size": f"{kib}K", "coherency_line_size": str(_LINE)}
        for name, value in facts.items():
            yield f"cache/index{index}/{name}", f"{value}\n"
        yield f"cache/index{index}/shared_cpu_list", _list(group)
        yield f"cache/index{index}/shared_cpu_map", _mask(group, len(everyone))


def _list(cores: range) -> str:
    return f"{cores.start}\n" if len(cores) == 1 else f"{cores.start}-{cores.stop - 1}\n"


def _mask(cores: Iterable[int], count: int) -> str:
    """Bits of the cores in hexadecimal words of 32, the highest first."""
    bits = sum(1 << number for number in cores)
    words = range((count + 31) // 32 - 1, -1, -1)
    return ",".join(f"{bits >> 32 * word & 0xFFFFFFFF:0{min(8, (count + 3) // 4)}x}" for word in words) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")
