"""What a device is, how one is named, and how one is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from edgekit.bundle.paths import plain
from edgekit.devices.process import Cancel, Completed
from edgekit.errors import DeviceError
from edgekit.progress import Advance

GROUP = "edgekit.devices"
"""Entry points of other packages: name of a scheme → a function of (url, Cancel) that returns a :class:`Device`."""
LIMIT = 1 << 20
Kind = Literal["local", "ssh", "emulated"]

_USER = r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}"
_HOST = r"\[[0-9A-Fa-f:.]{2,64}(?:%[A-Za-z0-9_.-]{1,32})?\]|[A-Za-z0-9_.][A-Za-z0-9_.-]{0,252}"
_SSH = re.compile(rf"ssh://(?:(?P<user>{_USER})@)?(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?", re.ASCII)
_OTHER = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,31}):(?P<rest>[!-~]{0,1000})")
_FORMS = "local, ssh://[user@]host[:port], emulated:TARGET or a name of `edgekit devices`"


class UnreachableError(DeviceError):
    """The device does not answer now (cut off, refused, timed out); the same may succeed a moment later."""


class Device(Protocol):
    """A machine that runs programs for us. What it prints is a stranger's: bounded, never trusted, never a path here.

    Every method may raise UnreachableError when the connection fails, DeviceError when the device refuses, and
    InterruptError when the user has pressed Ctrl-C.
    """

    @property
    def url(self) -> str:
        """What names it for everybody."""

    @property
    def title(self) -> str:
        """What messages call it."""

    @property
    def kind(self) -> Kind:
        """Decides the words: figures of an emulated device are never called latencies."""

    @property
    def cancel(self) -> Cancel:
        """The user's Ctrl-C."""

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        input: bytes = b"",  # noqa: A002
        limit: int = LIMIT,
    ) -> Completed:
        """Run a program in the user's home, with a list of arguments that no shell looks into.

        Args:
            command: program and arguments.
            timeout: seconds in all.
            input: what it reads from standard input.
            limit: bytes of standard output; a program that writes more is ended and its output is marked as cut.
        """

    def feed(
        self, command: Sequence[str], source: BinaryIO, *, timeout: float, sent: Callable[[int], None]
    ) -> Completed:
        """As :meth:`run`, with the rest of `source` as input; `timeout` begins anew with every piece that goes out.

        `sent` is called with the number of bytes of each piece.
        """

    def read(self, path: str, limit: int = LIMIT) -> bytes | None:
        """The first `limit` bytes of a file there; None when it is absent or not readable."""

    def push(self, folder: Path, place: str, progress: Advance | None = None) -> None:
        """Make the folder `place` there (absolute) equal to `folder`: only what differs is sent, after a cut the rest.

        Raises:
            DeviceError: the disk there is too small, named with free and needed space, or full.
        """

    def fetch(self, path: str, to: Path, limit: int) -> None:
        """Copy a file of at most `limit` bytes from there to `to`, which appears when it is whole.

        Raises:
            DeviceError: it is absent or larger.
        """

    def start(self, command: Sequence[str], log: str) -> str:
        """Start a program that outlives the connection; its output is appended to `log`.

        Returns:
            A handle, which is also written to `log`.handle there: a cut may swallow the answer.
        """

    def alive(self, handle: str) -> bool:
        """Whether the program of a handle still runs; a process of another boot, or with a reused number, is none."""

    def stop(self, handle: str) -> None:
        """End the program of a handle and all it started."""

    def close(self) -> None:
        """Give back the connection."""


@dataclass(frozen=True)
class Address:
    """The parts of a URL."""

    scheme: str
    host: str = ""
    """Of ssh; without the brackets of an IPv6 address."""
    user: str = ""
    port: int = 0
    """0: what the user's ssh configuration says."""
    rest: str = ""
    """Of another scheme: everything after the colon."""


def parse_url(text: str) -> Address:
    """The parts of `local`, `ssh://[user@]host[:port]`, `emulated:TARGET` or `SCHEME:…`.

    Raises:
        DeviceError: it is none of these, holds a password, or a character that no host or user name has.
    """
    if text == "local":
        return Address("local")
    if match := _SSH.fullmatch(text):
        port = int(match["port"] or 0)
        if match["port"] is not None and not 1 <= port <= 65535:
            raise DeviceError(f"'{plain(text)}' has the port {port}", expected="1 to 65535")
        return Address("ssh", match["host"].strip("[]"), match["user"] or "", port)
    if text.startswith("ssh:"):
        raise _bad_ssh(text)
    if match := _OTHER.fullmatch(text):
        return Address(match["scheme"], rest=match["rest"])
    raise DeviceError(f"'{plain(text)}' names no device", expected=_FORMS)


def _bad_ssh(text: str) -> DeviceError:
    if re.match(r"ssh://[^@/]*:[^@/]*@", text):  # the text is not quoted: it holds a password
        return DeviceError(
            "the URL holds a password, which ssh does not take", expected="ssh://[user@]host[:port]",
            remedy="log in with a key: ssh-copy-id user@host",
        )  # fmt: skip
    return DeviceError(
        f"'{plain(text)}' is no address for ssh", expected="ssh://[user@]host[:port]",
        remedy="what else a host needs goes into ~/.ssh/config under a name of its own: ssh://NAME",
    )  # fmt: skip


def open_device(name_or_url: str, *, cancel: Cancel | None = None) -> Device:
    """The device of a URL, or of a name in the user's inventory. ssh connects with the first command.

    Raises:
        DeviceError: neither a URL nor a known name, or nobody knows the scheme.
        EmulatorError: an emulated board does not come up.
    """
    from edgekit.devices import inventory

    url = inventory.url_of(name_or_url)
    title = url if url == name_or_url else f"{name_or_url} ({url})"
    address, cancel = parse_url(url), cancel or Cancel()
    if address.scheme == "local":
        from edgekit.devices.local import local

        return local(cancel)
    if address.scheme == "ssh":
        from edgekit.devices.ssh import ssh

        return ssh(address, url=url, title=title, cancel=cancel)
    if address.scheme == "emulated":
        from edgekit.devices.emulated import emulated_device

        return emulated_device(address.rest, cancel=cancel)
    return _foreign(url, address.scheme, cancel)


def _foreign(url: str, scheme: str, cancel: Cancel) -> Device:
    for point in _points():
        if point.name == scheme:
            device: Device = point.load()(url, cancel)
            return device
    known = ", ".join(sorted({point.name for point in _points()}))
    raise DeviceError(
        f"nobody knows devices such as '{plain(url)}'", expected=_FORMS,
        remedy=f"installed packages add {known}" if known else "a package may add others (docs/devices.md)",
    )  # fmt: skip


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
