"""The operators' library: compiled on first use, once, by whatever compiler there is, and refused without one."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from emulated import unavailable

from edgekit import cache
from edgekit.errors import DownloadError, MissingDependencyError, ToolchainError
from edgekit.files import cache_dir
from edgekit.threebit import headers, library

DOMAINS = Path(__file__).with_name("threebit_domains.cpp")


@pytest.fixture(scope="session")
def operators() -> Path:
    """The compiled library."""
    try:
        return library.host_library()
    except (MissingDependencyError, DownloadError) as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def header(operators: Path) -> Path:
    """Folder of the header that it was compiled against."""
    return headers.header_folder(offline=True)


def test_the_library_is_compiled_once(operators: Path) -> None:
    before = operators.stat().st_mtime_ns
    assert library.host_library(offline=True) == operators
    assert operators.stat().st_mtime_ns == before


def test_without_the_header_and_the_network(operators: Path, own_cache: Path) -> None:
    with pytest.raises(DownloadError, match=headers.VERSION):
        library.host_library(offline=True)


def test_with_a_launcher_before_the_compiler(
    operators: Path, header: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "header_in_use", lambda **_: nullcontext(header))
    launcher = tmp_path / "a launcher"
    launcher.write_text(f'#!/bin/sh\necho "$*" >> \'{tmp_path}/log\'\nexec "$@"\n', encoding="utf8")
    launcher.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{launcher}' c++ -DMINE=1")
    assert library.kernels(library.host_library()) == library.kernels(operators)
    said = (tmp_path / "log").read_text(encoding="utf8").splitlines()
    assert any(line.startswith("c++ -DMINE=1 ") and "operator.cpp" in line for line in said)


def test_with_a_compiler_that_fails(
    operators: Path, header: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "header_in_use", lambda **_: nullcontext(header))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(ToolchainError, match="do not compile"):
        library.host_library()
    assert not list(own_cache.rglob("*.so"))


def test_the_header_stays_while_it_is_compiled_against(
    header: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process cleans the cache in the middle of a compile."""
    real = library.compile_into
    removed: list[bool] = []
    monkeypatch.setattr(headers, "SOURCES", (headers.Source((header / headers.HEADER).as_uri(), bytes),))

    def cleaned(*arguments: object, **more: object) -> None:
        found = [entry for entry in cache.entries(cache_dir()) if entry.kind == cache.SOURCES]
        removed.extend(cache.remove(cache_dir(), entry) for entry in found)
        real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(library, "compile_into", cleaned)
    assert library.host_library().is_file()
    assert removed == [False]


def test_each_onnxruntime_in_a_process_gets_a_domain_of_its_own(operators: Path, header: Path, tmp_path: Path) -> None:
    program = tmp_path / "domains"
    rest = ["-o", str(program), f"-Wl,-rpath,{operators.parent}"]
    subprocess.run(["c++", "-std=c++17", f"-I{header}", str(DOMAINS), str(operators), *rest], check=True)
    subprocess.run([program], check=True)
