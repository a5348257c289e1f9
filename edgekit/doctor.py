"""What this machine has of what edgekit needs: "ok" is what was tried, "installed" what was only seen."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from edgekit.files import cache_dir
from edgekit.requirements import extras, tested

EXTRAS = extras()
"""Packages and lowest versions of each extra."""

TESTED = tested()
"""Package → the version edgekit was tested with."""

ENGINES: Mapping[str, tuple[str, str]] = {
    "gguf": (
        "llama.cpp",
        "import llama_cpp as l; l.llama_backend_init(); l.llama_print_system_info(); print(l.__version__)",
    ),
    "onnx": (
        "onnxruntime",
        "import onnxruntime as o; o.SessionOptions(); assert 'CPUExecutionProvider' in o.get_available_providers(); "
        "print(o.__version__)",
    ),
}
"""Extra → name of the engine, and a program that loads its libraries and prints its version."""

_LOWEST_PYTHON = (3, 11)
_TIMEOUT = 120.0
"""Seconds; a Raspberry Pi reading from a cold SD card needs tens of them."""
_FEATURES = frozenset({
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
})  # fmt: skip
"""CPU features that decide which kernels the engines use, as /proc/cpuinfo spells them."""

State = Literal["ok", "installed", "other version", "too old", "missing", "fails", "info"]


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    group: str
    """"machine", "tools", "engine", or an extra."""
    part: str
    state: State
    found: str
    tested: str = ""
    """The version that edgekit was tested with."""
    remedy: str = ""
    """One command."""


@dataclass(frozen=True)
class Answer:
    """How a program in a process of its own ended."""

    state: Literal["ok", "missing", "fails"]
    text: str


def examine(ask: Callable[[str], Answer] | None = None) -> list[Finding]:
    """Look at everything; `ask` runs a Python program and tells how it ended."""
    ask = ask or run_python
    packages = [_package(extra, name) for extra, names in EXTRAS.items() for name in names]
    return [*_machine(), *packages, *(_engine(extra, ask) for extra in ENGINES), *_tools()]


def engine_works(findings: Sequence[Finding]) -> bool:
    """Whether `edgekit run` has all it needs for at least one engine."""
    base = all(f.state in ("installed", "other version") for f in findings if f.group == "base")
    return base and any(f.state == "ok" for f in findings if f.group == "engine")


def remedies(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Command → the parts that it brings."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        if finding.remedy:
            found.setdefault(finding.remedy, []).append(finding.part)
    return found


# --- the machine -----------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    right = sys.version_info[:2] >= _LOWEST_PYTHON
    lowest = ".".join(map(str, _LOWEST_PYTHON))
    remedy = "" if right else f"sudo apt install python{lowest} python{lowest}-venv"
    yield Finding("machine", "Python", "ok" if right else "too old", platform.python_version(), f"≥ {lowest}", remedy)
    yield Finding("machine", "CPU", "info", cpu())
    yield Finding("machine", "RAM", "info", _memory())
    yield _disk("disk at the cache", _cache)
    yield _disk("disk here", Path.cwd)


def cpu(text: str | None = None, board: str | None = None) -> str:
    """Model, usable cores and features, from the text of /proc/cpuinfo and of the device tree's model."""
    text = _read("/proc/cpuinfo") if text is None else text
    board = _read("/proc/device-tree/model") if board is None else board
    keys = dict(re.findall(r"^(\w[\w ]*?)\s*: *(.*)$", text, re.MULTILINE))
    name = board.strip("\0 \n") or keys.get("model name") or keys.get("Hardware") or platform.machine() or "unknown"
    features = sorted(_FEATURES & set((keys.get("flags") or keys.get("Features") or "").split()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name} ({platform.machine()}), {cores} cores usable, {' '.join(features) or 'features unknown'}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return "unknown, psutil is missing"
    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} available"


