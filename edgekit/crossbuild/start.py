"""Starting a native tool on the target's CPU, emulated by qemu-user: does it come up, or die of an illegal instruction?

The program runs with this user's rights: qemu-user emulates a processor, it does not shut anything in.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.board_files import write_cpu_files
from edgekit.bundle.paths import plain
from edgekit.crossbuild.audit_rules import CUDA
from edgekit.crossbuild.elf import Elf
from edgekit.target_schema import Target

QEMU = ("qemu-aarch64-static", "qemu-aarch64")
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
"""Where Debian's libc6-arm64-cross puts the C library for 64-bit ARM."""
STARTED = "started"
_ARGUMENTS = {"llama-bench": ("--list-devices",), "llama-perplexity": ("--list-devices",)}
"""What makes a tool set up ggml and its CPU back end, and then end."""
_CROSS = {"libstdc++.so.6": "libstdc++6-arm64-cross", "libgcc_s.so.1": "libgcc-s1-arm64-cross"}
_NOT_LOADED = 127
"""Status with which glibc's dynamic loader gives up."""
_MOST = 1 << 16
"""Bytes of output that are kept; a program that says more is ended."""


@dataclass(frozen=True)
class Run:
    """How an emulated program ended."""

    code: int | None
    """As subprocess tells it: negative for a signal; None: it was stopped, after its time or after too many words."""
    output: str


def start(program: Path, elf: Elf, target: Target, *, seconds: float = 60.0) -> str:
    """Start a program on the target's CPU and tell what happened.

    Args:
        program: the file.
        elf: its facts.
        target: says the CPU (toolchain.qemu_cpu) and what it is to see of cores and caches.
        seconds: after which it is stopped; it has started then.

    Returns:
        "started"; "died: SIGILL (illegal instruction)" or another signal; "failed: …" when its loader or it gave up;
        "not started: …" with what is missing on this machine.
    """
    qemu = next(filter(None, map(shutil.which, QEMU)), None)
    cpu = target.toolchain.qemu_cpu if target.toolchain else ""
    if missing := _missing(qemu, cpu, elf, target):
        return f"not started: {missing}"
    arguments = _ARGUMENTS.get(program.name, ("--help",))
    with tempfile.TemporaryDirectory(prefix="edgekit-start-") as folder:
        sysroot = make_sysroot(Path(folder) / "root", target)
        copy = Path(folder) / "program" / program.name
        copy.parent.mkdir()
        shutil.copyfile(program, copy)  # a bundle that was copied may have lost its executable mark
        copy.chmod(0o700)
        command = [str(qemu), "-cpu", cpu, "-L", str(sysroot), str(copy), *arguments]
        return told(run(command, copy.parent, seconds=seconds), strict=program.name in _ARGUMENTS)


def _missing(qemu: str | None, cpu: str, elf: Elf, target: Target) -> str:
    """What stands in the way, as an instruction; "" for nothing."""
    if not cpu:
        return f"target {target.name} names no toolchain.qemu_cpu"
    if driver := next(filter(CUDA.fullmatch, elf.needed), None):
        return f"it needs {driver}, which only the board has"
    libraries = not elf.interpreter or (LIBRARIES / Path(elf.interpreter).name).exists()
    packages = [] if qemu else ["qemu-user-static"]
    if not qemu or not libraries:
        packages += ["libc6-arm64-cross"] if elf.interpreter else []
        return "install " + " and ".join(packages)
    packages = [_CROSS[name] for name in elf.needed if name in _CROSS and not (LIBRARIES / name).exists()]
    return "install " + " and ".join(packages) if packages else ""


def make_sysroot(root: Path, target: Target) -> Path:
    """What the program finds in place of this machine's files: the board's C library, cores and caches."""
    write_cpu_files(target, root)
    (root / "lib").symlink_to(LIBRARIES)
    return root


def run(command: Sequence[str], folder: Path, *, seconds: float, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command in `folder` with nothing but `environment`; bounded in time and words, ended with its children."""
    child = subprocess.Popen(  # noqa: S603 the command is a list, never a shell's
        command, cwd=folder, env=dict(environment or {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, ended = _listen(child, time.monotonic() + seconds)
        code = child.wait(5) if ended else None
    except subprocess.TimeoutExpired:  # it closed its output and runs on
        code = None
    finally:
        _end(child)
    return Run(code, said)


def _listen(child: subprocess.Popen[bytes], until: float) -> tuple[str, bool]:
    """What it says, and whether it closed its output by itself."""
    assert child.stdout is not None  # noqa: S101 a pipe was asked for
    said = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(child.stdout, selectors.EVENT_READ)
        while len(said) < _MOST:
            left = until - time.monotonic()
            if left <= 0 or not waiting.select(left):
                return said.decode("utf8", "replace"), False
            piece = os.read(child.stdout.fileno(), _MOST - len(said))
            if not piece:
                return said.decode("utf8", "replace"), True
            said += piece
    return said.decode("utf8", "replace"), False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, which are a session of their own."""
    with suppress(ProcessLookupError):  # what it left behind is still of its session when it has ended itself
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def told(done: Run, *, strict: bool) -> str:
    """The result in words; `strict`: any status but 0 is a failure, and not only the loader's own 127."""
    if done.code is None or done.code == 0:
        return STARTED
    if done.code == -signal.SIGILL:
        return "died: SIGILL (illegal instruction)"
    if done.code < 0:
        return f"died: {_signal(-done.code)}"
    lines = [line for line in done.output.splitlines() if line.strip()] or [f"it ended with status {done.code}"]
    last = plain(lines[-1].strip())
    if last.startswith("qemu-"):  # the emulator gave up by itself: an unknown CPU, a loader that is missing
        return f"not started: {last}"
    return f"failed: {last}" if strict or done.code == _NOT_LOADED else STARTED


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
