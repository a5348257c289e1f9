"""The first process of a fast board, in namespaces of its own: `python inside.py STATE LISTENER`.

It puts the board's file system together, starts one sshd for each connection to the socket LISTENER, and ends, with
everything that runs on the board, when standard input is closed: when the owner wants it, or is gone. It runs as root
and imports nothing of edgekit. STATE holds config.json and the files that :mod:`edgekit.emulator.board` put there.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, MOVE, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 8192, 16384, 1 << 18
_DETACH = 2
_IFF_UP, _SIOCSIFFLAGS = 1, 0x8914
BOARD, SSH = "/run/board", "/run/ssh"
"""Where sshd finds the board and its own files: /run is empty here and belongs to root alone, as sshd demands."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, place: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """The system call; raises OSError."""
    if _LIBC.mount(source.encode(), place.encode(), kind.encode() or None, flags, options.encode() or None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {kind or source} on {place}: {os.strerror(error)}")


def unmount(place: str) -> None:
    """The system call, lazily; raises OSError."""
    if _LIBC.umount2(place.encode(), _DETACH):
        error = ctypes.get_errno()
        raise OSError(error, f"umount {place}: {os.strerror(error)}")


def assemble(userland: str) -> None:
    """Put the board together below `root` of the working folder, then move it to :data:`BOARD`.

    Nothing stays mounted below the working folder, so it can be removed at any time.
    """
    mount("none", "/", flags=REC | PRIVATE)
    _layers(userland)
    mount("proc", "root/proc", "proc", NOSUID | NODEV | NOEXEC)
    mount("files/proc/cpuinfo", "root/proc/cpuinfo", flags=BIND)
    mount("files/sys", "root/sys", flags=BIND)
    mount("tmpfs", "root/run", "tmpfs", NOSUID | NODEV, "mode=755")
    Path("root/run/vcgencmd").mkdir()
    mount("files/run/vcgencmd", "root/run/vcgencmd", flags=BIND)
    _devices()
    mount("tmpfs", "/run", "tmpfs", NOSUID | NODEV, "mode=755")
    for name in ("sshd", BOARD, SSH):
        Path("/run", name).mkdir()
    mount("root", BOARD, flags=MOVE)


def _layers(userland: str) -> None:
    """The userland under a layer that takes what is written; where the kernel has no overlay, a copy of it."""
    mount(userland, "lower", flags=BIND)
    try:
        mount("overlay", "root", "overlay", NODEV | NOSUID, "lowerdir=lower,upperdir=upper,workdir=work")
    except OSError:
        for layer in ("lower", "upper"):
            subprocess.run(["cp", "-a", "--reflink=auto", f"{layer}/.", "root"], check=True)  # noqa: S603, S607
        mount("root", "root", flags=BIND)
    unmount("lower")


def _devices() -> None:
    mount("tmpfs", "root/dev", "tmpfs", NOSUID, "mode=755")
    for name in _DEVICES:
        Path("root/dev", name).touch()
        mount(f"/dev/{name}", f"root/dev/{name}", flags=BIND)
    for name, target in {
        "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx",
    }.items():  # fmt: skip
        Path("root/dev", name).symlink_to(target)
    for name in ("pts", "shm"):
        Path("root/dev", name).mkdir()
    mount("tmpfs", "root/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777")
    mount("devpts", "root/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    with suppress(OSError):  # sshd then opens the board's terminals instead of the machine's
        mount("root/dev/pts", "/dev/pts", flags=BIND)
        mount("root/dev/pts/ptmx", "/dev/ptmx", flags=BIND)


def hide_host() -> None:
    """Let sshd know the board's users only, and keep its log-in records out of the machine's."""
    for path in Path("ssh").iterdir():
        copy = Path(SSH, path.name)
        shutil.copyfile(path, copy)
        copy.chmod(0o600 if path.name in ("host_key", "shadow") else 0o644)
    for name in ("passwd", "group", "shadow", "nsswitch.conf"):
        if Path("/etc", name).exists():
            mount(f"{SSH}/{name}", f"/etc/{name}", flags=BIND)
    mount("tmpfs", "/var/log", "tmpfs", NOSUID | NODEV)


def loopback_up() -> None:
    """The board's only network: its own loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def serve(listener: socket.socket, sshd: str, log: int) -> None:
    """One sshd for each connection, until standard input is closed."""
    watch = select.poll()
    watch.register(listener, select.POLLIN)
    watch.register(0, select.POLLIN | select.POLLHUP)
    while True:
        for handle, _event in watch.poll(500):
            if handle == 0 and not os.read(0, 1):
                return
            if handle == listener.fileno():
                connection, _address = listener.accept()
                with connection:
                    _start(sshd, connection.fileno(), log)
        reap()


def _start(sshd: str, connection: int, log: int) -> None:
    os.posix_spawn(
        sshd, [sshd, "-i", "-e", "-f", f"{SSH}/sshd_config"], {"PATH": os.defpath, "LANG": "C.UTF-8"},
        file_actions=[(os.POSIX_SPAWN_DUP2, connection, 0), (os.POSIX_SPAWN_DUP2, connection, 1),
                      (os.POSIX_SPAWN_DUP2, log, 2)],
        setsid=True,
    )  # fmt: skip


def reap() -> None:
    """Take leave of processes that ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def clean(state: Path) -> None:
    """End everything on the board and remove its files."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # from the first process of a namespace: all others in it
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass
    unmount(BOARD)
    if not any(os.path.ismount(state / name) for name in ("lower", "root")):
        shutil.rmtree(state, ignore_errors=True)


def main(folder: str, listener: str) -> None:
    """See above; says "ready" on standard output, or why not."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of QEMU, when a program uses an instruction the CPU lacks
    config = json.loads(Path("config.json").read_bytes())
    try:
        assemble(config["userland"])
        hide_host()
        loopback_up()
        socket.sethostname(config["hostname"])
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, flush=True)  # noqa: T201
        sys.exit(1)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    print("ready", flush=True)  # noqa: T201
    for handle in (1, 2):
        os.dup2(log, handle)
    with socket.socket(fileno=int(listener)) as taken:
        serve(taken, config["sshd"], log)
    clean(Path.cwd())


if __name__ == "__main__":
    main(*sys.argv[1:])
