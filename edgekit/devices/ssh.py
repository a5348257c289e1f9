"""A board behind the user's own OpenSSH client: their configuration, agent, jump hosts and known hosts.

Nothing ever waits for a password or for a yes: what would ask is refused with the remedy. All commands share one
connection, whose socket lies in a private folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from edgekit.bundle.paths import plain
from edgekit.devices.base import Address, Kind, UnreachableError
from edgekit.devices.process import Cancel, Completed, converse
from edgekit.devices.shell import ShellDevice
from edgekit.errors import DeviceError, MissingDependencyError
from edgekit.files import sweep, temporary_folder

CONNECT_S = 20
"""Seconds that a connection may take to come up."""
_OPTIONS = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ServerAliveInterval": "10", "ServerAliveCountMax": "6",
    "ControlMaster": "auto", "ControlPersist": "60", "LogLevel": "ERROR", "RemoteCommand": "none",
    "PermitLocalCommand": "no", "ClearAllForwardings": "yes",
}  # fmt: skip
"""Before the user's configuration: ssh takes the first value that it sees."""
_SOCKET_BYTES = 80
"""Longest path of the socket's folder: a socket's path may have 107 bytes, and ssh appends some while it makes it."""
_WRAPPER = 'mark=$1; shift; "$@"; code=$?; echo >&2; echo "$mark $code" >&2; exit "$code"'
"""Tells the code of the command apart from ssh's own 255, and an end from a cut."""


def remote_line(command: Sequence[str], mark: str) -> str:
    """The one string that ssh hands to the user's shell on the device.

    Every word is quoted, so the shell sees constants only; what runs is the list `command`, and nothing else.

    Raises:
        ValueError: a word holds a zero byte, which no argument of a program can.
    """
    if any("\0" in word for word in command):
        raise ValueError("a zero byte in an argument")
    return shlex.join(["sh", "-c", _WRAPPER, "edgekit", mark, *command])


def ssh(
    address: Address, *, url: str, title: str, cancel: Cancel, kind: Kind = "ssh", options: Sequence[str] = (),
    connect_s: int = CONNECT_S,
) -> ShellDevice:  # fmt: skip
    """The device behind ssh; the first command connects.

    Args:
        address: user, host and port; host and user of the URL are checked already.
        url: what the user gave.
        title: what messages call it.
        cancel: the user's Ctrl-C.
        kind: "emulated" for an emulated board.
        options: further options of the client, before the user's configuration.
        connect_s: seconds that a connection may take to come up.

    Raises:
        MissingDependencyError: there is no ssh on this machine.
    """
    if shutil.which("ssh") is None:
        raise MissingDependencyError("ssh is not installed here", remedy="apt install openssh-client")
    held = ExitStack()
    socket = held.enter_context(temporary_folder(_socket_base())) / "s"
    given = {**_OPTIONS, "ConnectTimeout": str(connect_s)}
    command = ("ssh", "-T", "-a", "-x", *(part for pair in given.items() for part in ("-o", "=".join(pair))))
    place = ("-p", str(address.port)) if address.port else ()
    user = ("-l", address.user) if address.user else ()
    transport = SshTransport(
        (*command, "-S", str(socket).replace("%", "%%"), *options, *place, *user), address, title, cancel, held
    )
    return ShellDevice(url, title, kind, transport, cancel)


def _socket_base() -> Path:
    """A name in the first private or temporary folder that is short enough; the folder made from it is private."""
    for place in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if place and len(os.fsencode(place)) + 24 <= _SOCKET_BYTES and os.access(place, os.W_OK):
            base = Path(place) / "edgekit-ssh"
            sweep(base.parent, base.name)
            return base
    raise DeviceError("there is no temporary folder for ssh's socket", remedy="set TMPDIR to one with a short name")


