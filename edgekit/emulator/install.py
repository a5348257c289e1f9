"""Installing Debian's packages for emulated boards without starting what is in them.

openssh-server is installed for its program: a board starts sshd by itself, on loopback. Its package would start one
that listens everywhere.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which

from edgekit.emulator import needs
from edgekit.errors import EmulatorError

POLICY = Path("/usr/sbin/policy-rc.d")
"""What packages ask before they start a service, with any init or none; see Debian's invoke-rc.d(8)."""
REFUSAL = """\
#!/bin/sh
# Here while `python -m edgekit.emulator install` runs, so that no package starts a service; otherwise remove it.
exit 101
"""
"""Exit code 101: the action is forbidden."""


def install(policy: Path = POLICY) -> None:
    """Install everything that the emulator needs; takes root.

    A server of openssh-server is not started, and where the package is new it does not start with the machine either.

    Raises:
        EmulatorError: not root, or apt-get fails.
    """
    if os.geteuid() != 0:
        raise EmulatorError("installing packages needs root", remedy="run the same command as root (sudo)")
    fresh = needs.path_of("sshd") is None
    with nothing_started(policy):
        try:
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *needs.packages()])
        finally:  # apt may have unpacked it before it failed
            if fresh and needs.path_of("sshd") is not None:
                _disable()


@contextmanager
def nothing_started(policy: Path = POLICY) -> Iterator[None]:
    """While this is held no package starts a service; a policy that was there has its place again afterwards."""
    kept, fresh = (policy.with_name(f"{policy.name}.edgekit-{name}") for name in ("kept", "new"))
    try:
        fresh.write_text(REFUSAL, encoding="ascii")
        fresh.chmod(0o755)
        if (policy.exists() or policy.is_symlink()) and _text(policy) != REFUSAL:
            policy.replace(kept)
        fresh.replace(policy)
        yield
    finally:
        fresh.unlink(missing_ok=True)
        if kept.exists() or kept.is_symlink():  # also one that a killed run left
            kept.replace(policy)
        elif _text(policy) == REFUSAL:
            policy.unlink()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _disable() -> None:
    """Not with the next start of the machine either; `systemctl unmask ssh.service ssh.socket` gives it back."""
    for command in (["systemctl", "mask", "ssh.service", "ssh.socket"], ["update-rc.d", "ssh", "disable"]):
        if which(command[0]) is not None:
            subprocess.run(command, check=False)  # noqa: S603


def _run(command: Sequence[str]) -> None:
    """What apt-get says is the user's to see."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        code = subprocess.run(list(command), stdin=subprocess.DEVNULL, env=environment, check=False).returncode  # noqa: S603
    except OSError as error:
        raise EmulatorError(
            f"{command[0]} cannot be started ({error.strerror})", expected="Debian or Ubuntu"
        ) from error
    if code:
        raise EmulatorError(f"{' '.join(command[:2])} ended with {code}", remedy="see what it said above")
