"""What a measurement leaves behind, as parsers under attack: its journal, and bench.json from a stranger's machine."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import bench_results
import mutations

from edgekit.bench.instructions import PROTOCOL
from edgekit.bench.journal import Identity, journal_path, open_journal
from edgekit.bench.judge import judge
from edgekit.bench.result import (
    BenchResult,
    BundleRef,
    Failure,
    Figure,
    Instructions,
    Ratio,
    Turns,
    Window,
    from_json,
    to_json,
)
from edgekit.bench.words import lines
from edgekit.bench_report.html import render
from edgekit.bench_report.junit import junit
from edgekit.bench_report.summary import markdown
from edgekit.bench_report.words import Entry
from edgekit.targets import load

Target = Callable[[bytes], None]
_RUN = Identity(bundle="a", protocol="b", machine="c", options="")


def journals(folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """A journal that a crash, a full disk or somebody else's hand damaged: taken up again, or refused."""
    path = journal_path(folder, _RUN)
    values = {
        "gguf/decode": bench_results.repeated(9.5, "tokens/s"), "gguf/window": bench_results.window(3.0, "was hot"),
        "onnx/failure": Failure(kind="error", sentence="It is missing.", exit_code=24),
    }  # fmt: skip
    types: dict[str, Any] = dict(zip(values, (Figure, Window, Failure), strict=True))
    with open_journal(folder, _RUN) as book:
        for key, value in values.items():
            book.put(key, value)
    seed = path.read_bytes()

    def target(data: bytes) -> None:
        path.write_bytes(data)
        with open_journal(folder, _RUN) as found:
            assert found.started.tzinfo is not None
            for key in found.keys():  # noqa: SIM118  # it is no mapping
                found.raw(key)
                if key in types:
                    found.get(key, types[key])

    return (seed,), target


def any_journal(data: bytes, random: Random) -> bytes:
    """A line's value changed, with the right checksum; a line lost, doubled or moved; or any bytes."""
    rows = data.split(b"\n")
    what, at = random.random(), random.randrange(len(rows))
    if what < 0.3:
        return mutations.any_bytes(data, random)
    if what < 0.5:
        row = rows.pop(at)
        for _ in range(random.randrange(3)):
            rows.insert(random.randrange(len(rows) + 1), row)
        return b"\n".join(rows)
    rows[at] = _line(rows[at], random)
    return b"\n".join(rows)


def _line(row: bytes, random: Random) -> bytes:
    try:
        line = json.loads(row)
        value = mutations.any_json(json.dumps(line["value"]).encode(), random).replace(b"\n", b" ")
    except (ValueError, KeyError, TypeError, RecursionError):
        return mutations.any_json(row, random).replace(b"\n", b" ")
    key = json.dumps(line.get("key")).encode()
    return b'{"key":%s,"crc32":%d,"value":%s}' % (key, zlib.crc32(value), value)


def _in_turns() -> BenchResult:
    """Two bundles in turns."""

    def ratio(name: Any, tokens: int, unit: str) -> Ratio:
        ours, theirs = (bench_results.repeated(value, unit) for value in (12.0, 10.0))
        return Ratio(name=name, tokens=tokens, ratio=bench_results.repeated(1.2, "ratio"), ours=ours, theirs=theirs)

    ratios = (ratio("decode", 64, "tokens/s"), ratio("ttft", 32, "ms"))
    one = bench_results.run(turns=Turns(ratios=ratios, window=bench_results.window(500.0, "throttled")))
    other = BundleRef(name="old", model="x", manifest_sha256="cd" * 32, target="rpi5")
    return bench_results.result(one, against=other)


def _counted() -> BenchResult:
    """Instructions alone."""
    counts = bench_results.repeated(36.9, "M instructions/token", "emulated", spread=0.0001, n=2)
    bare: dict[str, Any] = {"sweep": (), "loading": (), "prefill": (), "decode": None, "talk": None, "coherence": None}
    found = Instructions(decode=counts, prefill=counts, cpu="cortex-a76", program="runtime/bin/llama-bench")
    one = bench_results.run(kind="emulated", instructions=found, **bare)
    return bench_results.result(one, kind="emulated", protocol=PROTOCOL)


def results(_folder: Path) -> tuple[tuple[bytes, ...], Target]:
    """bench.json: what is accepted can be written again, shown, judged, and made into every report."""
    seeds = (bench_results.result(), bench_results.result(kind="emulated"), _in_turns(), _counted())
    rpi5 = load("rpi5")

    def target(data: bytes) -> None:
        found = from_json(data)
        assert from_json(to_json(found)) == found
        for line in lines(found):
            assert line.isprintable(), f"unprintable: {line!r:.300}"
        entry = Entry(found, judge(found, rpi5))
        assert entry.judgement.sentence.isprintable(), f"unprintable: {entry.judgement.sentence!r:.300}"
        ElementTree.fromstring(junit([entry]))
        assert "\x1b" not in markdown([entry]) + render([entry])

    return tuple(to_json(seed) for seed in seeds), target
