"""The runtime that is really compiled: what is in it, what it needs, and on which CPUs it starts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from shutil import which

import emulated
import native_runtime
import pytest
import tiny_gguf

emulated.installed("ziglang", "cmake", "ninja", "elftools")

from elftools.elf import elffile  # noqa: E402

from edgekit.crossbuild import recipe  # noqa: E402
from edgekit.crossbuild.model import Native, numbers  # noqa: E402
from edgekit.files import sha256  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

SYSROOT = Path("/usr/aarch64-linux-gnu")
SIGILL = 4
LIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"}


@pytest.fixture(scope="session")
def qemu() -> str:
    """qemu-user for 64-bit ARM, with a C library."""
    found = which("qemu-aarch64-static") or which("qemu-aarch64")
    if found is None or not (SYSROOT / "lib" / "ld-linux-aarch64.so.1").exists():
        emulated.unavailable("needs qemu-user-static and libc6-arm64-cross")
    return found


@pytest.fixture(scope="session")
def a76() -> Native:
    return native_runtime.native("rpi5")


@pytest.fixture(scope="session")
def a72() -> Native:
    return native_runtime.native("rpi4")


@pytest.fixture(scope="session")
def by_gcc() -> Native:
    if which("aarch64-linux-gnu-g++") is None:
        emulated.unavailable("needs g++ for aarch64 (apt install crossbuild-essential-arm64)")
    return native_runtime.native("rpi5", "gcc")


def dynamic(path: Path) -> dict[str, set[str]]:
    """DT_NEEDED, DT_SONAME, DT_RUNPATH and DT_RPATH of a file, and what it exports."""
    found: dict[str, set[str]] = {"NEEDED": set(), "SONAME": set(), "RUNPATH": set(), "RPATH": set(), "exports": set()}
    with path.open("rb") as stream:
        elf = elffile.ELFFile(stream)
        section = elf.get_section_by_name(".dynamic")
        for tag in section.iter_tags() if section else ():
            kind = tag.entry.d_tag.removeprefix("DT_")
            if kind in found:
                found[kind].add(getattr(tag, kind.lower()))
        symbols = elf.get_section_by_name(".dynsym")
        names = (
            (symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF") if symbols else ()
        )
        found["exports"] = set(names)
    return found


def newest_glibc(path: Path) -> tuple[int, ...]:
    with path.open("rb") as stream:
        needed = elffile.ELFFile(stream).get_section_by_name(".gnu.version_r")
        names = [aux.name for _, versions in needed.iter_versions() for aux in versions] if needed else []
    return max((numbers(name.removeprefix("GLIBC_")) for name in names if name.startswith("GLIBC_")), default=(0,))


def run(qemu: str, made: Native, tool: str, cpu: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [qemu, "-cpu", cpu, "-L", str(SYSROOT), str(made.folder / "bin" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


# -- what is in it


@pytest.mark.parametrize("name", recipe.PRODUCTS)
def test_for_64_bit_arm_and_stripped(name: str, a76: Native) -> None:
    with (a76.folder / name).open("rb") as stream:
        elf = elffile.ELFFile(stream)
        assert (elf.header.e_machine, elf.elfclass, elf.little_endian) == ("EM_AARCH64", 64, True)
        assert elf.get_section_by_name(".symtab") is None
        assert not [section.name for section in elf.iter_sections() if section.name.startswith(".debug")]


@pytest.mark.parametrize("name", recipe.PRODUCTS)
def test_nothing_tells_where_it_was_made(name: str, a76: Native) -> None:
    data = (a76.folder / name).read_bytes()
    for place in (a76.folder.parents[1], sys.prefix, Path.home()):
        assert str(place).encode() not in data or str(place) == "/"


def test_the_libraries_find_each_other_and_need_only_libc(a76: Native) -> None:
    ggml, llama = (dynamic(a76.folder / "lib" / name) for name in ("libggml.so", "libllama.so"))
    assert (ggml["SONAME"], ggml["NEEDED"] - LIBC) == ({"libggml.so"}, set())
    assert (llama["SONAME"], llama["NEEDED"] - LIBC) == ({"libllama.so"}, {"libggml.so"})
    assert (llama["RUNPATH"], ggml["RUNPATH"] | ggml["RPATH"] | llama["RPATH"]) == ({"$ORIGIN"}, set())


def test_the_tools_need_no_library_of_ours(a76: Native) -> None:
    for name in ("llama-bench", "llama-perplexity"):
        found = dynamic(a76.folder / "bin" / name)
        assert found["NEEDED"] <= LIBC
        assert not found["RUNPATH"] | found["RPATH"]


def test_starts_on_debian_11(a76: Native) -> None:
    assert {name for name in recipe.PRODUCTS if newest_glibc(a76.folder / name) > (2, 31)} == set()


def test_small(a76: Native) -> None:
    sizes = {name: (a76.folder / name).stat().st_size for name in recipe.PRODUCTS}
    assert sum(size for name, size in sizes.items() if name.startswith("bin/")) <= 18_000_000
    assert sum(size for name, size in sizes.items() if name.startswith("lib/")) <= 12_000_000


def test_everything_that_python_calls_is_exported(a76: Native) -> None:
    (tree,) = (a76.folder.parents[1] / "sources").glob("llama_cpp_python-*")
    parsed = ast.parse((tree / "llama_cpp" / "llama_cpp.py").read_text(encoding="utf8"))
    calls = [node for node in ast.walk(parsed) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    names = {ast.literal_eval(call.args[0]) for call in calls if call.func.id == "ctypes_function"}  # type: ignore[attr-defined]
    assert len(names) > 200
    assert names - dynamic(a76.folder / "lib" / "libllama.so")["exports"] == set()


def test_the_package_loads_no_other_library_when_it_is_imported(a76: Native) -> None:
    (tree,) = (a76.folder.parents[1] / "sources").glob("llama_cpp_python-*")
    loaded, seen = set(), set()
    waiting = ["__init__"]
    while waiting:
        name = waiting.pop()
        path = tree / "llama_cpp" / f"{name}.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        text = path.read_text(encoding="utf8")
        parsed = ast.parse(text)
        loaded |= {name} if "load_shared_library(_" in text or 'load_shared_library("' in text else set()
        for node in parsed.body:  # at the top: what is imported inside functions is not loaded yet
            if isinstance(node, ast.ImportFrom):
                waiting.append((node.module or "").rpartition(".")[2])
                waiting.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                waiting.extend(alias.name.rpartition(".")[2] for alias in node.names)
    assert loaded == {"llama_cpp"}, "it loads libllama.so"
    assert "mtmd_cpp" not in seen


def test_licences_of_all_that_is_inside(a76: Native) -> None:
    texts = {path.name: path.read_text(encoding="utf8") for path in (a76.folder / "LICENSES").iterdir()}
    assert {"llama.cpp", "cpp-httplib", "nlohmann-json", "libc++", "libc++abi", "libunwind"} <= set(texts)
    assert "ggml authors" in texts["llama.cpp"]
    assert all(len(text) > 500 for text in texts.values())


def test_the_record_tells_the_files(a76: Native) -> None:
    for name, file in a76.record.files.items():
        assert (file.size, file.sha256) == ((a76.folder / name).stat().st_size, sha256(a76.folder / name))
    assert {"asimddp", "asimdhp"} <= set(a76.record.features)


# -- where it starts


@pytest.mark.parametrize("tool", ["llama-bench", "llama-perplexity"])
def test_starts_on_its_cpu_and_dies_on_an_older_one(tool: str, a76: Native, tmp_path: Path, qemu: str) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q4_0") if tool == "llama-bench" else None
    arguments = ["-m", model, "-p", "8", "-n", "2", "-t", "1", "-r", "1", "-o", "json"] if model else ["--version"]
    said = run(qemu, a76, tool, "cortex-a76", *arguments)
    assert said.returncode == 0, said.stderr
    if model:
        assert {row["n_prompt"] for row in json.loads(said.stdout)} == {8, 0}
    assert run(qemu, a76, tool, "cortex-a72", *arguments).returncode == -SIGILL


@pytest.mark.nightly
@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_the_one_for_the_older_cpu_starts_on_both(cpu: str, a72: Native, tmp_path: Path, qemu: str) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", kind="Q4_0")
    said = run(qemu, a72, "llama-bench", cpu, "-m", model, "-p", "8", "-n", "2", "-t", "1", "-r", "1", "-o", "json")
    assert said.returncode == 0, said.stderr


# -- with Debian's gcc


@pytest.mark.nightly
def test_gcc_links_the_tools_with_libc_inside(by_gcc: Native) -> None:
    assert by_gcc.record.glibc == "2.36"
    for name in ("llama-bench", "llama-perplexity"):
        assert dynamic(by_gcc.folder / "bin" / name)["NEEDED"] == set()
    assert dynamic(by_gcc.folder / "lib" / "libllama.so")["NEEDED"] >= {"libggml.so", "libstdc++.so.6"}
