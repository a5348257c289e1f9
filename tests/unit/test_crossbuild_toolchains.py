"""Cross-compilers: what they are asked to make for which cores, and what is refused before anything is compiled."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import targets
from edgekit.crossbuild import cpu_features, zig
from edgekit.crossbuild.gcc import Gcc
from edgekit.crossbuild.model import Cpu, cpu_of
from edgekit.crossbuild.toolchains import TOOLCHAINS
from edgekit.crossbuild.zig import Zig
from edgekit.errors import MissingDependencyError, OptionError, ToolchainError
from edgekit.targets import Target

BOARDS = [name for name in targets.names() if targets.load(name).toolchain is not None]
FEATURES = sorted(set(cpu_features.MACROS.values()))


def changed(name: str, **toolchain: object) -> Target:
    target = targets.load(name)
    assert target.toolchain is not None
    return msgspec.structs.replace(target, toolchain=msgspec.structs.replace(target.toolchain, **toolchain))


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# -- the processor


def test_a_target_that_is_not_compiled_for() -> None:
    with pytest.raises(OptionError, match=r"host has no \[toolchain\]"):
        cpu_of(targets.load("host"))


def test_another_machine_is_refused() -> None:
    with pytest.raises(ToolchainError, match="x86_64-linux-gnu"):
        cpu_of(changed("rpi5", triple="x86_64-linux-gnu"))


def test_one_cpu_for_all_targets_that_have_it() -> None:
    assert cpu_of(targets.load("rpi5")) == cpu_of(changed("rpi5", glibc_max="2.39"))
    assert cpu_of(targets.load("jetson-orin-nano")) == cpu_of(targets.load("jetson-agx-orin"))
    assert cpu_of(targets.load("rpi5")) != cpu_of(targets.load("rpi4"))


def test_the_oldest_glibc_that_serves_all_unless_the_target_is_older() -> None:
    assert cpu_of(targets.load("rpi5")).glibc == "2.31"
    assert cpu_of(changed("rpi5", glibc_max="2.9")).glibc == "2.9"
    assert cpu_of(changed("rpi5", glibc_max="2.28")).glibc == "2.28"


def test_clusters_share_what_all_of_them_have() -> None:
    target = targets.load("rk3588")
    small, big = target.soc.clusters
    small = msgspec.structs.replace(small, isa=tuple(f for f in small.isa if f != "asimddp"))
    mixed = msgspec.structs.replace(target, soc=msgspec.structs.replace(target.soc, clusters=(small, big)))
    assert "asimddp" in cpu_of(target).features
    assert "asimddp" not in cpu_of(mixed).features
    assert "-dotprod" in zig.mcpu(cpu_of(mixed))


# -- which instructions are used


def test_no_aes_on_a_raspberry_pi_4() -> None:
    assert re.match(r"cortex_a72-aes-sha2-", zig.mcpu(cpu_of(targets.load("rpi4"))))


def test_dot_product_and_half_precision_on_a_raspberry_pi_5() -> None:
    flags = zig.mcpu(cpu_of(targets.load("rpi5")))
    assert flags.startswith("cortex_a76+")
    assert "+dotprod" in flags
    assert "+fullfp16" in flags
    assert all(f"-{name}" in flags for name in ("i8mm", "bf16", "sve", "sve2", "sme"))


@given(st.frozensets(st.sampled_from(FEATURES)), st.sampled_from(["armv8-a", "armv8.2-a", "armv8.4-a", "armv9-a"]))
def test_an_extension_is_on_only_where_every_core_has_all_of_it(features: frozenset[str], march: str) -> None:
    cpu = Cpu("aarch64-linux-gnu", march, "cortex-a72", tuple(sorted(features)), "2.31")
    on = set(re.findall(r"\+([a-z0-9_]+)", zig.mcpu(cpu)))
    assert ("aes" in on) == (features >= {"aes"} and "pmull" in cpu_features.allowed(cpu))
    assert ("crc" in on) == ("crc32" in features or march != "armv8-a")
    assert ("i8mm" in on) == ("i8mm" in features)
    assert ("dotprod" in on) == ("asimddp" in features or march in ("armv8.4-a", "armv9-a"))


def macros(*names: str) -> str:
    return "".join(f"#define __ARM_FEATURE_{name} 1\n" for name in ("UNALIGNED", *names))


def test_a_compiler_that_would_use_more_than_the_cores_have() -> None:
    cpu = cpu_of(targets.load("rpi4"))
    cpu_features.check(macros("CRC32"), cpu, compiler="zig", needed=["crc32"])
    with pytest.raises(ToolchainError, match="zig would use aes, sha2 for cortex-a72"):
        cpu_features.check(macros("CRC32", "AES", "SHA2"), cpu, compiler="zig")


def test_a_compiler_that_would_not_use_what_is_asked_for() -> None:
    cpu = cpu_of(targets.load("rpi5"))
    with pytest.raises(ToolchainError, match="does not use asimddp, asimdhp, fphp for cortex-a76"):
        cpu_features.check(macros("CRC32"), cpu, compiler="gcc", needed=cpu_features.asked(cpu.march))


def test_an_architecture_that_is_none() -> None:
    with pytest.raises(ToolchainError, match=r"toolchain.march is 'native'"):
        cpu_features.allowed(cpu_of(changed("rpi5", march="native")))


# -- zig


def fake_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    zig_ = program(tmp_path / "ziglang" / "zig", text)
    spec = SimpleNamespace(origin=str(tmp_path / "ziglang" / "__init__.py"))
    monkeypatch.setattr(zig, "find_spec", lambda name: spec if name == "ziglang" else None)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return zig_


def test_zig_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=rf"pip install ziglang=={zig.VERSION}"):
        Zig().version()


def test_zig_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_zig(tmp_path, monkeypatch, "echo 0.11.0")
    with pytest.raises(ToolchainError, match=rf"ziglang 0.11.0 is installed here; expected {zig.VERSION}"):
        Zig().version()


def test_zig_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_zig(tmp_path, monkeypatch, "exit 127")
    with pytest.raises(MissingDependencyError, match="does not run"):
        Zig().version()


def test_zig_does_not_know_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_zig(tmp_path, monkeypatch, "echo \"error: unknown CPU: 'cortex_z9'\" >&2; exit 1")
    with pytest.raises(ToolchainError, match=r"zig does not compile for cortex-z9 .*unknown CPU: 'cortex_z9'"):
        Zig().setup(cpu_of(changed("rpi5", mtune="cortex-z9")), tmp_path)


def test_zig_has_no_glibc_that_old(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"glibc 2.12; expected 2.17 or newer"):
        Zig().setup(cpu_of(changed("rpi5", glibc_max="2.12")), tmp_path)


def test_wrappers_for_odd_paths_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "it's a folder"
    answers = macros("CRC32").replace("\n", "\\n")
    fake_zig(odd, monkeypatch, f'case "$*" in *dM*) printf \'{answers}\';; esac\necho "$@"')
    setup = Zig().setup(cpu_of(targets.load("rpi4")), tmp_path)
    for name in ("cc", "c++", "ar", "ranlib"):
        said = subprocess.run([tmp_path / name, "a b"], capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"{name} ")
        assert said.endswith(" a b\n")
        os.utime(tmp_path / name, (1, 1))
    assert Zig().setup(cpu_of(targets.load("rpi4")), tmp_path) == setup
    assert all((tmp_path / name).stat().st_mtime == 1 for name in ("cc", "c++", "ar", "ranlib"))
    assert str(tmp_path) not in " ".join(setup.flags)


@pytest.mark.skipif(find_spec("ziglang") is None, reason="needs ziglang")
@pytest.mark.parametrize("name", BOARDS)
def test_zig_uses_what_each_board_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    assert Zig().version() == zig.VERSION
    setup = Zig().setup(cpu_of(targets.load(name)), tmp_path)  # compares the compiler's macros with the features
    assert (
        f"{name}: {'+dotprod' in setup.flags[-1]}" == f"{name}: {name not in ('rpi4', 'rpi-zero2w', 'arm64-generic')}"
    )
    assert all(path.is_file() for path in setup.licences.values())


# -- gcc


def fake_gcc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, libc: str = "2 36", error: str = ""
) -> None:
    major, minor = libc.split() if libc else ("", "")
    libc_macros = f"echo '#define __GLIBC__ {major}'; echo '#define __GLIBC_MINOR__ {minor}'" if libc else "true"
    fail = f'echo "cc1: error: {error}" >&2; exit 1' if error else "echo '#define __ARM_FEATURE_CRC32 1'"
    text = f'case "$*" in -dumpfullversion) echo {version};; *march*) {fail};; *) {libc_macros};; esac'
    for name in ("gcc", "g++"):
        program(tmp_path / "bin" / f"aarch64-linux-gnu-{name}", text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def test_gcc_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt install crossbuild-essential-arm64"):
        Gcc().version()


@pytest.mark.parametrize("version", ["9.4.0", "4.9", "unknown"])
def test_gcc_is_too_old(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gcc(tmp_path, monkeypatch, version)
    with pytest.raises(ToolchainError, match=f"is version {version}; expected 10 or newer"):
        Gcc().version()


def test_gcc_without_a_c_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gcc(tmp_path, monkeypatch, "12.2.0", libc="")
    with pytest.raises(ToolchainError, match="finds no C library"):
        Gcc().version()


def test_gcc_does_not_know_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gcc(tmp_path, monkeypatch, "12.2.0", error="unknown value 'cortex-z9' for '-mtune'")
    with pytest.raises(ToolchainError, match="does not compile for armv8-a.crc and cortex-z9 .*unknown value"):
        Gcc().setup(cpu_of(changed("rpi4", mtune="cortex-z9")), tmp_path)


def test_gcc_says_which_glibc_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gcc(tmp_path, monkeypatch, "12.2.0")
    assert Gcc().version() == "12.2.0 (glibc 2.36)"
    setup = Gcc().setup(cpu_of(targets.load("rpi4")), tmp_path)
    assert (setup.glibc, setup.static_tools) == ("2.36", True)
    assert setup.flags[:2] == ("-march=armv8-a+crc", "-mtune=cortex-a72")


@pytest.mark.skipif(which("aarch64-linux-gnu-g++") is None, reason="needs crossbuild-essential-arm64")
@pytest.mark.parametrize("name", ["rpi4", "rpi5", "rpi-zero2w", "rk3588", "jetson-orin-nano", "arm64-generic"])
def test_gcc_uses_what_each_board_has(name: str, tmp_path: Path) -> None:
    assert Gcc().setup(cpu_of(targets.load(name)), tmp_path).static_tools


def test_every_toolchain_goes_by_its_name() -> None:
    assert {name: toolchain.name for name, toolchain in TOOLCHAINS.items()} == {name: name for name in TOOLCHAINS}
    assert {"zig", "gcc"} <= set(TOOLCHAINS)
