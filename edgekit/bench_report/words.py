"""A benchmark's figures as people read them, the same way on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from edgekit.bench.figures import Named
from edgekit.bench.judge import Judgement
from edgekit.bench.result import BenchResult, BundleRef, EngineRun, Kind
from edgekit.bench.verdicts import Absent, Check, Verdict
from edgekit.bench.words import computed_on
from edgekit.bundle.paths import plain
from edgekit.report.words import NOT_MEASURED, number, percent

MARKS: dict[Verdict, str] = {"PASS": "✓", "FAIL": "✗", "INVALID": "!", "NOT JUDGED": "–"}
KINDS: dict[Kind, str] = {
    "measured": "measured on the device",
    "emulated": "emulated: says nothing about speed",
    "predicted": "predicted, not measured",
}
KEY = ("kl_mean", "same_top", "instructions/decode", "instructions/prefill", "decode", "ttft", "rss", "decode_energy")
"""Figures of a summary, in their order."""
_MOST = 40
"""Entries of a list or table that a stranger fills."""


@dataclass(frozen=True)
class Entry:
    """One result to be shown, with its judgement."""

    result: BenchResult
    judgement: Judgement

    @property
    def title(self) -> str:
        """Bundle and device."""
        return f"{plain(self.result.bundle.name, 80)} on {device(self.result)}"


def absent_title(absent: Absent) -> str:
    """Bundle and device, as :attr:`Entry.title`."""
    return f"{plain(absent.bundle, 80)} on {plain(absent.device, 120)}"


def device(result: BenchResult) -> str:
    """The device as the user called it, and what board it says it is."""
    board = result.device.board.model if result.device.board else None
    return plain(result.device.url, 120) + (f" ({plain(board, 80)})" if board else "")


def amount(value: float | None, unit: str) -> str:
    """A number with its unit; a share in percent."""
    if unit == "share":
        return percent(value)
    text = _number(value, unit)
    return text if value is None or not unit else f"{text} {unit}"


def _number(value: float | None, unit: str) -> str:
    return number(value, 3 if unit == "nats" else 4)


def said(found: Named) -> str:
    """Value and unit."""
    return amount(found.value, found.unit)


def interval(low: float | None, high: float | None, unit: str) -> str:
    """Both ends; empty where there is none."""
    if low is None or high is None:
        return ""
    if unit == "share":
        return f"{percent(low)} to {percent(high)}"
    return f"{_number(low, unit)} to {_number(high, unit)}"


def limit(check: Check) -> str:
    """Sign and limit."""
    if check.limit is None:
        return ""
    text = percent(check.limit) if check.unit == "share" else f"{check.limit:,.4g} {check.unit}".strip()
    return f"{'≤' if check.at_most else '≥'} {text}"


def reason(judgement: Judgement) -> str:
    """The sentence without the verdict, which stands beside it."""
    return judgement.sentence.removeprefix(f"{judgement.verdict}: ")


def measured(check: Check) -> str:
    """What was found, with its interval."""
    if check.limit is None or (check.measured is None and check.verdict == "NOT JUDGED"):
        return ""
    if check.measured is None:
        return NOT_MEASURED
    spread = interval(check.low, check.high, check.unit)
    return amount(check.measured, check.unit) + (f" ({spread})" if spread else "")


def rows(items: Iterable[tuple[str, str]], most: int = _MOST) -> list[tuple[str, str]]:
    """The first entries of a table that a stranger filled, in one bounded line each."""
    return [(plain(key, 60), plain(value, 300)) for key, value in islice(items, most)]


def lines(items: Sequence[str], most: int = _MOST) -> list[str]:
    """The first lines of a list that a stranger filled, each bounded, and how many more there are."""
    kept = [plain(item, 500) for item in items[:most]]
    return kept + ([f"and {len(items) - most:,} more"] if len(items) > most else [])


def facts(result: BenchResult) -> list[tuple[str, str]]:
    """What was measured, where and how."""
    at, board = result.device, result.device.board
    found = [
        ("Model", result.bundle.model), ("Bundle", f"{result.bundle.name}, built for {result.bundle.target}"),
        ("Manifest", f"SHA-256 {result.bundle.manifest_sha256}"), ("Settings and limits", result.target.title),
        *((("Measured in turns with", _other(result.against)),) if result.against else ()),
        ("Device", at.url), *((key.replace("_", " "), value) for key, value in islice(at.machine.items(), _MOST)),
    ]  # fmt: skip
    if board:
        named = {
            "Board": board.model, "Firmware": board.firmware, "JetPack": board.jetpack, "Governor": board.governor,
            "Power mode": board.power_mode, "Power sensor": board.power_sensor,
        }  # fmt: skip
        found += [(title, value) for title, value in named.items() if value]
    found += [(f"{run.format.upper()} computed on", computed_on(run)) for run in result.runs[:4] if run.computed_on]
    found += [("Protocol", f"{result.protocol.name}: {result.protocol.purpose}"), ("Started", result.started)]
    found += [("Took", f"{result.seconds:,.0f} s in {result.parts} part{'s' if result.parts != 1 else ''}")]
    found += [("edgekit", result.edgekit), *islice(at.versions.items(), _MOST)]
    return rows(found, 2 * _MOST)


def _other(bundle: BundleRef) -> str:
    return f"{plain(bundle.name, 60)}, built for {plain(bundle.target, 60)}, manifest SHA-256 {bundle.manifest_sha256}"


def settings(run: EngineRun) -> str:
    """How the engine was run."""
    at = run.settings
    pinned = f", pinned to CPUs {', '.join(map(str, at.affinity[:64]))}" if at.affinity else ""
    mode = f", file {'mapped' if at.mode == 'mmap' else 'copied into memory'}" if at.mode else ""
    where = f"{computed_on(run)}, " if run.computed_on else ""
    return (
        f"{where}{at.prefill_threads} threads for prompts, {at.decode_threads} for decoding (chosen by the {at.by})"
        f"{pinned}{mode}, context {at.context:,}"
    )


def bits(run: EngineRun) -> str:
    """Bits per weight that were asked for and what the files hold; empty where the result does not say."""
    if run.requested_bits is None:
        return ""
    held = "" if run.effective_bits is None else f", {run.effective_bits:.4g} per weight in the files"
    types = f" ({', '.join(plain(name, 40) for name in run.types[:4])})" if run.types else ""
    return f"{run.requested_bits:g} bits requested{held}{types}"


def beside_others(found: Named) -> bool:
    """Whether a figure may stand in one table with those of other devices: no emulated speed or memory."""
    return found.kind == "measured" or found.group in ("coherence", "instructions")


def key_figures(found: Sequence[Named], peak: float | None) -> list[Named]:
    """What a summary shows: coherence, decode, the longest prompt's first token, memory, energy."""
    named = {one.key: one for one in found}
    if first := [one for one in found if one.key.startswith("ttft/")]:
        named["ttft"] = first[-1]
    if memory := [one for one in found if one.group == "memory" and one.value == peak]:
        named["rss"] = memory[0]
    return [named[key] for key in KEY if key in named]
