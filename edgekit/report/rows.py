"""The rows of the report's tables: what a figure is called, its unit, what it means, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edgekit.coherence.gates import Check
from edgekit.coherence.generation import Generation
from edgekit.coherence.scoring import ItemScores
from edgekit.report.model import Artefact, Report
from edgekit.report.words import NOT_MEASURED, chosen_by, interval, mebibytes, number, percent, points, rise, shown


@dataclass(frozen=True)
class Row:
    """One figure of every artefact."""

    title: str
    unit: str
    meaning: str
    show: Callable[[Artefact], str]
    brief: bool = False
    """Also part of the terminal's table."""


def _generated(show: Callable[[Generation], str]) -> Callable[[Artefact], str]:
    def cell(artefact: Artefact) -> str:
        found = artefact.coherence.generation
        return NOT_MEASURED if found is None else show(found)

    return cell


def _answered(show: Callable[[ItemScores], str]) -> Callable[[Artefact], str]:
    def cell(artefact: Artefact) -> str:
        found = artefact.coherence.items
        return NOT_MEASURED if found is None else show(found)

    return cell


def _difference(found: ItemScores) -> str:
    low, high = found.accuracy_difference_low, found.accuracy_difference_high
    return f"{100 * found.accuracy_difference:+.1f} ({points(low, high)})"


def _habit(reference: float, engine: float) -> str:
    return f"{percent(reference)} → {percent(engine)}"


def _ratio(artefact: Artefact) -> str:
    error = artefact.coherence.ppl_ratio_se
    ratio = number(artefact.coherence.ppl_ratio, 4)
    return ratio if error is None else f"{ratio} ± {number(error, 2)}"


def _divergent(found: Generation) -> str:
    if found.first_divergent_median is None:
        return "none: most are identical"
    return f"{found.first_divergent_median} of {found.token_limit}"


DIVERGENCE = (
    Row(
        "Mean KL divergence",
        "nats",
        "Average distance from the original's next-token distribution; 0 is identical.",
        lambda a: number(a.coherence.kl_mean),
        True,
    ),
    Row(
        "95 % interval of the mean",
        "nats",
        "Bootstrap over sequences: where it would likely fall on other such text.",
        lambda a: interval(a.coherence.kl_mean_low, a.coherence.kl_mean_high),
        True,
    ),
    Row(
        "Median KL divergence",
        "nats",
        "Half of all tokens are predicted at least this closely.",
        lambda a: number(a.coherence.kl_median),
        True,
    ),
    Row(
        "99 % KL divergence",
        "nats",
        "One token in 100 is predicted worse than this.",
        lambda a: number(a.coherence.kl_p99),
        True,
    ),
    Row(
        "99.9 % KL divergence",
        "nats",
        "One token in 1,000 is worse: rare blunders, which a mean hides.",
        lambda a: number(a.coherence.kl_p999),
        True,
    ),
    Row("Largest KL divergence", "nats", "The single worst token of the text.", lambda a: number(a.coherence.kl_max)),
)

PREDICTION = (
    Row(
        "Same top token",
        "",
        "Share of positions where both find the same token most probable.",
        lambda a: percent(a.coherence.same_top),
        True,
    ),
    Row(
        "RMS Δp",
        "",
        "Typical change of the probability of the token that really follows.",
        lambda a: percent(a.coherence.delta_p_rms),
        True,
    ),
    Row(
        "Perplexity, original",
        "",
        "The full-precision model on this text; lower is better.",
        lambda a: number(a.coherence.ppl_reference, 4),
        True,
    ),
    Row(
        "Perplexity, artefact",
        "",
        "The shipped artefact on the same text.",
        lambda a: number(a.coherence.ppl_engine, 4),
        True,
    ),
    Row("Perplexity ratio", "", "Artefact / original, with its standard error; 1 is no loss.", _ratio, True),
    Row(
        "Entropy, original",
        "nats",
        "How undecided the original is about the next token.",
        lambda a: number(a.coherence.entropy_reference),
    ),
    Row(
        "Entropy, artefact",
        "nats",
        "Lower than the original's: overconfident; higher: blurred.",
        lambda a: number(a.coherence.entropy_engine),
    ),
)

