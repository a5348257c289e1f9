"""The one recipe for llama.cpp: configure, compile and collect, whatever the toolchain.

Only the targets that are shipped are compiled. ggml's own GGML_CPU_ARM_ARCH stays unset: it would add a -march to ggml
alone, which zig does not take, while the toolchain's flags hold for every file and ggml's feature tests see them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path

from edgekit.crossbuild.library_code import kept_functions
from edgekit.crossbuild.model import Setup
from edgekit.crossbuild.places import write
from edgekit.errors import EdgekitError, MissingDependencyError, OutOfMemoryError, OutputError, ToolchainError
from edgekit.files import output_errors
from edgekit.progress import Advance

TARGET = "edgekit-runtime"
DEFINITIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF", "-DGGML_CCACHE=OFF", "-DGGML_LLAMAFILE=ON", "-DGGML_CPU_REPACK=ON",
    "-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DLLAMA_SUBPROCESS=OFF", "-DLLAMA_ALL_WARNINGS=OFF", "-DLLAMA_TOOLS_INSTALL=OFF",
)  # fmt: skip
"""For cmake, the same for every toolchain and target."""
PRODUCTS = ("bin/llama-bench", "bin/llama-perplexity", "lib/libggml.so", "lib/libllama.so")
LOG = "compile.log"
_COMPILERS_OWN = frozenset((
    "CFLAGS", "CXXFLAGS", "CPPFLAGS", "ASMFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH", "CMAKE_PREFIX_PATH", "CMAKE_TOOLCHAIN_FILE", "CMAKE_GENERATOR", "ZIG_LIB_DIR", "CC", "CXX",
))  # fmt: skip
"""What this machine's own compiles are told does not reach a board's: a runtime follows from its key alone."""
_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")
_TELLING = re.compile(r"error[: ]|undefined |No space left|cannot |Killed|\bnot found\b|FAILED", re.IGNORECASE)
_TAIL = 200
_LAST_WORDS = 400
_PATIENCE = 10.0
"""Seconds that a command gets to end by itself."""


@dataclass(frozen=True)
class Tree:
    """Where one compile lives; what is there already is not made again."""

    folder: Path
    llama_cpp: Path
    """llama.cpp's sources."""

    @property
    def build(self) -> Path:
        """Where cmake configures and ninja compiles."""
        return self.folder / "tree"

    @property
    def log(self) -> Path:
        """Everything that cmake and the compilers said since the compile began."""
        return self.folder / LOG


def tools() -> dict[str, str]:
    """PATH with cmake and ninja of this Python's environment in front.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    folders = [_folder_of("cmake", "CMAKE_BIN_DIR"), _folder_of("ninja", "BIN_DIR")]
    return {"PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])}


def _folder_of(package: str, attribute: str) -> str:
    try:
        return str(getattr(import_module(package), attribute))
    except (ImportError, AttributeError):
        raise MissingDependencyError(
            f"{package}, which compiles the runtime, is not installed here", remedy="pip install 'edgekit[cross]'"
        ) from None


def text() -> str:
    """Our CMakeLists.txt around llama.cpp's."""
    return resources.files("edgekit.crossbuild").joinpath("cmake/CMakeLists.txt").read_text(encoding="utf8")


def revision() -> tuple[object, ...]:
    """Everything of the recipe that decides what comes out, the toolchain's part left aside."""
    return DEFINITIONS, PRODUCTS, text(), kept_functions()


def ggml_version(llama_cpp: Path) -> str:
    """Of a source tree; "unknown" when its CMakeLists.txt does not tell."""
    said = (llama_cpp / "ggml" / "CMakeLists.txt").read_text(encoding="utf8")
    parts = re.findall(r"set\(GGML_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)", said)
    return ".".join(parts) or "unknown"


def configure(tree: Tree, setup: Setup, lock: int) -> None:
    """Run cmake; a tree that is configured already is brought up to date.

    Args:
        tree: where.
        setup: of the toolchain.
        lock: descriptor that children inherit, so that nobody touches the tree before the last of them has ended.

    Raises:
        ToolchainError: it failed; quotes its last words and names the log.
        OutputError: the disk is full.
    """
    (tree.folder / "recipe").mkdir(exist_ok=True)
    write(tree.folder / "recipe" / "CMakeLists.txt", text())
    write(tree.folder / "recipe" / "kept-symbols", "".join(f"{name}\n" for name in kept_functions()))
    command = [
        "cmake", "-G", "Ninja", "-S", str(tree.folder / "recipe"), "-B", str(tree.build),
        f"-DLLAMA_CPP={tree.llama_cpp}",
        f"-DEDGEKIT_STATIC_TOOLS={'ON' if setup.static_tools else 'OFF'}", *DEFINITIONS, *setup.definitions,
    ]  # fmt: skip
    run(command, tree, setup, lock, done="configured")


