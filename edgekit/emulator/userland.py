"""The arm64 system that an emulated board runs: Debian with Python, and nothing that compiles or installs.

It is made once and kept in the cache; boards only read it.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from edgekit import cache, locks
from edgekit.emulator.needs import program, require
from edgekit.errors import EmulatorError
from edgekit.files import cache_dir, whole_folder
from edgekit.progress import Progress, Quiet
from edgekit.targets import Target

RELEASES = {"3.9": "bullseye", "3.11": "bookworm", "3.13": "trixie"}
"""Python → the Debian release that has it."""
PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep", "gzip",
    "hostname", "iproute2", "kmod", "libc-bin", "libstdc++6", "mawk", "mount", "ncurses-base", "ncurses-bin",
    "openssh-server", "procps", "python3", "sed", "tar", "util-linux",
)  # fmt: skip
"""What every Debian has, an ssh server and Python: no pip, no compiler, no package lists."""
USER, UID = "pi", 1000
SYSTEM = "board-"
"""Beginning of the names of the systems' folders."""
MIRROR = "http://deb.debian.org/debian"
MIRROR_VARIABLE = "EDGEKIT_DEBIAN_MIRROR"
_NEEDLESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "var/cache")
_RECIPE = "1"
"""Counted up when :func:`make` writes something else from the same packages."""
_MERGED = Path("/usr/share/mmdebstrap/hooks/merged-usr")
NETWORK = f"check the network; {MIRROR_VARIABLE} names another archive"
_LAST = 300
"""Characters of a tool's complaint that are quoted."""


def release_of(target: Target) -> str:
    """The Debian release with the target's Python.

    Raises:
        EmulatorError: none has it.
    """
    python = target.runtime.python
    if python not in RELEASES:
        raise EmulatorError(
            f"no Debian release has Python {python}, which {target.name} asks for",
            expected="one of " + ", ".join(RELEASES),
            remedy="name the release to use instead (--release bookworm)",
        )
    return RELEASES[python]


def place(release: str) -> Path:
    """Where the system of a release is kept, whether it is there or not."""
    recipe = hashlib.sha256("\n".join((_RECIPE, *PACKAGES)).encode()).hexdigest()[:8]
    return cache_dir() / cache.ENVIRONMENTS / f"{SYSTEM}{release}-{recipe}"


def ready(release: str, progress: Progress | None = None) -> Path:
    """The system of a release, made now when it is not in the cache (about 60 MB of downloads, under a minute).

    Raises:
        EmulatorError: a tool or a right is missing, or Debian's archive does not answer.
        OutputError: the cache cannot be written.
    """
    return made_once(place(release), f"arm64 system ({release})", lambda fresh: make(fresh, release), progress)


def made_once(folder: Path, title: str, fill: Callable[[Path], None], progress: Progress | None) -> Path:
    """A folder of the cache, filled by `fill` when it is not there; who asks meanwhile waits. See :func:`ready`."""
    if folder.is_dir():
        return folder
    require("userland")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.take(cache.lock_of(folder), create=True)
    try:
        if not folder.is_dir():
            with whole_folder(folder) as fresh, (progress or Quiet()).step(title):
                fill(fresh)
    finally:
        cache.abandon(folder, lock)
    return folder


def make(folder: Path, release: str = "bookworm", mirror: str = "") -> None:
    """Fill an empty folder with the system of `release`; needs root, so that files belong to the right users.

    Raises:
        EmulatorError: mmdebstrap fails; its last words are quoted.
    """
    command = [
        program("mmdebstrap"), "--quiet", "--mode=root", "--variant=extract", "--architectures=arm64",
        f"--include={','.join(PACKAGES)}", *([f"--hook-dir={_MERGED}"] if _MERGED.is_dir() else []),
        release, str(folder), mirror or archive(),
    ]  # fmt: skip
    run(command, "mmdebstrap cannot make the arm64 system", NETWORK)
    for name in _NEEDLESS:
        shutil.rmtree(folder / name, ignore_errors=True)
    _furnish(folder)
    _compile(folder)
    # It holds no secrets, and whole boards are started by plain users, who put it into an image.
    run(["chmod", "-R", "a+rX", str(folder)], "the arm64 system cannot be made readable")


def archive() -> str:
    """Debian's archive: $EDGEKIT_DEBIAN_MIRROR, or the one this machine's apt uses, or Debian's own."""
    if named := os.environ.get(MIRROR_VARIABLE):
        return named
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        for line in done.stdout.splitlines():
            if "security" not in line and line.startswith(("http://", "https://", "file:")):
                return line.strip().rstrip("/")
    return MIRROR


def run(command: Sequence[str], complaint: str, remedy: str = "") -> str:
    """Standard output of a command.

    Raises:
        EmulatorError: it cannot be started or fails: `complaint`, with its last words and the remedy.
    """
    try:
        done = subprocess.run(  # noqa: S603
            list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise EmulatorError(f"{complaint} ({command[0]}: {error.strerror})") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"it ended with {done.returncode}"]
        said = next((line for line in lines if line.startswith("E:")), lines[-1])
        raise EmulatorError(f"{complaint} ({said[:_LAST]})", remedy=remedy)
    return done.stdout


def _furnish(folder: Path) -> None:
    """What the packages' scripts would have done, as far as a board needs it: users, a home, awk."""
    masters = folder / "usr" / "share" / "base-passwd"
    users = (masters / "passwd.master").read_text(encoding="utf8")
    groups = (masters / "group.master").read_text(encoding="utf8")
    users += f"sshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n{USER}:x:{UID}:{UID}::/home/{USER}:/bin/bash\n"
    names = [line.split(":", 1)[0] for line in users.splitlines()]
    etc = folder / "etc"
    (etc / "passwd").write_text(users, encoding="utf8")
    (etc / "group").write_text(f"{groups}{USER}:x:{UID}:\n", encoding="utf8")
    (etc / "shadow").write_text("".join(f"{name}:*:19000:0:99999:7:::\n" for name in names), encoding="utf8")
    (etc / "hosts").write_text("127.0.0.1 localhost\n", encoding="utf8")
    for name, text in {"hostname": "board\n", "resolv.conf": "", "fstab": "", "machine-id": ""}.items():
        (etc / name).write_text(text, encoding="utf8")
    home = folder / "home" / USER
    home.mkdir(mode=0o755)
    os.chown(home, UID, UID)
    awk = folder / "usr" / "bin" / "awk"
    if not awk.exists():
        awk.symlink_to("mawk")
    (folder / "var" / "cache").mkdir(exist_ok=True)


def _compile(folder: Path) -> None:
    """Byte code of the standard library, as Debian's packages leave it; only this Python's own version can be made."""
    library = folder / "usr" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for path in _sources(library):
        shown = "/" + path.relative_to(folder).as_posix()
        with suppress(py_compile.PyCompileError):  # lib2to3 has samples of another Python
            py_compile.compile(str(path), dfile=shown, doraise=True)


def _sources(library: Path) -> Iterator[Path]:
    return (path for path in sorted(library.rglob("*.py")) if "test" not in path.relative_to(library).parts)
