"""Setting the emulator up as root: no service is started, and the user who called sudo keeps a cache of one's own."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from edgekit import targets
from edgekit.emulator import board, install, machine, needs, sudo, userland
from edgekit.emulator.__main__ import main
from edgekit.emulator.sensors import Sensors
from edgekit.errors import EmulatorError
from edgekit.files import cache_dir

# --- packages --------------------------------------------------------------------------------------------------------

APT = """#!/bin/sh
echo "apt-get $*" >> "$LOG"
"$POLICY" ssh start; echo "policy $?" >> "$LOG"
case $1 in install) touch "$(dirname "$0")/sshd"; [ -z "$CUT" ] || kill -INT "$CUT" ;; esac
[ "$1" != "$FAILING" ] || exit 100
exit "${FAILS:-0}"
"""


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with an apt-get that asks the policy as a package's script does; returns where the policy is."""
    bin_, policy = tmp_path / "bin", tmp_path / "sbin" / "policy-rc.d"
    bin_.mkdir()
    policy.parent.mkdir()
    for name in ("systemctl", "update-rc.d"):
        (bin_ / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "$LOG"\n')
    (bin_ / "apt-get").write_text(APT)
    for path in bin_.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("POLICY", str(policy))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(needs, "path_of", lambda program: program if (bin_ / program).exists() else None)
    return policy


def log(policy: Path) -> list[str]:
    path = policy.parents[1] / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_installing_needs_root(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EmulatorError, match="installing packages needs root"):
        install.install(system)
    assert not log(system)


def test_a_failure_of_apt_is_told_and_the_policy_goes(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "100")
    with pytest.raises(EmulatorError, match="apt-get update ended with 100"):
        install.install(system)
    assert not system.exists()


@pytest.mark.parametrize(("failing", "disabled"), [("update", False), ("install", True)])
def test_a_server_that_a_failing_apt_unpacked_does_not_start_with_the_machine(
    system: Path, monkeypatch: pytest.MonkeyPatch, failing: str, disabled: bool
) -> None:
    monkeypatch.setenv("FAILING", failing)
    with pytest.raises(EmulatorError, match=f"apt-get {failing} ended with 100"):
        install.install(system)
    assert ("systemctl mask ssh.service ssh.socket" in log(system)) == disabled
    assert not system.exists()


def test_nor_does_one_that_ctrl_c_left(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUT", str(os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        install.install(system)
    assert "systemctl mask ssh.service ssh.socket" in log(system)
    assert not system.exists()


@pytest.mark.parametrize("moved", [True, False])
def test_ctrl_c_while_the_policy_is_put_in_place(system: Path, monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    real = Path.replace
    system.write_text("mine")

    def interrupted(path: Path, target: Path) -> Path:
        if path == system:
            monkeypatch.setattr(Path, "replace", real)
            if moved:
                real(path, target)
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), install.nothing_started(system):
        pytest.fail("interrupted before")
    assert [path.name for path in system.parent.iterdir()] == ["policy-rc.d"]
    assert system.read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_ends_it_in_order(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    monkeypatch.setattr("edgekit.emulator.__main__.install", lambda: signal.raise_signal(number))
    try:
        signal.signal(number, lambda *_: pytest.fail("not handled"))
        assert main(["install"]) == 130
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_machine_without_apt(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmulatorError, match="apt-get cannot be started .*Debian or Ubuntu"):
        install.install(system)
    assert not system.exists()


def test_no_service_is_started_while_packages_are_installed(system: Path) -> None:
    install.install(system)
    said = log(system)
    assert [line for line in said if line.startswith("policy")] == ["policy 101"] * 2
    assert set(needs.packages()) <= set(said[2].split())
    assert not system.exists(), "services of later packages are none of ours"
    assert {"systemctl mask ssh.service ssh.socket", "update-rc.d ssh disable"} <= set(said), "nor with the machine"


def test_a_server_that_was_there_stays_as_it_is(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "path_of", lambda program: f"/usr/sbin/{program}")
    install.install(system)
    assert not [line for line in log(system) if line.startswith(("systemctl", "update-rc.d"))]


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_policy_that_was_there_has_its_place_again(system: Path, kind: str) -> None:
    real = system.with_name("mine")
    if kind != "dangling link":
        (real if kind == "link" else system).write_text("#!/bin/sh\nexit 0\n")
        (real if kind == "link" else system).chmod(0o755)
    if kind != "file":
        system.symlink_to(real)
    install.install(system)
    assert log(system)[1] == "policy 101"
    assert system.is_symlink() == (kind != "file")
    if kind != "dangling link":
        assert system.read_text() == "#!/bin/sh\nexit 0\n"
    assert sorted(path.name for path in system.parent.iterdir()) == (
        ["policy-rc.d"] if kind in ("file", "dangling link") else ["mine", "policy-rc.d"]
    )


def test_what_a_killed_run_left_is_put_right(system: Path) -> None:
    system.write_text("mine")
    held = install.nothing_started(system)
    held.__enter__()
    install.install(system)
    assert system.read_text() == "mine"
    assert [path.name for path in system.parent.iterdir()] == ["policy-rc.d"]


def test_the_makefile_installs_that_way() -> None:
    text = Path(__file__).parents[2].joinpath("Makefile").read_text("utf8")
    assert "python -B -m edgekit.emulator install" in text
    assert "apt-get" not in text


# --- sudo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root, called through sudo by a user whose home this is."""
    made = tmp_path / "home"
    made.mkdir()
    for name in ("EDGEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path / "root"))
    monkeypatch.setenv("SUDO_UID", "4711")
    monkeypatch.setenv("SUDO_GID", "4712")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(made)) if uid == 4711 else None)
    return made


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """What was given to whom; to the tests everything belongs to root."""
    found: dict[str, tuple[int, int]] = {}

    def chown(path: Path, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        assert path.lstat()
        found[str(path)] = uid, gid

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(sudo, "_owner", lambda path: 0 if path.exists() or path.is_symlink() else None)
    return found


@pytest.mark.parametrize(("uid", "gid"), [("", ""), ("0", "0"), ("x", "1"), ("-1", "1"), ("1" * 11, "1"), ("5", "")])
def test_no_caller(uid: str, gid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert sudo.caller({"SUDO_UID": uid, "SUDO_GID": gid}) is None


def test_a_plain_user_with_odd_variables_is_no_caller(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sudo.caller() == sudo.Caller(4711, 4712, home)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sudo.caller() is None


def test_what_root_makes_is_in_the_callers_cache_and_theirs(home: Path, given: dict[str, tuple[int, int]]) -> None:
    with sudo.callers_cache():
        root = cache_dir()
        assert root == home / ".cache" / "edgekit"
        for name in (
            f"{userland.SYSTEM}bookworm-1/etc/shadow",
            "kernel-bookworm-1/modules/a.ko",
            "count-1/libcount.so",
        ):
            (root / "envs" / name).parent.mkdir(parents=True)
            (root / "envs" / name).touch()
        (root / ".lock").touch()
        (root / "envs" / ".x.lock").touch()
        (root / "stages").mkdir()
        (root / "stages" / "deep").touch()
    theirs = {Path(path).relative_to(home).as_posix() for path in given}
    assert {
        ".cache", ".cache/edgekit", ".cache/edgekit/.lock", ".cache/edgekit/envs", ".cache/edgekit/envs/.x.lock",
        ".cache/edgekit/envs/kernel-bookworm-1/modules/a.ko", ".cache/edgekit/envs/count-1/libcount.so",
    } <= theirs  # fmt: skip
    assert not [name for name in theirs if "shadow" in name or "deep" in name], "a system's files are root's"
    assert str(home) not in given
    assert set(given.values()) == {(4711, 4712)}


def test_they_get_it_also_when_it_fails(home: Path, given: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(EmulatorError), sudo.callers_cache():
        cache_dir().mkdir(parents=True)
        raise EmulatorError("no network")
    assert str(home / ".cache" / "edgekit") in given


def test_a_cache_that_is_named_is_used(
    home: Path, given: dict[str, tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "roots").mkdir()
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "roots"))
    with sudo.callers_cache():
        (cache_dir() / "envs").mkdir()
    assert not given, "a folder of root's elsewhere stays root's"


def test_without_sudo_nothing_is_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "")
    with sudo.callers_cache():
        assert "EDGEKIT_CACHE" not in {name for name, value in os.environ.items() if value}


def test_the_systems_can_be_removed(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("board-bookworm-1/etc", "optimum-1"):
        (own_cache / "envs" / name).mkdir(parents=True)
    assert main(["remove"]) == 0
    assert "removed" in capsys.readouterr().out
    assert [path.name for path in (own_cache / "envs").iterdir() if not path.name.startswith(".")] == ["optimum-1"]


# --- a machine that starts -------------------------------------------------------------------------------------------


def starting(folder: Path, ssh: str, monkeypatch: pytest.MonkeyPatch) -> board.Board:
    """A board whose ssh is this shell script."""
    (folder / "ssh").write_text(f"#!/bin/sh\n{ssh}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    rpi5 = replace(targets.load("rpi5"))
    return board.Board(rpi5, 1, folder / "key", folder / "known", Sensors(rpi5, lambda _files: None))


def test_each_attempt_has_a_time_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of options that are given twice ssh takes the first."""
    made = starting(tmp_path, f'printf "%s\\n" "$@" > "{tmp_path}/arguments"', monkeypatch)
    with subprocess.Popen(["sleep", "60"]) as process:
        assert machine._answers(made, process)
        process.kill()
    limits = [line for line in (tmp_path / "arguments").read_text().splitlines() if line.startswith("ConnectTimeout")]
    assert limits == ["ConnectTimeout=10", "ConnectTimeout=60"]


def test_an_attempt_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU takes the connection and nobody says a word: ssh has connected, and waits."""
    made = starting(
        tmp_path, f'[ -e "{tmp_path}/tried" ] && exit 0; touch "{tmp_path}/tried"; exec sleep 600', monkeypatch
    )
    monkeypatch.setattr(machine, "ATTEMPT", 0.2)
    begun = time.monotonic()
    with subprocess.Popen(["sleep", "60"]) as process:
        assert machine._answers(made, process)
        process.kill()
    assert time.monotonic() - begun < machine.START


def test_a_machine_that_ended_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = starting(tmp_path, "exit 255", monkeypatch)
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert not machine._answers(made, process)
