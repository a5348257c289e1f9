"""A board to log in to: an arm64 system on a target's CPU, reached over ssh on loopback.

The fast kind runs arm64 programs through QEMU one by one, in namespaces of their own without any network; the whole
kind (:mod:`edgekit.emulator.machine`) boots a kernel.
"""

from __future__ import annotations

import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import cache
from edgekit.board_files import write_cpu_files
from edgekit.emulator import userland
from edgekit.emulator.needs import program, require
from edgekit.emulator.sensors import SCRIPT, Sensors
from edgekit.errors import EmulatorError
from edgekit.files import sweep, temporary_folder
from edgekit.progress import Progress
from edgekit.targets import Target

LOOPBACK = "127.0.0.1"
START = 30.0
"""Seconds that a fast board may take to come up."""
_MODELS = {
    "rpi5": "Raspberry Pi 5 Model B Rev 1.0",
    "rpi4": "Raspberry Pi 4 Model B Rev 1.4",
    "rpi-zero2w": "Raspberry Pi Zero 2 W Rev 1.0",
}
"""What these boards say of themselves; https://www.raspberrypi.com/documentation/computers/raspberry-pi.html."""
_PREFIX = "usr/lib/board"
"""Folder on the board whose files QEMU opens instead of those of the same name below "/" (QEMU_LD_PREFIX): /proc has no
place for a device tree otherwise."""
_SSHD = """\
HostKey {ssh}/host_key
AuthorizedKeysFile {ssh}/authorized_keys
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
AllowUsers {user}
UsePAM no
UseDNS no
StrictModes no
PrintMotd no
PrintLastLog no
AllowTcpForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
LogLevel VERBOSE
PidFile none
"""


def _always_on() -> None:
    raise EmulatorError("this emulated board has no power switch", expected="a whole one with a disk")


