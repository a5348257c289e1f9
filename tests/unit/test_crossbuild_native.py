"""The native runtime: made once for a CPU, cached, resumed after a kill. Compiler, cmake and ninja only pretend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from edgekit import cache, targets
from edgekit.crossbuild import native, recipe, toolchains
from edgekit.crossbuild.model import Cpu, Native, Setup
from edgekit.crossbuild.native import build_native
from edgekit.crossbuild.source import Source
from edgekit.errors import (
    EdgekitError,
    MissingDependencyError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    ToolchainError,
)
from edgekit.making import making
from edgekit.progress import Advance

CMAKE = """
tree = Path(arguments[arguments.index("-B") + 1])
tree.mkdir(exist_ok=True)
(tree / "CMakeCache.txt").write_text(" ".join(arguments))
print("-- Configuring done")
"""
NINJA = """
tree = Path(arguments[arguments.index("-C") + 1])
names = ["bin/llama-bench", "bin/llama-perplexity", "lib/libggml.so", "lib/libllama.so"]
for number, name in enumerate(names, 1):
    out = tree / "out" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        exec(os.environ.get("HOOK", ""))
        out.write_text("code of " + name)
    print(f"[{number}/4] Linking {name}", flush=True)
"""


@dataclass
class Compiler:
    """A toolchain that takes any CPU."""

    name: str = "zig"
    release: str = "1.0"
    flags: tuple[str, ...] = ("-O3",)
    glibc: str = ""
    local: bool = True
    ended: Path | None = None
    """Touched when what runs elsewhere is to be ended."""

    def version(self) -> str:
        return self.release

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        (folder / "cc").write_text(cpu.mtune)
        return Setup(
            definitions=("-DA=1",), flags=self.flags, glibc=self.glibc, first_use="libc++ comes first",
            local=self.local, end=self.end,
        )  # fmt: skip

    def end(self) -> None:
        if self.ended is not None:
            self.ended.touch()


@dataclass
class Bar:
    """A progress that remembers."""

    steps: list[str] = field(default_factory=list)
    moves: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        self.steps.append(title)
        yield lambda done, total: self.moves.append((done, total))

    def note(self, line: str) -> None:
        self.notes.append(line)


@dataclass
class Bench:
    """A cache with sources in it, and programs that only pretend."""

    root: Path
    bin: Path
    compiler: Compiler

    def program(self, name: str, text: str) -> None:
        head = f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\narguments = sys.argv[1:]\n"
        calls = f"with open({str(self.bin / 'calls')!r}, 'a') as calls: calls.write({name!r} + '\\n')\n"
        (self.bin / name).write_text(head + calls + text)
        (self.bin / name).chmod(0o755)

    def calls(self) -> list[str]:
        path = self.bin / "calls"
        return path.read_text().split() if path.exists() else []

    def build(
        self, name: str = "rpi5", *, bar: Bar | None = None, force: bool = False, toolchain: str = "zig"
    ) -> Native:
        return build_native(targets.load(name), toolchain=toolchain, progress=bar or Bar(), force=force)

    def left(self, kind: str) -> list[str]:
        folder = self.root / kind
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def sources(folder: Path) -> Source:
    tree = folder / "vendor" / "llama.cpp"
    for name in ("LICENSE", "licenses/LICENSE-jsonhpp", "vendor/cpp-httplib/LICENSE"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"licence of {name}")
    (tree / "ggml").mkdir()
    lines = (f"set(GGML_VERSION_{part} {number})" for part, number in (("MAJOR", 0), ("MINOR", 25), ("PATCH", 3)))
    (tree / "ggml" / "CMakeLists.txt").write_text("\n".join(lines))
    return Source(folder, "0.3.36", "5" * 64)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path / "cache", tmp_path / "bin", Compiler())
    made.bin.mkdir()
    made.program("cmake", CMAKE)
    made.program("ninja", NINJA)
    got = sources(tmp_path / "cache" / "sources" / "llama")
    monkeypatch.setenv("EDGEKIT_CACHE", str(made.root))
    monkeypatch.setattr(toolchains, "TOOLCHAINS", {"zig": made.compiler})
    monkeypatch.setattr(native, "sdist", lambda _progress, _offline: got)
    monkeypatch.setattr(recipe, "tools", lambda: {"PATH": f"{made.bin}:/usr/bin:/bin"})
    return made


# -- what goes wrong


def test_an_unknown_toolchain(bench: Bench) -> None:
    with pytest.raises(OptionError, match="toolchain is 'msvc'; expected one of zig"):
        bench.build(toolchain="msvc")


def test_a_target_that_nothing_is_compiled_for(bench: Bench) -> None:
    with pytest.raises(OptionError, match="target host"):
        bench.build("host")
    assert bench.calls() == []


def test_cmake_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmake", None)
    with pytest.raises(MissingDependencyError, match=r"cmake, which compiles .* pip install 'edgekit\[cross\]'"):
        recipe.tools()


def test_cmake_and_ninja_are_only_asked_for_where_they_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> dict[str, str]:
        raise MissingDependencyError("cmake is not installed here")

    monkeypatch.setattr(recipe, "tools", absent)
    monkeypatch.setenv("PATH", f"{bench.bin}:/usr/bin:/bin")
    with pytest.raises(MissingDependencyError):
        bench.build()
    bench.compiler.local = False
    made = bench.build()
    assert made.record.seconds is None, "time in a container is not ours to read"
    assert native.finished(made.folder) == made


def test_the_targets_glibc_cannot_be_reached(bench: Bench) -> None:
    bench.compiler.glibc = "2.36"
    with pytest.raises(ToolchainError, match=r"against glibc 2.36, and arm64-generic has 2.31"):
        bench.build("arm64-generic")
    assert bench.calls() == []
    assert bench.left("compiles") == []
    assert bench.build("rpi5").record.glibc == "2.36", "a target that has it"


def failing(bench: Bench, said: str) -> EdgekitError:
    bench.program("ninja", f"print({said!r}); sys.exit(1)")
    with pytest.raises(EdgekitError) as raised:
        bench.build()
    return raised.value


def test_a_failed_compile_quotes_the_compiler_and_names_the_log(bench: Bench) -> None:
    error = failing(
        bench, "[3/9] Building a.cpp\na.cpp:7:1: error: unknown type name 'x'\nninja: build stopped: failed."
    )
    assert isinstance(error, ToolchainError)
    assert "a.cpp:7:1: error: unknown type name 'x'" in error.found
    (log,) = bench.root.glob("compiles/*/compile.log")
    assert str(log) in error.remedy
    assert "[3/9] Building a.cpp" in log.read_text()
    assert bench.left("runtimes") == []


def test_a_failed_configuration_too(bench: Bench) -> None:
    bench.program("cmake", "print('CMake Error: no compiler'); sys.exit(1)")
    with pytest.raises(ToolchainError, match=r"could not be configured \(CMake Error: no compiler\)"):
        bench.build()


def test_a_failure_without_words(bench: Bench) -> None:
    assert "status 1" in failing(bench, "").found


def test_a_full_disk_while_compiling(bench: Bench) -> None:
    error = failing(bench, "fatal error: error writing to /tmp/x.s: No space left on device")
    assert isinstance(error, OutputError)


def test_too_little_memory(bench: Bench) -> None:
    assert isinstance(failing(bench, "c++: fatal error: Killed signal terminated program cc1plus"), OutOfMemoryError)


def test_a_full_disk_while_collecting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutputError, match="no space left"):
        bench.build()
    monkeypatch.undo()
    assert not list(bench.root.glob("runtimes/*")), "nothing half-written"


def test_a_cache_that_is_a_file(bench: Bench) -> None:
    (bench.root / "compiles").write_text("")
    with pytest.raises(OutputError, match="cannot write the cache"):
        bench.build()


# -- what goes right


def test_made_once_with_everything_that_it_needs(bench: Bench) -> None:
    bar = Bar()
    made = bench.build(bar=bar)
    assert {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()} == {
        *recipe.PRODUCTS, "native.json", "LICENSES/llama.cpp", "LICENSES/cpp-httplib", "LICENSES/nlohmann-json",
    }  # fmt: skip
    assert all(os.access(made.folder / name, os.X_OK) for name in recipe.PRODUCTS)
    assert (made.record.llama_cpp_python, made.record.ggml, made.record.mtune) == ("0.3.36", "0.25.3", "cortex-a76")
    assert made.record.files["bin/llama-bench"].size == len("code of bin/llama-bench")
    assert bar.moves == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert "libc++ comes first" in bar.notes
    assert "10 to 20 minutes of CPU time" in bar.notes[0]
    assert bench.left("compiles") == [], "what is finished leaves no work behind"


def test_found_again_without_compiling(bench: Bench) -> None:
    made, bar = bench.build(), Bar()
    calls = bench.calls()
    assert bench.build(bar=bar) == made
    assert bench.calls() == calls
    assert bar.steps == []
    assert bench.left("compiles") == []


def test_shared_by_targets_with_the_same_cpu(bench: Bench) -> None:
    assert bench.build("jetson-orin-nano").folder == bench.build("jetson-agx-orin").folder
    assert bench.build("rpi4").folder != bench.build("rpi5").folder


@pytest.mark.parametrize("change", ["release", "flags"])
def test_another_compiler_or_flag_makes_another_runtime(bench: Bench, change: str) -> None:
    first = bench.build()
    setattr(bench.compiler, change, "2.0" if change == "release" else ("-O2",))
    assert bench.build().folder != first.folder


@pytest.mark.parametrize("damage", ["change", "remove", "add", "record", "huge record"])
def test_a_damaged_runtime_is_made_again(bench: Bench, damage: str) -> None:
    made = bench.build()
    tool = made.folder / "bin" / "llama-bench"
    if damage == "change":
        tool.write_text("evil of bin/llama-bench")
    elif damage == "remove":
        tool.unlink()
    elif damage == "add":
        (made.folder / "lib" / "libevil.so").touch()
    else:
        (made.folder / "native.json").write_text("{" + " " * (2 << 20 if damage == "huge record" else 0))
    again = bench.build()
    assert tool.read_text() == "code of bin/llama-bench"
    assert {**msgspec.structs.asdict(again.record), "seconds": 0} == {
        **msgspec.structs.asdict(made.record),
        "seconds": 0,
    }


def test_force_compiles_again(bench: Bench) -> None:
    bench.build()
    bench.build(force=True)
    assert bench.calls() == ["cmake", "ninja"] * 2


def test_a_failed_compile_goes_on(bench: Bench) -> None:
    bench.program("ninja", NINJA.replace("print(f", "number == 2 and sys.exit('error: stop')\n    print(f"))
    with pytest.raises(ToolchainError, match="error: stop"):
        bench.build()
    (tree,) = bench.root.glob("compiles/*/tree")
    first = (tree / "out" / "bin" / "llama-bench").stat().st_mtime_ns
    assert bench.left("compiles"), "kept to go on"
    bench.program("ninja", NINJA + "\nprint((tree / 'out/bin/llama-bench').stat().st_mtime_ns)\n")
    bar = Bar()
    bench.build(bar=bar)
    assert first
    assert "an earlier compile goes on" in bar.notes[0]
    assert bench.left("compiles") == []


# -- a compile that is killed


BUILD = "t.build_native(t.targets.load('rpi5'), progress=t.Bar())"
VERB = "from edgekit.cli.main import main; main(['runtime', 'build', '--target', 'rpi5'])"


def start(bench: Bench, hook: str, does: str = BUILD) -> subprocess.Popen[str]:
    """The same build in a process of its own; `hook` runs in ninja before each product."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_crossbuild_native as t; from pathlib import Path\n"
        "t.toolchains.TOOLCHAINS = {'zig': t.Compiler(ended=Path(sys.argv[2]) / 'ended')}\n"
        "s = t.Source(Path(sys.argv[2]) / 'sources' / 'llama', '0.3.36', '5' * 64)\n"
        "t.native.sdist = lambda *_: s\n"
        "t.recipe.tools = lambda: {'PATH': sys.argv[3]}\n"
        f"{does}\n"
    )
    arguments = [str(Path(__file__).parent), str(bench.root), f"{bench.bin}:/usr/bin:/bin"]
    environment = {**os.environ, "HOOK": hook}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, text=True, stderr=subprocess.PIPE
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_in_the_middle_and_gone_on(bench: Bench, tmp_path: Path) -> None:
    reached, go = tmp_path / "reached", tmp_path / "go"
    hook = f"if number == 3: Path({str(reached)!r}).touch()\n"
    hook += f"while number == 3 and not Path({str(go)!r}).exists(): time.sleep(0.01)"
    with start(bench, hook) as process:
        wait_for(reached)
        process.send_signal(signal.SIGKILL)
    (tree,) = bench.root.glob("compiles/*/tree")
    compiled = tree / "out" / "bin" / "llama-bench"
    before = compiled.stat().st_mtime_ns
    results: list[Native] = []
    thread = threading.Thread(target=lambda: results.append(bench.build()))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive(), "the compiler of the killed process still writes into the tree"
    assert compiled.stat().st_mtime_ns == before
    go.touch()
    thread.join(60)
    assert (results[0].folder / "lib" / "libllama.so").read_text() == "code of lib/libllama.so"
    assert bench.left("compiles") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_stopped_in_the_middle_leaves_no_compiler_and_goes_on(bench: Bench, tmp_path: Path, number: int) -> None:
    """The compiler that ninja started, and one that takes no notice of SIGTERM, go too."""
    reached = tmp_path / "reached"
    compiler = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    compiler += "from pathlib import Path; Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    hook = f"import subprocess\nif number == 3: subprocess.run([sys.executable, '-c', {compiler!r}, {str(reached)!r}])"
    with start(bench, hook, VERB) as process:
        wait_for(reached)
        wait_until(reached.read_text)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "edgekit: interrupted" in said) == (130, True), said
    wait_until(lambda: not Path("/proc", reached.read_text()).exists())
    assert (bench.root / "ended").exists(), "what runs in a container is ended as well"
    (tree,) = bench.root.glob("compiles/*/tree")
    assert (tree / "out" / "bin" / "llama-bench").exists()
    bar = Bar()
    assert (bench.build(bar=bar).folder / "lib" / "libllama.so").exists()
    assert "an earlier compile goes on" in bar.notes[0]


