"""`edgekit verify`: is a bundle whole, and does it still say here what it said where it was built?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgekit.errors import EdgekitError, MissingDependencyError, OptionError, ParityError

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.bundle.golden import Golden
    from edgekit.bundle.manifest import Artefact
    from edgekit.bundle.tokenizer import Tokenizer
    from edgekit.coherence.metrics import Coherence
    from edgekit.coherence.reference import Reference
    from edgekit.coherence.scoring import ItemScores
    from edgekit.engines.base import Engine
    from edgekit.progress import Progress

KL_TOLERANCE = 0.01
"""Nats. The same artefact on another CPU rounds differently in its int8 kernels; on the same machine it is equal."""
ANSWERS_TOLERANCE = 0.05
"""Share of the questions that may be answered otherwise than when the bundle was built: ties that rounding decides."""
_MAX_REPORT = 64 << 20
_DAYS = (datetime(2001, 2, 3, 4, 5), datetime(2020, 11, 12, 13, 14))
"""Two dates that differ in every part: a chat template that shows the date gives two texts."""


@dataclass(frozen=True)
class Check:
    """One line of the result."""

    name: str
    status: Literal["ok", "not checked"]
    detail: str
    kl_mean: float | None = None
    """Nats, measured here."""
    kl_recorded: float | None = None
    """Nats, from report.json."""
    answers_changed: int | None = None
    """Questions answered otherwise here than by the same artefact when the bundle was built."""


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine", "engines", type=click.Choice(["gguf", "onnx"]), multiple=True,
    help="Run this artefact, or fail; repeat for several. Default: every one whose engine is installed.",
)  # fmt: skip
@click.option("--checksums-only", is_flag=True, help="Check names, sizes and SHA-256 only; load nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: Path, engines: tuple[str, ...], checksums_only: bool, as_json: bool) -> None:
    """Check BUNDLE: names and checksums of all files, token ids, and what each artefact says.

    Needs no more than a board has. What cannot be checked here is said, and never called ok.
    """
    from edgekit.progress import Bars

    if checksums_only and engines:
        raise OptionError("--engine and --checksums-only contradict each other", remedy="give one of them")
    done: list[Check] = []
    try:
        for check in _checks(bundle, tuple(dict.fromkeys(engines)), checksums_only, Bars()):
            done.append(check)
            if not as_json:
                click.echo(f"{check.name}: {check.status}: {check.detail}")
    except EdgekitError as error:
        if as_json:
            _write_json(bundle, done, error.sentence())
        raise
    if as_json:
        _write_json(bundle, done, None)
    else:
        click.echo(_conclusion(done))


def _write_json(bundle: Path, done: Sequence[Check], failure: str | None) -> None:
    complete = failure is None and all(check.status == "ok" for check in done) and _run(done)
    found = {"bundle": str(bundle), "passed": failure is None, "complete": complete, "failure": failure}
    click.echo(json.dumps({**found, "checks": [asdict(check) for check in done]}, indent=2))


def _run(done: Sequence[Check]) -> bool:
    """Whether any artefact was run."""
    return any(check.kl_mean is not None for check in done)


def _conclusion(done: Sequence[Check]) -> str:
    left = [check.name for check in done if check.status != "ok"]
    if len(done) - len(left) == 1 and done[0].status == "ok":
        return "Only the checksums were checked: the files are those of the manifest, what they say was not tried."
    if not _run(done):
        return f"No artefact was run, so what the model says was not checked; not checked: {', '.join(left)}."
    if left:
        return f"What was checked is right; not checked: {', '.join(left)}."
    return f"Verified: all {len(done)} checks are ok."


def _checks(path: Path, wanted: Sequence[str], checksums_only: bool, progress: Progress) -> Iterator[Check]:
    """Every check in turn; the first that fails raises."""
    from edgekit.bundle.bundle import open_bundle

    with progress.step("checksums") as advance:
        bundle = open_bundle(path, progress=advance)
    yield _checksums(bundle)
    if checksums_only:
        return
    chosen = [bundle.artefact(name) for name in wanted] or list(bundle.manifest.artefacts)
    yield from _token_ids(bundle)
    for artefact in chosen:
        yield from _artefact(bundle, artefact, bool(wanted), progress)


def _checksums(bundle: Bundle) -> Check:
    entries = [*bundle.manifest.files.values(), *bundle.manifest.reports.values()]
    total = sum(entry.size for entry in entries) / 2**20
    return Check(
        "checksums", "ok", f"{len(entries)} files, {total:.1f} MiB, names, sizes and SHA-256 as in the manifest"
    )


# --- token ids -------------------------------------------------------------------------------------------------------


def _golden(bundle: Bundle) -> Golden | None:
    from edgekit.bundle.golden import GOLDEN, read_golden

    listed = f"{bundle.tokenizer.name}/{GOLDEN}" in bundle.manifest.files
    return read_golden(bundle.tokenizer) if listed else None


def _token_ids(bundle: Bundle) -> Iterator[Check]:
    """The shipped tokenizer against the ids that the original one gave."""
    from edgekit.bundle.tokenizer import load_tokenizer

    golden = _golden(bundle)
    if golden is None:
        yield Check("token ids (shipped tokenizer)", "not checked", "the bundle has no tokenizer/golden.json")
        return
    tokenizer = load_tokenizer(bundle.tokenizer)
    yield _compare_ids("shipped tokenizer", golden, tokenizer, tokenizer.encode)


def _compare_ids(name: str, golden: Golden, tokenizer: Tokenizer, encode: Callable[[str], list[int]]) -> Check:
    """Raises ParityError: names the first text that differs."""
    from edgekit.bundle.golden import check_golden

    dated = bool(golden.chats) and _shows_date(tokenizer, golden)

    def chat_ids(messages: Sequence[dict[str, str]]) -> list[int]:
        return encode(tokenizer.chat_text(messages))

    check_golden(golden, name, encode, chat_ids if golden.chats and not dated else None)
    told = f"{len(golden.texts)} texts have the ids that the original tokenizer gave"
    if dated:
        told += "; chats not checked: the chat template shows the date"
    elif golden.chats:
        told = f"{len(golden.texts)} texts and {len(golden.chats)} chats have the ids that the original tokenizer gave"
    return Check(f"token ids ({name})", "ok", told)


def _shows_date(tokenizer: Tokenizer, golden: Golden) -> bool:
    """Whether the chat template's text depends on the day, so that ids of the day of the build mean nothing today."""
    first, second = (tokenizer.chat_text(golden.chats[0].messages, now=day) for day in _DAYS)
    return first != second


