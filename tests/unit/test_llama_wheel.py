"""The llama-cpp-python wheel for a board is made of checked parts, and its name tells the truth."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fake_wheels
import pytest
from wheel.wheelfile import WheelFile

from edgekit.crossbuild.llama_wheel import llama_wheel, needs
from edgekit.crossbuild.wheel_files import facts
from edgekit.errors import WheelError

RELEASE = "0.3.36"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return fake_wheels.source_tree(tmp_path / "tree", RELEASE)


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return fake_wheels.native_folder(tmp_path / "native")


def made(tree: Path, native: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    return llama_wheel(tree, native, place, release=RELEASE)


# -- bad input


@pytest.mark.parametrize("name", ["PKG-INFO", "LICENSE.md", "llama_cpp/__init__.py", "llama_cpp/py.typed"])
def test_a_part_of_the_source_archive_is_missing(tree: Path, native: Path, tmp_path: Path, name: str) -> None:
    (tree / name).unlink()
    with pytest.raises(WheelError, match="remove the sources from the cache"):
        made(tree, native, tmp_path / "out")


def test_a_link_in_the_source_tree_is_not_followed(tree: Path, native: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token", encoding="utf8")
    (tree / "llama_cpp" / "llama_cpp.py").unlink()
    (tree / "llama_cpp" / "llama_cpp.py").symlink_to(secret)
    with pytest.raises(WheelError, match="no plain file"):
        made(tree, native, tmp_path / "out")


def test_the_source_tree_is_of_another_release(tree: Path, native: Path, tmp_path: Path) -> None:
    with pytest.raises(WheelError, match=r"llama-cpp-python 0\.3\.36; expected llama-cpp-python 0\.3\.35"):
        llama_wheel(tree, native, tmp_path, release="0.3.35")


@pytest.mark.parametrize("name", ["libllama.so", "libggml.so"])
def test_a_library_is_missing(tree: Path, native: Path, tmp_path: Path, name: str) -> None:
    (native / "lib" / name).unlink()
    with pytest.raises(WheelError, match=rf"lacks {name}"):
        made(tree, native, tmp_path / "out")


def test_a_library_is_no_elf_file(tree: Path, native: Path, tmp_path: Path) -> None:
    (native / "lib" / "libllama.so").write_bytes(b"\x7fELF of sorts")
    with pytest.raises(WheelError, match=r"libllama\.so is no library for a board"):
        made(tree, native, tmp_path / "out")


def test_libraries_for_two_machines(tree: Path, native: Path, tmp_path: Path) -> None:
    fake_wheels.elf(native / "lib" / "libggml.so", machine="x86_64")
    with pytest.raises(WheelError, match="different machines: aarch64, x86_64"):
        made(tree, native, tmp_path / "out")


def test_a_machine_without_boards(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="no library for a board"):
        needs(fake_wheels.elf(tmp_path / "lib.so", machine="riscv64"))


# -- what is made


@pytest.mark.parametrize(
    ("asked", "tag"),
    [((), "2_17"), (("2.2.5",), "2_17"), (("2.17", "2.31", "2.4"), "2_31"), (("2.9", "2.38"), "2_38")],
)
def test_the_tag_is_the_newest_c_library_asked_for(
    tree: Path, tmp_path: Path, asked: tuple[str, ...], tag: str
) -> None:
    native = fake_wheels.native_folder(tmp_path / "native")
    fake_wheels.elf(native / "lib" / "libllama.so", *asked)
    assert made(tree, native, tmp_path).name == f"llama_cpp_python-{RELEASE}-py3-none-manylinux_{tag}_aarch64.whl"


def test_it_is_a_whole_wheel_without_the_server(tree: Path, native: Path, tmp_path: Path) -> None:
    path = made(tree, native, tmp_path)
    with WheelFile(str(path)) as archive:  # reading compares with RECORD
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}
    info = f"llama_cpp_python-{RELEASE}.dist-info"
    assert set(content) == {
        "llama_cpp/__init__.py", "llama_cpp/llama_cpp.py", "llama_cpp/py.typed", "llama_cpp/lib/libllama.so",
        "llama_cpp/lib/libggml.so", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/licenses/LICENSE.md",
        f"{info}/licenses/llama.cpp.txt",
    }  # fmt: skip
    assert content["llama_cpp/lib/libllama.so"] == (native / "lib" / "libllama.so").read_bytes()
    assert b"Root-Is-Purelib: false\nTag: py3-none-manylinux_2_30_aarch64\n" in content[f"{info}/WHEEL"]
    found = facts(path)
    assert (found.name, found.version, found.licence) == ("llama-cpp-python", RELEASE, "MIT")
    assert found.requires == ("diskcache>=5.6.1", "fastapi; extra == 'server'")


def test_its_bytes_follow_from_its_content(
    tree: Path, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tree, native, tmp_path / "one").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for path in [*tree.rglob("*.py"), *native.rglob("*.so")]:
        path.touch()
        path.chmod(0o600)
    path = made(tree, native, tmp_path / "two")
    assert path.read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
