"""What a device prints when our scripts ask it, and the user's list of devices, as parsers under attack."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from edgekit.bench import follow
from edgekit.bench.preflight import check, refuse
from edgekit.bench.probe import parse
from edgekit.devices import inventory
from edgekit.devices.home import home_in
from edgekit.devices.ssh import classify
from edgekit.devices.upload import parse_survey
from edgekit.targets import load

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from test_devices_ssh import HOST, SAID
from test_preflight import LOOK, answer

Target = Callable[[bytes], None]
WORDS = (
    "\n", "begin:\n", "end:\n", "cpu:\n", "files:\n", "disk:\n", " ", ":", "0x", "/", "../", "./", "'", "$(id)", "-1",
    "9" * 20, "9" * 5000, "0" * 64 + "  ./a", "\\", "\x1b[2J", "\x1b]0;x\x07", "\0", "\u202e", "\ud800", "٣",
    " " * 3000, "CPU part : 0xd08", "Features : ", "glibc ", "Python 3.", "MemTotal: 1 kB",
    "/dev/x 1 1 9 1% /", "-9 1 1", "Permission denied (", "HOST IDENTIFICATION HAS CHANGED", "timed out",
)  # fmt: skip
NAMES = (
    "[devices]\n",
    "[",
    "]",
    "=",
    '"',
    "'",
    "\n",
    ".",
    "ssh://",
    "local",
    "-x",
    "a" * 40,
    "\x1b[2J",
    "\0",
    "é",
    "1",
)
_SURVEY = f"""\
begin:
files:
 {"a1" * 32}  ./gguf/model.gguf
 {"b2" * 32}  ./manifest.json
parts:
 {"c3" * 32}.4096.{"d4" * 32}
disk:
 /dev/mmcblk0p2 60953532 5203452 53217612 9% /
end:
"""


def probes(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """What a machine says it is: whatever is read is judged too."""
    names = ("rpi5", "rpi4", "jetson-orin-nano", "rk3588")
    boards = [load(name) for name in names]

    def target(data: bytes) -> None:
        probed = parse(data, "pi")
        home_in(probed.place)
        for board in boards:
            found = check(board, probed)
            assert all(finding.words().isprintable() for finding in found)
            if probed.cpu_parts == board.probe.cpu_parts:
                refuse(found, "pi")

    return tuple(answer(name) for name in names), target


def surveys(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """What lies in a folder of ours: no path may lead out of it."""

    def target(data: bytes) -> None:
        found = parse_survey(data, "pi")
        assert not any(path.startswith("/") or ".." in path.split("/") for path in found.files)
        assert found.free >= 0

    return (_SURVEY.encode(),), target


def looks(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """How a measurement is, and what ssh complains of."""

    def target(data: bytes) -> None:
        text = data.decode("utf8", "replace")
        assert classify(text, HOST, "pi").sentence().isprintable()
        assert follow.failure(38, text.splitlines(), "pi").sentence().isprintable()
        follow.parse(data, "pi")

    said = "\n".join(SAID).replace("\n", "\n ").encode()
    return (LOOK, LOOK.replace(b"step 1", said), LOOK.replace(b"ended:\n", b"ended:\n -9 512000 1\n")), target


def inventories(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """inventory.toml."""

    def target(data: bytes) -> None:
        assert all(url.isprintable() for url in inventory.parse(data, "inventory.toml").values())

    return (
        b'# mine\n[devices]\npi = "ssh://pi@raspberrypi.local:22"\nrpi5 = "emulated:rpi5"\nhere = "local"\n',
    ), target
