"""What ssh is told, and what its complaints mean; tests/integration/test_ssh.py has a real server."""

from __future__ import annotations

import io
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
from fake_board import read_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.devices.base import Address, UnreachableError
from edgekit.devices.local import local
from edgekit.devices.process import HELD, Cancel, converse
from edgekit.devices.sections import SAY, sections
from edgekit.devices.shell import handle_parts, leashed, script
from edgekit.devices.ssh import classify, remote_line, ssh
from edgekit.errors import DeviceError, InterruptError

HOST = Address("ssh", "pi.local", "pi", 2222)
SAID = {
    "ssh: Could not resolve hostname pi.local: Name or service not known": ("is not found", True),
    "ssh: connect to host pi.local port 22: Connection refused": ("refuses the connection", True),
    "ssh: connect to host pi.local port 22: Connection timed out": ("does not answer", True),
    "ssh: connect to host pi.local port 22: No route to host": ("does not answer", True),
    "Connection timed out during banner exchange": ("does not answer", True),
    "Connection closed by 10.0.0.7 port 22": ("has cut the connection", True),
    "client_loop: send disconnect: Broken pipe": ("has cut the connection", True),
    "mux_client_request_session: read from master failed: Connection reset by peer": ("has cut the connection", True),
    "": ("has cut the connection", True),
    "pi@pi.local: Permission denied (publickey,password).": ("refuses the login", False),
    "Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures": ("too many keys", False),
    "Host key verification failed.": ("never confirmed", False),
    "No ED25519 host key is known for pi.local and you have requested strict checking.\n"
    "Host key verification failed.": ("never confirmed", False),
    "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.": ("another host", False),
    "/home/me/.ssh/config: line 3: Bad configuration option: foo": ("your ssh configuration", False),
    "Bad owner or permissions on /home/me/.ssh/config": ("your ssh configuration", False),
    "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: ssh-dss": (
        "speaks no cipher", False,
    ),
    "something new \x1b[31m": ("something new", True),
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_every_complaint_has_its_sentence(said: str) -> None:
    words, passing = SAID[said]
    error = classify(said, HOST, "ssh://pi@pi.local:2222")
    assert words in error.sentence()
    assert isinstance(error, UnreachableError) == passing
    assert error.sentence().isprintable()
    assert error.remedy


@given(st.text(max_size=3000))
def test_any_complaint_is_one_printable_sentence(said: str) -> None:
    assert classify(said, HOST, "pi").sentence().isprintable()


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), max_size=6)


@pytest.mark.parametrize("shell", ["dash", "bash"])
@settings(max_examples=40, deadline=None)
@given(words=WORDS)
def test_a_line_for_a_shell_runs_exactly_the_command(shell: str, words: list[str]) -> None:
    line = remote_line(["printf", "%s\\0", "begin", *words], "mark")
    ran = subprocess.run([shell, "-c", line], capture_output=True, check=True)
    assert ran.stdout.decode().split("\0")[:-1] == ["begin", *words]
    assert ran.stderr == b"\nmark 0\n"


def test_a_zero_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        remote_line(["echo", "a\0b"], "mark")


def test_nothing_asks_and_no_host_is_an_option() -> None:
    device = ssh(Address("ssh", "pi.local", "pi", 2222), url="x", title="x", cancel=Cancel())
    try:
        command: tuple[str, ...] = device.transport.command  # type: ignore[attr-defined]
        for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ControlPersist=60"):
            assert option in command
        assert command[-4:] == ("-p", "2222", "-l", "pi")
        socket = command[command.index("-S") + 1]
        folder = Path(socket).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(socket) < 90
    finally:
        device.close()
    assert not folder.exists()


# --- sections --------------------------------------------------------------------------------------------------------

NAMES = ("one", "two")
BAD = {
    b"": "answers nothing", b"begin:\n": "answers", b"begin:\none:\n x\n": "answers", b"end:\n": "answers",
    b"Welcome!\nbegin:\nend:\n": "prints 'Welcome!' before", b"begin:\nthree:\nend:\n": "answers 'three:'",
    b"begin:\none:\none:\nend:\n": "answers 'one:'", b"begin:\n x\nend:\n": "answers",
    b"begin:\none:\nx\nend:\n": "'x'",
    b"begin:\none:\n\x1b[31m\nend:\n": r"\\x1b", b"command not found\n": "answers 'command not found'",
}  # fmt: skip


@pytest.mark.parametrize("data", BAD)
def test_another_answer_is_refused(data: bytes) -> None:
    with pytest.raises(DeviceError, match=BAD[data]) as caught:
        sections(data, NAMES, "pi")
    assert caught.value.sentence().isprintable()


@given(st.binary(max_size=500))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for text in (data, b"begin:\none:\n " + data + b"\nend:\n"):
        if (found := read_or_refused(sections, text, NAMES, "pi")) is not None:
            assert set(found) == set(NAMES)


