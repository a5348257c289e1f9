"""What boards and meters print, as parsers under attack: unknown is refused here in the reason's words."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from edgekit.devices.boards import tegra, vcgencmd
from edgekit.devices.boards.base import BoardFacts, Sample
from edgekit.devices.boards.detect import detect
from edgekit.devices.boards.meter import CsvMeter
from edgekit.errors import DeviceError
from edgekit.targets import Target as Description
from edgekit.targets import load

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from test_boards_adapters import AGX, ORIN_NANO, Machine, jetson, orin, packages, pi, rock
from test_boards_recorded import CLOCKS_NANO, CLOCKS_ORIN, PMIC_BUSY, TEGRASTATS

Target = Callable[[bytes], None]

WORDS = (
    "\n", "=", "(", ")", "[", "]", "@", "%", "/", ",", ":", "0x", "mW", "C", "A", "V", "off", "nan", "inf", "-1", "1e9",
    "9" * 20, "9" * 5000, "0.0", "VDD_CORE_A current(7)=1.0A", "VDD_CORE_V volt(15)=1.0V", "error=1", "throttled=",
    "temp=", "RAM 1/2MB", "CPU [", "GR3D_FREQ 99%@[", "VDD_IN 1mW/1mW", "NV Power Mode: ",
    "# R36 (release), REVISION: ",
    "cpu0: Online=1 ", "GPU MinFreq=1 MaxFreq=1 CurrentFreq=1", "MinFreq=", "\x1b[2J", "\x1b]0;x\x07", "\0", "\u202e",
    "\ud800", "٣", " " * 3000,
)  # fmt: skip
ROWS = (
    ",", ";", "\t", "\n", "\r\n", '"', "t,w", "time;power_mw", "1,4", "1700000000.5,4", "2026-01-01T00:00:00Z,4", "nan",
    "1e9", "-1", "9" * 5000, "\x1b[2J", "\0", "\u202e", "\ufeff", "1767225600123", "5,5", "0001-01-01,1",
    "9999-12-31T23:59:60,1",
)  # fmt: skip
_PARSERS = (
    vcgencmd.throttled, vcgencmd.temperature, vcgencmd.clock, vcgencmd.pmic, tegra.l4t, tegra.tegrastats,
    tegra.power_mode, tegra.clocks,
)  # fmt: skip
_TARGETS = ("rpi5", "jetson-orin-nano", "jetson-agx-orin", "rk3588", "host")


def answers(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """Answers of programs: none of them may be an error, all may be unknown."""
    seeds = (
        PMIC_BUSY, CLOCKS_ORIN, CLOCKS_NANO, *TEGRASTATS.values(), "throttled=0x50005\n", "temp=62.3'C\n",
        "frequency(0)=2400033024\n", "NV Fan Mode:quiet\nNV Power Mode: 25W\n1\n",
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n# KERNEL_VARIANT: oot\n",
    )  # fmt: skip

    def target(data: bytes) -> None:
        said = data.decode("utf8", "replace")
        vcgencmd.firmware(said)
        found = [parse(said) for parse in _PARSERS]
        for reading in found:
            assert (reading.value is None) == bool(reading.reason)
        if all(reading.value is None for reading in found):
            raise DeviceError("; ".join(reading.reason for reading in found))

    return tuple(seed.encode() for seed in seeds), target


def machines(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """Whole machines, as JSON of their files and answers, with the adapter of every kind of target."""
    seeds = (pi(), jetson(orin(ORIN_NANO)), jetson(orin(AGX)), rock(), Machine(packages(5)))
    clock, targets = itertools.count(), [load(name) for name in _TARGETS]

    def target(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DeviceError("no JSON") from error
        files, said = ({k: v for k, v in _dict(value, key).items() if isinstance(v, str)} for key in ("files", "said"))
        watts = [_figures(board, Machine(files, said), lambda: float(next(clock))) for board in targets]
        if not any(watts):
            raise DeviceError("no sensor answers")

    return tuple(json.dumps({"files": seed.files, "said": seed.answers}).encode() for seed in seeds), target


def _dict(value: object, key: str) -> dict[str, object]:
    part = value.get(key) if isinstance(value, dict) else None
    return part if isinstance(part, dict) else {}


def _figures(target: Description, machine: Machine, clock: Callable[[], float]) -> bool:
    """Whether anything was measured; every text that comes back can be shown."""
    board = detect(target, machine.read, machine.run, clock)
    samples = [board.sample(), board.sample(full=False), board.sample()]
    facts = board.facts()
    for text in (*_texts(facts), *(text for sample in samples for text in _texts(sample)), *board.disturbance(samples)):
        assert text.isprintable(), f"unprintable: {text!r:.300}"
        assert len(text) <= 1000
    assert all(".." not in path for path in machine.asked if path not in machine.files)
    return any(sample.temp_c is not None or sample.power_w is not None for sample in samples)


def _texts(struct: Sample | BoardFacts) -> list[str]:
    values = [getattr(struct, name) for name in struct.__struct_fields__]
    flat = itertools.chain.from_iterable(value if isinstance(value, tuple | dict) else (value,) for value in values)
    return [value for value in flat if isinstance(value, str)]


def meter(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """The new rows of a meter's file."""
    seeds = (
        b"timestamp,voltage,power\n1700000010.0,5.1,4.5\n1700000011.0,5.1,5.5\n", b"t;mW\n1,5;4250\n2,5;4300\n",
        b"4.25\n4.5\n", b"2026-01-01T00:00:00Z,4.25\n2026-01-01T00:00:01Z,4.5\n",
    )  # fmt: skip
    path = folder / "meter.csv"

    def target(data: bytes) -> None:
        path.write_bytes(b"")
        followed = CsvMeter(path, lambda: 1000.0)
        try:
            path.write_bytes(data)
            reading = followed.poll()
        finally:
            followed.close()
        assert [t for t, _ in reading.rows] == sorted(t for t, _ in reading.rows)
        assert all(0 <= watts <= 100_000 for _, watts in reading.rows)
        if reading.reasons:
            raise DeviceError("; ".join(dict.fromkeys(reading.reasons)))

    return seeds, target