@dataclass(frozen=True)
class Board:
    """A running emulated board."""

    target: Target
    port: int
    """On 127.0.0.1."""
    key: Path
    """The private key that lets the user in."""
    known_hosts: Path
    sensors: Sensors
    user: str = userland.USER
    lose_power: Callable[[], None] = _always_on
    """Cuts the power for a moment: the board starts anew, with what was written through to its disk and nothing else.
    Returns at once. Raises EmulatorError on a board without a disk."""

    def ssh_command(self, program_name: str = "ssh") -> list[str]:
        """`ssh` (or `scp`, `sftp`) with all options to reach the board, without the host."""
        port = "-p" if program_name == "ssh" else "-P"
        options = {
            "UserKnownHostsFile": self.known_hosts, "GlobalKnownHostsFile": "/dev/null", "BatchMode": "yes",
            "StrictHostKeyChecking": "yes", "IdentitiesOnly": "yes", "LogLevel": "ERROR", "ConnectTimeout": "60",
        }  # fmt: skip
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return [program(program_name), "-F", "/dev/null", port, str(self.port), "-i", str(self.key), *flags]

    @property
    def host(self) -> str:
        """What comes after :meth:`ssh_command`."""
        return f"{self.user}@{LOOPBACK}"

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 600,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the board, in the user's home.

        Args:
            command: program and arguments; no shell sees them.
            timeout: seconds.
            stdin: what the program reads.
            environment: added to the board's.
            check: whether a return code other than 0 is an error.

        Returns:
            As of subprocess.run; a program that a signal ended has 128 + its number (132: illegal instruction), and 255
            can be ssh's own.

        Raises:
            EmulatorError: it takes longer than `timeout`, or `check` and it failed.
        """
        done = self.run_bytes(command, timeout=timeout, stdin=stdin.encode(), environment=environment, check=check)
        out, err = (text.decode("utf8", "replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def run_bytes(
        self,
        command: Sequence[str],
        *,
        timeout: float = 600,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """As :meth:`run`, for programs that read or write something other than text."""
        words = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
        shown = shlex.join(command)
        line = f"{shlex.join([*words, *command])}; exit $?"  # the shell stays, and tells which signal it was
        try:
            done = subprocess.run(  # noqa: S603
                [*self.ssh_command(), self.host, line], input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EmulatorError(f"`{shown}` did not end within {timeout:g} s on the emulated board") from error
        if check and done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-500:].decode("utf8", "replace")
            raise EmulatorError(f"`{shown}` ended with {done.returncode} on the emulated board ({said})")
        return done

    def copy(self, path: Path, to: str = ".", *, timeout: float = 600) -> str:
        """Copy a file or a folder into the board's folder `to` (made when missing); returns where it then is.

        Raises:
            EmulatorError: it cannot be copied.
        """
        self.run(["mkdir", "-p", to], check=True)
        self._scp([str(path.resolve())], f"{self.host}:{to}/", timeout)
        return f"{to}/{path.resolve().name}"

    def fetch(self, path: str, to: Path, *, timeout: float = 600) -> Path:
        """Copy a file or folder of the board into the folder `to`; returns where it then is.

        Raises:
            EmulatorError: it cannot be copied.
        """
        self._scp([f"{self.host}:{path}"], str(to), timeout)
        return to / Path(path).name

    def _scp(self, sources: Sequence[str], place: str, timeout: float) -> None:
        command = [*self.ssh_command("scp"), "-r", "-p", "-q", *sources, place]
        try:
            done = subprocess.run(  # noqa: S603
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise EmulatorError(f"copying to the emulated board took longer than {timeout:g} s") from error
        if done.returncode:
            raise EmulatorError(f"scp with the emulated board failed ({done.stderr.strip()[-500:]})")


@contextmanager
def emulated(
    target: Target, *, release: str = "", system: Path | None = None, progress: Progress | None = None
) -> Iterator[Board]:
    """A fast board while the block runs; afterwards, or when this process dies, nothing of it is left.

    Args:
        target: whose CPU, /proc/cpuinfo, /sys/devices/system/cpu, model name and sensors the board has.
        release: Debian release; empty: the one with the target's Python.
        system: folder of a system that :func:`userland.make` made; None: the one in the cache, made when missing.
        progress: told when a system has to be made.

    Raises:
        EmulatorError: a tool or a right is missing, the target names no CPU for QEMU, or the board does not come up.
    """
    cpu = qemu_cpu(target)
    require("board")
    folder = system or userland.ready(release or userland.release_of(target), progress)
    base = Path(tempfile.gettempdir(), "edgekit-board")
    sweep(base.parent, base.name)
    with cache.using(folder), temporary_folder(base) as state, socket.create_server((LOOPBACK, 0)) as listener:
        port = int(listener.getsockname()[1])
        sensors = Sensors(target, lambda files: write_files(state / "files", files))
        _prepare(state, folder, target, cpu)
        sensors.set("cool")
        with _running(state, listener):
            board = Board(target, port, state / "key", known_hosts(state, port), sensors)
            _check(board, state)
            yield board


def qemu_cpu(target: Target) -> str:
    """What QEMU calls the target's CPU.

    Raises:
        EmulatorError: the target does not say.
    """
    if target.toolchain is None or not target.toolchain.qemu_cpu:
        raise EmulatorError(
            f"target {target.name} cannot be emulated: it names no CPU", expected="toolchain.qemu_cpu in its file"
        )
    return target.toolchain.qemu_cpu


def model(target: Target) -> str:
    """What the board's device tree says it is; always what the target recognises its board by."""
    name = _MODELS.get(target.name, target.title)
    return name if target.probe.model_match in name else target.probe.model_match


