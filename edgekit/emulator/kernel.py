"""What the whole board boots: Debian's kernel for arm64 and an image of its system in memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from edgekit import cache
from edgekit.emulator.needs import program
from edgekit.emulator.userland import NETWORK, archive, made_once, run
from edgekit.errors import EmulatorError
from edgekit.files import cache_dir
from edgekit.progress import Progress

PACKAGE = "linux-image-cloud-arm64"
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "failover",
    "net_failover", "virtio_net", "virtio_blk",
)  # fmt: skip
"""For the network card and the disk, in the order in which they need each other; a kernel that has one built in lacks
its file."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ALIGN = 4


def place(release: str) -> Path:
    """Where the kernel of a release is kept, whether it is there or not."""
    recipe = hashlib.sha256("\n".join((PACKAGE, *MODULES)).encode()).hexdigest()[:8]
    return cache_dir() / cache.ENVIRONMENTS / f"kernel-{release}-{recipe}"


def ready(release: str, progress: Progress | None = None) -> Path:
    """Folder with `vmlinuz` and `modules/NN-name.ko`, fetched now when it is not in the cache (about 30 MB).

    Raises:
        EmulatorError: a tool is missing, or Debian's archive does not answer.
        OutputError: the cache cannot be written.
    """
    return made_once(place(release), f"arm64 kernel ({release})", lambda fresh: _fetch(fresh, release), progress)


def _fetch(folder: Path, release: str) -> None:
    """Ask apt with a state of its own, so that this machine's package lists are not touched."""
    state = folder / "apt"
    for name in ("etc", "state/lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.is_file() else ""
    (state / "etc" / "sources.list").write_text(f"deb {signed}{archive()} {release} main\n", encoding="utf8")
    options = {
        "Dir::Etc": state / "etc", "Dir::State": state / "state", "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache", "APT::Architecture": "arm64", "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none",
    }  # fmt: skip
    flags = ["-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    failed = "Debian's kernel cannot be fetched"
    run([program("apt-get"), *flags, "update"], failed, NETWORK)
    found = run([shutil.which("apt-cache") or "apt-cache", *flags, "depends", "--important", PACKAGE], failed, NETWORK)
    names = [line.split(":", 1)[1].strip() for line in found.splitlines() if "Depends: linux-image-" in line]
    if len(names) != 1:
        raise EmulatorError(f"Debian's {PACKAGE} names {len(names)} kernels", expected="one")
    run(
        [program("apt-get"), *flags, "install", "--yes", "--download-only", "--no-install-recommends", names[0]], failed
    )
    _unpack(next((state / "cache" / "archives").glob(f"{names[0]}_*.deb")), folder)
    shutil.rmtree(state)


def _unpack(package: Path, folder: Path) -> None:
    whole = folder / "apt" / "unpacked"
    run([program("dpkg-deb"), "--extract", str(package), str(whole)], "Debian's kernel cannot be unpacked")
    next((whole / "boot").glob("vmlinuz-*")).rename(folder / "vmlinuz")
    (folder / "modules").mkdir()
    for index, name in enumerate(MODULES):
        for path in whole.rglob(f"{name}.ko*"):
            path.rename(folder / "modules" / f"{index:02}-{path.name}")


def image(out: BinaryIO, system: Path, extras: Mapping[str, tuple[int, bytes]]) -> None:
    """Write an archive (cpio, "newc") of the folder `system`, and after it the files `extras`, which therefore win.

    Args:
        out: where to.
        system: a userland.
        extras: path → mode of a file or folder with its type, and contents.

    Format: https://www.kernel.org/doc/Documentation/driver-api/early-userspace/buffer-format.rst
    """
    for path in _walk(system):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(found.st_mode):
            content = os.fsencode(os.readlink(path))  # noqa: PTH115 bytes as they are
        else:
            content = b""
        name = path.relative_to(system).as_posix()
        _entry(out, name, found.st_mode, content, (found.st_uid, found.st_gid, int(found.st_mtime)))
    for name, (mode, content) in extras.items():
        _entry(out, name, mode, content)
    _entry(out, "TRAILER!!!", 0, b"")


def _walk(system: Path) -> Iterator[Path]:
    """Files, folders and links; a folder before what is in it."""
    for path in sorted(system.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            yield path


def _entry(out: BinaryIO, name: str, mode: int, content: bytes, owner: tuple[int, int, int] = (0, 0, 0)) -> None:
    encoded = os.fsencode(name) + b"\0"
    fields = (0, mode, *owner[:2], 1, owner[2], len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out.write(head + bytes(-len(head) % _ALIGN))
    out.write(content + bytes(-len(content) % _ALIGN))
