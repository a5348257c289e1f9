"""Damaged files, 10³ of each kind in every run and 10⁵ in the nightly job: each is read, or refused in one sentence.

    EDGEKIT_FUZZ_COUNT=100000 pytest -m nightly tests/fuzz

The attack runs in processes of its own, so that a crash, a file out of place or a process started is seen; a finding is
kept with the command that tries it again. What hypothesis adds is the smallest such input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import NUMBERS, ODD_BYTES, ODD_TEXT
from parsers import PARSERS, Target, attack

ROOT = Path(__file__).parents[2]
EVERY_RUN = 1000
NIGHTLY = int(os.environ.get("EDGEKIT_FUZZ_COUNT", "100000"))

Tally = dict[str, Any]


def attacked(parser: str, count: int, keep: Path) -> list[Tally]:
    """What `python -m tests.fuzz.run` tells of a parser, or of all."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", parser, "--count", str(count), "--keep", str(keep)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "RUST_BACKTRACE": "0"},
    )  # fmt: skip
    tallies = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"parser"')]
    told = {tally["parser"] for tally in tallies}
    assert told == (set(PARSERS) if parser == "all" else {parser}), ran.stderr[-4000:]
    return tallies


def judge(tally: Tally, count: int) -> None:
    assert tally["findings"] == [], f"try it again: python -m tests.fuzz.run {tally['parser']} --replay FILE"
    assert tally["inputs"] == count
    assert tally["accepted"] > 0, "all inputs are refused at the door: nothing behind it was attacked"
    if tally["parser"] != "toml-lines":  # a comparison, which refuses nothing
        assert tally["refused"] > 0, "no input was damaged"


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tally]:
    """One run over all parsers."""
    found = attacked("all", EVERY_RUN, tmp_path_factory.getbasetemp() / "edgekit-fuzz")
    return {tally["parser"]: tally for tally in found}


@pytest.mark.parametrize("parser", PARSERS)
def test_damaged_files_are_read_or_refused(parser: str, tallies: dict[str, Tally]) -> None:
    judge(tallies[parser], EVERY_RUN)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parser", PARSERS)
def test_many_damaged_files_are_read_or_refused(parser: str) -> None:
    keep = Path(tempfile.gettempdir()) / "edgekit-fuzz"
    judge(attacked(parser, NIGHTLY, keep)[0], NIGHTLY)


# --- hypothesis ------------------------------------------------------------------------------------------------------


@cache
def prepared(parser: str) -> tuple[tuple[bytes, ...], Target]:
    """Valid files and the target, in a folder that the last test removes."""
    return PARSERS[parser].prepare(Path(tempfile.mkdtemp(dir=_folder().name)))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgekit-fuzz-")


@pytest.fixture(scope="module", autouse=True)
def _cleared() -> Iterator[None]:
    yield
    _folder().cleanup()


PIECES = (
    *ODD_BYTES,
    *(text.encode("utf8", "surrogatepass") for text in ODD_TEXT),
    *((number % 2**64).to_bytes(8, "little") for number in NUMBERS),
    *(str(number).encode() for number in NUMBERS),
)
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 64), st.sampled_from(PIECES) | st.binary(max_size=8)),
    min_size=1, max_size=4,
)  # fmt: skip


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Each edit puts a piece in place of some bytes."""
    for at, size, piece in edits:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + size :]
    return data


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=30, deadline=None)
@given(edits=EDITS, which=st.integers(0, 3))
def test_no_small_edit_gets_through(parser: str, edits: list[tuple[int, int, bytes]], which: int) -> None:
    seeds, target = prepared(parser)
    attack(target, edited(seeds[which % len(seeds)], edits))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "data", [b"", b"\0", b"{", b"[]", b"\xff" * 9, b"[" * 100_000, b'{"a":' * 50_000], ids=range(7)
)
def test_nothing_and_nonsense(parser: str, data: bytes) -> None:
    attack(prepared(parser)[1], data)


# --- the attack itself can see ---------------------------------------------------------------------------------------

CULPRITS = {
    "a traceback": "raise KeyError('x')",
    "a process": "import subprocess; subprocess.run(['true'])",
    "a socket": "import socket; socket.socket()",
    "a file elsewhere": "open('/etc/hostname').read()",
    "a file written elsewhere": "open('/tmp/edgekit-fuzz-culprit', 'w')",
    "time": "while True: pass",
    "memory": "x = b'x' * (400 << 20)",
    "a swallowed breach": "import os\ntry: os.system('true')\nexcept BaseException: pass",
    "a pickle": "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    "an escape sequence": "from edgekit.errors import EdgekitError\ne = EdgekitError('x')\n"
    "e.found = '\\x1b[31m'\nraise e",
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_the_attack_notices(culprit: str, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT / "tests")!r}]
import run
from parsers import Parser
def prepare(folder):
    def target(data):
        if data == b"evil":
            exec(compile({CULPRITS[culprit]!r}, "culprit", "exec"))
    return (b"good",), target
run.PARSERS["x"] = Parser("x", "", prepare, lambda data, random: b"evil", seconds=0.5)
with run.opened("x", Path({str(tmp_path)!r})) as attack:
    run.counted(attack, 1, 0)
sys.exit(0 if attack.findings else 1)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not Path("/tmp/edgekit-fuzz-culprit").exists()
