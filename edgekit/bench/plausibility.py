"""Is a figure what others published for this board? A note for a reader, never a verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgekit.bench.result import BenchResult, EngineRun, Figure
from edgekit.bundle.paths import plain
from edgekit.targets import Anchor, Target

SPREAD = 0.3
"""Published figures of one board differ by this much with cooling, build and system."""
_PUBLISHED_PROMPT = 512
"""Tokens of the prompt that pp figures are published for, llama-bench's own default."""
_MORE_KL = 0.01
"""Nats that rounding in another CPU's kernels explains, as in `edgekit verify`."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([mb])", re.ASCII)


def notes(run: EngineRun, result: BenchResult, target: Target, types: Sequence[str] = ()) -> tuple[str, ...]:
    """What does not look right, or is confirmed by a published figure; emulated times are compared with nothing."""
    found = list(_against_host(run))
    if result.measured_on == "measured" and result.target.id == target.name and types:
        for anchor in target.anchors:
            if run.engine == anchor.engine and types[0] == anchor.type and same_model(result.bundle.model, anchor):
                found += _beside(run, anchor)
    return tuple(found)


def same_model(name: str, anchor: Anchor) -> bool:
    """Whether family and size are the same; both have to be part of the names."""
    ours, theirs = family_and_size(name), family_and_size(anchor.model)
    return ours is not None and ours == theirs


def family_and_size(name: str) -> tuple[str, str] | None:
    """("qwen2.5", "0.5b") of "Qwen/Qwen2.5-0.5B-Instruct"; None when no size is in the name."""
    parts = re.split(r"[-_ ]+", name[:200].rsplit("/", 1)[-1].casefold())
    for index, part in enumerate(parts[1:], start=1):
        if _SIZE.fullmatch(part):
            return "-".join(parts[:index]), part
    return None


def _beside(run: EngineRun, anchor: Anchor) -> Iterator[str]:
    if run.decode and anchor.tg_tok_s and anchor.threads in (None, run.settings.decode_threads):
        yield _said("decode", run.decode.speed, anchor.tg_tok_s, "tokens/s", anchor)
    if run.decode and run.decode.energy and anchor.mj_per_token and anchor.threads == run.settings.decode_threads:
        yield _said("energy", run.decode.energy, anchor.mj_per_token, "mJ/token", anchor)
    for one in run.prefill:
        if (
            anchor.pp_tok_s and one.tokens == _PUBLISHED_PROMPT
            and anchor.threads in (None, run.settings.prefill_threads)
        ):  # fmt: skip
            yield _said("prefill", one.speed, anchor.pp_tok_s, "tokens/s", anchor)


def _said(title: str, figure: Figure, published: float, unit: str, anchor: Anchor) -> str:
    share = figure.quantity.value / published - 1
    verdict = "plausible" if abs(share) <= SPREAD else "look for the cause"
    return (
        f"{title}: {figure.quantity.value:.4g} {unit} is {abs(100 * share):.0f} % {'above' if share > 0 else 'below'} "
        f"the published {published:g} ({anchor.model} {anchor.type}, {plain(anchor.source, 120)}): {verdict}"
    )


def _against_host(run: EngineRun) -> Iterator[str]:
    found = run.coherence
    if found is None or found.recorded_kl is None or not found.whole:
        return
    more = found.here.kl_mean - found.recorded_kl
    if more > _MORE_KL:
        yield (
            f"mean KL divergence is {more:.3g} nats above the {found.recorded_kl:.3g} of the machine that built it: "
            "this CPU's kernels compute something else"
        )
