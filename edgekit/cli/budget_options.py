"""Options of the verbs that plan: bits, or one budget, or a plan's file."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgekit.errors import OptionError
from edgekit.options import Budget

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]{0,3})", re.IGNORECASE)

portable_option = click.option(
    "--portable", is_flag=True,
    help="ONNX for stock onnxruntime: 3-bit codes in 4 bits each, where edgekit's own operator reads 3.",
)  # fmt: skip


def budget_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --bits, --size, --max-kl, --min-speed and --sensitivity; the command gets `bits`, `budget`, `sensitivity`."""

    @functools.wraps(command)
    def wrapped(
        *arguments: Any, bits: float, size: str | None, max_kl: float | None, min_speed: float | None,
        sensitivity: tuple[Path, ...], **others: Any,
    ) -> None:  # fmt: skip
        source = click.get_current_context().get_parameter_source("bits")
        whole, budget = budget_of(None if source is ParameterSource.DEFAULT else bits, size, max_kl, min_speed)
        command(*arguments, bits=whole, budget=budget, sensitivity=sensitivity, **others)

    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--sensitivity", type=path, multiple=True, metavar="FILE",
            help="Map of `edgekit sensitivity` to choose by, one for each format; what has none is measured.",
        ),
        click.option("--min-speed", type=float, metavar="TOK/S", help="Budget: least predicted decode speed."),
        click.option("--max-kl", type=float, metavar="NATS", help="Budget: highest measured mean KL divergence."),
        click.option("--size", metavar="SIZE", help='Budget: largest file, such as "90MB".'),
        click.option(
            "--bits", type=click.FloatRange(2, 8), default=4, show_default=True,
            help="Bits of a weight: 3, 4 or 8; with a fraction a budget, bits per weight of the whole file.",
        ),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def budget_of(
    bits: float | None, size: str | None, max_kl: float | None, min_speed: float | None
) -> tuple[int, Budget | None]:
    """The bits to build at, and the budget to choose formats under instead.

    Raises:
        OptionError: more than one was given, or a value makes no sense.
    """
    given = {"--bits": bits, "--size": size, "--max-kl": max_kl, "--min-speed": min_speed}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} are given together", expected="one of them")
    for name, value in (("--bits", bits), ("--max-kl", max_kl), ("--min-speed", min_speed)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise OptionError(f"{name} is {value:g}", expected="a number above 0")
    if size is not None:
        return 4, Budget("size", _bytes(size))
    if max_kl is not None:
        return 4, Budget("max-kl", max_kl)
    if min_speed is not None:
        return 4, Budget("min-speed", min_speed)
    if bits is not None and bits != int(bits):
        return 4, Budget("bits", bits)
    return int(bits or 4), None


def _bytes(text: str) -> float:
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise OptionError(f"--size is {text!r}", expected='a size such as "90MB", "85.8MiB" or "90000000"')
    return math.floor(float(match[1]) * _UNITS[match[2].lower()])
