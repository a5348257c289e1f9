"""How devices are named: URLs, the user's inventory, and the commands that show and change it."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import Cli
from fake_board import read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from edgekit.devices import base, inventory
from edgekit.devices.base import Address, Device, open_device, parse_url
from edgekit.devices.local import local
from edgekit.devices.process import Cancel
from edgekit.errors import DeviceError, FileFormatError, UnknownTargetError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "edgekit" / "inventory.toml"


BAD = {
    "": "names no device", "pi": "names no device", "ssh:": "no address for ssh", "ssh://": "no address for ssh",
    "ssh://-oProxyCommand=id": "no address for ssh", "ssh://-lroot@pi": "no address for ssh",
    "ssh://a b": "no address for ssh", "ssh://pi;id": "no address for ssh", "ssh://$(id)": "no address for ssh",
    "ssh://pi/home": "no address for ssh", "ssh://pi:0": "port 0", "ssh://pi:65536": "port 65536",
    "ssh://pi:x": "no address for ssh", "ssh://pi\n": "no address for ssh", "ssh://u:secret@pi": "holds a password",
    "ssh://[::1": "no address for ssh", "ssh://[-x]": "no address for ssh", "ssh://é": "no address for ssh",
    "LOCAL": "names no device", "local:x\n": "names no device",
}  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(DeviceError, match=BAD[url]) as caught:
        parse_url(url)
    assert "secret" not in caught.value.sentence()


def test_urls() -> None:
    assert parse_url("local") == Address("local")
    assert parse_url("ssh://raspberrypi.local") == Address("ssh", "raspberrypi.local")
    assert parse_url("ssh://pi@10.0.0.7:2222/") == Address("ssh", "10.0.0.7", "pi", 2222)
    assert parse_url("ssh://[fe80::1%eth0]") == Address("ssh", "fe80::1%eth0")
    assert parse_url("emulated:rpi5") == Address("emulated", rest="rpi5")


@given(st.text())
def test_any_text_is_read_or_refused_and_no_host_is_an_option(text: str) -> None:
    for url in (text, f"ssh://{text}"):
        address = read_or_refused(parse_url, url) or Address("local")
        for part in (address.host, address.user):
            assert not part.startswith("-")
            assert not set(part) & set(" \t\n;&|$`'\"\\()<>*?!")


def test_schemes_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("labgrid", "tests.no:such", base.GROUP)
    made = local()
    monkeypatch.setattr(EntryPoint, "load", lambda _self: lambda url, _cancel: made if url == "labgrid:place" else None)
    monkeypatch.setattr(base, "_points", lambda: (point,))
    device: Device = open_device("labgrid:place")
    assert device is made
    with pytest.raises(DeviceError, match="installed packages add labgrid"):
        open_device("serial:/dev/ttyUSB0")


def test_an_emulated_board_of_no_target() -> None:
    with pytest.raises(UnknownTargetError):
        open_device("emulated:nothing")


# --- the inventory ---------------------------------------------------------------------------------------------------

BAD_FILES = {
    "[devices]\npi = 5\n": "devices.pi is no device", "devices = 5\n": "devices is no table", "[": "is not TOML",
    '[devices]\n"P I" = "local"\n': "devices.P I is no device", '[devices]\npi = "ssh://-x"\n': "no address for ssh",
    "[devices.pi]\nurl = 'local'\n": "devices.pi is no device", "a = '\x1b'\n": "is not TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_wrong_file_is_told_by_name_and_key(text: str, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(text)
    with pytest.raises(FileFormatError, match=BAD_FILES[text]) as caught:
        inventory.devices()
    assert str(config) in caught.value.sentence()
    with pytest.raises(FileFormatError):
        inventory.add("pi", "local")
    assert config.read_text() == text, "a file with a mistake in it was replaced"


def test_bytes_that_are_no_text(config: Path) -> None:
    config.parent.mkdir(parents=True)
    for data in (b"\xff\xfe", b"a" * (2 << 20), b"[" * 100_000):
        config.write_bytes(data)
        with pytest.raises(FileFormatError):
            inventory.devices()


@pytest.mark.parametrize("name", ["", "a b", "-x", "A", "local", "x" * 33, "a\n", "é"])
def test_bad_names(name: str) -> None:
    with pytest.raises(DeviceError, match="no name for a device"):
        inventory.add(name, "local")


def test_names_come_and_go(config: Path) -> None:
    assert inventory.devices() == {}
    inventory.add("pi", "ssh://pi@raspberrypi.local")
    inventory.add("bench-2", "emulated:rpi5")
    inventory.add("pi", "ssh://pi@10.0.0.7")
    assert inventory.devices() == {"bench-2": "emulated:rpi5", "pi": "ssh://pi@10.0.0.7"}
    assert inventory.url_of("pi") == "ssh://pi@10.0.0.7"
    inventory.remove("bench-2")
    assert list(inventory.devices()) == ["pi"]
    with pytest.raises(DeviceError, match="no device is called 'bench-2'; expected one of pi"):
        inventory.remove("bench-2")
    with pytest.raises(DeviceError, match="no device is called 'nas'; expected one of local, pi"):
        inventory.url_of("nas")
    assert [path.name for path in config.parent.iterdir()] == ["inventory.toml"], "a temporary file was left"


def test_a_name_opens_its_device() -> None:
    inventory.add("desk", "local")
    device = open_device("desk", cancel=Cancel())
    assert (device.kind, device.run(["echo", "x"], timeout=60).out) == ("local", b"x\n")


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_list_can_be_shown_and_changed(cli: Cli) -> None:
    assert "no device has a name yet" in cli("devices").out
    assert cli("devices", "add", "pi", "ssh://pi@raspberrypi.local").code == 0
    assert json.loads(cli("devices", "list", "--json").out) == [{"name": "pi", "url": "ssh://pi@raspberrypi.local"}]
    assert "pi  ssh://pi@raspberrypi.local" in cli("devices").out
    assert cli("devices", "remove", "pi").code == 0
    cli("devices", "remove", "pi").refused(37, "no device is called 'pi'")
    cli("devices", "add", "pi", "ssh://-x").refused(37, "no address for ssh")
    cli("devices", "probe", "nas").refused(37, "edgekit devices add NAME URL")


def test_probe_says_what_a_machine_is(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "ours"))
    told = json.loads(cli("devices", "probe", "local", "--json").out)
    assert told["facts"]["machine"]
    assert told["facts"]["place"] == str(tmp_path / "ours")
    assert "system" in cli("devices", "probe", "local").out
    assert not (tmp_path / "ours").exists(), "asking changed something"
    assert cli("devices", "probe", "local", "--target", "host").code == 0
    if told["facts"]["machine"] != "aarch64":
        cli("devices", "probe", "local", "--target", "rpi5").refused(38, "aarch64, as rpi5 is")


def test_clean_removes_what_is_ours_only(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.devices import home

    monkeypatch.setenv("EDGEKIT_HOME", str(tmp_path / "ours"))
    assert "nothing of edgekit's" in cli("devices", "clean", "local").out
    home.prepare(local(), home.home_in(str(tmp_path / "ours")))
    (tmp_path / "ours" / "letters.txt").write_text("dear")
    assert "removed" in cli("devices", "clean", "local").out
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["letters.txt"]
    (tmp_path / "ours" / "bench").mkdir()
    cli("devices", "clean", "local").refused(37, "edgekit did not make")
