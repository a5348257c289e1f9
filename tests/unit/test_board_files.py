"""/proc/cpuinfo and /sys/devices/system/cpu of targets, read again as psutil, cpuinfo and glibc read them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from edgekit import targets
from edgekit.board_files import FEATURES, core_groups, cpuinfo, write_cpu_files
from edgekit.errors import OptionError

BOARDS = [name for name in targets.names() if targets.load(name).soc.arch == "aarch64"]


def blocks(text: str) -> list[dict[str, str]]:
    """/proc/cpuinfo as keys and values, core by core."""
    found = []
    for block in text.split("\n\n"):
        if block:
            pairs = (line.split(":", 1) for line in block.splitlines())
            found.append({key.strip(): value.strip() for key, value in pairs})
    return found


def listed(text: str) -> list[int]:
    """The kernel's list format: "0-3"."""
    first, _, last = text.strip().partition("-")
    return list(range(int(first), int(last or first) + 1))


# --- what has no processor -------------------------------------------------------------------------------------------


def test_the_host_has_no_fixed_processor(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="host has no fixed processor"):
        cpuinfo(targets.load("host"))
    with pytest.raises(OptionError):
        write_cpu_files(targets.load("host"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_many_cores() -> None:
    target = targets.load("rpi5")
    many = (msgspec.structs.replace(target.soc.clusters[0], count=1024),) * 1000
    with pytest.raises(OptionError, match="1024000 cores"):
        cpuinfo(msgspec.structs.replace(target, soc=msgspec.structs.replace(target.soc, clusters=many)))


# --- cpuinfo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_every_board(name: str) -> None:
    target = targets.load(name)
    kinds = [group for group in core_groups(target) for _ in range(group.count)]
    cores = blocks(cpuinfo(target))
    assert [int(core["processor"]) for core in cores] == list(range(len(kinds)))
    for core, kind in zip(cores, kinds, strict=True):
        features = core["Features"].split()
        assert set(features) == {*kind.isa, "fp"}
        assert features == sorted(features, key=FEATURES.index), "the kernel's order"
        assert core["CPU part"] == kind.part
        assert (core["CPU implementer"], core["CPU architecture"]) == ("0x41", "8")


def test_as_a_pi_5_says_it() -> None:
    block = (
        "processor\t: 3\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    )
    assert cpuinfo(targets.load("rpi5")).endswith(block)


def test_a_pi_4_has_no_cryptography() -> None:
    assert all(core["Features"] == "fp asimd crc32" for core in blocks(cpuinfo(targets.load("rpi4"))))


def test_clusters_in_the_order_of_their_numbers() -> None:
    parts = [core["CPU part"] for core in blocks(cpuinfo(targets.load("rk3588")))]
    assert parts == ["0xd05"] * 4 + ["0xd0b"] * 4


def test_a_board_without_clusters_has_four_plain_cores() -> None:
    cores = blocks(cpuinfo(targets.load("arm64-generic")))
    assert [core["Features"] for core in cores] == ["fp asimd"] * 4


# --- /sys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rk3588(tmp_path: Path) -> Path:
    write_cpu_files(targets.load("rk3588"), tmp_path)
    return tmp_path / "sys/devices/system/cpu"


def test_lists_of_cores(rk3588: Path) -> None:
    assert {name: listed((rk3588 / name).read_text()) for name in ("online", "possible", "present")} == {
        name: list(range(8)) for name in ("online", "possible", "present")
    }
    assert int((rk3588 / "kernel_max").read_text()) >= 8
    assert sorted(path.name for path in rk3588.glob("cpu[0-9]*")) == [f"cpu{number}" for number in range(8)]


def test_physical_cores_as_psutil_counts_them(rk3588: Path) -> None:
    ids = {path.read_text().strip() for path in rk3588.glob("cpu[0-9]*/topology/core_cpus_list")}
    assert len(ids) == 8


def test_clock_as_psutil_reads_it(rk3588: Path) -> None:
    top = defaultdict(set)
    for folder in rk3588.glob("cpu[0-9]*/cpufreq"):
        values = {int((folder / f"scaling_{end}_freq").read_text()) for end in ("min", "cur", "max")}
        assert values == {int((folder / "cpuinfo_max_freq").read_text())}
        top[values.pop()].add(folder.parent.name)
    assert {khz: len(cores) for khz, cores in top.items()} == {1_800_000: 4, 2_400_000: 4}


def test_clusters_as_cpuinfo_reads_them(rk3588: Path) -> None:
    assert listed((rk3588 / "cpu6/topology/cluster_cpus_list").read_text()) == [4, 5, 6, 7]
    assert (rk3588 / "cpu6/topology/cluster_cpus").read_text() == "f0\n"
    assert listed((rk3588 / "cpu6/topology/core_siblings_list").read_text()) == list(range(8))
    assert listed((rk3588 / "cpu6/topology/thread_siblings_list").read_text()) == [6]
    assert (rk3588 / "cpu6/topology/physical_package_id").read_text() == "0\n"
    assert (rk3588 / "cpu6/topology/core_id").read_text() == "2\n"


def test_main_id_register(rk3588: Path) -> None:
    value = int((rk3588 / "cpu7/regs/identification/midr_el1").read_text(), 16)
    assert (value >> 24, value >> 4 & 0xFFF, value >> 16 & 0xF) == (0x41, 0xD0B, 0xF)


def caches(folder: Path) -> dict[tuple[str, str], tuple[str, list[int]]]:
    found = {}
    for index in folder.glob("cache/index*"):
        facts = {name: (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")}
        assert (index / "coherency_line_size").read_text() == "64\n"
        found[facts["level"], facts["type"]] = (facts["size"], listed(facts["shared_cpu_list"]))
    return found


def test_caches_of_its_own(rk3588: Path) -> None:
    assert caches(rk3588 / "cpu5") == {
        ("1", "Data"): ("64K", [5]), ("1", "Instruction"): ("64K", [5]), ("2", "Unified"): ("512K", [5]),
        ("3", "Unified"): ("3072K", list(range(8))),
    }  # fmt: skip


def test_a_shared_cache(tmp_path: Path) -> None:
    write_cpu_files(targets.load("rpi4"), tmp_path)
    found = caches(tmp_path / "sys/devices/system/cpu/cpu2")
    assert found["2", "Unified"] == ("1024K", [0, 1, 2, 3])
    assert ("3", "Unified") not in found


def test_more_than_32_cores(tmp_path: Path) -> None:
    target = targets.load("rpi5")
    group = (msgspec.structs.replace(target.soc.clusters[0], count=40),)
    write_cpu_files(msgspec.structs.replace(target, soc=msgspec.structs.replace(target.soc, clusters=group)), tmp_path)
    cpu = tmp_path / "sys/devices/system/cpu/cpu39"
    assert (cpu / "topology/core_cpus").read_text() == "00000080,00000000\n"
    assert (cpu / "topology/package_cpus").read_text() == "000000ff,ffffffff\n"


def test_written_again(tmp_path: Path) -> None:
    write_cpu_files(targets.load("rpi5"), tmp_path)
    write_cpu_files(targets.load("rpi5"), tmp_path)
    assert len(blocks((tmp_path / "proc/cpuinfo").read_text())) == 4
