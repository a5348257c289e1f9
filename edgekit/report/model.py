"""What a build measured on the host, as report.json holds it. Measured, emulated and predicted are separate fields."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.coherence.gates import Verdict
from edgekit.coherence.metrics import Coherence
from edgekit.errors import BundleError


class Predicted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures computed from the plan and the target file, not measured."""

    ram_mib: float
    usable_mib: int
    bytes_per_token: int
    tokens_per_second: float | None
    basis: str


class Parity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Evidence that the artefact is what was planned, measured on the host."""

    tokenizer_strings: int
    """Strings of the golden corpus with identical token ids on both sides."""
    tensors: int
    """Tensors whose stored bytes decode to exactly what was planned."""
    full_precision_kl: float
    """Mean KL divergence, nats, of the same export without quantization against the original."""
    activation_kl: float
    """Activation cost: mean KL divergence, nats, of the artefact against torch with its dequantized weights."""
    positions: int
    """Positions that both divergences were measured on."""


class FlippedItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An item that the artefact answers otherwise than the original."""

    id: str
    question: str
    """What the answers continue; "" where they are whole sentences."""
    right: str
    original: str
    """The original's answer."""
    artefact: str
    """The artefact's answer."""


class Planned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the number formats were chosen under a budget."""

    budget: str
    """In words."""
    predicted_kl: float
    """Sum of the damages in the sensitivity map, corrected by what was measured on the way: nats."""
    measured_ratio: float | None
    """Measured mean KL divergence over `predicted_kl`; None when nothing was predicted."""
    map_sha256: str
    gap: float
    """How far the choice may be from the best one by the map, relative; 0: it is the best."""


class Training(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained before an artefact was made; report/training-FORMAT.html says all of it."""

    recipe: str
    minutes: float
    text_sha256: str
    """Of the token ids."""
    text_tokens: int
    held_out_tokens: int
    """At the text's end, never trained on."""
    held_out_kl_first: float
    """On those, in PyTorch: mean KL divergence from the original, nats, before training (on a grid: rounded)."""
    held_out_kl_last: float
    grids: dict[str, int]
    """Number format → matrices that were trained on it; none in full precision."""


class Dispersed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training, and what the same plan's artefact is without it."""

    training: Training
    plain: Coherence


class Artefact(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One format."""

    format: Literal["gguf", "onnx"]
    engine: str
    title: str
    requested_bits: int
    effective_bits: float
    """8 × bytes of all files of the artefact's weights / parameters."""
    bytes: int
    shares: dict[str, float]
    """Grid → share of the tensor bytes."""
    fallbacks: tuple[str, ...]
    """Why tensors did not get the requested bits, one line a kind."""
    predicted: Predicted
    parity: Parity
    coherence: Coherence
    truncation_kl: float
    """Error of the sealed reference: exact minus estimated mean KL divergence, nats, of either sign.

    Measured on the sequences of `parity.positions`, their last positions left out.
    """
    verdict: Verdict
    flipped: tuple[FlippedItem, ...] = ()
    """Some of the items in `coherence.items.flipped`, in words; see :mod:`edgekit.report.flips`."""
    planned: Planned | None = None
    """None: the formats follow from the bits or from a plan's file."""
    codes: dict[str, float] = {}
    """Share of the weights by who chose their codes: a training, learned rounding, GPTQ, or the format's own
    quantizer, of which GPTQ keeps rows that it cannot better."""
    dispersed: Dispersed | None = None
    """None: nothing was trained."""


class Sample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt and what each engine says, greedily."""

    prompt: str
    original: str
    artefacts: dict[str, str]
    """Format → text."""
    plain: dict[str, str] = {}
    """Format → text of the artefact without training, where one was trained."""


class Host(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that measured."""

    machine: str
    system: str
    python: str
    cpus: int
    versions: dict[str, str]


class Runtime(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engines for the board that the bundle carries."""

    compiled: str
    """llama.cpp, for which CPU and by whom; "" when it holds none."""
    python: str
    """The board's Python that the wheels are for."""
    glibc: str
    """Oldest C library that everything runs on."""
    wheels: int
    bytes: int
    """Of the wheels and the native tools."""
    started: str
    """Whether it was started on an emulated CPU of the target, in words."""


class Report(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """report.json."""

    schema_version: Literal[1] = 1
    edgekit: str
    name: str
    model: str
    source: str
    parameters: int
    caveats: tuple[str, ...]
    target: str
    target_title: str
    text: str
    """What the coherence figures were measured on, in words."""
    calibration: str
    """What the choice of codes and scales was calibrated on, in words."""
    artefacts: Annotated[tuple[Artefact, ...], Meta(min_length=1)]
    samples: tuple[Sample, ...]
    seconds: dict[str, float]
    """Stage of the build → seconds on this host."""
    host: Host
    runtime: Runtime | None = None
    """None: the bundle holds artefacts only."""


def to_json(report: Report) -> bytes:
    """Indented JSON with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def from_json(data: bytes) -> Report:
    """Read a report.

    Raises:
        BundleError: it is not one.
    """
    try:
        return msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"report.json does not fit its schema ({error})", remedy="build the bundle again") from error