def compile_all(tree: Tree, setup: Setup, lock: int, jobs: int, advance: Advance) -> None:
    """Compile and link what is missing, `jobs` files at a time; arguments and errors as :func:`configure`."""

    def watch(line: str) -> None:
        if match := _STATUS.match(line):
            advance(int(match[1]), int(match[2]))

    run(["ninja", "-C", str(tree.build), "-j", str(jobs), TARGET], tree, setup, lock, done="compiled", watch=watch)


def collect(tree: Tree, setup: Setup, folder: Path) -> None:
    """Copy the products and the licences of everything in them into `folder`."""
    for name in PRODUCTS:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(tree.build / "out" / name, folder / name)
        (folder / name).chmod(0o755)
    place = folder / "LICENSES"
    place.mkdir()
    for name, path in {**licences(tree.llama_cpp), **setup.licences}.items():
        shutil.copyfile(path, place / name)
        (place / name).chmod(0o644)


def licences(llama_cpp: Path) -> Mapping[str, Path]:
    """Name → licence of llama.cpp (ggml's too) and of what is compiled into it."""
    vendor = llama_cpp / "vendor"
    return {
        "llama.cpp": llama_cpp / "LICENSE",
        "nlohmann-json": llama_cpp / "licenses" / "LICENSE-jsonhpp",
        "cpp-httplib": vendor / "cpp-httplib" / "LICENSE",
    }


def run(
    command: Sequence[str], tree: Tree, setup: Setup, lock: int, *, done: str, what: str = "llama.cpp",
    watch: Callable[[str], None] = lambda _line: None,
) -> None:  # fmt: skip
    """Run cmake or ninja with a toolchain; what it says goes to the log.

    Args:
        command: begins with `cmake` or `ninja`.
        tree: where.
        setup: of the toolchain.
        lock: descriptor that children inherit, so that nobody touches the tree before the last of them has ended.
        done: "configured" or "compiled", for errors.
        what: is made, for errors.
        watch: gets each line.

    Raises:
        ToolchainError: it failed; quotes its last words and names the log.
        OutOfMemoryError: the compiler had too little memory.
        OutputError: the disk is full.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _COMPILERS_OWN}
    environment = {**inherited, **(tools() if setup.local else {}), "NINJA_STATUS": "[%f/%t] ", **setup.environment}
    last: deque[str] = deque(maxlen=_TAIL)
    with tree.log.open("a", encoding="utf8", buffering=1) as log:
        log.write(f"$ {' '.join(command)}\n")
        with _child(setup, command, environment, lock) as child:
            assert child.stdout is not None  # noqa: S101  # it is a pipe
            for line in child.stdout:
                log.write(line)
                last.append(line.rstrip())
                watch(line)
        code = child.wait()
    if code:
        raise _failure(list(last), tree, what, done, code)


@contextmanager
def _child(
    setup: Setup, command: Sequence[str], environment: Mapping[str, str], lock: int
) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own; when the block is left early (Ctrl-C, SIGTERM) nothing of it stays."""
    child = subprocess.Popen(  # noqa: S603
        setup.command(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf8",
        errors="replace",
        env=environment,
        pass_fds=(lock,),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None and sys.exc_info()[0] is not None:
            _stop(child)
            setup.end()
        if child.stdout is not None:
            child.stdout.close()
        child.wait()


def _stop(child: subprocess.Popen[str]) -> None:
    """End a command and what it started. It is asked first: ninja then stops its compilers, and removes half files."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _failure(lines: Sequence[str], tree: Tree, what: str, done: str, code: int) -> EdgekitError:
    text = "\n".join(lines)
    if os.strerror(errno.ENOSPC) in text:
        return OutputError(
            f"no space left on the disk while compiling in {tree.folder}",
            remedy="free some space and run again: it goes on where it stopped",
        )
    if re.search(r"Killed|out of memory|Cannot allocate memory", text):
        return OutOfMemoryError(
            f"there is too little memory to compile {what} ({last_words(lines)})",
            expected="about 2 GB for each core",
            remedy="close other programs and run again: it goes on where it stopped",
        )
    return ToolchainError(
        f"{what} could not be {done} ({last_words(lines) or f'status {code}'})",
        remedy=f"see {tree.log}; the next run goes on where this one stopped",
    )


@contextmanager
def tidied(work: Path) -> Iterator[None]:
    """The folder of a compile; afterwards it is only kept for one that did not get to its end, with its log."""
    try:
        with output_errors(work):
            work.mkdir(exist_ok=True)
            yield
    finally:
        if not (work / LOG).exists():
            shutil.rmtree(work, ignore_errors=True)


def last_words(lines: Sequence[str]) -> str:
    """The last lines that say what went wrong; without any, the last lines."""
    said = [line.strip() for line in lines if line.strip()]
    telling = [line for line in said if _TELLING.search(line)]
    return " / ".join((telling or said)[-3:])[-_LAST_WORDS:]
