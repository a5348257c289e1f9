"""The user's devices by name: ~/.config/edgekit/inventory.toml. Hosts and users stand here, never in a target."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from edgekit.bundle.paths import plain
from edgekit.devices.base import parse_url
from edgekit.errors import DeviceError, FileFormatError
from edgekit.files import whole_file

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAX_BYTES = 1 << 20
_HEAD = "# Devices by name; written by `edgekit devices add` and `remove`, which keep no comments.\n"


def path() -> Path:
    """$XDG_CONFIG_HOME/edgekit/inventory.toml, or below ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "edgekit" / "inventory.toml"  # noqa: PTH117


def devices() -> dict[str, str]:
    """URL by name, in the order of the file; empty without a file.

    Raises:
        FileFormatError: the file is not what :func:`add` writes; names it and the key.
    """
    where = path()
    try:
        with where.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileFormatError(f"{where} cannot be read ({error.strerror})", remedy="check its permissions") from error
    return parse(data, str(where))


def parse(data: bytes, where: str) -> dict[str, str]:
    """See :func:`devices`; `where` is what messages call the file."""
    if len(data) > _MAX_BYTES:
        raise FileFormatError(f"{where} is larger than 1 MiB", expected="a list of devices")
    try:
        table = tomllib.loads(data.decode("utf8")).get("devices", {})
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} is not TOML ({plain(str(error))})", remedy="correct or remove it") from error
    if not isinstance(table, dict):
        raise FileFormatError(f"{where}: devices is no table", expected='lines such as pi = "ssh://pi@host"')
    for name, url in table.items():
        if not _NAME.fullmatch(name) or not isinstance(url, str):
            raise FileFormatError(
                f"{where}: devices.{plain(name, 60)} is no device", expected='lines such as pi = "ssh://pi@host"'
            )
        try:
            parse_url(url)
        except DeviceError as error:
            raise FileFormatError(f"{where}: devices.{name}: {error.found}", expected=error.expected) from error
    return table


def url_of(name_or_url: str) -> str:
    """The URL of a name, or the URL itself.

    Raises:
        DeviceError: it has no form of a URL and no device has that name.
    """
    if name_or_url == "local" or ":" in name_or_url:
        return name_or_url
    known = devices()
    if name_or_url not in known:
        raise DeviceError(
            f"no device is called '{plain(name_or_url, 60)}'",
            expected="one of " + ", ".join(["local", *known]) + ", or a URL such as ssh://pi@raspberrypi.local",
            remedy="add it: edgekit devices add NAME URL",
        )
    return known[name_or_url]


def add(name: str, url: str) -> None:
    """Give a URL a name; a name that is there gets the new URL.

    Raises:
        DeviceError: the name or the URL has not the form of one.
        OutputError: the file cannot be written.
    """
    if not _NAME.fullmatch(name) or name == "local":
        raise DeviceError(
            f"'{plain(name, 60)}' is no name for a device", expected="up to 32 lower-case letters, digits and hyphens"
        )
    parse_url(url)
    _write({**devices(), name: url})


def remove(name: str) -> None:
    """Forget a name. The device itself stays as it is.

    Raises:
        DeviceError: no device has that name.
        OutputError: the file cannot be written.
    """
    known = devices()
    if name not in known:
        raise DeviceError(f"no device is called '{plain(name, 60)}'", expected="one of " + (", ".join(known) or "none"))
    _write({key: url for key, url in known.items() if key != name})


def _write(table: Mapping[str, str]) -> None:
    lines = (f"{name} = {json.dumps(url)}\n" for name, url in sorted(table.items()))
    with whole_file(path(), force=True) as fresh:
        fresh.write_text(_HEAD + "\n[devices]\n" + "".join(lines), encoding="utf8")
