"""Continuous integration's own files: what can be said of them without GitHub.

The schemas are SchemaStore's, which check-jsonschema carries; zizmor looks for what an attacker could use. Neither asks
the network.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from edgekit.errors import GateError, InvalidMeasurementError

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTION = GITHUB / "actions" / "edgekit-bench"
SCRIPTS = sorted(GITHUB.rglob("*.sh"))
GUIDE = ROOT / "docs" / "hardware-ci.md"
BOARDS = "rpi5", "rpi4", "jetson-orin-nano"
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
each_yaml = pytest.mark.parametrize("path", [*WORKFLOWS, ACTION / "action.yml"], ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return parse(path.read_text(encoding="utf8"))


def parse(text: str) -> Any:
    """As YAML 1.2, where `on` is a word."""
    yaml = pytest.importorskip("ruamel.yaml")
    return yaml.YAML(typ="safe").load(text)


def program(name: str) -> str:
    found = Path(sys.executable).parent / name
    if not found.exists():
        pytest.skip(f"{name} is not installed")
    return str(found)


def steps(path: Path) -> list[dict[str, Any]]:
    """Of all jobs, or of the action."""
    data = read(path)
    if "runs" in data:
        return list(data["runs"]["steps"])
    return [step for job in data["jobs"].values() for step in job["steps"]]


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield f"{path.stem}.{name}", job


def fenced(kind: str) -> list[str]:
    """The YAML examples of the guide whose first line is `# KIND`."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(encoding="utf8"), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if block.startswith(f"# {kind}")]