def test_what_ends_well_is_not_ended(bench: Bench, tmp_path: Path) -> None:
    bench.compiler.ended = tmp_path / "ended"
    bench.build()
    assert not (tmp_path / "ended").exists()


def wait_until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_at_once_compile_once(bench: Bench) -> None:
    with start(bench, "time.sleep(0.05)") as first, start(bench, "time.sleep(0.05)") as second:
        assert (first.wait(), second.wait()) == (0, 0)
    assert bench.calls() == ["cmake", "ninja"]


# -- in the cache


def test_listed_and_only_removed_when_nobody_makes_it(bench: Bench) -> None:
    made = bench.build()
    (entry,) = (entry for entry in cache.entries(bench.root) if entry.kind == cache.RUNTIMES)
    assert entry.what == made.folder.name
    assert not [entry for entry in cache.bounded_entries(bench.root) if entry.kind in cache.TOOLS], "outside the bound"
    work = bench.root / cache.COMPILES / "work"
    with making(work):
        work.mkdir()
        (unfinished,) = (entry for entry in cache.entries(bench.root) if entry.kind == cache.COMPILES)
        assert not cache.remove(bench.root, unfinished)
    assert cache.remove(bench.root, unfinished)
    assert cache.remove(bench.root, entry)


def test_the_record_can_be_read_by_others(bench: Bench) -> None:
    made = bench.build()
    assert json.loads((made.folder / "native.json").read_text())["toolchain"] == "zig"
    assert native.finished(made.folder) == made
    assert native.finished(bench.root) is None
