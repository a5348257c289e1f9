"""The user's own ssh against a real ssh server on loopback: refusals in one sentence, cut cables, a whole measurement.

The server has keys of its own and never sees ~/.ssh; without openssh-server these tests are skipped, and say so.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_board
import pytest
import sshd
from fake_board import STEPS

from edgekit import targets
from edgekit.bench.probe import probe
from edgekit.bench.remote import Patience, bench_on
from edgekit.devices import home
from edgekit.devices.base import Address, UnreachableError
from edgekit.devices.process import HELD, Cancel
from edgekit.devices.shell import leashed
from edgekit.devices.ssh import ssh
from edgekit.errors import DeviceError, InterruptError
from edgekit.progress import Quiet

HASTE = Patience(lost_s=60, first_s=0.1, longest_s=0.3)
ALL = [str(step) for step in range(STEPS)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Server]:
    with sshd.server(tmp_path) as made:
        yield made


def refused(server: sshd.Server, words: str, **how: Any) -> DeviceError:
    begin = time.monotonic()
    with pytest.raises(DeviceError, match=words) as caught:
        server.device(**how).run(["true"], timeout=60)
    assert time.monotonic() - begin < 50, "it waited for somebody to type"
    assert caught.value.sentence().isprintable()
    return caught.value


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_the_remedy(server: sshd.Server) -> None:
    error = refused(server, "host key that you have never confirmed", known=False)
    assert f"ssh-keyscan -p {server.port} 127.0.0.1" in error.remedy
    assert not (server.folder / "none").exists(), "the key was believed"


def test_a_changed_host_key_is_refused_with_a_warning(server: sshd.Server) -> None:
    sshd.write_known_hosts(server.folder, server.port, "other_host_key")
    error = refused(server, "another host key than the one you know")
    assert "nothing was sent" in error.remedy


def test_a_wrong_user_and_a_wrong_key_are_refused(server: sshd.Server) -> None:
    refused(server, "refuses the login", user="nobody-here")
    assert "ssh-copy-id" in refused(server, "refuses the login", key=False).remedy


def test_a_password_prompt_never_hangs(server: sshd.Server) -> None:
    server.stop()
    server.password = "yes"
    server.start()
    refused(server, "refuses the login", key=False)


def test_nobody_listens(server: sshd.Server) -> None:
    device = server.device()
    server.stop()
    with pytest.raises(UnreachableError, match="refuses the connection"):
        device.run(["true"], timeout=60)


def test_no_such_host(server: sshd.Server) -> None:
    url = "ssh://no-such-host.invalid"
    device = ssh(Address("ssh", "no-such-host.invalid"), url=url, title=url, cancel=Cancel(), options=["-F/dev/null"])
    with pytest.raises(UnreachableError, match="is not found"):
        device.run(["true"], timeout=60)
    device.close()


def test_a_server_that_says_nothing_is_given_up(server: sshd.Server) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = Address("ssh", "127.0.0.1", "x", port)
        device = ssh(
            address, url="x", title="silent", cancel=Cancel(), options=["-F", "/dev/null"], connect_s=1
        )  # fmt: skip
        with pytest.raises(UnreachableError, match="silent does not answer|cut the connection"):
            device.run(["true"], timeout=60)
        device.close()


def test_a_broken_configuration_is_told(server: sshd.Server) -> None:
    refused(server, "your ssh configuration is refused", config="NoSuchOption yes\n")


def test_what_the_users_configuration_forwards_is_not(server: sshd.Server) -> None:
    """A forwarding that cannot be set up, a command and a terminal of the user's own do not get in the way."""
    config = "LocalForward 1 localhost:1\nExitOnForwardFailure yes\nRemoteCommand tmux\nRequestTTY force\n"
    assert server.device(config=config).run(["echo", "hello"], timeout=60).out == b"hello\n"


def test_a_host_of_the_users_configuration(server: sshd.Server, tmp_path: Path) -> None:
    config = tmp_path / "own"
    config.write_text(
        f"Host bench-pi\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile {server.folder}/key\n"
        f" UserKnownHostsFile {server.folder}/known_hosts\n"
    )
    device = ssh(Address("ssh", "bench-pi"), url="x", title="x", cancel=Cancel(), options=["-F", str(config)])
    assert device.run(["echo", "hello"], timeout=60).out == b"hello\n"
    device.close()


# --- commands --------------------------------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "a b",
    "'",
    '"',
    "$HOME",
    "`id`",
    "$(id)",
    "a\nb",
    "\\",
    "\\n",
    "*",
    "~",
    ";id",
    "|",
    "&",
    "!!",
    "é水",
    "-n",
    "--",
]


def test_arguments_arrive_as_they_were(server: sshd.Server) -> None:
    done = server.device().run(["printf", "%s\\0", *ODD], timeout=60)
    assert done.out.decode().split("\0")[:-1] == ODD


@pytest.mark.parametrize("code", [0, 1, 127, 254, 255])
def test_exit_codes_are_the_commands_own(server: sshd.Server, code: int) -> None:
    assert server.device().run(["sh", "-c", f"exit {code}"], timeout=60).code == code


