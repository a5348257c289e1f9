"""What our scripts print on a device: named sections, one round trip for many questions.

The form is `begin:`, then for each section a line `name:` and its lines, each behind one space, and `end:` at last. So
no content can look like a heading, and an answer that was cut short is noticed. Empty lines mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from edgekit.bundle.paths import plain
from edgekit.errors import DeviceError

SAY = """\
export LC_ALL=C
say() { # name, most bytes: standard input becomes a section
    echo "$1:"
    head -c "$2" | tr -d '\\000\\015' | sed 's/^/ /'
    echo
}
"""
"""Shell function that prints a section; a script says `echo begin:` before the first and `echo end:` after the last."""
_HEADING = re.compile(r"([a-z]{1,20}):")


def sections(data: bytes, names: Collection[str], title: str) -> dict[str, list[str]]:
    """The lines of each section by its name; a section of `names` that is absent is empty.

    Args:
        data: what the device printed.
        names: sections that may be there.
        title: what messages call the device.

    Raises:
        DeviceError: text before the beginning (the user's shell start-up files print something), an unknown or
            repeated section, a line outside of all, or no end.
    """
    lines = data.decode("utf8", "replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    begin = lines.index("begin:") if "begin:" in lines else len(lines)
    if begin == len(lines) or not lines or lines[-1] != "end:":
        raise _garbage(title, next((line for line in lines if line.strip()), ""))
    if noise := next((line for line in lines[:begin] if line.strip()), ""):
        raise DeviceError(
            f"{title} prints '{plain(noise, 60)}' before it runs a command",
            remedy="make the shell's start-up files (~/.bashrc) silent when no terminal is there",
        )
    return _split(lines[begin + 1 : -1], names, title)


def _split(lines: list[str], names: Collection[str], title: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        if line.startswith(" ") and current is not None:
            current.append(line[1:])
        elif match := _HEADING.fullmatch(line):
            if match[1] not in names or match[1] in found:
                raise _garbage(title, line)
            current = found[match[1]] = []
        elif line:
            raise _garbage(title, line)
    return {name: found.get(name, []) for name in names}


def _garbage(title: str, line: str) -> DeviceError:
    what = f"'{plain(line, 60)}'" if line else "nothing"
    return DeviceError(
        f"{title} answers {what} to a question of ours", expected="a POSIX system with its usual tools",
        remedy="log in by hand and see what it prints",
    )  # fmt: skip
