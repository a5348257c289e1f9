"""What of the emulator needs no emulator: refusals, sensors, the image of a machine's system, and counting."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import emulated
import pytest
from emulated import PLAIN, SDOT, program
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit import targets
from edgekit.emulator import binfmt, board, counting, kernel, leash, machine, needs, userland
from edgekit.emulator.__main__ import main
from edgekit.emulator.sensors import INA3221, STATES, VCGENCMD, Readings, Sensors, Throttled, files
from edgekit.errors import EmulatorError, OptionError

BOARDS = [name for name in targets.names() if targets.load(name).soc.arch == "aarch64"]
LOOP = (0xD2807D01, 0xF1000421, 0x54FFFFE1, *PLAIN)
"""mov x1, 1000; then 1000 times: subs x1, x1, 1; b.ne back."""


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any of the tools."""
    monkeypatch.setattr(needs, "path_of", lambda _program: None)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("use", "package"),
    [("userland", "mmdebstrap"), ("board", "qemu-user-static"), ("machine", "qemu-system-arm"), ("count", "qemu-user")],
)
def test_missing_tools_are_named_with_their_packages(bare: None, use: needs.Use, package: str) -> None:
    with pytest.raises(EmulatorError, match=rf"not installed here — sudo apt install .*{package}"):
        needs.require(use)
    with pytest.raises(EmulatorError, match="sudo apt install openssh-server"):
        needs.program("sshd")


def test_boards_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert any("starting an emulated board needs root" in str(fault) for fault in needs.missing("board"))
    assert not any("root" in str(fault) for fault in needs.missing("count"))


def test_an_arm64_machine_is_told_that_its_own_processor_would_run_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert any("arm64 itself" in str(fault) for fault in needs.missing("board"))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("disabled\ninterpreter /x\nflags: POF\n", "is disabled"),
        ("enabled\ninterpreter /x\nflags: PO\n", "has the flags 'PO'; expected F"),
        ("enabled\ninterpreter /x\nflags: \n", "has the flags ''; expected F"),
    ],
)
def test_a_registration_that_does_not_work_in_a_chroot_is_refused(tmp_path: Path, entry: str, words: str) -> None:
    (tmp_path / "register").touch()
    (tmp_path / binfmt.NAME).write_text(entry, encoding="ascii")
    with pytest.raises(EmulatorError, match=words):
        binfmt.register(tmp_path)


@pytest.mark.parametrize(("flags", "taken"), [("OPF", True), ("OP", False), ("", False)])
def test_a_packages_registration_is_taken_only_if_it_works_in_a_chroot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, taken: bool
) -> None:
    (tmp_path / "register").touch()
    packaged = tmp_path / "packaged.conf"
    packaged.write_text(rf":{binfmt.NAME}:M::\x7f\x45\x4c\x46\x02::/usr/bin/packaged:{flags}", encoding="ascii")
    monkeypatch.setattr(binfmt, "_DEBIAN", packaged)
    binfmt.register(tmp_path)
    line = (tmp_path / "register").read_text(encoding="ascii")
    assert ("/usr/bin/packaged" in line) == taken
    assert "F" in line.rpartition(":")[2]


def test_registering_writes_once_and_only_when_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "register").touch()
    binfmt.register(tmp_path)
    line = (tmp_path / "register").read_text(encoding="ascii")
    assert line.startswith(rf":{binfmt.NAME}:M::\x7f\x45\x4c\x46\x02")
    assert "F" in line.rsplit(":", 1)[1]
    (tmp_path / "register").write_text("", encoding="ascii")
    (tmp_path / binfmt.NAME).write_text("enabled\nflags: OCF\n", encoding="ascii")
    binfmt.register(tmp_path)
    assert (tmp_path / "register").read_text(encoding="ascii") == ""


def test_a_kernel_without_binfmt_is_told(tmp_path: Path) -> None:
    assert "no binfmt_misc" in str(next(binfmt.faults(tmp_path / "none")))


def test_a_skip_is_a_failure_where_the_emulator_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "missing", lambda _use: [EmulatorError("nothing is here")])
    monkeypatch.setenv(emulated.REQUIRED, "0")
    with pytest.raises(pytest.skip.Exception, match="nothing is here"), emulated.board("rpi5"):
        pass
    monkeypatch.setenv(emulated.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="nothing is here"), emulated.machine("rpi5"):
        pass


@pytest.mark.parametrize("name", ["test_native", "test_audit_real"])
def test_so_is_one_for_want_of_what_runtimes_are_checked_with(name: str, tmp_path: Path) -> None:
    """The files themselves, on a machine without qemu-user and cross compiler."""
    test = Path(__file__).parents[1] / "integration" / f"{name}.py"
    environment = {**os.environ, emulated.REQUIRED: "1", "PATH": str(tmp_path)}
    wanted = "libc_chooses or without_names or gcc_links"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "-k", wanted, str(test)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stdout[-2000:]
    assert f"{emulated.REQUIRED}=1, and" in done.stdout
    assert "skipped" not in done.stdout


