"""Is this the board the bundle was built for, and is it fit to be measured? From recorded and invented answers."""

from __future__ import annotations

import msgspec
import pytest
from fake_board import read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench import follow
from edgekit.bench import preflight as flight
from edgekit.bench.preflight import Needs, check, recognised, refuse, settle, summary
from edgekit.bench.probe import Probed, parse, probe
from edgekit.board_files import cpuinfo
from edgekit.devices.boards.base import Sample
from edgekit.devices.local import local
from edgekit.devices.process import Cancel
from edgekit.errors import DeviceError, InterruptError, WrongBoardError
from edgekit.progress import Quiet
from edgekit.targets import Target, load

OS = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'


def answer(name: str, **changes: str) -> bytes:
    """What a board of a shipped target prints."""
    target = load(name)
    facts = {
        "machine": "aarch64", "kernel": "6.12.34+rpt-rpi-2712", "boot": "1f1f1f1f-0000-4000-8000-000000000000",
        "uptime": "351.02 1390.05", "load": "0.02 0.10 0.08 1/212 1187", "os": OS,
        "model": target.probe.model_match + " Model B Rev 1.0", "cpu": cpuinfo(target),
        "memory": "MemTotal:        4147124 kB\nMemAvailable:    3905480 kB", "glibc": "glibc 2.36",
        "pythons": "Python 3.11.2\nPython 3.11", "clock": f"{1000 * target.soc.clusters[0].max_mhz}",
        "governor": "ondemand", "home": "/home/pi", "place": "/home/pi/edgekit",
        "disk": "/dev/mmcblk0p2 60953532 5203452 53217612 9% /", "missing": "",
        "before": "cpu  100 0 50 1000 5 0 0 0 0 0", "after": "cpu  101 0 50 1399 5 0 0 0 0 0",
    } | changes  # fmt: skip
    lines = ["begin:"]
    for section, text in facts.items():
        lines += [f"{section}:", *(f" {line}" for line in text.splitlines())]
    return "\n".join([*lines, "end:", ""]).encode()


def board(name: str, **changes: str) -> Probed:
    return parse(answer(name, **changes), "pi")


def levels(target: Target, probed: Probed, needs: Needs | None = None) -> dict[str, str]:
    return {finding.about: finding.level for finding in check(target, probed, needs)}


# --- the answer ------------------------------------------------------------------------------------------------------


def test_what_a_raspberry_pi_5_says() -> None:
    found = board("rpi5")
    assert (found.machine, found.cores, found.cpu_parts, found.glibc) == ("aarch64", 4, ("0xd0b",), "2.36")
    assert {"asimd", "asimddp", "fphp", "asimdhp"} <= set(found.features)
    assert (found.ram_mib, found.available_mib, found.free_mib) == (4049, 3813, 51970)
    assert (found.os_id, found.os_version, found.pythons) == ("debian", "12", ("3.11",))
    assert (found.clock_mhz, found.governors, found.load, found.uptime_s) == (2400.0, ("ondemand",), 0.02, 351.02)
    assert found.busy == pytest.approx(4 / 400, abs=1e-3)
    assert found.place == "/home/pi/edgekit"


def test_what_is_not_there_is_unknown_and_no_zero() -> None:
    empty = dict.fromkeys(
        ("kernel", "boot", "uptime", "load", "os", "model", "cpu", "memory", "glibc", "pythons", "clock", "governor",
         "disk", "before", "after"), "",
    )  # fmt: skip
    found = board("rpi5", **empty)
    assert (found.load, found.busy, found.ram_mib, found.free_mib, found.clock_mhz) == (None, None, None, None, None)
    assert (found.glibc, found.pythons, found.cpu_parts) == ("", (), ())


def test_other_forms() -> None:
    assert board("rpi5", glibc="ldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35").glibc == "2.35"
    assert board("rpi5", glibc="musl libc (aarch64)").glibc == ""
    assert board("rpi5", disk="").free_mib is None
    assert board("rpi5", before="cpu  1", after="cpu  2").busy is None
    big = board("rk3588", model="Radxa ROCK 5B")
    assert big.cpu_parts == ("0xd05", "0xd0b")


