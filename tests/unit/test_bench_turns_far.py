"""Two bundles in turns on a board far away: what is refused before it is sent, what arrives, what is taken back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_results
import fake_board
import msgspec
import pytest
from fake_board import STEPS, Board

from edgekit import targets
from edgekit.bench.patience import Patience
from edgekit.bench.remote import Against, bench_on, decoder
from edgekit.bench.result import to_json
from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.manifest import identity
from edgekit.errors import BundleError, DeviceError, WrongBoardError
from edgekit.progress import Quiet

HOST, RPI5 = targets.load("host"), targets.load("rpi5")
HASTE = Patience(lost_s=20, first_s=0.01, longest_s=0.05)


@dataclass
class Far:
    """A board, and a bundle that it is made for."""

    board: Board
    bundle: Bundle

    def measure(self, other: Bundle, target: Any = HOST) -> list[str]:
        """What the program on the board was asked for."""
        import json

        done = bench_on(
            self.board.device(), self.bundle, HOST, ["--protocol", "smoke"], decode=json.loads, progress=Quiet(),
            patience=HASTE, against=Against(other, target),
        )  # fmt: skip
        assert len(done["steps"]) == STEPS
        return list(done["arguments"])


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(Board(tmp_path / "board"), fake_board.bundle(tmp_path / "new" / "tiny.host"))


def test_a_bundle_for_another_board_is_refused_before_a_byte_is_sent(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", target="rpi5")
    with pytest.raises(WrongBoardError, match="for the bundle of --against: the .*(0xd0b|aarch64)"):
        far.measure(other, RPI5)
    with pytest.raises(BundleError, match="model"):
        far.measure(open_bundle(fake_board.damaged_copy(other, tmp_path / "damaged" / "tiny.host")))
    assert far.board.fed == 0
    assert list(far.board.home.iterdir()) == []


def test_room_is_needed_for_both(far: Far, tmp_path: Path) -> None:
    least = HOST.deploy.min_free_mib
    (far.board.folder / "free").write_text(str((least + 1) << 10))
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", size=2 << 20)
    with pytest.raises(DeviceError, match=rf"--against: {least + 1} MiB of its disk are free; expected {least + 2}"):
        far.measure(other)
    assert far.board.fed == 0


def test_both_arrive_under_one_name_without_engines_for_the_second(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host", size=5000, installer=False)
    place = str(far.board.base / "against" / "tiny.host")
    asked = far.measure(other)
    assert asked[asked.index("--against") + 1] == place
    assert open_bundle(Path(place)).manifest == other.manifest
    assert open_bundle(far.board.base / "bundles" / "tiny.host").manifest == far.bundle.manifest
    assert far.board.clean()
    far.board.fed = 0
    far.measure(other)
    assert far.board.fed == 0, "both are there already"
    older = fake_board.bundle(tmp_path / "older" / "older.host", size=5000, installer=False)
    far.measure(older)
    assert not (far.board.base / "against" / "tiny.host").exists(), "an earlier one takes no room"


def test_only_a_result_of_both_bundles_is_taken(far: Far, tmp_path: Path) -> None:
    other = fake_board.bundle(tmp_path / "old" / "tiny.host")
    made = bench_results.result(bench_results.run("gguf"))
    own = msgspec.structs.replace(made.bundle, manifest_sha256=identity(far.bundle.manifest))
    their = msgspec.structs.replace(made.bundle, manifest_sha256=identity(other.manifest))
    device = far.board.device()
    alone, both = (
        to_json(msgspec.structs.replace(made, bundle=own, against=against)) for against in (None, their)
    )  # fmt: skip
    assert decoder(device, far.bundle, other)(both).against == their
    for data, against in ((alone, other), (both, None)):
        with pytest.raises(DeviceError, match="of another bundle"):
            decoder(device, far.bundle, against)(data)