def valid(schema: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [program("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --- linters ---------------------------------------------------------------------------------------------------------


def test_the_schemas_find_mistakes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    step: []\n")
    assert valid("github-workflows", wrong).returncode
    wrong.write_text(
        "name: n\ndescription: d\nruns:\n  using: composite\n  steps:\n    - run: echo\n      shel: bash\n"
    )
    assert valid("github-actions", wrong).returncode


def test_workflows_and_action_fit_their_schemas() -> None:
    found = valid("github-workflows", *WORKFLOWS)
    assert found.returncode == 0, found.stdout
    found = valid("github-actions", ACTION / "action.yml")
    assert found.returncode == 0, found.stdout


def test_the_guides_examples_fit_their_schemas(tmp_path: Path) -> None:
    for kind, schema in (("GitHub", "github-workflows"), ("GitLab", "gitlab-ci")):
        examples = fenced(kind)
        assert examples, kind
        for index, text in enumerate(examples):
            path = tmp_path / f"{kind}{index}.yml"
            path.write_text(text)
            found = valid(schema, path)
            assert found.returncode == 0, found.stdout


def test_an_audit_finds_nothing_an_attacker_could_use() -> None:
    command = [program("zizmor"), "--offline", "--no-config", "--color", "never", str(GITHUB)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_audit_finds_an_injection(tmp_path: Path) -> None:
    text = (GITHUB / "workflows" / "hardware.yml").read_text(encoding="utf8")
    path = tmp_path / ".github" / "workflows" / "hardware.yml"
    path.parent.mkdir(parents=True)
    path.write_text(text.replace('boards.py "$BOARDS"', 'boards.py "${{ inputs.boards }}"'))
    command = [program("zizmor"), "--offline", "--no-config", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "template-injection" in found.stdout


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    made: list[Path] = []
    for path in [*WORKFLOWS, ACTION / "action.yml"]:
        for step in steps(path):
            if "run" in step:
                made.append(tmp_path / f"{len(made)}.sh")
                made[-1].write_text(f"#!/bin/bash\n{step['run']}\n")
    command = [program("shellcheck"), *map(str, [*SCRIPTS, *made])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout


# --- what no linter asks ---------------------------------------------------------------------------------------------


@each_yaml
def test_actions_are_pinned_by_commit(path: Path) -> None:
    for line in path.read_text(encoding="utf8").splitlines():
        if match := re.match(r"\s*(?:- )?uses: (\S+)(.*)", line):
            if match[1].startswith("./"):
                continue
            assert PINNED.fullmatch(match[1]), line
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", match[2]), f"{line}: which version is that?"


def test_one_action_has_one_version() -> None:
    used = {step["uses"] for path in [*WORKFLOWS, ACTION / "action.yml"] for step in steps(path) if "uses" in step}
    names = [one.partition("@")[0] for one in used]
    assert len(names) == len(set(names))


@each_workflow
def test_triggers_that_give_a_fork_our_rights_are_not_used(path: Path) -> None:
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(read(path)["on"])


def test_no_pull_request_starts_the_hardware_workflow() -> None:
    workflow = read(GITHUB / "workflows" / "hardware.yml")
    assert set(workflow["on"]) == {"workflow_dispatch", "workflow_call"}
    condition = workflow["jobs"]["bench"]["if"]
    assert """contains(fromJSON('["push", "schedule", "workflow_dispatch"]'), github.event_name)""" in condition


@each_workflow
def test_tokens_read_only(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert set(job.get("permissions", {}).values()) <= {"read"}


@each_yaml
def test_no_secrets(path: Path) -> None:
    text = path.read_text(encoding="utf8")
    assert "secrets" not in text
    for step in steps(path):
        assert "github.token" not in str(step.get("env")), "in a variable every program of the step has it"
        assert (
            step.get("uses", "").partition("@")[0] != "actions/checkout" or step["with"]["persist-credentials"] is False
        )


@each_yaml
def test_nothing_is_put_into_a_script(path: Path) -> None:
    """An expression in a script is pasted into it before the shell reads it."""
    for step in steps(path):
        assert "${{" not in step.get("run", "")


def test_only_the_measurement_runs_on_our_machines() -> None:
    """And what checks code out there takes edgekit's, never a pull request's."""
    ours = {name for name, job in jobs() if "self-hosted" in str(job["runs-on"])}
    assert ours == {"hardware.bench"}
    for step in read(GITHUB / "workflows" / "hardware.yml")["jobs"]["bench"]["steps"]:
        if "checkout" in step.get("uses", ""):
            assert step["with"]["repository"] == "edgekit/edgekit"
            assert step["with"]["ref"] == "${{ inputs.edgekit }}"


def test_one_measurement_at_a_time_on_each_board() -> None:
    job = dict(jobs())["hardware.bench"]
    assert job["concurrency"] == {"group": "edgekit-board-${{ matrix.board }}", "cancel-in-progress": False}
    assert job["runs-on"] == ["self-hosted", "${{ matrix.board }}"]
    assert job["strategy"]["fail-fast"] is False
    assert "boards-reviewed" in job["environment"]


def test_every_job_ends() -> None:
    for name, job in jobs():
        assert 0 < job["timeout-minutes"] <= 180, name


def test_both_ways_to_start_take_the_same() -> None:
    on = read(GITHUB / "workflows" / "hardware.yml")["on"]
    by_hand, called = on["workflow_dispatch"]["inputs"], on["workflow_call"]["inputs"]
    assert {name: one["default"] for name, one in by_hand.items()} == {
        name: one["default"] for name, one in called.items()
    }
    assert tuple(called["boards"]["default"].split()) == BOARDS
    from edgekit.bench.plan import names

    assert set(by_hand["protocol"]["options"]) == set(names())


def test_every_input_of_the_action_is_used_and_every_used_one_declared() -> None:
    data, text = read(ACTION / "action.yml"), (ACTION / "action.yml").read_text(encoding="utf8")
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(data["inputs"])
    for path in WORKFLOWS:
        for step in steps(path):
            if "edgekit-bench" in step.get("uses", ""):
                assert set(step["with"]) <= set(data["inputs"])
                required = {name for name, one in data["inputs"].items() if one.get("required")}
                assert required <= set(step["with"])


def test_continuous_integration_is_one_script() -> None:
    (job,) = read(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ['sudo -E env PATH="$PATH" bash .ci/run']
    assert (ROOT / ".ci" / "run").is_file()


# --- the scripts -----------------------------------------------------------------------------------------------------


LISTING = json.dumps([{"name": board, "tier": 3} for board in (*BOARDS, "host")])


def choose(wanted: str, listing: str = LISTING) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GITHUB / "boards.py"), wanted]
    return subprocess.run(command, input=listing, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("wanted", ["", "  ,", "rpi6", "rpi5 rpi6", "rpi5;ls", "rpi5\u001b[31m", "../rpi5", "-h"])
def test_boards_that_are_no_targets_are_refused(wanted: str) -> None:
    found = choose(wanted)
    assert found.returncode == 1
    assert not found.stdout
    assert "\x1b" not in found.stderr


def test_boards_come_from_the_target_list(cli: Cli) -> None:
    listing = cli("targets", "list", "--json").out
    assert choose(" ".join(BOARDS), listing).stdout == f"boards={json.dumps(list(BOARDS))}\n"
    assert choose("rpi4, rpi5,rpi4").stdout == 'boards=["rpi4", "rpi5"]\n'
    assert choose("nano", listing='[{"name": "nano"}]').stdout == 'boards=["nano"]\n'


STUB = """\
#!/bin/sh
printf '%s\\n' "$@" >"$RECORD"
while [ "$#" -gt 0 ]; do case $1 in --summary) summary=$2 ;; --junit) junit=$2 ;; esac; shift; done
echo '::set-env name=PATH::/hostile'
echo '<testsuites/>' >"$junit"
"""
VARIABLES = {"DEVICE": "rpi5", "PROTOCOL": "smoke", "BUNDLE": "-strange; touch here", "GATE": "true"}


def measure(tmp_path: Path, body: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run bench.sh with a stand-in for edgekit; returns how it ended and the step's outputs."""
    environment = prepare(tmp_path, body, **variables)
    found = subprocess.run(
        [str(ACTION / "bench.sh")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return found, outputs(tmp_path)


def prepare(tmp_path: Path, body: str, **variables: str) -> dict[str, str]:
    stub = tmp_path / "edgekit"
    stub.write_text(STUB + body)
    stub.chmod(0o755)
    for name in ("output", "step_summary"):
        (tmp_path / name).touch()
    return {
        "PATH": os.environ["PATH"], "RUNNER_TEMP": str(tmp_path), "RECORD": str(tmp_path / "record"),
        "PROGRAM": str(stub), "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "step_summary"), **VARIABLES, **variables,
    }  # fmt: skip


def outputs(tmp_path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, "PASS"),
        (GateError.exit_code, "FAIL"),
        (InvalidMeasurementError.exit_code, "INVALID"),
        (1, "ERROR"),
        (37, "ERROR"),
    ],
)
def test_exit_codes_become_verdicts(tmp_path: Path, code: int, verdict: str) -> None:
    found, said = measure(tmp_path, f'echo "# Report" >"$summary"\nexit {code}\n')
    assert found.returncode == code, found.stderr
    assert said["verdict"] == verdict
    assert (Path(said["results"]) / "junit.xml").exists()
    assert (tmp_path / "step_summary").read_text() == "# Report\n"


def test_an_invalid_measurement_may_be_a_warning(tmp_path: Path) -> None:
    found, said = measure(tmp_path, f"exit {InvalidMeasurementError.exit_code}\n", ON_INVALID="warn")
    assert (found.returncode, said["verdict"]) == (0, "INVALID")
    assert "::warning" in found.stdout.splitlines()[-1]
    found, _ = measure(tmp_path, f"exit {GateError.exit_code}\n", ON_INVALID="warn")
    assert found.returncode == GateError.exit_code


def test_what_is_asked_of_edgekit(tmp_path: Path) -> None:
    measure(tmp_path, "", TARGET="rpi4", BASELINE="old results/bench.json")
    given = (tmp_path / "record").read_text().splitlines()
    assert given[0] == "bench"
    assert given[-2:] == ["--", "-strange; touch here"]
    pairs = dict(itertools.pairwise(given))
    assert (pairs["--device"], pairs["--target"], pairs["--protocol"]) == ("rpi5", "rpi4", "smoke")
    assert pairs["--baseline"] == "old results/bench.json"
    assert "--gate" in given
    assert {Path(pairs[f"--{kind}"]).name for kind in ("junit", "json", "html", "summary")} == {
        "junit.xml", "bench.json", "report.html", "summary.md",
    }  # fmt: skip
    assert not (tmp_path / "here").exists()


def test_without_gates_nothing_passes(tmp_path: Path) -> None:
    _, said = measure(tmp_path, "", GATE="false")
    assert said["verdict"] == "MEASURED"
    assert "--gate" not in (tmp_path / "record").read_text().splitlines()


def test_a_board_gives_the_runner_no_commands(tmp_path: Path) -> None:
    """They would be taken from the log; not while the word to begin again is not said."""
    first, _ = measure(tmp_path, "exit 1\n")
    lines = first.stdout.splitlines()
    word = re.fullmatch(r"::stop-commands::([0-9a-f]{32})", lines[0])
    assert word is not None
    assert lines.index("::set-env name=PATH::/hostile") < lines.index(f"::{word[1]}::")
    second, _ = measure(tmp_path, "exit 1\n")
    assert word[1] not in second.stdout


def test_no_report_is_said_in_the_summary(tmp_path: Path) -> None:
    measure(tmp_path, "exit 37\n")
    assert "exit code 37" in (tmp_path / "step_summary").read_text()


def test_a_huge_summary_is_cut(tmp_path: Path) -> None:
    found, _ = measure(tmp_path, 'head -c 3000000 /dev/zero | tr "\\0" x >"$summary"\n')
    assert found.returncode == 0
    assert (tmp_path / "step_summary").stat().st_size == 1_000_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_job_interrupts_the_measurement(tmp_path: Path, number: signal.Signals) -> None:
    body = 'trap \'echo left >"$RECORD"; exit 130\' INT\ntouch "$RECORD.ready"\nwhile :; do sleep 0.05; done\n'
    environment = prepare(tmp_path, body)
    process = subprocess.Popen([str(ACTION / "bench.sh")], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "record.ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert (tmp_path / "record").read_text() == "left\n"
    assert outputs(tmp_path)["verdict"] == "ERROR"


def test_installed_means_what_is_on_the_path(tmp_path: Path) -> None:
    environment = prepare(tmp_path, "", EDGEKIT="installed")
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    subprocess.run([str(ACTION / "install.sh")], env=environment, check=True, timeout=60)
    assert outputs(tmp_path)["program"] == str(tmp_path / "edgekit")


def test_installed_but_not_there_is_said(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    environment = prepare(tmp_path, "", EDGEKIT="installed", PATH=str(tools))
    command = [str(ACTION / "install.sh")]
    found = subprocess.run(command, env=environment, check=False, timeout=60, capture_output=True, text=True)
    assert found.returncode == 1
    assert "no edgekit on this runner's PATH" in found.stdout
    assert not outputs(tmp_path)


# --- the guide -------------------------------------------------------------------------------------------------------


def test_the_guide_names_what_is_there() -> None:
    text = GUIDE.read_text(encoding="utf8")
    data = read(ACTION / "action.yml")
    for name in data["inputs"]:
        assert f"`{name}`" in text, name
    for name in data["outputs"]:
        assert f"`{name}`" in text, name
    for name in read(GITHUB / "workflows" / "hardware.yml")["on"]["workflow_call"]["inputs"]:
        assert f"`{name}`" in text, name
    for board in BOARDS:
        assert f"`{board}`" in text, board
    for path in set(re.findall(r"`((?:\.github|tests|docs)/[\w./-]+)`", text)):
        assert (ROOT / path).exists(), path


def test_the_guides_examples_pin_and_gate_as_the_workflow_does() -> None:
    for text in fenced("GitHub"):
        workflow = parse(text)
        assert not {"pull_request_target", "workflow_run"} & set(workflow["on"])
        for job in workflow["jobs"].values():
            if "uses" in job and "hardware.yml" in job["uses"]:
                assert "pull_request" not in workflow["on"]
            assert "self-hosted" not in str(job.get("runs-on"))


def test_the_hardware_tests_say_what_to_type() -> None:
    text = (ROOT / "tests" / "hardware" / "test_boards.py").read_text(encoding="utf8")
    command = re.search(r'^COMMAND = "(.+)"$', text, re.MULTILINE)
    assert command is not None
    assert text.count(command[1]) == 2, "in its own head too"
    assert command[1] in GUIDE.read_text(encoding="utf8")
