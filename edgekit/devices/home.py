"""The one folder on a device that is ours, and what lies where in it. Nothing outside of it is ever written."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from edgekit.bundle.paths import plain
from edgekit.devices import rooted, upload
from edgekit.devices.base import Device
from edgekit.devices.shell import IDENTITY, SHORT, said, script
from edgekit.errors import DeviceError

FOLDER = "bench"
"""Below the target's `deploy.remote_dir`, which a person may use for more."""
_MARK = "edgekit put everything in this folder here; `edgekit devices clean` removes it."
_FOREIGN, _BUSY, _CHANGED = 7, 8, 9

_PREPARE = """\
base=$1 mark=$2
[ ! -L "$base" ] || exit 7
if [ "$(cat -- "$base/.edgekit" 2>/dev/null)" != "$mark" ]; then
    mkdir -p -- "$base" || exit 3
    [ -s "$base/.edgekit" ] || rm -f -- "$base/.edgekit"
    [ -z "$(ls -A -- "$base")" ] || exit 7
    echo "$mark" >"$base/.edgekit" || { rm -f -- "$base/.edgekit"; exit 3; }
fi
mkdir -p -- "$base/bundles" "$base/installed" "$base/runs" "$base/cache" "$base/temporary" || exit 3
"""
_OTHERS = """\
[ ! -L "$1" ] && cd -- "$1" 2>/dev/null || exit 0
for old in * .[!.]*; do
    case $old in
        "$2" | "$2$3") ;;
        *) chmod -R u+w -- "./$old" 2>/dev/null; rm -rf -- "./$old" || exit 3 ;;
    esac
done
"""
_CLEAN = f"""\
{IDENTITY}
{rooted.SET_BACK}
base=$1 mark=$2 force=$3 root=$4
[ -e "$base" ] || [ -L "$base" ] || {{ echo nothing; exit 0; }}
[ ! -L "$base" ] && [ "$(cat -- "$base/.edgekit" 2>/dev/null)" = "$mark" ] || exit 7
set -f
IFS=:
set -- $(readlink -- "$base/lock") - - -
unset IFS
if [ "$1" = "$boot" ] && [ -n "$3" ] && [ "$(began "$2")" = "$3" ]; then
    [ "$force" = yes ] || exit 8
    kill -s TERM -- "-$2" 2>/dev/null || kill -TERM "$2" 2>/dev/null
    sleep 1
    kill -s KILL -- "-$2" 2>/dev/null
fi
set_back "$base/restore" >/dev/null || [ "$force" = yes ] || exit 9
cd /
du -sk -- "$base" | sed 's/[^0-9].*$//'
chmod -R u+w -- "$base" 2>/dev/null
rm -rf -- "$base" || exit 3
rmdir -- "${{base%/*}}" 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Home:
    """Paths on the device, all absolute."""

    base: str
    """Everything of ours."""

    @property
    def installed(self) -> str:
        """EDGEKIT_HOME of a bundle's install.sh."""
        return f"{self.base}/installed"

    @property
    def lock(self) -> str:
        """There while somebody measures."""
        return f"{self.base}/lock"

    @property
    def restore(self) -> str:
        """There while settings that need root are changed: how they were, see :mod:`edgekit.devices.rooted`."""
        return f"{self.base}/restore"

    def bundle(self, name: str) -> str:
        """Where a bundle goes; a newer one of the same name takes its place."""
        return f"{self.base}/bundles/{name}"

    def against(self, name: str) -> str:
        """Where the other bundle goes, when two are measured in turns: they may have one name."""
        return f"{self.base}/against/{name}"

    def run(self, key: str) -> str:
        """The folder of one measurement."""
        return f"{self.base}/runs/{key}"

    @property
    def environment(self) -> dict[str, str]:
        """Keeps what runs there from writing anywhere else."""
        return {
            "EDGEKIT_CACHE": f"{self.base}/cache", "XDG_CACHE_HOME": f"{self.base}/cache",
            "TMPDIR": f"{self.base}/temporary", "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip


def home_in(place: str) -> Home:
    """Our folder in `place`, an absolute path that the device named.

    Raises:
        DeviceError: it is no absolute path that can be shown.
    """
    if not place.startswith("/") or not place.isprintable() or len(place.encode()) > 512:
        raise DeviceError(f"the device names '{plain(place, 100)}' as its folder", expected="an absolute path")
    return Home(posixpath.normpath(place).rstrip("/") + f"/{FOLDER}")


def prepare(device: Device, home: Home) -> None:
    """Make the folder, or see that it is ours.

    Raises:
        DeviceError: it cannot be written, or a folder of that name is there that is not ours.
    """
    done = device.run(script(_PREPARE, home.base, _MARK), timeout=SHORT)
    if done.code == _FOREIGN:
        raise _foreign(device, home)
    if done.code:
        raise DeviceError(
            f"'{plain(home.base)}' cannot be written on {device.title} ({said(done)})",
            remedy="choose another folder: EDGEKIT_HOME there, or deploy.remote_dir of the target",
        )


def forget_others(device: Device, home: Home, name: str) -> None:
    """Remove all bundles that others were measured against, but the one called `name` and what has arrived of it.

    Raises:
        DeviceError: they cannot be removed.
    """
    done = device.run(script(_OTHERS, f"{home.base}/against", name, upload.PARTS), timeout=10 * SHORT)
    if done.code:
        raise DeviceError(f"'{plain(home.base)}/against' on {device.title} cannot be emptied ({said(done)})")


def clean(device: Device, home: Home, *, force: bool = False) -> int:
    """Set back what a measurement has changed, and remove everything of ours; returns how many KiB it took.

    Args:
        device: the device.
        home: our folder on it.
        force: also end a measurement that runs there, and forget settings that cannot be set back.

    Raises:
        DeviceError: a measurement runs there, the folder is not ours, or settings cannot be set back.
    """
    command = script(_CLEAN, home.base, _MARK, "yes" if force else "no", rooted.ROOT)
    done = device.run(command, timeout=10 * SHORT)
    if done.code == _FOREIGN:
        raise _foreign(device, home)
    if done.code == _BUSY:
        raise DeviceError(f"a measurement runs on {device.title}", remedy="wait for it, or end it with --force")
    if done.code == _CHANGED:
        raise rooted.not_back(device, done)
    answer = done.out.decode("ascii", "replace").strip()
    if done.code or not (answer.isdigit() or answer == "nothing"):
        raise DeviceError(f"'{plain(home.base)}' on {device.title} cannot be removed ({said(done)})")
    return int(answer[:12]) if answer.isdigit() else 0


def _foreign(device: Device, home: Home) -> DeviceError:
    return DeviceError(
        f"'{plain(home.base)}' on {device.title} is a folder that edgekit did not make", expected="none, or our own",
        remedy="it stays as it is; rename it, or choose another place with deploy.remote_dir of the target",
    )  # fmt: skip
