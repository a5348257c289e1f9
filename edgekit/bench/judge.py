"""PASS, FAIL or INVALID: a benchmark's result against a target's limits.

Coherence does not depend on heat or on who else was at work, so it is judged in any case and its FAIL beats INVALID.
Speed and energy of a disturbed measurement are INVALID, neither good nor bad; on an emulated board they are NOT JUDGED,
because they are none of the board's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgekit.bench import baseline as baselines
from edgekit.bench.disturbances import Disturbed, of_engine, of_run
from edgekit.bench.figures import Named, by_key, peak_mib
from edgekit.bench.held import number_formats
from edgekit.bench.plausibility import notes
from edgekit.bench.ratios import in_turns
from edgekit.bench.result import BenchResult, DeviceCoherence, EngineRun, Format
from edgekit.bench.verdicts import Absent, Check, Group, Verdict
from edgekit.bundle.manifest import Artefact, Manifest
from edgekit.bundle.paths import plain
from edgekit.coherence import gates
from edgekit.errors import EdgekitError, FileFormatError, GateError, InvalidMeasurementError
from edgekit.report import rows
from edgekit.targets import CoherenceLimits, LatencyLimits, Target, coherence_limits

_L = TypeVar("_L", CoherenceLimits, LatencyLimits)
MAX_BYTES = 16 << 20
COUNTING = "instructions"
"""The protocol that measures no coherence: it counts on an emulated device."""
REPEATS = 0.1
"""Percent that counts of the same thing may differ by."""
_ACROSS = ", which its interval reaches across"


class Overrides(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the command line; each replaces the target's. Names and units are those of the target file."""

    kl_mean_max: float | None = None
    same_top_min: float | None = None
    ppl_ratio_max: float | None = None
    ttft_ms_max: float | None = None
    ttft_tokens: int | None = None
    """Prompt that the limit on the first token is for; None: the longest that was read."""
    tok_s_min: float | None = None
    rss_mib_max: float | None = None
    mj_per_token_max: float | None = None
    cv_max: float | None = None


class Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle's manifest says of one artefact, beyond the result."""

    requested_bits: float
    types: tuple[str, ...]
    """Number formats of the matrices but the embedding, the one with most bytes first."""
    parameters: int
    target: str
    """That it was built for, and that the predictions are for."""
    predicted_tok_s: float | None = None
    predicted_ram_mib: float | None = None
    predicted_from: str = ""


class EngineJudgement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One format of a result."""

    format: Format
    verdict: Verdict
    checks: tuple[Check, ...]
    disturbances: tuple[str, ...]
    """What spoiled its speeds, in words."""
    notes: tuple[str, ...]
    """What makes a figure implausible; never a verdict."""
    facts: Facts | None


class Judgement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a judgement."""

    schema_version: Literal[1] = 1
    result_sha256: str
    """Of the result's JSON."""
    verdict: Verdict
    sentence: str
    disturbances: tuple[str, ...]
    """What spoiled the whole run, in words; those of one engine stand there."""
    engines: Annotated[tuple[EngineJudgement, ...], Meta(min_length=1)]