def write_files(folder: Path, files: Mapping[str, str], mode: int = 0o644) -> None:
    """Write each text to its path below `folder`, whole or not at all, for a program that reads meanwhile."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text, encoding="utf8")
        fresh.chmod(mode)
        fresh.replace(path)


def make_keys(state: Path) -> None:
    """The board's host key (below ssh/) and the user's key, fresh for each board."""
    (state / "ssh").mkdir(exist_ok=True)
    for path in (state / "ssh" / "host_key", state / "key"):
        userland.run(
            [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "edgekit", "-f", str(path)],
            "ssh-keygen cannot make a key",
        )
    (state / "ssh" / "authorized_keys").write_bytes((state / "key.pub").read_bytes())


def known_hosts(state: Path, port: int) -> Path:
    """The file that lets ssh recognise the board."""
    path = state / "known_hosts"
    public = (state / "ssh" / "host_key.pub").read_text(encoding="ascii")
    path.write_text(f"[{LOOPBACK}]:{port} {public}", encoding="ascii")
    return path


def sshd_config(folder: str, *more: str) -> str:
    """Only the one user, only with the key; `folder` holds host_key and authorized_keys."""
    return "\n".join((_SSHD.format(ssh=folder, user=userland.USER).rstrip(), *more, ""))


def _prepare(state: Path, system: Path, target: Target, cpu: str) -> None:
    """Everything that inside.py puts together."""
    for name in ("lower", "upper", "work", "root", "files/run/vcgencmd", "files/proc", "files/sys"):
        (state / name).mkdir(parents=True)
    (state / "upper").chmod(0o755)
    write_cpu_files(target, state / "files")
    tree = {f"{tree}/{name}": text for tree in (f"{_PREFIX}/proc/device-tree",) for name, text in _tree(target)}
    write_files(state / "upper", tree)
    write_files(state / "files" / "sys/firmware/devicetree/base", dict(_tree(target)))
    if target.probe.firmware == "vcgencmd":
        write_files(state / "upper", {"usr/bin/vcgencmd": SCRIPT}, 0o755)
    write_files(state / "upper", {"etc/hostname": f"{target.name}\n"})
    make_keys(state)
    more = (
        "ChrootDirectory /run/board", "Subsystem sftp internal-sftp", f"SetEnv QEMU_CPU={cpu} "
        f"QEMU_LD_PREFIX=/{_PREFIX} LANG=C.UTF-8",
    )  # fmt: skip
    (state / "ssh" / "sshd_config").write_text(sshd_config("/run/ssh", *more), encoding="utf8")
    for name in ("passwd", "group", "shadow"):
        (state / "ssh" / name).write_bytes((system / "etc" / name).read_bytes())
    (state / "ssh" / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\n", encoding="ascii")
    config = {"userland": str(system.resolve()), "hostname": target.name, "sshd": program("sshd")}
    (state / "config.json").write_bytes(msgspec.json.encode(config))


def _tree(target: Target) -> list[tuple[str, str]]:
    """The device tree's texts end with a zero byte."""
    return [("model", f"{model(target)}\0"), ("compatible", f"edgekit,{target.name}\0")]


@contextmanager
def _running(state: Path, listener: socket.socket) -> Iterator[None]:
    """inside.py in its namespaces; it ends when its standard input, a pipe that only this process holds, is closed."""
    script = Path(__file__).with_name("inside.py")
    command = [
        program("unshare"), "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--",
        sys.executable, "-I", "-S", str(script), str(state), str(listener.fileno()),
    ]  # fmt: skip
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        pass_fds=[listener.fileno()], env={"PATH": os.environ.get("PATH", os.defpath)},
    ) as process:  # fmt: skip
        listener.close()  # the board holds it now: when it is gone, connections are refused
        try:
            _await_ready(process)
            yield
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    output = process.stdout
    said = b""
    if output is not None and select.select([output], [], [], START)[0]:
        said = output.readline()
    if said.strip() != b"ready":
        process.kill()
        text = said.decode("utf8", "replace").strip() or f"nothing was heard of it for {START:g} s"
        raise EmulatorError(f"the emulated board does not come up ({text})", remedy="python -m edgekit.emulator check")


def _check(board: Board, state: Path) -> None:
    """One program on the board; otherwise sshd's log says why."""
    done = board.run(["true"], timeout=START)
    if done.returncode:
        log = (state / "log").read_text(encoding="utf8", errors="replace").strip().splitlines() or ["its log is empty"]
        raise EmulatorError(
            f"the emulated board does not let its user in ({done.stderr.strip()[-200:]}; {log[-1]})",
            remedy="python -m edgekit.emulator check",
        )
