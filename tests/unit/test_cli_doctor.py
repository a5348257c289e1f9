"""Doctor: says "ok" only of what it tried, survives a crashing engine, and gives one command for each missing thing."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from edgekit import doctor
from edgekit.cli.main import main
from edgekit.doctor import ENGINES, EXTRAS, TESTED, Answer, cpu, engine_works, examine, remedies, run_python

ROOT = Path(__file__).parents[2]
OK = Answer("ok", "9.9")
MISSING = Answer("missing", "ModuleNotFoundError: No module named 'x'")
ILLEGAL = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *arguments])
    return int(left.value.code or 0)


def answers(monkeypatch: pytest.MonkeyPatch, **by_extra: Answer) -> None:
    known = {ENGINES[extra][1]: answer for extra, answer in by_extra.items()}
    monkeypatch.setattr(doctor, "run_python", lambda program: known[program])


def test_illegal_instruction_in_an_engine_is_told_and_does_not_kill_doctor() -> None:
    answer = run_python(ILLEGAL)
    assert answer == Answer("fails", "crashes on this CPU (illegal instruction)")


@pytest.mark.parametrize(
    ("program", "state", "text"),
    [
        ("import os; os.abort()", "fails", "SIGABRT"),
        ("import no_such_package_at_all", "missing", "no_such_package_at_all"),
        ("raise OSError('libgomp.so.1: cannot open\\nshared object')", "fails", "shared object"),
        ("assert False", "fails", "AssertionError"),
        ("import sys; sys.exit(3)", "fails", "no reason given"),
        ("print('noise'); print('1.2.3')", "ok", "1.2.3"),
        ("print('\\x1b[31mred')", "ok", "[31mred"),
    ],
)
def test_how_a_program_ended(program: str, state: str, text: str) -> None:
    answer = run_python(program)
    assert answer.state == state
    assert text in answer.text
    assert answer.text.isprintable()


def test_a_hanging_engine_is_given_up() -> None:
    assert run_python("import time; time.sleep(60)", timeout=0.3) == Answer("fails", "gave no answer within 0.3 s")


def test_a_module_in_the_working_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text("print('ran')")
    monkeypatch.chdir(tmp_path)
    assert run_python("import planted_module").state == "missing"


def test_one_engine_is_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers(monkeypatch, gguf=Answer("fails", "crashes on this CPU (illegal instruction)"), onnx=OK)
    assert run() == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("engine") and "llama.cpp" in line)
    assert "fails" in line
    assert "crashes on this CPU" in line
    assert "ok" not in line.split()
    assert "--force-reinstall" in shown


def test_no_engine_is_an_error_with_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, gguf=MISSING, onnx=MISSING)
    assert run() == 24
    captured = capsys.readouterr()
    assert "no engine works" in captured.err
    assert "pip install 'edgekit[gguf]'" in captured.out
    assert "pip install 'edgekit[onnx]'" in captured.out


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers(monkeypatch, gguf=MISSING, onnx=MISSING)
    assert run("--json") == 24
    data = json.loads(capsys.readouterr().out)
    assert data["engine_works"] is False
    states = {(f["group"], f["part"]): f["state"] for f in data["findings"]}
    assert states["engine", "onnxruntime"] == "missing"
    assert states["machine", "Python"] == "ok"
    assert "pip install 'edgekit[gguf]'" in data["remedies"]


def test_packages_missing_old_and_other_than_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = {"numpy": "1.2.9", "gguf": "0.20.1", "torch": "2.13.0+cpu", "click": TESTED["click"]}

    def version(name: str) -> str:
        if name in fake:
            return fake[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    found = examine(lambda _: OK)
    state = {f.part: f for f in found if f.group in EXTRAS}
    assert state["numpy"].state == "too old"
    assert state["numpy"].remedy == "pip install -U 'numpy>=1.26'"
    assert state["gguf"].state == "other version"
    assert state["torch"].state == "installed"
    assert state["click"].state == "installed"
    assert state["rich"].state == "missing"
    assert not engine_works(found), "an engine without the base packages cannot run a bundle"
    assert {"onnx", "transformers", "safetensors"} <= set(remedies(found)["pip install 'edgekit[build]'"])


def test_every_missing_thing_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    found = examine(lambda _: MISSING)
    assert all(f.remedy for f in found if f.state in ("missing", "fails", "too old"))
    assert {f.part for f in found if f.group == "tools" and f.state == "missing"} == {"C++ compiler", "cmake", "ninja"}


@pytest.mark.parametrize(
    ("cpuinfo", "board", "parts"),
    [
        ("model name\t: Fast CPU\nflags\t\t: fpu avx2 avx512_vnni sse\n", "", ("Fast CPU", "avx2 avx512_vnni")),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp crc32\n", "Raspberry Pi 5 Model B\0", ("Pi 5", "asimd asimddp")),
        ("", "", ("features unknown",)),
    ],
)
def test_cpu_in_words(cpuinfo: str, board: str, parts: tuple[str, ...]) -> None:
    shown = cpu(cpuinfo, board)
    assert shown.isprintable()
    for part in parts:
        assert part in shown


def test_tested_versions_are_those_of_the_constraints_file() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned == dict(TESTED)


def test_extras_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"base": project["dependencies"], **project["optional-dependencies"]}
    assert set(EXTRAS) == {"base", "gguf", "onnx", "cross", "build", "demo"}
    for extra, packages in EXTRAS.items():
        own = [line for line in wanted[extra] if not line.startswith("edgekit")]
        assert {re.split("[>=]=", line)[0]: re.split("[>=]=", line)[1] for line in own} == dict(packages)
