"""A real ssh server on loopback, with keys of its own, that a test can cut off; the user's ~/.ssh is not touched."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.devices.base import Address
from edgekit.devices.process import Cancel
from edgekit.devices.shell import ShellDevice
from edgekit.devices.ssh import ssh

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication {password}
KbdInteractiveAuthentication no
PermitRootLogin yes
PrintMotd no
PrintLastLog no
LogLevel ERROR
Subsystem sftp internal-sftp
SetEnv HOME={home} EDGEKIT_HOME={home}/edgekit
"""


@dataclass
class Server:
    """A running sshd, whose user's home is a folder of the test."""

    folder: Path
    port: int
    home: Path
    process: subprocess.Popen[bytes] | None = None
    password: str = "no"
    opened: list[ShellDevice] = field(default_factory=list)

    def start(self) -> None:
        """Listen, with the same keys as before."""
        config = self.folder / "sshd_config"
        text = _CONFIG.format(port=self.port, folder=self.folder, home=self.home, password=self.password)
        config.write_text(text)
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", config], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._await()

    def _await(self) -> None:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as tried:
                if tried.recv(4) == b"SSH-":
                    return
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def stop(self) -> None:
        """No longer listen; connections that are there go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """End the server and every connection to it, as a pulled cable does; programs on the board go on."""
        self.stop()
        for session in sessions(self.port):
            with suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)

    def device(
        self, *, user: str = "", known: bool = True, key: bool = True, config: str = "", cancel: Cancel | None = None
    ) -> ShellDevice:
        """The server as a device; closed at the end of the test."""
        user = user or getpass.getuser()
        own = self.folder / "config"
        own.write_text(config)
        options = [
            "-F", str(own), "-o", f"UserKnownHostsFile={self.folder / ('known_hosts' if known else 'none')}",
            "-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
            "-i", str(self.folder / ("key" if key else "wrong_key")),
        ]  # fmt: skip
        url = f"ssh://{user}@127.0.0.1:{self.port}"
        address = Address("ssh", "127.0.0.1", user, self.port)
        made = ssh(address, url=url, title=url, cancel=cancel or Cancel(), options=options)
        self.opened.append(made)
        return made


def sessions(port: int) -> list[int]:
    """sshd processes that serve a connection to a port."""
    import psutil

    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "sshd" and any(
                end.laddr and end.laddr.port == port and end.status == "ESTABLISHED"
                for end in process.net_connections("tcp")
            ):
                found.append(process.pid)
    return found


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server on a free port; skips the test where there is no sshd."""
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").exists():
        pytest.skip("no sshd here: apt install openssh-server")
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here: apt install openssh-client")
    if os.geteuid() == 0:
        _privilege_separation()
    for name in ("host_key", "other_host_key", "key", "wrong_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    write_known_hosts(folder, port, "host_key")
    home = folder / "home"
    home.mkdir()
    made = Server(folder, port, home)
    made.start()
    try:
        yield made
    finally:
        for device in made.opened:
            device.close()
        made.cut()


def write_known_hosts(folder: Path, port: int, key: str) -> None:
    """Let the client believe that the server has the public key of that name."""
    public = " ".join((folder / f"{key}.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")


def _privilege_separation() -> None:
    """As root, sshd wants its user and an empty folder, which the package's service makes at boot."""
    try:
        pwd.getpwnam("sshd")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    except (KeyError, OSError):
        pytest.skip("sshd is not set up here")