def test_a_package_that_is_missing_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.installed("json")
    monkeypatch.setenv(emulated.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_package_at_all is not installed"):
        emulated.installed("json", "no_such_package_at_all")


def test_a_target_without_a_processor_is_refused() -> None:
    with pytest.raises(EmulatorError, match=r"host cannot be emulated: it names no CPU; expected toolchain.qemu_cpu"):
        board.qemu_cpu(targets.load("host"))
    with pytest.raises(EmulatorError, match="names no CPU"), machine.whole_board(targets.load("host")):
        pass


def test_a_python_that_no_debian_has_is_refused() -> None:
    jetson = targets.load("jetson-orin-nano")
    jetson = replace(jetson, runtime=replace(jetson.runtime, python="3.10"))
    with pytest.raises(EmulatorError, match=r"no Debian release has Python 3.10.*--release bookworm"):
        userland.release_of(jetson)


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(EmulatorError, match=r"it went wrong \(E: no such suite\) — try again"):
        userland.run(["sh", "-c", "echo E: no such suite >&2; echo more >&2; exit 3"], "it went wrong", "try again")
    with pytest.raises(EmulatorError, match=r"it went wrong \(it ended with 3\)"):
        userland.run(["sh", "-c", "exit 3"], "it went wrong")
    with pytest.raises(EmulatorError, match=r"it went wrong \(/no/such/tool: No such file"):
        userland.run(["/no/such/tool"], "it went wrong")


def test_the_archive_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(userland.MIRROR_VARIABLE, "http://mirror.invalid/debian")
    assert userland.archive() == "http://mirror.invalid/debian"
    monkeypatch.delenv(userland.MIRROR_VARIABLE)
    monkeypatch.setenv("PATH", "/nowhere")
    assert userland.archive() == userland.MIRROR


@pytest.mark.parametrize("arguments", [[], ["start"], ["setup", "--release", "sid"], ["fly"]])
def test_bad_arguments_end_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m edgekit.emulator" in capsys.readouterr().err


def test_the_command_line_says_in_one_sentence_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--target", "host"]) == EmulatorError.exit_code
    assert main(["start", "--target", "rpi9"]) == 16
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert "Traceback" not in err


def test_check_names_every_use_and_what_it_lacks(bare: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == EmulatorError.exit_code
    out = capsys.readouterr().out
    assert all(f"{use}: \n  the emulator needs" in out for use in ("fast boards", "whole boards"))


def test_the_makefile_installs_every_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packages"]) == 0
    assert set(capsys.readouterr().out.split()) == set(needs.packages()) >= {tool.package for tool in needs.TOOLS}
    assert "python -B -m edgekit.emulator install" in Path(__file__).parents[2].joinpath("Makefile").read_text("utf8")


# --- sensors ---------------------------------------------------------------------------------------------------------


def watched(name: str) -> tuple[Sensors, dict[str, str]]:
    """The sensors of a target and what they last wrote."""
    shown: dict[str, str] = {}

    def write(files: Mapping[str, str]) -> None:
        shown.update(files)

    return Sensors(targets.load(name), write), shown


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(OptionError, match="'warm'; expected one of cool, hot, throttled"):
        watched("rpi5")[0].set("warm")


def test_what_throttled_stays_visible_until_the_board_restarts() -> None:
    sensors, shown = watched("rpi5")
    answers = []
    for state in ("cool", "under-voltage", "cool", "hot", "throttled", "cool"):
        sensors.set(state)
        answers.append(shown[f"{VCGENCMD}/get_throttled"].strip())
    assert answers == [
        "throttled=0x0", "throttled=0x30003", "throttled=0x30000", "throttled=0xb0008", "throttled=0xf0006",
        "throttled=0xf0000",
    ]  # fmt: skip
    sensors.restart()
    assert shown[f"{VCGENCMD}/get_throttled"] == "throttled=0x0\n"
    sensors.set("throttled-earlier")
    assert shown[f"{VCGENCMD}/get_throttled"] == "throttled=0x60000\n"


@given(st.floats(0, 15), st.sampled_from([Throttled.NONE, Throttled.UNDER_VOLTAGE]))
def test_the_rails_of_a_pi5_add_up(watts: float, now: Throttled) -> None:
    text = files(targets.load("rpi5"), Readings(watts=watts, now=now))[f"{VCGENCMD}/pmic_read_adc"]
    read = {line.split()[0]: float(line.rsplit("=", 1)[1][:-1]) for line in text.splitlines()}
    rails = [name[:-2] for name in read if name.endswith("_A")]
    assert len(rails) == 12
    assert sum(read[f"{rail}_A"] * read[f"{rail}_V"] for rail in rails) == pytest.approx(watts, abs=1e-5)
    assert (read["EXT5V_V"] < 4.63) == (now == Throttled.UNDER_VOLTAGE)


@pytest.mark.parametrize("watts", [0.0, 7.0])
def test_a_jetsons_monitor_adds_up(watts: float) -> None:
    for name in ("jetson-orin-nano", "jetson-agx-orin"):
        target = targets.load(name)
        shown = files(target, Readings(watts=watts))
        channels = {
            shown[f"{INA3221}/in{n}_label"].strip(): (int(shown[f"{INA3221}/in{n}_input"]),
                                                     int(shown[f"{INA3221}/curr{n}_input"]))
            for n in (1, 2, 3)
        }  # fmt: skip
        wanted = target.power.rails or tuple(channels)
        assert sum(channels[rail][0] * channels[rail][1] for rail in wanted) / 1e6 == pytest.approx(watts, abs=0.02)
        assert not any(path.startswith(VCGENCMD) for path in shown)


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("state", STATES)
def test_every_board_can_show_every_state(name: str, state: str) -> None:
    sensors, shown = watched(name)
    sensors.set(state)
    degrees = int(shown["sys/class/thermal/thermal_zone0/temp"]) / 1000
    assert degrees == STATES[state].temperature_c
    limit = targets.load(name).thermal.throttle_c
    if limit and state in ("hot", "throttled"):
        assert degrees > limit
    assert all(text.endswith("\n") and not path.startswith("/") for path, text in shown.items())


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_is_recognised_by_its_own_model_name(name: str) -> None:
    target = targets.load(name)
    assert target.probe.model_match in board.model(target)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    board.write_files(tmp_path, {"a/b": "one"}, 0o755)
    with (tmp_path / "a" / "b").open(encoding="utf8") as reader:
        board.write_files(tmp_path, {"a/b": "two"})
        assert reader.read() == "one", "who reads the old file is not disturbed"
    assert (tmp_path / "a" / "b").read_text(encoding="utf8") == "two"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.binary(max_size=40), max_size=4))
