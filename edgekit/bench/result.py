"""bench.json: what was measured on a device. Every figure says whether it was measured, emulated or predicted."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.bench.memory import Resident
from edgekit.bench.plan import Protocol
from edgekit.bench.quantities import (
    DeviceKind,
    Figure,
    Kind,
    Percentiles,
    Quantity,
    TracePoint,
    Window,
    figure,
    quantity,
)
from edgekit.bundle.paths import plain
from edgekit.coherence.metrics import Coherence
from edgekit.devices.boards.base import BoardFacts
from edgekit.devices.boards.processor import Kind as Accelerator
from edgekit.devices.boards.processor import Processor
from edgekit.errors import FileFormatError

# Figures are a part of the document: who reads a result finds them here.
__all__ = ("DeviceKind", "Figure", "Kind", "Percentiles", "Quantity", "TracePoint", "Window", "figure", "quantity")

SCHEMA_VERSION = 1
"""Fields that are added may be missing, so that older results are read; anything else makes another version."""
MAX_BYTES = 64 << 20
Format = Literal["gguf", "onnx"]
Mode = Literal["mmap", "copy"]
Bits = Annotated[float, Meta(gt=0, le=64)]
_PROCESSORS = [Processor("cpu", "cpu"), Processor("cpu", "cuda"), Processor("cuda", "cuda")]


class Loading(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Loading the model in a fresh process, its files being in the page cache already, and the memory it takes."""

    mode: Mode | None
    """Mapped or copied into memory; None: the engine decides."""
    processor: Annotated[str, Meta(max_length=64)] = ""
    """Where the layers are: "CPU", "CPU (of a CUDA build)" or "GPU (CUDA)"; empty: whoever measured did not say."""
    context: int
    """Tokens that the engine has room for: as asked, bounded by the model's own."""
    page_cache: Literal["warm"] = "warm"
    seconds: Figure
    """From the call to a model that is ready; the engine's own libraries are loaded before."""
    empty: Resident
    """Before loading: Python and the engine's libraries."""
    loaded: Resident
    ran: Resident
    """After the longest prompt was read and tokens were generated."""
    ran_tokens: int
    """Of that prompt."""
    window: Window