# --- what the artefacts say ------------------------------------------------------------------------------------------


def _artefact(bundle: Bundle, artefact: Artefact, required: bool, progress: Progress) -> Iterator[Check]:
    """Token ids of the engine's own tokenizer, then logits.

    Raises:
        MissingDependencyError: `required`, and the engine is not installed.
        ParityError: ids or logits differ.
    """
    from edgekit.engines.opening import open_engine

    reference, name = _reference(bundle), f"logits ({artefact.format})"
    context = reference.longest if reference else 64
    try:
        engine = open_engine(artefact.format, bundle.root / artefact.path, context=context)
    except MissingDependencyError as error:
        if required:
            raise
        yield Check(name, "not checked", error.sentence())
        return
    try:
        yield from _engine_ids(bundle, engine)
        yield from _said(bundle, artefact, engine, reference, progress)
    finally:
        engine.close()


def _engine_ids(bundle: Bundle, engine: Engine) -> Iterator[Check]:
    """llama.cpp reads its tokenizer from the GGUF file; an engine without one takes the shipped tokenizer's ids."""
    from edgekit.bundle.tokenizer import load_tokenizer

    encode, golden = getattr(engine, "tokenize", None), _golden(bundle)
    if encode is not None and golden is not None:
        yield _compare_ids(engine.name, golden, load_tokenizer(bundle.tokenizer), encode)