BAD = {
    "machine": ["", "arm; reboot", "\x1b[31m", "é"], "disk": ["x", "a b c d e f", "/dev/x 1 1 99999999999999999 1% /"],
}  # fmt: skip


@pytest.mark.parametrize(("section", "text"), [(key, text) for key, texts in BAD.items() for text in texts])
def test_nonsense_is_refused(section: str, text: str) -> None:
    with pytest.raises(DeviceError) as caught:
        board("rpi5", **{section: text})
    assert caught.value.sentence().isprintable()


def test_escape_sequences_do_not_get_through() -> None:
    found = board("rpi5", model="\x1b]0;x\x07Pi", governor="\x1b[2J", kernel="\x9b31m", os="PRETTY_NAME=\x1b[31m")
    texts = (found.model, *found.governors, found.kernel, found.os_title)
    assert all(text.isprintable() for text in texts)
    assert all(f.words().isprintable() for f in check(load("rpi5"), found))


@given(st.binary(max_size=600), st.integers(0, 3000), st.integers(0, 200))
def test_any_answer_is_read_or_refused(noise: bytes, at: int, size: int) -> None:
    whole = answer("rpi5")
    for data in (noise, whole[:at] + noise + whole[at + size :], whole.replace(b"rpt", noise.replace(b"\n", b""))):
        found = read_or_refused(parse, data, "pi")
        if found is not None:
            assert msgspec.json.encode(found).decode().isprintable()
            assert len(msgspec.json.encode(found)) < 100_000


def test_this_machine_answers() -> None:
    found = probe(local())
    assert found.cores > 0
    assert found.ram_mib
    assert found.boot_id
    assert found.missing == ()


# --- the board -------------------------------------------------------------------------------------------------------

BOARDS = ("rpi5", "rpi4", "rpi-zero2w", "jetson-orin-nano", "rk3588")


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_fits_its_own_target(name: str) -> None:
    target = load(name)
    glibc = target.toolchain.glibc_max if target.toolchain else "2.36"
    found = board(name, glibc=f"glibc {glibc}")
    assert not [level for level in levels(target, found).values() if level in ("wrong", "unfit")]
    assert name in recognised(found)


def test_the_issue_itself_a_bundle_for_a76_on_an_a72() -> None:
    with pytest.raises(WrongBoardError, match=r"the CPU part is 0xd08; expected 0xd0b \(Cortex-A76\)") as caught:
        refuse(check(load("rpi5"), board("rpi4")), "pi4")
    assert caught.value.exit_code == 38
    assert "--target" in caught.value.remedy
    assert recognised(board("rpi4"))[0] == "rpi4"


CHANGES = [
    ({"machine": "x86_64"}, "machine", "wrong"), ({"machine": "armv7l"}, "machine", "wrong"),
    ({"cpu": "processor : 0\nCPU part : 0xd0b\nFeatures : asimd fphp asimdhp\n"}, "CPU features", "wrong"),
    ({"cpu": ""}, "CPU", "wrong"), ({"glibc": "glibc 2.31"}, "glibc", "wrong"), ({"glibc": ""}, "glibc", "wrong"),
    ({"missing": "sha256sum"}, "tools", "unfit"), ({"model": "Raspberry Pi 4 Model B"}, "model", "disturb"),
    ({"model": ""}, "model", "disturb"), ({"clock": "1500000"}, "clock", "disturb"),
    ({"after": "cpu  300 0 50 1200 5 0 0 0 0 0"}, "load", "disturb"), ({"os": "ID=arch\n"}, "system", "note"),
    ({"os": OS.replace('"12"', '"11"')}, "system", "note"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "about", "level"), CHANGES)
def test_everything_that_is_wrong_is_found(changes: dict[str, str], about: str, level: str) -> None:
    target = load("rpi5")
    assert about not in levels(target, board("rpi5"))
    found = check(target, board("rpi5", **changes))
    assert {finding.about: finding.level for finding in found}[about] == level
    assert summary(found)[about].startswith(f"{level}: ")
    if level in ("wrong", "unfit"):
        with pytest.raises(WrongBoardError if level == "wrong" else DeviceError, match="pi: "):
            refuse(found, "pi")
    else:
        refuse(found, "pi")


