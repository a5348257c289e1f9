"""A board that answers garbage, huge or hostile text: no exception, no escape, no path, None with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boards_adapters import Machine
from test_boards_recorded import BOOTLOADER, CLOCKS_ORIN, PMIC_BUSY, TEGRASTATS, VERSION

from edgekit.devices.boards import ina3221, reading, tegra, vcgencmd
from edgekit.devices.boards.base import BoardFacts, Sample
from edgekit.devices.boards.detect import detect
from edgekit.devices.boards.reading import Reading
from edgekit.targets import load

PARSERS: dict[str, Callable[[str | None], Reading[object]]] = {
    "throttled": vcgencmd.throttled,
    "temperature": vcgencmd.temperature,
    "clock": vcgencmd.clock,
    "pmic": vcgencmd.pmic,
    "l4t": tegra.l4t,
    "tegrastats": tegra.tegrastats,
    "power_mode": tegra.power_mode,
    "clocks": tegra.clocks,
}
TARGETS = ("rpi5", "rpi4", "jetson-orin-nano", "jetson-thor", "rk3588", "host")
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
SEEDS = (
    PMIC_BUSY, VERSION, BOOTLOADER, CLOCKS_ORIN, *TEGRASTATS.values(), "throttled=0x50000", "temp=62.3'C",
    "frequency(0)=2400033024", "NV Power Mode: 25W\n1\n", "# R36 (release), REVISION: 4.3, GCID: 1", "ina3221\n",
    "5008\n", "49468\n", "0-3\n", "../../../etc/passwd", "hwmon1\n../x\n1-0040\n", "nan", "inf", "1e308", "-0", "٣٤",
    "",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A real answer with a piece replaced, moved or repeated."""
    text = draw(st.sampled_from(SEEDS))
    at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
    piece = draw(st.one_of(st.text(max_size=8), st.sampled_from((ESCAPE, "9" * 400, "\0", "\n", "=", "-", "\u202e"))))
    return text[:at] + piece * draw(st.sampled_from((1, 1, 1, 50))) + text[at + length :]


ANSWERS = st.one_of(damaged(), st.text(max_size=200), st.sampled_from(SEEDS), st.none())


def printable(value: object) -> bool:
    """Whether every text in a struct can go to a terminal as it is."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 1000
    if isinstance(value, dict):
        return all(printable(key) and printable(item) for key, item in value.items())
    if isinstance(value, tuple | list):
        return all(printable(item) for item in value)
    return True


def clean(struct: Sample | BoardFacts) -> bool:
    return all(printable(getattr(struct, name)) for name in struct.__struct_fields__)


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=60, deadline=None)
@given(said=ANSWERS)
def test_a_parser_gives_a_value_or_a_printable_reason(parser: str, said: str | None) -> None:
    found = PARSERS[parser](said)
    assert (found.value is None) == bool(found.reason)
    assert found.reason.isprintable()
    assert len(found.reason) < 200


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_no_answer_at_all_has_a_reason(parser: str) -> None:
    for said in (None, "", " \n\n", ESCAPE, "\0" * 100, "é" * 100_000, "\n" * 100_000, "A" * 3_000_000):
        found = PARSERS[parser](said)
        assert found.value is None
        assert found.reason
        assert found.reason.isprintable()
        assert len(found.reason) < 200


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_a_board_of_which_every_answer_is_damaged(name: str, answers: list[str | None], seed: int) -> None:
    asked: list[str] = []
    random = Random(seed)

    def answer(question: object) -> str | None:
        asked.append(str(question))
        return random.choice(answers)

    def run(command: Sequence[str]) -> str | None:
        return answer(" ".join(command))

    clock = iter(range(1_000_000))
    board = detect(load(name), answer, run, lambda: float(next(clock)))
    samples = [board.sample(), board.sample(full=False), board.sample()]
    facts = board.facts()
    assert clean(facts)
    assert all(clean(sample) for sample in samples)
    assert all(line.isprintable() and len(line) < 300 for line in board.disturbance(samples))
    assert len(asked) < 4000, "a hostile board decides how often it is asked"
    assert all(".." not in path for path in asked)
    for sample in samples:
        for value in (sample.power_w, sample.temp_c, sample.clock_mhz, sample.energy_j, sample.supply_v):
            assert value is None or abs(value) < 1e13


@pytest.mark.parametrize(
    "said",
    ["nan", "inf", "1e3", "0x10", "1_000", "٣", "+1", "1.", ".5", "--1", "1 2", "9" * 30, "", " ", "1\n2", "\uff11"],
)
def test_what_is_no_plain_number(said: str) -> None:
    assert reading.number(said, -1e300, 1e300) is None


def test_names_in_a_folder_become_paths_only_in_the_form_of_a_device() -> None:
    machine = Machine(answers={})
    listing = "..\n1-0040/../../..\n1-0040\n/etc\n1-0040;reboot\n"
    asked: list[str] = []

    def run(command: Sequence[str]) -> str | None:
        asked.append(command[-1])
        return listing

    assert ina3221.find(machine.read, run) == ()
    assert all(".." not in path and ";" not in path for path in [*asked, *machine.asked])


def test_an_endless_list_of_sensors_is_cut() -> None:
    count = 0

    def read(_path: str) -> str:
        nonlocal count
        count += 1
        return "ina3221"

    detect(load("jetson-orin-nano"), read, lambda _: None)
    assert count < 2000
