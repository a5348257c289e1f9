"""Settings of a board that only root may change: asked for by name, changed through `sudo -n`, and set back.

What was there before is written to a file in our folder first. It is set back when the measurement ends, however it
ends; after a crash or a power cut by the next measurement on that board or by `edgekit devices clean`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgekit.bundle.paths import plain
from edgekit.devices.base import Device
from edgekit.devices.boards.tegra import Mode, power_mode
from edgekit.devices.process import Completed
from edgekit.devices.sections import SAY, sections
from edgekit.devices.shell import SHORT, said, script
from edgekit.errors import DeviceError
from edgekit.progress import Progress

ROOT = ""
"""Goes before /sys and /etc; a test has a folder of its own there."""
_MODES = re.compile(r"<\s*POWER_MODEL\s+ID=([0-9]{1,3})\s+NAME=([A-Za-z0-9_.+-]{1,40})\s*>")
_GOVERNOR = re.compile(r"[a-z_]{1,32}")
_POLICY = re.compile(r"([0-9]{1,4}) ([a-z_]{1,32})((?: [a-z_]{1,32}){0,32})")
_MODE = re.compile(r"[A-Za-z0-9_.+-]{1,40}")

_AS_ROOT = """\
as_root() { # never asks for a password
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
governor_file() { echo "$root/sys/devices/system/cpu/cpufreq/policy$1/scaling_governor"; }
set_governor() { # policy, governor
    [ "$(cat -- "$(governor_file "$1")")" = "$2" ] && return 0
    echo "$2" | as_root tee -- "$(governor_file "$1")" >/dev/null || return 1
    [ "$(cat -- "$(governor_file "$1")")" = "$2" ]
}
set_mode() { # number; a mode that needs a restart asks for it, and gets no answer
    as_root nvpmodel -m "$1" </dev/null >&2
}
"""
SET_BACK = f"""\
{_AS_ROOT}
set_back() {{ # file: does what it says; nothing else than these two forms, whoever wrote it
    [ -f "$1" ] && [ ! -L "$1" ] || return 0
    failed=no
    while read -r kind name value rest; do
        case $kind:$name:$value in
            *[!a-z0-9_:]*) ;;
            governor:[0-9]*:?*)
                [ ! -e "$(governor_file "$name")" ] || set_governor "$name" "$value" </dev/null || failed=yes ;;
            mode:[0-9]*:) set_mode "$name" || failed=yes ;;
        esac
    done <"$1"
    [ "$failed" = no ] || return 1
    rm -f -- "$1"
    echo back
}}
"""
"""Shell functions; `root` has to be set. `set_back` says "back" when it has set something back."""
_ASK = f"""\
{SAY}
{_AS_ROOT}
root=$1
echo begin:
for policy in "$root"/sys/devices/system/cpu/cpufreq/policy[0-9]*; do
    [ ! -r "$policy/scaling_governor" ] ||
        echo "${{policy##*policy}} $(cat "$policy/scaling_governor") $(cat "$policy/scaling_available_governors")"
done 2>/dev/null | say policies 65536
cat "$root/etc/nvpmodel.conf" 2>/dev/null | say modes 1000000
{{ ! command -v nvpmodel >/dev/null || nvpmodel -q || as_root nvpmodel -q; }} </dev/null 2>/dev/null | say mode 4096
echo end:
"""
_KEEP = """\
cat >"$1.new" && mv -f -- "$1.new" "$1" && sync
"""
_CHANGE = f"""\
{_AS_ROOT}
root=$1 governor=$2 mode=$3
shift 3
[ -z "$mode" ] || set_mode "$mode" || exit 1
[ -n "$governor" ] || exit 0
for policy; do
    [ ! -e "$(governor_file "$policy")" ] || set_governor "$policy" "$governor" || exit 2
done
"""
_BACK = f"""\
{SET_BACK}
root=$2
set_back "$1"
"""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for by name; empty: it stays as it is."""

    governor: str = ""
    power_mode: str = ""

    @property
    def words(self) -> str:
        """Short and unambiguous; empty when nothing is wanted."""
        named = (("governor", self.governor), ("power mode", self.power_mode))
        return ", ".join(f"{name} {value}" for name, value in named if value)


@dataclass(frozen=True)
class _Now:
    """How the board is set."""

    policies: dict[int, tuple[str, tuple[str, ...]]]
    """Number → governor, governors that there are."""
    modes: dict[str, int]
    mode: Mode | None

    def lines(self, wanted: Wanted) -> list[str]:
        """What sets it back."""
        mode = [f"mode {self.mode.id}"] if wanted.power_mode and self.mode else []
        # The mode first: in another one some policies are not there.
        return mode + [f"governor {number} {now}" for number, (now, _) in self.policies.items() if wanted.governor]