def test_a_signal_is_told_apart_from_a_cut(server: sshd.Server) -> None:
    assert server.device().run(["sh", "-c", "kill -9 $$"], timeout=60).code == 128 + 9


def test_a_flood_is_cut_off(server: sshd.Server) -> None:
    device = server.device()
    done = device.run(["yes"], timeout=60, limit=10_000)
    assert done.cut
    assert len(done.out) == 10_000
    assert device.run(["echo", "still there"], timeout=60).out == b"still there\n"


def test_what_takes_too_long_is_given_up(server: sshd.Server) -> None:
    with pytest.raises(UnreachableError, match="did not answer within 1 s"):
        server.device().run(["sleep", "60"], timeout=1)


def test_one_connection_serves_all_commands(server: sshd.Server) -> None:
    device = server.device()
    for _ in range(3):
        device.run(["true"], timeout=60)
    assert len(sshd.sessions(server.port)) <= 2, "sshd keeps a process or two for one connection"
    device.close()
    deadline = time.monotonic() + 20
    while sshd.sessions(server.port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sshd.sessions(server.port) == [], "the connection stays open"


def test_a_shell_that_prints_is_told(server: sshd.Server) -> None:
    (server.home / ".bashrc").write_text("echo Welcome to my board\n")
    device = server.device()
    if device.run(["true"], timeout=60).out:
        with pytest.raises(DeviceError, match=r"prints 'Welcome to my board' .*~/\.bashrc"):
            probe(device)
    else:
        pytest.skip("this user's shell reads no start-up file")


# --- programs that outlive the connection ----------------------------------------------------------------------------


def test_a_started_program_survives_a_cut_and_can_be_stopped(server: sshd.Server) -> None:
    device = server.device()
    handle = device.start(["sh", "-c", "echo begun; exec sleep 300"], f"{server.home}/log")
    assert device.alive(handle)
    server.cut()
    server.start()
    assert device.alive(handle)
    assert device.read(f"{server.home}/log") == b"begun\n"
    device.stop(handle)
    assert not device.alive(handle)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["cut", "ctrl-c"])
def test_what_is_on_a_leash_ends_with_the_connection(server: sshd.Server, how: str) -> None:
    cancel, done = Cancel(), server.home / "mark"
    device = server.device(cancel=cancel)

    def end() -> None:
        until(done.exists)
        server.cut() if how == "cut" else cancel.set()

    threading.Thread(target=end).start()
    words = leashed(["sh", "-c", f"echo $$ >{done}.new; mv {done}.new {done}; sleep 300"])
    with pytest.raises(UnreachableError if how == "cut" else InterruptError):
        device.feed(words, HELD, timeout=120, sent=lambda _: None)
    pid = int(done.read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())


# --- a whole measurement ---------------------------------------------------------------------------------------------


def measured(server: sshd.Server, bundle: Any, cancel: Cancel | None = None) -> Any:
    device = server.device(cancel=cancel)
    return bench_on(
        device, bundle, targets.load("host"), [], decode=json.loads, progress=Quiet(), patience=HASTE
    )["steps"]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fake_board.bundle(tmp_path_factory.mktemp("bundle") / "tiny.host", size=3_000_000)


def lock_of(server: sshd.Server) -> Path:
    return server.home / "edgekit/bench/lock"


def test_a_measurement_over_ssh(server: sshd.Server, bundle: Any) -> None:
    assert measured(server, bundle) == ALL
    assert not lock_of(server).is_symlink()
    device = server.device()
    assert home.clean(device, home.home_in(f"{server.home}/edgekit")) > 2000
    assert [path.name for path in server.home.iterdir() if path.name not in (".cache", ".ssh", ".bashrc")] == ["parts"]


def test_the_server_is_killed_in_a_transfer(server: sshd.Server, bundle: Any) -> None:
    parts = server.home / "edgekit/bench/bundles/tiny.host.parts"
    cut: list[bool] = []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if parts.is_dir() and any(path.stat().st_size for path in parts.iterdir()):
                server.cut()
                cut.append(True)
                time.sleep(0.3)
                server.start()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert measured(server, bundle) == ALL
    watcher.join()
    assert cut, "all was sent before the server was killed"


def test_the_server_is_killed_in_a_measurement(server: sshd.Server, bundle: Any) -> None:
    (server.home / "behaviour").write_text("wait 3")

    def journal() -> list[str]:
        found = list(server.home.glob("edgekit/bench/runs/*/journal/journal"))
        return found[0].read_text().split() if found else []

    def watch() -> None:
        deadline = time.monotonic() + 60
        while journal() != ALL[:3] and time.monotonic() < deadline:
            time.sleep(0.02)
        server.cut()
        (server.home / "behaviour").unlink()
        time.sleep(0.3)
        server.start()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert measured(server, bundle) == ALL
    watcher.join()
    assert (server.home / "parts").read_text() == "part\n", "it was measured twice"
    assert not lock_of(server).is_symlink()