ANSWERS = (
    Row(
        "Accuracy, original",
        "",
        "Share of our fixed questions that the full-precision model answers right.",
        _answered(lambda s: percent(s.accuracy_reference)),
        True,
    ),
    Row("Accuracy, artefact", "", "The same questions.", _answered(lambda s: percent(s.accuracy_engine)), True),
    Row(
        "Change of accuracy",
        "points",
        "With its 95 % interval; one that holds 0 is a change that chance can explain.",
        _answered(_difference),
        True,
    ),
    Row(
        "Flips",
        "",
        "Questions whose answer changed, from right to wrong or otherwise, with the 95 % interval.",
        _answered(lambda s: f"{percent(s.flip_share)} ({100 * s.flip_low:.1f} to {100 * s.flip_high:.1f})"),
        True,
    ),
    Row("Accuracy of guessing", "", "What answers at random would reach.", _answered(lambda s: percent(s.chance))),
)

GENERATION = (
    Row(
        "First divergent token",
        "",
        "Median place where a greedy continuation leaves the original's, counted from 0.",
        _generated(_divergent),
        True,
    ),
    Row(
        "Identical continuations",
        "",
        "Share of prompts continued exactly as the original does.",
        _generated(lambda g: percent(g.identical_share)),
        True,
    ),
    Row(
        "seq-rep-4",
        "original → artefact",
        "Repeated 4-grams within a continuation: a model that goes in circles.",
        _generated(lambda g: _habit(g.reference.seq_rep_4, g.engine.seq_rep_4)),
    ),
    Row(
        "Loop rate",
        "original → artefact",
        "Share of continuations that end in a loop.",
        _generated(lambda g: _habit(g.reference.loop_rate, g.engine.loop_rate)),
    ),
    Row(
        "End-of-text rate",
        "original → artefact",
        "Share that stops by itself; far from the original's is worse.",
        _generated(lambda g: _habit(g.reference.eot_rate, g.engine.eot_rate)),
    ),
)

RISES = (
    Row("Rise of seq-rep-4", "", "", _generated(lambda g: rise(g.seq_rep_4_rise)), True),
    Row("Rise of the loop rate", "", "", _generated(lambda g: rise(g.loop_rate_rise)), True),
    Row("Change of the end-of-text rate", "", "", _generated(lambda g: rise(g.eot_rate_rise)), True),
)

MEASURE = (
    Row(
        "Sequences",
        "",
        "Independent pieces of text; the intervals treat each as one draw.",
        lambda a: f"{a.coherence.sequences:,}",
    ),
    Row(
        "Positions",
        "tokens",
        "Predicted tokens behind every figure on distance and prediction.",
        lambda a: f"{a.coherence.positions:,}",
    ),
    Row("Prompts", "", "Continued greedily for the figures on generation.", _generated(lambda g: f"{g.prompts:,}")),
    Row(
        "Tokens kept a position",
        "",
        "KL is computed on the original's top tokens and the rest in one: a lower bound.",
        lambda a: f"{a.coherence.k:,}",
    ),
    Row(
        "Tail mass",
        "",
        "Mean probability that the original gives to the tokens that were not kept.",
        lambda a: percent(a.coherence.tail_mass_mean),
    ),
)

COHERENCE = (
    ("Distance from the original", DIVERGENCE),
    ("Prediction", PREDICTION),
    ("Questions", ANSWERS),
    ("Greedy generation", GENERATION),
    ("What it was measured on", MEASURE),
)