@dataclass(frozen=True)
class SshTransport:
    """Runs programs through ssh."""

    command: tuple[str, ...]
    """ssh with all options, without the host."""
    address: Address
    title: str
    cancel: Cancel
    held: ExitStack = field(default_factory=ExitStack)
    """Closed with the connection."""

    def converse(
        self, command: Sequence[str], *, source: BinaryIO | None, timeout: float, limit: int,
        sent: Callable[[int], None] | None,
    ) -> Completed:  # fmt: skip
        """See Transport.converse."""
        mark = f"edgekit-{secrets.token_hex(8)}"
        words = [*self.command, "--", self.address.host, remote_line(command, mark)]
        try:
            done = converse(
                words, source=source, timeout=timeout, limit=limit, cancel=self.cancel, sent=sent,
                environment={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except TimeoutError as error:
            raise UnreachableError(f"{self.title} did not answer within {timeout:g} s") from error
        errors, _, code = done.err.rpartition(b"\n" + mark.encode() + b" ")
        if code.strip().isdigit() and len(code) < 8:
            return replace(done, code=int(code), err=errors)
        if done.cut:
            return done
        raise classify(done.err.decode("utf8", "replace"), self.address, self.title)

    def close(self) -> None:
        """End the shared connection at once."""
        with self.cancel.shielded(), suppress(TimeoutError, OSError):
            words = [*self.command, "-O", "exit", "--", self.address.host]
            converse(words, source=None, timeout=10, limit=1 << 16, cancel=self.cancel)
        self.held.close()


# --- what ssh says -------------------------------------------------------------------------------------------------

_NOW = (
    (r"Could not resolve hostname|Name or service not known", "is not found: nobody knows a host of that name",
     "check the name, or give the board's IP address; `ping` it"),
    (r"Connection refused", "refuses the connection: no ssh server listens there",
     "check the port, and that ssh is enabled on the board (sudo raspi-config, Interface Options)"),
    (r"timed out|Timeout, server|No route to host|Network is unreachable|Host is down",
     "does not answer", "check its power, its network and the address"),
    (r"Connection (?:to \S+ )?(?:closed|reset)|[Bb]roken pipe|kex_exchange_identification|client_loop|lost connection"
     r"|mux_client|Connection to .* aborted|banner exchange|read from master failed|ssh_dispatch_run_fatal",
     "has cut the connection", "run the same command again: what was sent is kept"),
)  # fmt: skip
"""May pass: an expression, what the device does, a remedy."""
_NEVER = (
    (r"Too many authentication failures", "refuses the login: the ssh agent offers too many keys",
     "name the right one in ~/.ssh/config: IdentityFile and IdentitiesOnly yes"),
    (r"Permission denied \(", "refuses the login",
     "check the user's name, and copy your key there: ssh-copy-id {destination}"),
    (r"Bad configuration option|Bad owner or permissions|terminating, .*configuration|[Ii]nvalid .*config",
     "cannot be reached: your ssh configuration is refused by ssh ({last})", "correct it"),
    (r"Unable to negotiate|no matching .* found", "speaks no cipher or key type that your ssh accepts ({last})",
     "update the ssh server on the board"),
    (r"hostname contains invalid characters|Bad port", "has an address that ssh does not take", "check it"),
)  # fmt: skip


def classify(errors: str, address: Address, title: str) -> DeviceError:
    """One sentence for what ssh wrote when it did not run a command to its end."""
    port = f"-p {address.port} " if address.port else ""
    destination = port + (f"{address.user}@" if address.user else "") + address.host
    if "HOST IDENTIFICATION HAS CHANGED" in errors:
        return DeviceError(
            f"{title} shows another host key than the one you know: it was installed anew, or somebody is in between",
            remedy="nothing was sent; only if you know why, forget the old key with "
            f"`ssh-keygen -R {_known_as(address)}` and log in once by hand",
        )
    if re.search(r"Host key verification failed|host key is known for|authenticity of host", errors):
        return DeviceError(
            f"{title} has a host key that you have never confirmed",
            remedy=f"log in once by hand and compare it (ssh {destination}), or on a network that you trust: "
            f"ssh-keyscan {port}{address.host} >> ~/.ssh/known_hosts",
        )
    last = plain(next((line for line in reversed(errors.strip().splitlines()) if line.strip()), "").strip(), 300)
    for expression, what, remedy in _NEVER:
        if re.search(expression, errors):
            return DeviceError(f"{title} {what.format(last=last)}", remedy=remedy.format(destination=destination))
    for expression, what, remedy in _NOW:
        if re.search(expression, errors):
            return UnreachableError(f"{title} {what}", remedy=remedy)
    return UnreachableError(
        f"{title} has cut the connection" if not last else f"{title} cannot be used through ssh ({last})",
        remedy=f"try by hand: ssh {destination} true",
    )


def _known_as(address: Address) -> str:
    return shlex.quote(f"[{address.host}]:{address.port}" if address.port not in (0, 22) else address.host)