def _reference(bundle: Bundle) -> Reference | None:
    from edgekit.bundle.manifest import REFERENCE
    from edgekit.coherence.container import load

    return load(bundle.reference) if REFERENCE in bundle.manifest.files else None


def _recorded(bundle: Bundle, container: str) -> Coherence | None:
    """What report.json holds for a format; None without a report."""
    from edgekit.bundle.paths import read_bounded
    from edgekit.report.model import from_json

    if "report.json" not in bundle.manifest.reports:
        return None
    report = from_json(read_bounded(bundle.root, "report.json", _MAX_REPORT))
    return next((artefact.coherence for artefact in report.artefacts if artefact.format == container), None)


def _said(
    bundle: Bundle, artefact: Artefact, engine: Engine, reference: Reference | None, progress: Progress
) -> Iterator[Check]:
    """What the artefact says here against what it said when the bundle was built, by the sealed reference."""
    from edgekit.coherence.metrics import evaluate

    recorded = _recorded(bundle, artefact.format)
    if reference is None or recorded is None:
        what = "reference.npz" if reference is None else "report.json with a figure for this artefact"
        yield Check(f"logits ({artefact.format})", "not checked", f"the bundle has no {what}")
        return
    with progress.step(f"{artefact.format.upper()}: logits in {engine.name}") as advance:
        measured = evaluate(engine, reference, progress=advance, generate=False)
    yield _logits(artefact, measured, recorded)
    yield from _answers(artefact, measured, recorded)


def _logits(artefact: Artefact, measured: Coherence, recorded: Coherence) -> Check:
    """Mean KL divergence from the sealed reference, against the one recorded by the build."""
    kl, before = measured.kl_mean, recorded.kl_mean
    if not abs(kl - before) <= KL_TOLERANCE:
        raise ParityError(
            f"{artefact.path} in {measured.engine} has a mean KL divergence of {kl:.4f} nats from the original, "
            f"its report says {before:.4f}",
            expected=f"a difference of at most {KL_TOLERANCE:g}",
            remedy="run edgekit doctor to compare the engine's version with the tested one, or build the bundle again",
        )
    told = (
        f"mean KL divergence {kl:.4f} nats in {measured.engine}, recorded {before:.4f}, {measured.positions} positions"
    )
    return Check(f"logits ({artefact.format})", "ok", told, kl_mean=kl, kl_recorded=before)


def _answers(artefact: Artefact, measured: Coherence, recorded: Coherence) -> Iterator[Check]:
    """The answer to every fixed question, against the one recorded by the build; nothing when none were asked."""
    from edgekit.report.words import answers

    name, here, before = f"answers ({artefact.format})", measured.items, recorded.items
    if here is None and before is None:
        return
    if here is None or before is None or here.items_sha256 != before.items_sha256:
        yield Check(name, "not checked", "reference.npz and report.json do not hold the same questions")
        return
    changed, most = _changed(here, before), math.floor(ANSWERS_TOLERANCE * here.items)
    if changed > most:
        raise ParityError(
            f"{artefact.path} in {measured.engine} answers {changed} of {here.items} questions otherwise than when the "
            "bundle was built",
            expected=f"at most {most}",
            remedy="run edgekit doctor to compare the engine's version with the tested one, or build the bundle again",
        )
    told = f"{answers(here)} Otherwise than when the bundle was built: {changed}"
    yield Check(name, "ok", told, answers_changed=changed)


def _changed(here: ItemScores, before: ItemScores) -> int:
    """Items with different answers; one that is no flip on a side has the original's answer there."""
    ours, theirs = ({flip.item: flip.engine for flip in scores.flipped} for scores in (here, before))
    return sum(ours.get(item) != theirs.get(item) for item in ours.keys() | theirs.keys())
