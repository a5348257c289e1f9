"""How many instructions a program for arm64 executes, counted by QEMU: the same number on every machine.

It knows nothing of bandwidth, caches or clocks, so it tells regressions of code and never a board's speed.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import cache, locks
from edgekit.board_files import write_cpu_files
from edgekit.emulator import userland
from edgekit.emulator.board import Board, qemu_cpu
from edgekit.emulator.needs import program, require
from edgekit.errors import EmulatorError
from edgekit.files import cache_dir, whole_folder
from edgekit.targets import Target

SOURCE = Path(__file__).with_name("plugin") / "count.c"
_APIS = (1, 2)
"""Versions of QEMU's plugin interface: 1 until 8.2, 2 from 9.0 on."""
FEW, MANY = 2, 10
"""Generated tokens of the two runs whose difference is counted."""
SHORT, LONG = 16, 48
"""The same for tokens of a prompt."""
_CROSS = Path("/usr/aarch64-linux-gnu")
"""Where Debian's libc6-arm64-cross puts the C library."""


class _Rate(msgspec.Struct, frozen=True):
    """Of a line of llama-bench's JSON, what is used."""

    avg_ts: float


@dataclass(frozen=True)
class PerToken:
    """Instructions per token, with one thread."""

    decode: float
    prefill: float


def plugin(api: int) -> Path:
    """The compiled plugin for a version of QEMU's interface; made by this machine's C compiler when it is not there.

    Raises:
        EmulatorError: there is no compiler, or it fails.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    folder = cache_dir() / cache.ENVIRONMENTS / f"count-{digest}-{api}"
    library = folder / "libcount.so"
    if library.is_file():
        return library
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.take(cache.lock_of(folder), create=True)
    try:
        if not library.is_file():
            with whole_folder(folder, force=True) as fresh:
                _compile(fresh / library.name, api)
    finally:
        cache.abandon(folder, lock)
    return library


def _compile(library: Path, api: int) -> None:
    flags = ["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", f"-DAPI={api}"]
    command = [program("cc"), *flags, "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode:
        raise EmulatorError(f"the C compiler does not take {SOURCE} ({done.stderr.strip()[-300:]})")


def instructions(command: Sequence[str], cpu: str, *, root: Path | None = None, timeout: float = 1800) -> int:
    """Instructions that a program for arm64 executes from start to end, all threads together.

    The environment is empty, so that its size does not move the stack. Two runs differ by some hundreds, as addresses
    are random.

    Args:
        command: program and arguments.
        cpu: as QEMU calls it.
        root: folder of :func:`sysroot` for a program that needs libraries or looks at the machine.
        timeout: seconds.

    Raises:
        EmulatorError: QEMU or the compiler is missing, the program fails, or QEMU takes no plugins.
    """
    require("count")
    for api in _APIS:
        with tempfile.TemporaryDirectory(prefix="edgekit-count-") as folder:
            out = Path(folder, "count")
            prefix = ["-L", str(root)] if root else []
            qemu = [program("qemu-aarch64"), "-cpu", cpu, *prefix, "-plugin", f"{plugin(api)},out={out}"]
            done = _run([*qemu, *command], timeout)
            if out.is_file() and not done.returncode:
                return int(out.read_text(encoding="ascii"))
            if "API version" not in done.stderr:
                break
    said = (done.stderr.strip() or "nothing")[-300:]
    raise EmulatorError(
        f"{command[0]} ended with {done.returncode} under QEMU, CPU {cpu}, and said: {said}",
        remedy="a program for arm64 and a qemu-aarch64 with plugins (Debian's qemu-user) are needed",
    )


@contextmanager
def sysroot(target: Target) -> Iterator[Path]:
    """A folder whose files a program sees instead of the machine's: the C library for arm64 and the target's cores.

    Raises:
        EmulatorError: no C library for arm64 is installed.
    """
    made = userland.place("bookworm")
    library = next((path / "lib" for path in (made, _CROSS) if (path / "lib").is_dir()), None)
    if library is None:
        raise EmulatorError(
            "there is no C library for arm64 on this machine",
            remedy="sudo apt install libc6-arm64-cross, or python -m edgekit.emulator setup",
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-sysroot-") as folder:
        root = Path(folder)
        write_cpu_files(target, root)
        (root / "lib").symlink_to(library)
        yield root


def _run(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env={},
            timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EmulatorError(f"{command[0]} did not end within {timeout:g} s under QEMU") from error


def per_token(bench: Path, model: Path, target: Target) -> PerToken:
    """Instructions per token of llama.cpp with one thread: the difference of two runs over that of their tokens.

    Args:
        bench: llama-bench for arm64, statically linked or needing nothing but the C library.
        model: GGUF file.
        target: whose CPU.

    Raises:
        EmulatorError: as :func:`instructions` and :func:`sysroot`.
    """

    def count(generated: int, prompt: int) -> int:
        options = {"-t": 1, "-r": 1, "-n": generated, "-p": prompt, "-ngl": 0}
        words = [str(word) for option in options.items() for word in option]
        command = [str(bench), "-m", str(model), *words, "--no-warmup"]
        return instructions(command, qemu_cpu(target), root=root)

    with sysroot(target) as root:
        decode = (count(MANY, 0) - count(FEW, 0)) / (MANY - FEW)
        prefill = (count(0, LONG) - count(0, SHORT)) / (LONG - SHORT)
    return PerToken(decode, prefill)


def emulated_rate(board: Board, bench: Path, model: Path, tokens: int = 8, *, timeout: float = 1800) -> float:
    """Decoded tokens per second of emulated time, one thread: on a deterministic whole board the same in every run.

    Args:
        board: of :func:`edgekit.emulator.machine.whole_board` with `deterministic`; on others it means nothing.
        bench: llama-bench for arm64.
        model: GGUF file.
        tokens: generated.
        timeout: seconds.

    Raises:
        EmulatorError: llama-bench cannot be copied, fails, or says something unexpected.
    """
    names = [board.copy(path, "bench") for path in (bench, model)]
    words = ["-t", "1", "-r", "1", "-p", "0", "-n", str(tokens), "-ngl", "0", "--no-warmup", "-o", "json"]
    said = board.run([names[0], "-m", names[1], *words], timeout=timeout, check=True).stdout
    try:
        return msgspec.json.decode(said, type=list[_Rate])[0].avg_ts
    except (msgspec.MsgspecError, IndexError) as error:
        raise EmulatorError(f"llama-bench printed no rate ({said.strip()[-200:]})") from error