@contextmanager
def settings(device: Device, file: str, wanted: Wanted, progress: Progress) -> Iterator[dict[str, str]]:
    """Set what an earlier measurement left back, then what is wanted, and that back when the block ends.

    Args:
        device: the board, which is locked.
        file: in our folder there; keeps what has to be set back.
        wanted: see there.
        progress: told what is set back late, or cannot be.

    Yields:
        Setting → "before → now", of those that were asked for.

    Raises:
        DeviceError: the board has no such setting, or `sudo` there wants a password.
    """
    if set_back(device, file):
        progress.note(f"{device.title}: set back what an interrupted measurement had changed")
    if not wanted.words:
        yield {}
        return
    now = _ask(device, wanted)
    _keep(device, file, now.lines(wanted))
    try:
        yield _change(device, now, wanted)
    finally:
        with device.cancel.shielded():
            try:
                set_back(device, file)
            except DeviceError as error:
                progress.note(error.sentence())


def set_back(device: Device, file: str) -> bool:
    """Do what the file says, if there is one, and remove it; True when something was set back.

    Raises:
        DeviceError: the board does not let us; the file stays.
    """
    done = device.run(script(_BACK, file, ROOT), timeout=SHORT)
    if done.code:
        raise not_back(device, done)
    return done.out.strip() == b"back"


def not_back(device: Device, done: Completed) -> DeviceError:
    """What to do when settings stay changed."""
    return DeviceError(
        f"governor or power mode of {device.title} cannot be set back ({said(done)})",
        remedy="log in there and set it by hand, or start the board anew; edgekit devices clean --force forgets it",
    )


def _ask(device: Device, wanted: Wanted) -> _Now:
    done = device.run(script(_ASK, ROOT), timeout=SHORT)
    found = sections(done.out, ("policies", "modes", "mode"), device.title)
    policies = {}
    for line in found["policies"]:
        if match := _POLICY.fullmatch(line.strip()):
            policies[int(match[1])] = (match[2], tuple(match[3].split()))
    modes = {name: int(number) for number, name in _MODES.findall("\n".join(found["modes"]))}
    now = _Now(policies, modes, power_mode("\n".join(found["mode"])).value)
    _refuse_unknown(device, wanted, now)
    return now


def _refuse_unknown(device: Device, wanted: Wanted, now: _Now) -> None:
    if wanted.governor:
        sets = [set(has) for _, has in now.policies.values()]
        there = sorted(set.intersection(*sets)) if sets else []
        if not _GOVERNOR.fullmatch(wanted.governor) or wanted.governor not in there:
            raise _lacks(device, "governor", wanted.governor, there, "--governor")
    if wanted.power_mode:
        known = sorted(now.modes) if now.mode is not None and now.mode.id is not None else []
        if not _MODE.fullmatch(wanted.power_mode) or wanted.power_mode not in known:
            raise _lacks(device, "power mode", wanted.power_mode, known, "--power-mode")


def _lacks(device: Device, what: str, wanted: str, there: list[str], option: str) -> DeviceError:
    return DeviceError(
        f"{device.title} has no {what} '{plain(wanted, 40)}'", expected=", ".join(there) or f"none: leave {option} out",
        remedy=f"choose one of them, or leave {option} out",
    )  # fmt: skip


def _keep(device: Device, file: str, lines: list[str]) -> None:
    done = device.run(script(_KEEP, file), timeout=SHORT, input="".join(f"{line}\n" for line in lines).encode())
    if done.code:
        raise DeviceError(
            f"'{plain(file)}' on {device.title} cannot be written ({said(done)})", remedy="free some space"
        )


def _change(device: Device, now: _Now, wanted: Wanted) -> dict[str, str]:
    mode = str(now.modes[wanted.power_mode]) if wanted.power_mode else ""
    command = script(_CHANGE, ROOT, wanted.governor, mode, *map(str, now.policies))
    done = device.run(command, timeout=SHORT)
    if done.code == 1 and b"reboot" in (done.err + done.out).lower():
        raise _needs_restart(device, now.mode.name if now.mode else "it is in", wanted, mode)
    if done.code:
        raise DeviceError(
            f"{device.title} does not let us set the {'power mode' if done.code == 1 else 'governor'} ({said(done)})",
            expected="root's rights without a password", remedy="allow it in /etc/sudoers.d (docs/devices.md), "
            "or leave --governor and --power-mode out",
        )  # fmt: skip
    if wanted.power_mode:
        _confirm(device, wanted, mode)
    changed = {}
    if wanted.governor:
        before = ", ".join(sorted({governor for governor, _ in now.policies.values()}))
        changed["governor"] = f"{before} → {wanted.governor}"
    if wanted.power_mode and now.mode is not None:
        changed["power mode"] = f"{now.mode.name} → {wanted.power_mode}"
    return changed


def _confirm(device: Device, wanted: Wanted, mode: str) -> None:
    found = _ask(device, Wanted()).mode
    if found is None:
        raise DeviceError(
            f"{device.title} does not say its power mode after it was set to {wanted.power_mode}",
            remedy="log in there: sudo nvpmodel -q, or leave --power-mode out",
        )
    if found.name != wanted.power_mode:
        raise _needs_restart(device, found.name, wanted, mode)


def _needs_restart(device: Device, stays: str, wanted: Wanted, mode: str) -> DeviceError:
    return DeviceError(
        f"{device.title} stays in the power mode {stays}: {wanted.power_mode} needs a restart of the board",
        remedy=f"log in there: sudo nvpmodel -m {mode}, and let it start anew",
    )
