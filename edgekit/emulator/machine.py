"""A whole board: QEMU's "virt" machine with Debian's kernel, the target's CPU and a device tree that names the board.

Seconds to start, and everything is emulated; with `deterministic` every run takes the same emulated time.
"""

from __future__ import annotations

import io
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from edgekit import cache
from edgekit.emulator import kernel, monitor, userland
from edgekit.emulator.board import LOOPBACK, Board, known_hosts, make_keys, model, qemu_cpu, sshd_config
from edgekit.emulator.needs import program, require
from edgekit.emulator.sensors import SCRIPT, STATES, VCGENCMD, Readings, Sensors, files
from edgekit.errors import EmulatorError
from edgekit.files import sweep, temporary_folder
from edgekit.progress import Progress
from edgekit.targets import Target

START = 180.0
"""Seconds that the machine may take until ssh answers; 3 to 9 on a machine that does nothing else."""
ATTEMPT = 10.0
"""Seconds that one attempt to log in may take while the machine starts; it can hang on a connection that QEMU took."""
RAM_MIB = 2048
_ADDRESS, _GATEWAY = "10.0.2.15/24", "10.0.2.2"
"""QEMU's user network forwards to the first; restrict=on keeps the machine from reaching anything through it."""
_DISK = "/dev/vda"
_INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /{VCGENCMD}
mount -t tmpfs tmpfs /sys/class/thermal
cp -R /sensors/. /
for module in /modules/*; do insmod "$module"; done
[ ! -b {_DISK} ] || mount -t ext4 {_DISK} /home/{userland.USER}
hostname -F /etc/hostname
ip link set lo up
ip addr add {_ADDRESS} dev eth0
ip link set eth0 up
/usr/sbin/sshd -e -f /ssh/sshd_config
echo board is up
while :; do sleep 3600 & wait; done
"""
_KERNEL_LINE = "console=ttyAMA0 quiet panic=-1 norandmaps rdinit=/init"
"""With addresses that are the same in every process (norandmaps) QEMU translates a program once and not each time it is
started; otherwise what it keeps of a page grows with every start, until clearing such a page takes seconds."""
_MONITOR, _DISK_FILE = "monitor", "disk"
_RETRIES, _TAKEN = 3, "could not set up host forwarding"
"""Another program may take the port between our look at it and QEMU's."""
_CPU_MODES = {
    False: ["-accel", "tcg"],
    True: ["-accel", "tcg,thread=single", "-icount", "shift=0"],
}  # fmt: skip
"""With -icount each instruction takes one emulated nanosecond, whatever the machine around it does."""


@contextmanager
def whole_board(
    target: Target,
    *,
    deterministic: bool = False,
    release: str = "",
    system: Path | None = None,
    ram_mib: int = RAM_MIB,
    disk_mib: int = 0,
    progress: Progress | None = None,
) -> Iterator[Board]:
    """A booted machine while the block runs; afterwards, or when this process dies, nothing of it is left.

    Its system lives in memory and cannot reach any network. Sensors: those of `vcgencmd` and the thermal zone. One with
    a disk can lose its power, see :attr:`Board.lose_power`.

    Args:
        target: whose CPU and model name it has.
        deterministic: one core, and time that advances by one nanosecond an instruction: what is measured in it is the
            same in every run, tells regressions, and is no board's speed.
        release: Debian release; empty: the one with the target's Python.
        system: folder of a system that :func:`userland.make` made; None: the one in the cache, made when missing.
        ram_mib: memory; the system takes about 300 of it.
        disk_mib: size of a disk that holds the user's home; 0: none, the home is in memory too.
        progress: told when a system has to be made.

    Raises:
        EmulatorError: a tool is missing, the target names no CPU for QEMU, or the machine does not come up.
    """
    cpu = qemu_cpu(target)
    require("machine")
    release = release or userland.release_of(target)
    folder, linux = system or userland.ready(release, progress), kernel.ready(release, progress)
    base = Path(tempfile.gettempdir(), "edgekit-machine")
    sweep(base.parent, base.name)
    with cache.using(folder), temporary_folder(base) as state:
        _write_image(state, folder, linux, target)
        hardware = ["-M", "virt", "-cpu", cpu, "-smp", str(_cores(target, deterministic)), "-m", str(ram_mib)]
        boot = _boot(state, linux, [*hardware, *_CPU_MODES[deterministic]], target)
        if disk_mib:
            boot += [*_disk(state, disk_mib), *monitor.options(state / _MONITOR)]
        with _booted(state, boot, target) as board:
            yield board


def _cores(target: Target, deterministic: bool) -> int:
    return 1 if deterministic else min(4, sum(cluster.count for cluster in target.soc.clusters) or 1)


def _boot(state: Path, linux: Path, hardware: Sequence[str], target: Target) -> list[str]:
    tree = _device_tree(state, hardware, target)
    files = ["-dtb", str(tree), "-kernel", str(linux / "vmlinuz"), "-initrd", str(state / "initrd")]
    return [*hardware, *files, "-append", _KERNEL_LINE]


def _write_image(state: Path, system: Path, linux: Path, target: Target) -> None:
    make_keys(state)
    script, text = stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    config = sshd_config("/ssh", "Subsystem sftp /usr/lib/openssh/sftp-server")
    config = config.replace("PermitRootLogin no", "PermitRootLogin prohibit-password").replace(
        f"AllowUsers {userland.USER}", f"AllowUsers {userland.USER} root"
    )
    extras: dict[str, tuple[int, bytes]] = {
        "init": (script, _INIT.encode()),
        "etc/hostname": (text, f"{target.name}\n".encode()),
        "ssh": (stat.S_IFDIR | 0o755, b""),
        "ssh/host_key": (stat.S_IFREG | 0o600, (state / "ssh" / "host_key").read_bytes()),
        "ssh/authorized_keys": (text, (state / "ssh" / "authorized_keys").read_bytes()),
        "ssh/sshd_config": (text, config.encode()),
        "modules": (stat.S_IFDIR | 0o755, b""),
        **_sensor_files(target),
    }
    if target.probe.firmware == "vcgencmd":
        extras["usr/bin/vcgencmd"] = (script, SCRIPT.encode())
    for path in sorted((linux / "modules").iterdir()):
        extras[f"modules/{path.name}"] = (text, path.read_bytes())
    with (state / "initrd").open("wb") as out:
        kernel.image(out, system, extras)


def _sensor_files(target: Target) -> dict[str, tuple[int, bytes]]:
    """What the sensors say when the board starts, for its first process to put where they are."""
    made: dict[str, tuple[int, bytes]] = {"sensors": (stat.S_IFDIR | 0o755, b"")}
    for name, text in _placeable(files(target, STATES["cool"])).items():
        for folder in reversed(PurePosixPath("sensors", name).parents[:-2]):
            made[str(folder)] = (stat.S_IFDIR | 0o755, b"")
        made[f"sensors/{name}"] = (stat.S_IFREG | 0o644, text.encode())
    return made


def _placeable(found: Mapping[str, str]) -> dict[str, str]:
    """Without what the machine has no place for (INA3221)."""
    return {name: text for name, text in found.items() if name.startswith((VCGENCMD, "sys/class/thermal"))}


def _disk(state: Path, mib: int) -> list[str]:
    """An empty disk with a file system that belongs to the user; returns QEMU's options for it."""
    path = state / _DISK_FILE
    with path.open("wb") as stream:
        stream.truncate(mib << 20)
    owner = f"root_owner={userland.UID}:{userland.UID}"
    userland.run(
        [program("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", "-E", owner, str(path)],
        "mke2fs cannot make the board's disk",
    )
    drive = f"file={path},format=raw,if=none,id=disk"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]


def _device_tree(state: Path, hardware: Sequence[str], target: Target) -> Path:
    """QEMU's own tree for this hardware, with the board's name in it."""
    path = state / "board.dtb"
    machine = ["-M", f"virt,dumpdtb={path}", *hardware[2:]]
    userland.run(
        [program("qemu-system-aarch64"), *machine, "-nodefaults", "-display", "none"],
        "QEMU cannot write its device tree",
    )
    for key, values in {"model": [model(target)], "compatible": [f"edgekit,{target.name}", "linux,dummy-virt"]}.items():
        userland.run([program("fdtput"), "-t", "s", str(path), "/", key, *values], "fdtput cannot name the board")
    return path


@contextmanager
def _booted(state: Path, boot: Sequence[str], target: Target) -> Iterator[Board]:
    for _attempt in range(_RETRIES):
        port = _free_port()
        with _started(state, boot, port) as process:
            board = _board(state, port, target)
            if _answers(board, process):
                yield board
                return
        if _TAKEN not in _log(state).lower():
            break
    raise EmulatorError(
        f"the emulated machine does not come up ({_last_line(state)})", remedy="python -m edgekit.emulator check"
    )


def _board(state: Path, port: int, target: Target) -> Board:
    unset = Sensors(target, lambda _files: None)
    board = Board(target, port, state / "key", known_hosts(state, port), unset)
    sensors = Sensors(target, lambda files: _send(board, files))

    def lose_power() -> None:
        monitor.reset(state / _MONITOR)
        sensors.readings = Readings()  # as they are when it starts

    board = replace(board, sensors=sensors)
    return replace(board, lose_power=lose_power) if (state / _DISK_FILE).exists() else board


@contextmanager
def _started(state: Path, boot: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))]
    quiet = ["-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{state / 'console'}"]
    forward = f"user,id=net,restrict=on,hostfwd=tcp:{LOOPBACK}:{port}-:22"
    network = ["-netdev", forward, "-device", "virtio-net-pci,netdev=net,romfile="]
    with (state / "log").open("wb") as log, subprocess.Popen(  # noqa: S603
        [*leash, program("qemu-system-aarch64"), *boot, *quiet, *network], stdin=subprocess.PIPE, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()


def _answers(board: Board, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        if _lets_in(board, min(ATTEMPT, end - time.monotonic())):
            return True
        time.sleep(0.5)
    return False


def _lets_in(board: Board, seconds: float) -> bool:
    """One attempt to log in. QEMU takes connections from the first moment on, long before anybody answers them."""
    ssh, *options = board.ssh_command()
    # The first value of an option counts, and ssh_command() has one for boards that are up.
    command = [ssh, "-o", f"ConnectTimeout={max(1, round(seconds))}", *options, board.host, "true"]
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds + 1, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _send(board: Board, files: Mapping[str, str]) -> None:
    """Sensors are root's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in _placeable(files).items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    command = [*board.ssh_command(), f"root@{LOOPBACK}", "tar", "-x", "-C", "/"]
    done = subprocess.run(command, input=packed.getvalue(), capture_output=True, timeout=START, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.decode("utf8", "replace").strip()[-300:]
        raise EmulatorError(f"the emulated machine does not take its sensors' readings ({said})")


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def _log(state: Path) -> str:
    paths = (state / "log", state / "console")
    return "\n".join(path.read_text(encoding="utf8", errors="replace") for path in paths if path.is_file())


def _last_line(state: Path) -> str:
    lines = [line for line in _log(state).splitlines() if line.strip()]
    return lines[-1][-300:] if lines else f"it said nothing for {START:g} s"
