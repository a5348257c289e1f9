"""One measurement on a board at a time: a lock in our folder there that names a living process of the board.

The lock is a symbolic link whose text says who holds it: it appears and is replaced as a whole. Its process is either
the measurement or, before that starts, a `sleep` that the holder renews; so the lock of one who has gone is stale by
itself, whatever happens to clocks and connections.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgekit.bundle.paths import plain
from edgekit.devices.base import Device
from edgekit.devices.home import Home
from edgekit.devices.shell import IDENTITY, SHORT, handle_parts, said, script
from edgekit.errors import DeviceError
from edgekit.progress import Progress

VARIABLE = "EDGEKIT_BOARD_LOCK"
"""Set for a measurement whose starter holds the lock for it."""
LEASE_S = 900
_RENEW_S = 200.0
_TOKEN = re.compile(r"[0-9a-f]{16}")

_HELD = f"""\
{IDENTITY}
lock=$1 token=$2
was=$(readlink -- "$lock" 2>/dev/null)
field() {{ echo "$was" | cut -d : -f "$1"; }}
lives() {{ [ "$(field 1)" = "$boot" ] && [ -n "$(field 3)" ] && [ "$(began "$(field 2)")" = "$(field 3)" ]; }}
ours() {{ [ "$(field 4)" = "$token" ]; }}
end_lease() {{ ! ours || [ "$(field 6)" != lease ] || ! lives || kill "$(field 2)" 2>/dev/null; }}
"""
"""The lock's text has six fields: boot, process, when it began, token, who, and "lease" or "run"."""
_HELPERS = f"""\
{_HELD}
owner=$3 pid=$4 kind=run started=
if [ "$pid" = 0 ]; then
    nohup sleep "$5" </dev/null >/dev/null 2>&1 &
    pid=$! kind=lease started=$!
fi
mine=$boot:$pid:$(began "$pid"):$token:$owner:$kind
give_up() {{
    [ -z "$started" ] || kill "$started" 2>/dev/null
    echo "$1 $was"
    exit 0
}}
"""
_TAKE = f"""\
{_HELPERS}
ln -s -- "$mine" "$lock" 2>/dev/null && {{ echo taken; exit 0; }}
was=$(readlink -- "$lock") || give_up lost
! lives || ours || give_up busy
mv -f -- "$lock" "$lock.$token" || give_up lost
if [ "$(readlink -- "$lock.$token")" != "$was" ]; then # somebody was faster: the lock is theirs
    mv -n -- "$lock.$token" "$lock"
    give_up busy
fi
rm -f -- "$lock.$token"
ln -s -- "$mine" "$lock" 2>/dev/null || give_up busy
end_lease
echo "over $was"
"""
_HOLD = f"""\
{_HELPERS}
ours || give_up lost
[ -n "$(began "$pid")" ] || {{ echo taken; exit 0; }} # it has ended already: the lease goes on
ln -s -- "$mine" "$lock.$token" && mv -f -- "$lock.$token" "$lock" || give_up lost
end_lease
echo taken
"""
_GIVE = f"""\
{_HELD}
ours || exit 0
end_lease
rm -f -- "$lock"
"""


@dataclass
class Lock:
    """A lock that is held."""

    device: Device
    home: Home
    token: str
    _renewed: float = 0.0

    def renew(self, seconds: int = LEASE_S) -> None:
        """Hold it for that long from now, unless it is renewed again.

        Raises:
            DeviceError: somebody else has it now.
        """
        self._hold("0", seconds)

    def tick(self) -> None:
        """Renew it when it is time to; cheap otherwise."""
        if time.monotonic() - self._renewed > _RENEW_S:
            self.renew()

    def hand_over(self, handle: str) -> None:
        """From now on it is held as long as the program of the handle runs."""
        self._hold(handle_parts(handle)[0], LEASE_S)

    def _hold(self, process: str, seconds: int) -> None:
        command = script(_HOLD, self.home.lock, self.token, _owner(), process, str(seconds))
        if not self.device.run(command, timeout=SHORT).out.startswith(b"taken"):
            raise DeviceError(f"the lock on {self.device.title} is no longer ours", remedy="run the same command again")
        self._renewed = time.monotonic()

    def give_back(self) -> None:
        """Let others measure."""
        self.device.run(script(_GIVE, self.home.lock, self.token), timeout=SHORT)


def take(device: Device, home: Home, progress: Progress, *, token: str = "", process: int = 0) -> Lock:
    """Lock the board for a lease, or for as long as `process` there lives.

    Args:
        device: the board.
        home: our folder, prepared.
        progress: told when the stale lock of one who has gone is taken over.
        token: of a lock that was lost with a restart of the board; empty: a new one.
        process: number of a living process there.

    Raises:
        DeviceError: somebody measures there now.
    """
    token = token or secrets.token_hex(8)
    done = device.run(script(_TAKE, home.lock, token, _owner(), str(process), str(LEASE_S)), timeout=SHORT)
    word, _, holder = done.out.decode("utf8", "replace").strip().partition(" ")
    if word == "busy":
        raise DeviceError(
            f"{device.title} is busy: {_who(holder)} measures there", expected="one measurement at a time",
            remedy="wait; if nobody does any more, edgekit devices clean --force ends it",
        )  # fmt: skip
    if word not in ("taken", "over"):
        raise DeviceError(f"{device.title} cannot be locked ({said(done)})", remedy="run the same command again")
    if word == "over" and f":{token}:" not in holder:
        progress.note(f"{device.title}: took over the lock of {_who(holder)}, whose measurement has ended")
    return Lock(device, home, token, time.monotonic())


@contextmanager
def locked_here(device: Device, home: Home, progress: Progress) -> Iterator[None]:
    """The lock of this machine while this process measures on it; the starter of a remote one holds it already.

    Raises:
        DeviceError: somebody measures here now.
    """
    if _TOKEN.fullmatch(os.environ.get(VARIABLE, "")):
        yield
        return
    lock = take(device, home, progress, process=os.getpid())
    try:
        yield
    finally:
        with device.cancel.shielded():
            lock.give_back()


def _owner() -> str:
    """Who wants it, in letters that the lock's text can hold."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "somebody"
    return re.sub(r"[^A-Za-z0-9_.@-]", "_", f"{user}@{socket.gethostname()}")[:60]


def _who(holder: str) -> str:
    fields = holder.split(":")
    return plain(fields[4], 60) if len(fields) == 6 and fields[4] else "somebody"
