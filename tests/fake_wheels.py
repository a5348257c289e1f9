"""Small wheels, a folder of them as a package index, and ELF files that ask for chosen versions of the C library."""

from __future__ import annotations

import base64
import hashlib
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.crossbuild import closure
from edgekit.crossbuild.wheelhouse import host_version

MACHINES = {"aarch64": 183, "x86_64": 62, "riscv64": 243}
NATIVE = {"numpy": "manylinux_2_28", "onnxruntime": "manylinux_2_28", "tokenizers": "manylinux_2_17"}
ASKS = {
    "tokenizers": ["huggingface-hub>=0.16"], "gguf": ["numpy>=1.17", "pyyaml>=5.1", "requests", "tqdm"],
    "jinja2": ["MarkupSafe>=2.0", "Babel; extra == 'i18n'"], "rich": ["pygments", "markdown-it-py"],
    "onnxruntime": ["flatbuffers", "numpy>=1.21.6", "packaging", "protobuf"],
    "msgspec": ["tomli; python_version < '3.11'"],
}  # fmt: skip


def index(folder: Path, monkeypatch: Any) -> Path:
    """A folder with a wheel of everything that a board downloads, which is all that pip looks into."""
    folder.mkdir()
    for part in closure.PARTS:
        if not part.made:
            offer(folder, part.name, host_version(part.name))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def offer(folder: Path, name: str, version: str, *, python: str = "311", **more: Any) -> Path:
    """Put a wheel into such a folder, native where the real one is."""
    tag = f"cp{python}-cp{python}-{NATIVE[name]}_aarch64" if name in NATIVE else "py3-none-any"
    return wheel(folder, name, version, **{"tag": tag, "requires": ASKS.get(name, ()), **more})


def wheel(
    folder: Path, name: str, version: str, *, tag: str = "py3-none-any", requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None, said_name: str = "", extra: Iterable[tuple[str, str]] = (),
) -> Path:  # fmt: skip
    """A wheel as a package index might offer it.

    Args:
        folder: where it goes.
        name: with "-" or "_".
        version: of it.
        tag: python-abi-platform.
        requires: lines of Requires-Dist.
        files: path in the wheel → text; default: one module.
        said_name: another name for the metadata.
        extra: members that RECORD does not list.
    """
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1", f"Name: {said_name or name}", f"Version: {version}", "License: MIT",
        *(f"Requires-Dist: {line}" for line in requires), "",
    ]  # fmt: skip
    members = dict(files if files is not None else {f"{stem}/__init__.py": f"version = {version!r}\n"})
    members[f"{info}/METADATA"] = "\n".join(lines)
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = folder / f"{stem}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in [*members.items(), *extra]:
            archive.writestr(member, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def elf(path: Path, *versions: str, machine: str = "aarch64") -> Path:
    """A shared library in nothing but its section headers: it asks libc.so.6 for the given GLIBC_ versions."""
    strings = b"\0libc.so.6\0" + b"".join(f"GLIBC_{version}\0".encode() for version in versions)
    offsets = [strings.index(f"GLIBC_{version}\0".encode()) for version in versions]
    need = struct.pack("<HHIII", 1, len(versions), 1, 16, 0) if versions else b""
    for index, offset in enumerate(offsets):
        following = 0 if index == len(offsets) - 1 else 16
        need += struct.pack("<IHHII", 0, 0, index + 2, offset, following)
    names = b"\0.dynstr\0.gnu.version_r\0.shstrtab\0"
    bodies = [(b".dynstr", 3, strings, 0, 0), (b".shstrtab", 3, names, 0, 0)]
    if versions:
        bodies.insert(1, (b".gnu.version_r", 0x6FFFFFFE, need, 1, 1))
    data, headers = b"", struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for name, kind, body, link, info in bodies:
        place = 64 + len(data)
        headers += struct.pack("<IIQQQQIIQQ", names.index(name), kind, 0, 0, place, len(body), link, info, 1, 0)
        data += body
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    count = 1 + len(bodies)
    head = struct.pack(
        "<HHIQQQIHHHHHH", 3, MACHINES[machine], 1, 0, 0, 64 + len(data), 0, 64, 0, 0, 64, count, count - 1
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ident + head + data + headers)
    return path


def source_tree(folder: Path, release: str) -> Path:
    """What matters of the unpacked source archive of llama-cpp-python."""
    package = folder / "llama_cpp"
    (package / "server").mkdir(parents=True)
    for name in ("__init__.py", "llama_cpp.py", "mtmd_cpp.py", "llava_cpp.py", "server/__init__.py", "py.typed"):
        (package / name).write_text(f"# {name}\n", encoding="utf8")
    described = f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {release}\nLicense: MIT\n"
    needs = "Requires-Dist: diskcache>=5.6.1\nRequires-Dist: fastapi; extra == 'server'\n\nBindings.\n"
    (folder / "PKG-INFO").write_text(described + needs, encoding="utf8")
    (folder / "LICENSE.md").write_text("MIT\n", encoding="utf8")
    return folder


def native_folder(folder: Path, *versions: str) -> Path:
    """A compiled runtime as far as the wheel needs it."""
    elf(folder / "lib" / "libllama.so", *(versions or ("2.17", "2.30")))
    elf(folder / "lib" / "libggml.so", "2.17")
    for name in ("llama-bench", "llama-perplexity"):
        elf(folder / "bin" / name)
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES" / "llama.cpp.txt").write_text("MIT, ggml authors\n", encoding="utf8")
    return folder