def _cache() -> Path:
    """The cache folder, or what is there already of the way to it."""
    folder = cache_dir().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _disk(part: str, place: Callable[[], Path]) -> Finding:
    try:
        folder = place()
        free = shutil.disk_usage(folder).free
    except (OSError, RuntimeError, StopIteration) as error:
        return Finding("machine", part, "info", f"unknown ({error})")
    return Finding("machine", part, "info", f"{free / 2**30:.1f} GiB free at {folder}")


# --- packages --------------------------------------------------------------------------------------------------------


def _package(extra: str, name: str) -> Finding:
    """Only the package's metadata is read."""
    tested, lowest = TESTED.get(name, ""), EXTRAS[extra][name]
    wanted = "edgekit" if extra == "base" else f"edgekit[{extra}]"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(extra, name, "missing", "", tested, f"pip install '{wanted}'")
    if _numbers(found) < _numbers(lowest):
        return Finding(extra, name, "too old", f"{found}, needs {lowest}", tested, f"pip install -U '{name}>={lowest}'")
    same = not tested or found.partition("+")[0] == tested
    return Finding(extra, name, "installed" if same else "other version", found, tested)


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version: "2.13.0+cpu" → (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match.group().split("."))) if match else ()


# --- engines ---------------------------------------------------------------------------------------------------------


def _engine(extra: str, ask: Callable[[str], Answer]) -> Finding:
    """Load the engine's libraries in a process of their own: a library built for another CPU kills that one only."""
    name, program = ENGINES[extra]
    package = next(iter(EXTRAS[extra]))
    answer = ask(program)
    remedy = {
        "ok": "",
        "missing": f"pip install 'edgekit[{extra}]'",
        "fails": f"pip install --force-reinstall --no-cache-dir '{package}=={TESTED[package]}'",
    }[answer.state]
    return Finding("engine", name, answer.state, answer.text, TESTED[package], remedy)


def run_python(program: str, timeout: float = _TIMEOUT) -> Answer:
    """Run a Python program in a process of its own; its last line of output is the text.

    A process killed by a signal is told as such: SIGILL means that a library uses instructions this CPU has not.
    """
    command = [sys.executable, "-P", "-c", program]  # -P: nothing in the working folder is imported
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Answer("fails", f"gave no answer within {timeout:g} s")
    except OSError as error:
        return Answer("fails", f"cannot be started ({error.strerror})")
    if done.returncode == 0:
        return Answer("ok", _last_line(done.stdout))
    if done.returncode == -signal.SIGILL:
        return Answer("fails", "crashes on this CPU (illegal instruction)")
    if done.returncode < 0:
        return Answer("fails", f"crashes ({signal.Signals(-done.returncode).name})")
    fault = _last_line(done.stderr)
    return Answer("missing" if fault.startswith("ModuleNotFoundError") else "fails", fault)


def _last_line(text: str) -> str:
    """Printable, and no longer than a line of the table can take."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no reason given"]
    return "".join(c for c in lines[-1].strip() if c.isprintable())[:200]


# --- tools -----------------------------------------------------------------------------------------------------------


def _tools() -> Iterator[Finding]:
    """What building llama-cpp-python from source takes; pip brings cmake and ninja by itself while it builds."""
    yield _tool("C++ compiler", ("c++", "g++", "clang++"), "sudo apt install g++")
    yield _tool("cmake", ("cmake",), "pip install cmake")
    yield _tool("ninja", ("ninja",), "pip install ninja")


def _tool(part: str, names: Sequence[str], remedy: str) -> Finding:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    path = next((found for name in names if (found := shutil.which(name, path=places))), None)
    if path is None:
        return Finding("tools", part, "missing", "", remedy=remedy)
    try:
        done = subprocess.run(  # noqa: S603 a tool found on the user's own PATH
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Finding("tools", part, "fails", path, remedy=remedy)
    if done.returncode:
        return Finding("tools", part, "fails", f"{path}: {_last_line(done.stderr)}", remedy=remedy)
    first = next(iter(done.stdout.splitlines()), "")
    return Finding("tools", part, "ok", f"{path}: {_last_line(first)}")