@given(st.lists(st.text(st.characters(exclude_characters="\0\r\n", codec="utf-8")), max_size=5))
@settings(max_examples=25, deadline=None)
def test_what_a_script_says_is_read_as_it_was(lines: list[str]) -> None:
    """Whatever it is: it may look like a heading or an end."""
    text = f'{SAY}\necho begin:\nprintf "%s\\n" "$@" | say one 100000\necho end:\n'
    done = local().run(script(text, *lines, "end:", "one:"), timeout=60)
    assert sections(done.out, NAMES, "pi")["one"] == [*lines, "end:", "one:"]


@pytest.mark.parametrize("handle", ["", "1", "1.2", "-1.2.ab", "1.2.x/../y", "1.2.a\n", "0.1.a", "1.2.a.b", "²1.2.a"])
def test_a_handle_of_another_form_is_refused(handle: str) -> None:
    with pytest.raises(DeviceError, match="names no program"):
        handle_parts(handle)


# --- processes -------------------------------------------------------------------------------------------------------


def run(*command: str, source: bytes | None = None, timeout: float = 60, limit: int = 1 << 20) -> bytes:
    stream = None if source is None else io.BytesIO(source)
    return converse(command, source=stream, timeout=timeout, limit=limit, cancel=Cancel()).out


def test_much_goes_in_and_out_at_the_same_time() -> None:
    data = bytes(range(256)) * 8000
    assert run("cat", source=data, limit=4 << 20) == data


def test_a_program_that_does_not_read_is_no_error() -> None:
    assert run("echo", "x", source=b"y" * (1 << 20)) == b"x\n"


def test_a_flood_on_both_pipes_is_bounded() -> None:
    done = converse(
        ["sh", "-c", "yes >&2 & exec yes"], source=None, timeout=60, limit=1000, cancel=Cancel()
    )  # fmt: skip
    assert done.cut
    assert len(done.out) == 1000
    assert len(done.err) <= 1 << 16


def test_what_stays_behind_does_not_hold_us() -> None:
    begin = time.monotonic()
    assert run("sh", "-c", "sleep 30 & echo x") == b"x\n"
    assert time.monotonic() - begin < 25


@pytest.mark.parametrize("limit", [1 << 20, 1])
def test_what_it_started_ends_with_it(limit: int, tmp_path: Path) -> None:
    """When it takes too long, and when it writes too much."""
    command = ["sh", "-c", 'sleep 600 & echo $! >"$0"; echo much; wait', str(tmp_path / "child")]
    with pytest.raises(TimeoutError) if limit > 1 else nullcontext():
        run(*command, timeout=0.5, limit=limit)
    state = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + 30
    while state.exists() and state.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_ends_as_a_shell_says_it() -> None:
    assert local().run(["sh", "-c", "kill -9 $$"], timeout=60).code == 137
    assert local().run(["no-such-program"], timeout=60).code == 127


def test_too_late_and_ctrl_c() -> None:
    with pytest.raises(TimeoutError):
        run("sleep", "60", timeout=0.2)
    cancel = Cancel()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(InterruptError):
        converse(["sleep", "60"], source=None, timeout=60, limit=1, cancel=cancel)
    with pytest.raises(InterruptError):
        cancel.wait(10)
    with cancel.shielded():
        assert converse(["echo", "x"], source=None, timeout=60, limit=9, cancel=cancel).out == b"x\n"


@pytest.mark.parametrize("code", [0, 5])
def test_what_is_on_a_leash_says_what_it_says(code: int) -> None:
    command = leashed(["sh", "-c", f"cat; echo out; echo err >&2; exit {code}"])
    done = local().feed(command, HELD, timeout=60, sent=lambda _: None)
    assert (done.code, done.out, done.err) == (code, b"out\n", b"err\n")


def test_what_is_on_a_leash_ends_with_it_and_so_does_all_it_started(tmp_path: Path) -> None:
    """The owner is killed and can do nothing more: only its end of the pipe closes."""
    command = leashed(["sh", "-c", f"sleep 600 & echo $! $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pids; wait"])
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until(lambda: (tmp_path / "pids").exists())
        assert process.stdin is not None
        process.stdin.close()
        until(lambda: not any(map(lives, map(int, (tmp_path / "pids").read_text().split()))))
    assert process.returncode == 143


def lives(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_are_read_and_fetched_with_a_bound(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "-odd name").write_bytes(b"0123456789")
    device = local()
    assert device.read(str(folder / "-odd name"), 4) == b"0123"
    assert device.read(str(folder / "none")) is None
    assert device.read(str(folder)) is None
    device.fetch(str(folder / "-odd name"), folder / "to", 10)
    assert (folder / "to").read_bytes() == b"0123456789"
    with pytest.raises(DeviceError, match="is larger than"):
        device.fetch(str(folder / "-odd name"), folder / "to", 9)
    with pytest.raises(DeviceError, match="cannot be read"):
        device.fetch(str(folder / "none"), folder / "to", 9)
    assert (folder / "to").read_bytes() == b"0123456789", "a failed copy took the old one away"