def test_a_clock_within_its_crystal_s_error_is_honest() -> None:
    assert "clock" not in levels(load("rpi5"), board("rpi5", clock="2390000"))


def test_the_governor_that_the_target_asks_for() -> None:
    target = load("rpi5")
    wants = msgspec.structs.replace(target, thermal=msgspec.structs.replace(target.thermal, governor="performance"))
    assert levels(wants, board("rpi5"))["governor"] == "disturb"
    assert "governor" not in levels(wants, board("rpi5", governor="performance"))


NEEDS = Needs(disk_mib=300, ram_mib=600, python="3.11")


@pytest.mark.parametrize(
    ("changes", "about", "level"),
    [
        ({"memory": "MemTotal: 524288 kB"}, "RAM", "wrong"), ({"pythons": "Python 3.9.2"}, "Python", "wrong"),
        ({"pythons": ""}, "Python", "wrong"), ({"disk": "/dev/x 1 1 204800 1% /"}, "disk", "unfit"),
    ],
)  # fmt: skip
def test_what_the_bundle_needs(changes: dict[str, str], about: str, level: str) -> None:
    target = load("rpi5")
    assert about not in levels(target, board("rpi5"), NEEDS)
    assert levels(target, board("rpi5", **changes), NEEDS)[about] == level
    assert about not in levels(target, board("rpi5", **changes)), "a bundle's needs without a bundle"


# --- its sensors -----------------------------------------------------------------------------------------------------


class Oven:
    """A board that says one temperature after the other."""

    name = "oven"

    def __init__(self, *temperatures: float | None, throttled: int = 0) -> None:
        self.left, self.throttled = list(temperatures), throttled

    def sample(self, *, full: bool = True) -> Sample:
        value = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return Sample(t=0.0, temp_c=value, throttled=self.throttled)


def settled(oven: Oven, cancel: Cancel | None = None, *, most_s: float = 5) -> list[str]:
    target = load("rpi5")
    brief = msgspec.structs.replace(target, thermal=msgspec.structs.replace(target.thermal, cooldown_max_s=most_s))
    return [f"{f.level} {f.about}" for f in settle(oven, brief, Quiet(), cancel or Cancel())]  # type: ignore[arg-type]


def test_a_cool_board_is_measured_at_once() -> None:
    assert settled(Oven(59.9)) == []
    assert settled(Oven(None)) == [], "no sensor is no heat"


def test_a_warm_board_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "_LOOK_S", 0.01)
    oven = Oven(70, 65, 61, 59)
    assert settled(oven) == []
    assert oven.left == [59]


def test_a_hot_board_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "_LOOK_S", 0.01)
    assert settled(Oven(75), most_s=0.05) == ["disturb heat"]
    cancel = Cancel()
    cancel.set()
    with pytest.raises(InterruptError):
        settled(Oven(75), cancel)


def test_throttling_now_disturbs_and_earlier_is_noted() -> None:
    assert settled(Oven(50, throttled=0x50005)) == ["disturb throttling", "note throttled earlier"]
    assert settled(Oven(50, throttled=0x40000)) == ["note throttled earlier"]


# --- looking at what runs --------------------------------------------------------------------------------------------

LOOK = b"begin:\nboot:\n 1f-2\nalive:\n yes\nended:\nlog:\n step 1\n \x1b[31mred\n half a li.\nsize:\n 14\nend:\n"


def test_a_look() -> None:
    found = follow.parse(LOOK, "pi")
    assert (found.boot, found.alive, found.ended, found.size) == ("1f-2", True, None, 14)
    assert (found.log, found.rest) == (("step 1", "\x1b[31mred"), "half a li")
    ended = follow.parse(LOOK.replace(b"ended:\n", b"ended:\n -9 512000 1\n"), "pi")
    assert ended.ended == (-9, 512000, 1)


@given(st.binary(max_size=60), st.integers(0, 90), st.integers(0, 20))
def test_any_look_is_read_or_refused(noise: bytes, at: int, size: int) -> None:
    read_or_refused(follow.parse, LOOK[:at] + noise + LOOK[at + size :], "pi")
