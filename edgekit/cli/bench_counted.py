"""`edgekit bench --protocol instructions`: nothing is sent; this machine counts what a board's CPU would execute."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import OptionError

if TYPE_CHECKING:
    from edgekit.bench.kept import Keeper
    from edgekit.bundle.bundle import Bundle
    from edgekit.cli.bench_devices import Measured
    from edgekit.progress import Progress
    from edgekit.targets import Target

NAME = "instructions"


def refuse_uncounted(devices: Sequence[str], formats: Sequence[str], threads: int, against: Path | None = None) -> None:
    """What cannot be counted.

    Raises:
        OptionError: a device that is not emulated, a format but GGUF, more threads than one, a bundle to compare with.
        DeviceError: a device that nobody knows.
    """
    from edgekit.devices import inventory
    from edgekit.devices.base import parse_url

    for device in devices:
        if parse_url(inventory.url_of(device)).scheme != "emulated":
            raise OptionError(
                f"--protocol {NAME} is given for '{device}'", expected="an emulated device, such as emulated:rpi5",
                remedy="measure a real one with another protocol",
            )  # fmt: skip
    if set(formats) - {"gguf"}:
        raise OptionError(
            f"--protocol {NAME} counts GGUF in llama.cpp alone, and --format onnx is given", remedy="leave it out"
        )
    if threads > 1:
        raise OptionError(f"--protocol {NAME} counts with one thread, and --threads {threads} is given")
    if against is not None:
        raise OptionError(
            f"--protocol {NAME} counts what is the same each time, and --against is given",
            remedy="count both, and give the earlier result with --baseline",
        )


def counted(devices: Sequence[str], bundle: Bundle, settings: Target, progress: Progress, kept: Keeper) -> Measured:
    """Count on every device, one after the other; one that fails does not stop the others."""
    from edgekit.bench.instructions import count
    from edgekit.bench.result import BenchResult
    from edgekit.cli.bench_devices import Measured, only, shipped_target
    from edgekit.devices import inventory
    from edgekit.devices.base import parse_url

    def one(device: str) -> BenchResult:
        board = shipped_target(parse_url(inventory.url_of(device)).rest)
        result = count(bundle, settings, board, progress)
        kept.keep(result)
        return result

    found = Measured()
    for device in devices:
        outcome = only(device, functools.partial(one, device))
        found.results.update(outcome.results)
        found.errors.update(outcome.errors)
    return found