PARITY = (
    Row(
        "Tokenizer",
        "",
        "Strings of the golden corpus with the same token ids on both sides.",
        lambda a: f"{a.parity.tokenizer_strings:,} identical",
    ),
    Row(
        "Tensors",
        "",
        "Tensors read back from the file that decode to exactly what was planned.",
        lambda a: f"{a.parity.tensors:,} exact",
    ),
    Row(
        "Full-precision KL divergence",
        "nats",
        "The export without quantization against the original.",
        lambda a: number(a.parity.full_precision_kl),
        True,
    ),
    Row(
        "Activation cost",
        "nats",
        "The artefact against torch running its dequantized weights: arithmetic alone.",
        lambda a: number(a.parity.activation_kl),
        True,
    ),
    Row(
        "Error of the estimate",
        "nats",
        "Exact minus estimated mean KL divergence: what sealing only a part of each distribution costs; either sign.",
        lambda a: number(a.truncation_kl),
        True,
    ),
    Row(
        "Positions",
        "tokens",
        "What these divergences were measured on.",
        lambda a: f"{a.parity.positions:,}",
    ),
)

FILES = (
    Row("Bits requested", "", "", lambda a: str(a.requested_bits), True),
    Row("Effective bits, all file bytes", "", "", lambda a: f"{a.effective_bits:.2f}", True),
    Row("Size of the weight files", "", "", lambda a: mebibytes(a.bytes), True),
    Row("Codes chosen by", "", "Share of the weights.", lambda a: chosen_by(a.codes)),
)

PREDICTED = (
    Row(
        "Decode speed",
        "tokens/s",
        "Bandwidth / bytes read per token, times the format's efficiency there.",
        lambda a: "unknown" if a.predicted.tokens_per_second is None else number(a.predicted.tokens_per_second),
    ),
    Row("Memory needed", "MiB", "Weights, KV cache and engine.", lambda a: number(a.predicted.ram_mib)),
    Row("Memory usable", "MiB", "What the target leaves for a model.", lambda a: f"{a.predicted.usable_mib:,}"),
    Row(
        "Read per token",
        "MiB",
        "Bytes of weights that decoding one token reads.",
        lambda a: f"{a.predicted.bytes_per_token / 2**20:,.1f}",
    ),
    Row("Basis", "", "Where the bandwidth comes from.", lambda a: a.predicted.basis),
)

_GATES: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "kl_mean_max": ("Mean KL divergence, nats", number),
    "kl_p999_max": ("99.9 % KL divergence, nats", number),
    "same_top_min": ("Same top token", percent),
    "ppl_ratio_max": ("Perplexity ratio", partial(number, digits=4)),
    "seq_rep_4_rise_max": ("Rise of seq-rep-4", rise),
    "loop_rate_rise_max": ("Rise of the loop rate", rise),
}


@dataclass(frozen=True)
class Gate:
    """One check of a verdict, in words."""

    title: str
    limit: str
    measured: str
    passed: bool


def gate(check: Check) -> Gate:
    """`check` in words; a name that is not known here keeps its key as title."""
    title, show = _GATES.get(check.name, (check.name, number))
    sign = "at least" if check.name.endswith("_min") else "at most"
    return Gate(title, f"{sign} {show(check.limit)}", show(check.measured), check.passed)


def name(artefact: Artefact) -> str:
    """How an artefact is called in headings."""
    return artefact.format.upper()


def verdict_word(artefact: Artefact) -> str:
    """PASS, FAIL, or that nothing was judged, which must not look like a PASS that was earned."""
    return artefact.verdict.result if artefact.verdict.checks else "NOT JUDGED"


def speed(artefact: Artefact) -> str:
    """The predicted decode speed as a phrase."""
    value = artefact.predicted.tokens_per_second
    return "decode speed unknown" if value is None else shown(value, f"about {number(value)} tokens/s decode")


def outcome(report: Report) -> str:
    """The verdicts in one line."""
    judged = [artefact for artefact in report.artefacts if artefact.verdict.checks]
    failed = [name(artefact) for artefact in judged if not artefact.verdict.passed]
    if not judged:
        return "Nothing was judged: the target sets no coherence limits"
    if failed:
        return (
            f"FAIL: {' and '.join(failed)} {'is' if len(failed) == 1 else 'are'} outside the target's coherence limits"
        )
    if len(judged) < len(report.artefacts):
        count = f"{len(judged)} of {len(report.artefacts)}"
        return f"PASS: {count} artefacts were judged, within the target's coherence limits"
    return "PASS: every artefact is within the target's coherence limits"
