"""Options of `edgekit bench` that are about the board: settings that need root, and a power meter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.errors import OptionError

if TYPE_CHECKING:
    from edgekit.devices.boards.meter import Meter
    from edgekit.devices.rooted import Wanted

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class BoardOptions:
    """What was asked for; empty: not."""

    governor: str = ""
    power_mode: str = ""
    meter: str = ""

    def refuse(self, devices: Sequence[str], emulated: bool) -> None:
        """What is quick to check.

        Raises:
            OptionError: one meter for several boards, or anything of this for an emulated one.
            DeviceError: a device that nobody knows.
        """
        from edgekit.devices import inventory
        from edgekit.devices.base import parse_url

        given = [f"--{one.name.replace('_', '-')}" for one in fields(self) if getattr(self, one.name)]
        if not given:
            return
        if emulated or "emulated" in {parse_url(inventory.url_of(device)).scheme for device in devices}:
            raise OptionError(
                f"{given[0]} is given for an emulated board", expected="a real one", remedy="leave it out"
            )
        if self.meter and len(devices) > 1:
            raise OptionError(
                "--meter is given for several boards", expected="one board at one meter", remedy="measure one by one"
            )

    @property
    def wanted(self) -> Wanted:
        """Settings that need root."""
        from edgekit.devices.rooted import Wanted

        return Wanted(self.governor, self.power_mode)

    @property
    def words(self) -> str:
        """Short and unambiguous, for what makes two runs the same run."""
        return ", ".join(filter(None, (self.wanted.words, "power meter" if self.meter else "")))

    @property
    def arguments(self) -> tuple[str, ...]:
        """For `edgekit bench` on the board; the meter stays here."""
        named = (("--governor", self.governor), ("--power-mode", self.power_mode))
        return tuple(word for name, value in named if value for word in (name, value))

    def opened(self) -> Meter | None:
        """The meter.

        Raises:
            OptionError: there is no such file or program.
        """
        if not self.meter:
            return None
        from edgekit.devices.boards.access import here
        from edgekit.devices.boards.meter import open_meter, spec_of

        _, run = here()
        return open_meter(spec_of(self.meter), run)


def board_options(command: F) -> F:
    """Add the options; the command gets them as `board`."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        own = {one.name: given.pop(one.name) for one in fields(BoardOptions)}
        return command(board=BoardOptions(**own), **given)

    options = [
        click.option(
            "--governor", default="", metavar="NAME",
            help="Set the CPU's governor (performance) through `sudo -n` on the board, and back afterwards.",
        ),
        click.option(
            "--power-mode", default="", metavar="NAME",
            help="Set a Jetson's power mode (nvpmodel) through `sudo -n` on the board, and back afterwards.",
        ),
        click.option(
            "--meter", default="", metavar="FILE.csv|COMMAND",
            help="Energy from a power meter on this machine: a file that grows, or a command that prints watts.",
        ),
    ]  # fmt: skip
    made: Any = wrapped
    for option in reversed(options):
        made = option(made)
    return made  # type: ignore[no-any-return]