class Prefill(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reading a prompt of `tokens` tokens at once into an empty context."""

    tokens: int
    speed: Figure
    """Tokens/s of the engine alone, as llama-bench counts pp."""
    ttft: Figure
    """Milliseconds from the prompt's text to the first token: tokenising, reading, choosing."""
    energy: Figure | None
    """Joules for the prompt; None without a sensor."""
    window: Window


class Decode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generating `tokens` tokens one by one from an empty context, without sampling."""

    tokens: int
    speed: Figure
    """Tokens/s, as llama-bench counts tg."""
    inter_token: Percentiles
    token_ms: Annotated[tuple[float, ...], Meta(max_length=1024)]
    """Median over the repetitions of each token's time, by position, the first ones when there are more."""
    energy: Figure | None
    """Millijoules per token; None without a sensor."""
    window: Window


class Talk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer as a user gets it: chat template, tokenising, sampling, text."""

    prompt_tokens: int
    tokens: int
    """New tokens."""
    speed: Figure
    """New tokens/s over the whole answer, prompt included."""
    first_text: Figure
    """Milliseconds to the first piece of text."""
    inter_token: Percentiles
    energy: Figure | None
    """Joules for prompt and answer; None without a sensor."""
    window: Window


class SweepPoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speeds with one number of threads on one set of CPUs."""

    threads: int
    affinity: tuple[int, ...]
    """CPUs; empty: not pinned."""
    prefill_tokens: int
    prefill: Figure
    """Tokens/s."""
    decode_tokens: int
    decode: Figure
    """Tokens/s."""
    window: Window


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the engine was run."""

    prefill_threads: int
    decode_threads: int
    affinity: tuple[int, ...] = ()
    mode: Mode | None = None
    context: int
    by: Literal["option", "target", "sweep"]
    """Who chose threads and CPUs: the user, the target file, or the sweep."""


class AgainstHost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Greedy continuations here against those of the same artefact on the machine that built it."""

    prompts: int
    first_divergent_token: tuple[int | None, ...]
    """One per prompt, counted from 0; None: the same as far as both go."""
    compared_tokens: tuple[int, ...]
    """One per prompt: tokens made here."""
    identical_share: float


class DeviceCoherence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the artefact says here."""

    here: Coherence
    """Against the full-precision model, on what the protocol takes of the sealed reference."""
    whole: bool
    """Whether that is all of it: only then `recorded_kl` was measured on the same positions."""
    recorded_kl: float | None
    """Mean KL divergence, nats, that the bundle's report holds for the same artefact, on the whole reference."""
    against_host: AgainstHost | None
    """None when the bundle records no continuations of this artefact."""
    texts: Annotated[tuple[str, ...], Meta(max_length=256)]
    """The continuations made here."""
    kind: DeviceKind
    """Of where it was computed; an emulated device computes what the board would."""
    window: Window


class Failure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an engine's figures end here."""

    kind: Literal["out of memory", "crash", "error"]
    sentence: str
    exit_code: int
    resident_mib: float | None = None
    """What the process held at most, when it was ended by a signal."""


class Instructions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an emulator counted: the same on every machine, and never a time."""

    decode: Figure
    """Million instructions per decoded token."""
    prefill: Figure
    """Million instructions per token of a prompt."""
    cpu: str
    """As the emulator calls it."""
    program: str
    """Path in the bundle of what was run, with one thread."""


class Ratio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of this bundle ÷ the same one of another bundle; value i of all three is of one pair."""

    name: Literal["decode", "prefill", "ttft", "load", "energy"]
    """Decode and prefill are speeds: above 1 is faster. TTFT and load are times: below 1 is faster. Energy is mJ per
    generated token: below 1 is less."""
    tokens: int
    """Read, or generated; 0 for a load."""
    ratio: Figure
    ours: Figure
    theirs: Figure


class Turns(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same format of two bundles, measured in turns: A B B A A B …"""

    ratios: Annotated[tuple[Ratio, ...], Meta(max_length=64)] = ()
    """Of speeds and times."""
    energy: Ratio | None = None
    """Over the rounds in which both sides were metered; None where there is none."""
    window: Window | None = None
    failure: Failure | None = None


class EngineRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything of one format."""

    format: Format
    engine: str
    version: str
    """Of the engine's package."""
    artefact: str
    """Path in the bundle."""
    accelerator: Accelerator | None = None
    """What computed it; None: whoever measured did not say, see :attr:`computed_on`."""
    bytes: int
    """Of all files of the format."""
    requested_bits: Bits | None = None
    """Bits per weight that the build was asked for; None: whoever measured did not say."""
    effective_bits: Bits | None = None
    """Bits per weight that the files really hold: 8 · bytes / parameters, everything included."""
    types: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    """Number formats of the matrices but the embedding, the one with most bytes first."""
    settings: Settings
    sweep: tuple[SweepPoint, ...] = ()
    loading: tuple[Loading, ...] = ()
    prefill: tuple[Prefill, ...] = ()
    decode: Decode | None = None
    talk: Talk | None = None
    coherence: DeviceCoherence | None = None
    instructions: Instructions | None = None
    """Of the protocol that counts them; it measures nothing else."""
    turns: Turns | None = None
    """Against the same format of the other bundle, when there was one."""
    notes: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def computed_on(self) -> Accelerator | None:
        """The accelerator; in a result from before that was a field, what its loading says."""
        where = self.loading[0].processor if self.loading else ""
        return self.accelerator or next((one.used for one in _PROCESSORS if one.title == where), None)


class BundleRef(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which bundle."""

    name: str
    model: str
    manifest_sha256: str
    """SHA-256 of the manifest without its reports, see :func:`edgekit.bundle.manifest.identity`."""
    target: str
    """Id of the target that it was built for."""


class TargetRef(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose settings and limits hold."""

    id: str
    title: str


class Device(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it was measured."""

    url: str
    kind: DeviceKind
    machine: dict[str, str]
    """Facts of the machine, in words."""
    board: BoardFacts | None = None
    """What the board says of itself; None when it was not asked."""
    versions: dict[str, str]
    """Package → version."""


class BenchResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of bench.json."""

    schema_version: Literal[1] = 1
    edgekit: str
    bundle: BundleRef
    against: BundleRef | None = None
    """The other bundle, when two were measured in turns."""
    target: TargetRef
    device: Device
    protocol: Protocol
    measured_on: DeviceKind
    """Emulated figures say whether something is right, never how fast a board is."""
    started: str
    """UTC, ISO 8601; of the first part of a run that was interrupted."""
    parts: int
    """1, and one more for every time the run was taken up again."""
    seconds: float
    """From the beginning to the end, interruptions included."""
    preflight: dict[str, str] = {}
    """What was asked before, and the answers."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know, about the sensors for example."""
    runs: Annotated[tuple[EngineRun, ...], Meta(min_length=1)]
    environment: tuple[TracePoint, ...] = ()
    """The sensors beside all measurements, in order."""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Of the runs that ended early."""
        return tuple(run.failure for run in self.runs if run.failure)


def to_json(result: BenchResult) -> bytes:
    """Indented JSON with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def from_json(data: bytes, name: str = "bench.json") -> BenchResult:
    """Read what :func:`to_json` wrote, perhaps on a stranger's machine.

    Raises:
        FileFormatError: it is too large, or is not one.
    """
    if len(data) > MAX_BYTES:
        raise FileFormatError(f"{name} is larger than {MAX_BYTES >> 20} MiB", expected="what edgekit bench writes")
    try:
        return msgspec.json.decode(data, type=BenchResult)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(
            f"{name} does not fit its schema ({plain(str(error))})",
            expected="what edgekit bench --json wrote",
            remedy="measure again with this version",
        ) from error


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of bench.json."""
    schema = msgspec.json.schema(BenchResult)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgekit benchmark", **schema}


def schema_text() -> str:
    """:func:`json_schema` as the committed file has it."""
    return json.dumps(json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