def test_the_image_of_a_system_holds_what_the_folder_holds(contents: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "deep").mkdir()
        for name, content in contents.items():
            (root / "deep" / name).write_bytes(content)
        (root / "link").symlink_to("deep/a")
        out = io.BytesIO()
        kernel.image(out, root, {"deep/a": (stat.S_IFREG | 0o755, b"wins")})
    found = unpacked(out.getvalue())
    assert found.pop("link") == (stat.S_IFLNK | 0o777, b"deep/a")
    assert stat.S_ISDIR(found.pop("deep")[0])
    assert found.pop("deep/a") == (stat.S_IFREG | 0o755, b"wins")
    assert {name: content for name, (_, content) in found.items()} == {
        f"deep/{name}": content for name, content in contents.items() if name != "a"
    }


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A reader of "newc" archives that was not written from the writer: fields by their offsets in the format."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = field[1], field[6], field[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = at + (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        at = start + (size + 3) // 4 * 4


# --- processes -------------------------------------------------------------------------------------------------------


def test_what_is_on_a_leash_ends_with_its_owner() -> None:
    command = [sys.executable, leash.__file__, "sleep", "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        child = child_of(process.pid)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) != 0
    assert not Path(f"/proc/{child}").exists()


def test_what_is_on_a_leash_ends_when_the_leash_is_killed() -> None:
    with subprocess.Popen([sys.executable, leash.__file__, "sleep", "600"], stdin=subprocess.PIPE) as process:
        child = child_of(process.pid)
        process.kill()
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def test_a_leash_passes_the_exit_code_on() -> None:
    command = [sys.executable, leash.__file__, "sh", "-c", "exit 5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(30) == 5


def child_of(pid: int) -> int:
    """The one child of a process, as soon as it is there."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: path.read_text(encoding="ascii").split() != [])
    return int(path.read_text(encoding="ascii").split()[0])


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "count"), [(PLAIN, 3), (SDOT, 4), (LOOP, 1 + 2 * 1000 + 3)])
def test_every_instruction_is_counted_once(tmp_path: Path, words: tuple[int, ...], count: int) -> None:
    emulated.demand("count")
    path = program(tmp_path / "program", words)
    assert [counting.instructions([str(path)], "cortex-a76") for _ in range(2)] == [count, count]


def test_a_program_that_the_processor_cannot_run_is_told(tmp_path: Path) -> None:
    emulated.demand("count")
    path = program(tmp_path / "program", SDOT)
    with pytest.raises(EmulatorError, match=r"ended with -4 under QEMU, CPU cortex-a72"):
        counting.instructions([str(path)], "cortex-a72")
    with pytest.raises(EmulatorError, match="under QEMU, CPU cortex-a999"):
        counting.instructions([str(path)], "cortex-a999")
    (tmp_path / "text").write_text("no program", encoding="ascii")
    with pytest.raises(EmulatorError, match="under QEMU"):
        counting.instructions([str(tmp_path / "text")], "cortex-a76")


def test_the_plugin_is_compiled_once(own_cache: Path) -> None:
    emulated.demand("count")
    first = counting.plugin(1)
    made = first.stat().st_mtime_ns
    assert counting.plugin(1) == first
    assert first.stat().st_mtime_ns == made
    assert first.is_relative_to(own_cache)
