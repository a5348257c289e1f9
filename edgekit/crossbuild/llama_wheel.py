"""The wheel of llama-cpp-python for a board: its own Python files around the libraries that were compiled here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from packaging.metadata import parse_email
from packaging.utils import canonicalize_name

from edgekit.crossbuild.closure import LLAMA
from edgekit.crossbuild.model import numbers
from edgekit.crossbuild.wheel_files import Member, wheel_text, write
from edgekit.errors import WheelError

NAME = "llama_cpp_python"
LEFT_OUT = {
    "mtmd_cpp.py": "binds libmtmd (images and sound), which is not compiled",
    "llava_cpp.py": "binds libmtmd (images and sound), which is not compiled",
    "server/": "a web server, which needs packages that a board does not get",
}
"""Parts of llama-cpp-python that are not shipped; nothing that is imports them before it is asked for images."""
_OLDEST = "2.17"
"""First C library that manylinux knows for aarch64."""
_MACHINES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64"}
_MOST = 1 << 20
"""Bytes of one Python file or of PKG-INFO."""


def llama_wheel(tree: Path, native: Path, folder: Path, *, release: str) -> Path:
    """Write the wheel; the same inputs give the same bytes.

    Args:
        tree: the unpacked source archive of llama-cpp-python: `llama_cpp/`, PKG-INFO and LICENSE.md.
        native: what was compiled: `lib/*.so*` and LICENSES/.
        folder: where the wheel goes.
        release: of llama-cpp-python, that the tree must be of.

    Raises:
        WheelError: the tree is not that release's, it has no licence, or a library is missing or no ELF file.
    """
    libraries = _libraries(native / "lib")
    described = _described(tree, release)
    tag = f"py3-none-{platform_tag(libraries)}"
    info = f"{NAME}-{release}.dist-info"
    members = {
        **{f"llama_cpp/{name}": Member(data) for name, data in _python_files(tree / "llama_cpp").items()},
        **{f"llama_cpp/lib/{path.name}": Member(path.read_bytes(), executable=True) for path in libraries},
        **{f"{info}/licenses/{name}": Member(data) for name, data in _licences(tree, native).items()},
        f"{info}/METADATA": Member(described),
        f"{info}/WHEEL": Member(wheel_text(tag, pure=False)),
    }
    return write(folder / f"{NAME}-{release}-{tag}.whl", members)


def _described(tree: Path, release: str) -> bytes:
    data = _read(tree / "PKG-INFO")
    metadata = parse_email(data)[0]
    found = (canonicalize_name(metadata.get("name", "")), metadata.get("version", ""))
    if found != (LLAMA, release):
        raise WheelError(
            f"{tree / 'PKG-INFO'} is of {' '.join(found).strip() or 'nothing'}",
            expected=f"{LLAMA} {release}",
            remedy="remove the sources from the cache, they are downloaded again",
        )
    return data


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST:
        raise WheelError(
            f"{path} is missing, or is no plain file of a sensible size",
            expected="the unpacked source archive of llama-cpp-python",
            remedy="remove the sources from the cache, they are downloaded again",
        )
    return path.read_bytes()


def _python_files(package: Path) -> dict[str, bytes]:
    """The top of the package: its subpackages are the server alone."""
    names = sorted(path.name for path in package.glob("*.py") if path.name not in LEFT_OUT)
    if "__init__.py" not in names:
        raise WheelError(f"{package} is not llama-cpp-python's package", remedy="remove the sources from the cache")
    return {name: _read(package / name) for name in [*names, "py.typed"]}


def _licences(tree: Path, native: Path) -> Mapping[str, bytes]:
    """llama-cpp-python's own, and those of everything that was compiled into the libraries."""
    compiled = {path.name: path.read_bytes() for path in sorted((native / "LICENSES").glob("*")) if path.is_file()}
    return {"LICENSE.md": _read(tree / "LICENSE.md"), **compiled}


def _libraries(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.so*") if path.is_file())
    missing = {"libllama.so", "libggml.so"} - {path.name for path in found}
    if missing:
        raise WheelError(
            f"{folder} lacks {' and '.join(sorted(missing))}", remedy="compile the runtime again (--force)"
        )
    return found


def platform_tag(libraries: list[Path]) -> str:
    """`manylinux_2_31_aarch64`: the newest C library that any of the libraries asks for."""
    read = [needs(path) for path in libraries]
    machines = {machine for machine, _ in read}
    if len(machines) != 1:
        raise WheelError(f"the libraries are for different machines: {', '.join(sorted(machines))}")
    major, minor = max((_OLDEST, *(glibc for _, glibc in read)), key=numbers).split(".")[:2]
    return f"manylinux_{major}_{minor}_{machines.pop()}"


def needs(path: Path) -> tuple[str, str]:
    """Machine of an ELF file, as `uname -m` says it, and the newest GLIBC_ version it asks for ("2.0": none).

    Raises:
        WheelError: it is no ELF file, or for a machine that edgekit has no boards of.
    """
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            machine = _MACHINES[elf["e_machine"]]
            sections = [part for part in elf.iter_sections() if isinstance(part, GNUVerNeedSection)]
            names = [v.name for part in sections for _, versions in part.iter_versions() for v in versions]
    except (ELFError, KeyError, OSError) as error:
        raise WheelError(f"{path} is no library for a board ({error!r})", remedy="compile the runtime again") from error
    found = [name.removeprefix("GLIBC_") for name in names if name.startswith("GLIBC_2.")]
    return machine, max(found, key=numbers, default="2.0")