class Judgements(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of them, one a device."""

    schema_version: Literal[1] = 1
    judgements: tuple[Judgement, ...]
    absent: tuple[Absent, ...] = ()
    """Devices of the same run that gave no result."""


def facts(manifest: Manifest) -> dict[str, Facts]:
    """By format."""
    return {artefact.format: _facts(manifest, artefact) for artefact in manifest.artefacts}


def judge(
    result: BenchResult,
    target: Target,
    overrides: Overrides | None = None,
    known: Mapping[str, Facts] | None = None,
    baseline: BenchResult | None = None,
) -> Judgement:
    """Compare a result with what is asked of it.

    Args:
        result: what was measured.
        target: whose limits hold.
        overrides: limits that replace the target's.
        known: :func:`facts` of the bundle's manifest. Coherence limits depend on the requested bits: where the result
            does not hold them either, only the `overrides` can be judged.
        baseline: an earlier result that must not have been better.

    Raises:
        OptionError: the baseline cannot be compared, see :func:`edgekit.bench.baseline.refuse`.
    """
    asked, known = overrides or Overrides(), known or {}
    if baseline is not None:
        baselines.refuse(result, baseline)
    whole = of_run(result, target)
    engines = tuple(_engine(run, result, target, asked, known.get(run.format), whole, baseline) for run in result.runs)
    verdict = _worst(engines)
    return Judgement(
        result_sha256=baselines.digest(result), verdict=verdict, sentence=_sentence(verdict, engines, whole),
        disturbances=whole, engines=engines,
    )  # fmt: skip


def error(judgement: Judgement) -> EdgekitError | None:
    """What --gate raises: nothing but a PASS gets through."""
    if judgement.verdict == "PASS":
        return None
    if judgement.verdict == "INVALID":
        now = judgement.disturbances or any(engine.disturbances for engine in judgement.engines)
        what = "and measure again" if now else "and measure a new baseline"
        return InvalidMeasurementError(judgement.sentence, remedy=f"remove what disturbs, {what}")
    return GateError(judgement.sentence)


def to_json(found: Sequence[Judgement], absent: Sequence[Absent] = ()) -> bytes:
    """Indented JSON of :class:`Judgements` with a newline at the end."""
    whole = Judgements(judgements=tuple(found), absent=tuple(absent))
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def from_json(data: bytes, name: str = "judgement.json") -> Judgements:
    """Read what :func:`to_json` wrote, perhaps on a stranger's machine.

    Raises:
        FileFormatError: it is too large, or is not one.
    """
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{name} is larger than {MAX_BYTES >> 20} MiB", expected="what edgekit bench writes")
    try:
        return msgspec.json.decode(data, type=Judgements)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise FileFormatError(
            f"{name} does not fit its schema ({plain(str(fault))})", expected="what edgekit bench --judgement wrote"
        ) from fault


class _Peek(Struct):
    judgements: msgspec.Raw


def looks_like(data: bytes) -> bool:
    """Whether `data` is meant to be what :func:`to_json` wrote, rather than a result."""
    try:
        msgspec.json.decode(data, type=_Peek)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


# --- one engine ------------------------------------------------------------------------------------------------------


def _engine(
    run: EngineRun, result: BenchResult, target: Target, asked: Overrides, known: Facts | None,
    whole: tuple[str, ...], baseline: BenchResult | None,
) -> EngineJudgement:  # fmt: skip
    limits = _replaced(target.limits.latency, asked)
    spoiled = of_engine(run, result, limits.cv_max)
    state = Disturbed(emulated=result.measured_on == "emulated", words=(*whole, *spoiled))
    counted = state.emulated and result.protocol.name == COUNTING and run.instructions is not None
    checks = [*_ended(run), *(() if counted else _coherence(run, target, asked, known)), *_repeats(run)]
    checks += _measured(run, limits, asked, state)
    if baseline is not None:
        rounds = baselines.Rounds(in_turns(result, baseline, run), whole)
        checks += baselines.checks(run, baseline, state, target, limits.cv_max, rounds)
    return EngineJudgement(
        format=run.format, verdict=_verdict(checks, state), checks=tuple(checks), disturbances=spoiled,
        notes=notes(run, result, target, known.types if known else run.types), facts=known,
    )  # fmt: skip


def _verdict(checks: Sequence[Check], state: Disturbed) -> Verdict:
    said = [check.verdict for check in checks]
    if "FAIL" in said:
        return "FAIL"
    if state.words or "INVALID" in said:
        return "INVALID"
    return "PASS" if "PASS" in said and not _lacks_coherence(checks) else "NOT JUDGED"


def _ended(run: EngineRun) -> Iterator[Check]:
    if run.failure:
        words = plain(run.failure.sentence, 2000)
        yield Check(group="run", name="ended", title="Runs to its end", verdict="FAIL", sentence=words)


def _coherence(run: EngineRun, target: Target, asked: Overrides, known: Facts | None) -> Iterator[Check]:
    bits = known.requested_bits if known else run.requested_bits
    limits = CoherenceLimits() if bits is None else coherence_limits(target, int(bits))
    limits = _replaced(limits, asked)
    if bits is None and target.limits.coherence != type(target.limits.coherence)():
        why = (
            "the limits of coherence depend on the requested bits, which neither the bundle nor the result says; "
            "measure again with this version"
        )
        yield _unjudged("bits", why)
    if limits == CoherenceLimits():
        return
    if run.coherence is None:
        if not run.failure:
            yield _unjudged("reference", "coherence was not measured: the bundle holds no sealed reference")
        return
    for check in gates.judge(run.coherence.here, limits).checks:
        yield _from_gate(check, run.coherence, by_key(run))


def _repeats(run: EngineRun) -> Iterator[Check]:
    """Counted instructions have to be the same each time, or something else than the code was counted."""
    if run.instructions is None or run.failure:
        return
    for title, found in (("decoded token", run.instructions.decode), ("token of a prompt", run.instructions.prefill)):
        least, most = min(found.values), max(found.values)
        apart = 100 * (most - least) / least if least > 0 else math.inf
        same = found.quantity.n > 1 and apart <= REPEATS
        yield Check(
            group="instructions", name=f"repeats/{title.partition(' ')[0]}", title=f"Counts repeat, {title}",
            limit=REPEATS, measured=min(apart, 1e9), unit="%", kind="emulated", verdict="PASS" if same else "FAIL",
            sentence=f"{found.quantity.n} counts of a {title} differ by {apart:.2g} % (limit {REPEATS:g} %)",
        )  # fmt: skip


def _unjudged(name: str, sentence: str) -> Check:
    return Check(group="coherence", name=name, title="Coherence", verdict="NOT JUDGED", sentence=sentence)


def _from_gate(check: gates.Check, found: DeviceCoherence, named: Mapping[str, Named]) -> Check:
    about = named.get(check.name.removesuffix("_max").removesuffix("_min"))
    part = "" if found.whole else f" ({found.here.positions:,} positions)"
    if about and about.low is not None and about.high is not None and about.low <= check.limit <= about.high:
        part += _ACROSS
    return Check(
        group="coherence", name=check.name, title=rows.gate(check).title.split(",")[0],
        limit=check.limit, at_most=not check.name.endswith("_min"), measured=check.measured,
        low=about.low if about else None, high=about.high if about else None, unit=about.unit if about else "",
        kind=found.kind, verdict="PASS" if check.passed else "FAIL", sentence=check.sentence + part,
    )  # fmt: skip


def _measured(run: EngineRun, limits: LatencyLimits, asked: Overrides, state: Disturbed) -> Iterator[Check]:
    if run.failure:
        return
    named = by_key(run)
    tokens = asked.ttft_tokens or max((one.tokens for one in run.prefill), default=0)
    wanted: tuple[tuple[str, float | None, str, str, str, Group], ...] = (
        ("ttft_ms_max", limits.ttft_ms_max, f"ttft/{tokens}", f"First token after {tokens}", "ms", "speed"),
        ("tok_s_min", limits.tok_s_min, "decode", "Decode", "tokens/s", "speed"),
        ("mj_per_token_max", limits.mj_per_token_max, "decode_energy", "Energy per token", "mJ/token", "energy"),
    )
    for name, limit, key, title, unit, group in wanted:
        if limit is not None:
            yield _limited(name, limit, named.get(key), title, unit, group, state)
    if limits.rss_mib_max is not None:
        yield _memory(run, limits.rss_mib_max, state)


def _limited(
    name: str, limit: float, found: Named | None, title: str, unit: str, group: Group, state: Disturbed
) -> Check:
    at_most = name.endswith("_max")
    base = Check(group=group, name=name, title=title, unit=unit, limit=limit, at_most=at_most, verdict="FAIL")
    if state.emulated:
        return state.judged(base)
    if found is None:
        return msgspec.structs.replace(base, sentence=f"{title} was not measured (limit {limit:.4g} {unit})")
    within = found.value <= limit if at_most else found.value >= limit
    close = found.low is not None and found.high is not None and found.low <= limit <= found.high
    relation = "within" if within else "above" if at_most else "below"
    text = f"{title}: {found.value:.4g} {unit} is {relation} the limit of {limit:.4g} {unit}"
    return state.judged(
        msgspec.structs.replace(
            base, measured=found.value, low=found.low, high=found.high, kind=found.kind,
            verdict="PASS" if within else "FAIL",
            sentence=text + (_ACROSS if close else ""),
        )
    )  # fmt: skip


def _memory(run: EngineRun, limit: float, state: Disturbed) -> Check:
    """Memory is neither hot nor slow: judged in a disturbed run too, but not where an emulator holds more."""
    kind = run.loading[0].seconds.quantity.kind if run.loading else "measured"
    value, calm = peak_mib(run), Disturbed(emulated=state.emulated, words=())
    found = None if value is None else Named("rss", "Peak memory", "MiB", "memory", False, value, None, None, kind)
    return _limited("rss_mib_max", limit, found, "Peak memory", "MiB", "memory", calm)


def _replaced(limits: _L, asked: Overrides) -> _L:
    given = {name: value for name in limits.__struct_fields__ if (value := getattr(asked, name, None)) is not None}
    return msgspec.structs.replace(limits, **given)


# --- words -----------------------------------------------------------------------------------------------------------


def _worst(engines: Sequence[EngineJudgement]) -> Verdict:
    """Coherence that was not judged hides behind no other format; speeds that were not judged do."""
    said = [engine.verdict for engine in engines]
    missing = any(_lacks_coherence(engine.checks) for engine in engines)
    last: tuple[Verdict, ...] = ("NOT JUDGED", "PASS") if missing else ("PASS", "NOT JUDGED")
    return next(verdict for verdict in ("FAIL", "INVALID", *last) if verdict in said)


def _lacks_coherence(checks: Iterable[Check]) -> bool:
    return any(check.verdict == "NOT JUDGED" and check.group == "coherence" for check in checks)


def _sentence(verdict: Verdict, engines: Sequence[EngineJudgement], whole: Sequence[str]) -> str:
    said = [
        f"{engine.format.upper()}: {check.sentence}"
        for engine in engines for check in engine.checks if check.verdict == verdict
    ]  # fmt: skip
    if verdict == "INVALID":
        disturbed = [
            *whole,
            *(f"{engine.format.upper()}: {words}" for engine in engines for words in engine.disturbances),
        ]
        return f"INVALID: {_first(disturbed or said)}"
    if verdict == "NOT JUDGED":
        return f"NOT JUDGED: {_first(said) if said else 'no limit was set'}"
    if verdict == "FAIL":
        return f"FAIL: {_first(said)}"
    count = Counter(check.verdict for engine in engines for check in engine.checks)
    left = f", {count['NOT JUDGED']} not judged" if count["NOT JUDGED"] else ""
    return f"PASS: {count['PASS']} checks{left}"


def _first(said: Iterable[str], most: int = 3) -> str:
    unique = list(dict.fromkeys(said))
    more = f" and {len(unique) - most} more" if len(unique) > most else ""
    return "; ".join(unique[:most]) + more


# --- the manifest ----------------------------------------------------------------------------------------------------


def _facts(manifest: Manifest, artefact: Artefact) -> Facts:
    predicted = manifest.predicted
    speed, ram = (predicted.get(f"{artefact.format}.{name}") for name in ("decode", "ram"))
    return Facts(
        requested_bits=artefact.requested_bits, types=number_formats(artefact),
        parameters=manifest.model.parameters, target=manifest.target.id,
        predicted_tok_s=speed.value if speed else None, predicted_ram_mib=ram.value if ram else None,
        predicted_from=speed.source if speed else "",
    )  # fmt: skip
