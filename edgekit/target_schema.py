"""The shape of a target file: every key with its type, range, unit and meaning.

The descriptions are the source of the JSON schema and of the field table in docs/targets.md. Units are in the names:
`_mib` is 2**20 bytes, `_gbps` is 10**9 bytes per second (bytes, not bits), `_mhz`, `_ms`, `_w` and `_c` as usual.
An optional number that is absent is unknown, never zero.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

# "$" also matches before a final newline in Python; the look-ahead shuts that door and is valid in ECMA regexes too.
_END = r"$(?!\n)"

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*" + _END
"""No control characters, line ends or changes of direction: these texts are shown on terminals and in reports."""
Text = Annotated[str, Meta(max_length=500, pattern=PRINTABLE)]
Name = Annotated[str, Meta(pattern=r"^_?[a-z0-9][a-z0-9-]{0,63}" + _END)]
GgmlType = Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]{1,15}" + _END)]
OnnxFormat = Annotated[str, Meta(pattern=r"^int([48]-a?sym-b(32|64|128)|3-sym-b(32|64))" + _END)]
Feature = Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,32}" + _END)]
Part = Annotated[str, Meta(pattern=r"^0x[0-9a-f]{3}" + _END)]
Version = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+){0,3}" + _END)]
Flag = Annotated[str, Meta(pattern=r"^-D[A-Za-z0-9_]+=[A-Za-z0-9_.,+/-]*" + _END)]
Bits = Annotated[int, Meta(ge=2, le=16)]
Cpu = Annotated[int, Meta(ge=0, le=1023)]
Gbps = Annotated[float, Meta(gt=0, le=100_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000)]
Ratio = Annotated[float, Meta(gt=0, le=1000)]
Basis = Literal["measured", "assumed"]
SessionKey = Literal["mlas.disable_kleidiai", "session.intra_op.allow_spinning"]
"""What a bundle may set of ONNX Runtime's session: others name files or switch checks off."""
Preference = dict[Bits, tuple[GgmlType, ...]]


class Cluster(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal cores of a processor; clusters are listed in the order of their CPU numbers."""

    core: Annotated[Text, Meta(description="Core design, as its maker calls it.")]
    part: Annotated[Part, Meta(description="MIDR part number, `CPU part` in /proc/cpuinfo.")]
    count: Annotated[int, Meta(ge=1, le=1024, description="Number of cores.")]
    max_mhz: Annotated[int, Meta(ge=1, le=20_000, description="Highest clock.")]
    isa: Annotated[tuple[Feature, ...], Meta(description="Features as /proc/cpuinfo spells them.")] = ()
    l2_kib: Annotated[int, Meta(ge=1, le=1 << 20, description="L2 cache, per core or shared.")] | None = None
    l2_shared: Annotated[bool, Meta(description="One L2 for the whole cluster instead of one per core.")] = False


class Soc(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chip."""

    model: Annotated[Text, Meta(description="Name of the chip.")]
    arch: Annotated[
        Literal["aarch64", "x86_64", "any"], Meta(description="Machine as `uname -m` says it; any: not fixed.")
    ]
    clusters: Annotated[tuple[Cluster, ...], Meta(description="Groups of equal cores; empty: not fixed.")] = ()
    l3_kib: Annotated[int, Meta(ge=1, le=1 << 20, description="L3 cache.")] | None = None
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class ReadRate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sequential read bandwidth by number of threads."""

    t1: Annotated[Gbps, Meta(description="Sequential read, 1 thread.")] | None = None
    t2: Annotated[Gbps, Meta(description="Sequential read, 2 threads.")] | None = None
    t4: Annotated[Gbps, Meta(description="Sequential read, 4 threads.")] | None = None


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """RAM: how much, and how fast decoding streams weights from it."""

    ram_mib: Annotated[
        tuple[Annotated[int, Meta(ge=64, le=1 << 22)], ...], Meta(description="Sizes on sale; empty: not fixed.")
    ] = ()
    default_ram_mib: Annotated[int, Meta(ge=0, le=1 << 22, description="Size assumed; 0: ask the machine.")]
    usable_fraction: Annotated[float, Meta(gt=0, le=1, description="Share that a model may take.")]
    type: Annotated[Text, Meta(description="Memory technology.")] = ""
    theoretical_gbps: Annotated[Gbps, Meta(description="Bus bandwidth.")] | None = None
    copy_gbps: Annotated[Gbps, Meta(description="memcpy: bytes copied per second.")] | None = None
    read_gbps: Annotated[ReadRate, Meta(description="Measured sequential read.")] | None = None
    decode_gbps: Annotated[Gbps, Meta(description="CPU decode: tokens/s times bytes of weights per token.")] | None = (
        None
    )
    decode_basis: Annotated[Basis, Meta(description="Where decode_gbps is from.")] | None = None
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class Accelerator(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU or NPU beside the CPU."""

    kind: Annotated[Literal["none", "cuda"], Meta(description="How it is programmed.")] = "none"
    arch: Annotated[Text, Meta(description="Architecture for the compiler, for example sm_87.")] = ""
    min_stack: Annotated[Text, Meta(description="Oldest vendor software that edgekit builds for.")] = ""
    decode_gbps: Annotated[Gbps, Meta(description="As memory.decode_gbps, on the accelerator.")] | None = None
    decode_basis: Annotated[Basis, Meta(description="Where decode_gbps is from.")] | None = None
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class Toolchain(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to compile for the board."""

    triple: Annotated[Text, Meta(description="Target triple of the compiler.")]
    march: Annotated[Text, Meta(description="Value of -march.")]
    mtune: Annotated[Text, Meta(description="Value of -mtune.")] = ""
    glibc_max: Annotated[Version, Meta(description="Newest GLIBC_ symbol version allowed.")]
    glibcxx_max: Annotated[Version, Meta(description="Newest GLIBCXX_ symbol version allowed.")]
    image: (
        Annotated[str, Meta(pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}" + _END, description="Build container, pinned.")]
        | None
    ) = None
    cmake: Annotated[tuple[Flag, ...], Meta(description="Definitions for llama.cpp's CMake.")] = ()
    forbidden_insns: Annotated[tuple[Feature, ...], Meta(description="Mnemonics the CPU lacks (SIGILL).")] = ()
    qemu_cpu: Annotated[Text, Meta(description="`-cpu` of qemu-user that stands in for the board.")] = ""
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class Threads(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Threads for the two phases; 0 means the machine's number of physical cores."""

    prefill: Annotated[int, Meta(ge=0, le=1024, description="Threads that read the prompt; 0: all cores.")] = 0
    decode: Annotated[int, Meta(ge=0, le=1024, description="Threads that generate; 0: all cores.")] = 0


class GgufRuntime(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How llama.cpp runs here, and which number formats to write for it."""

    prefer: Annotated[Preference, Meta(description="Requested bits → types; the first that a row allows is taken.")]
    embedding_prefer: Annotated[Preference, Meta(description="As prefer, for the embedding and a tied head.")]
    threads: Annotated[Threads, Meta(description="Threads by phase.")] = Threads()
    affinity: Annotated[tuple[Cpu, ...], Meta(description="CPUs to pin to; empty: no pinning.")] = ()
    load_mode: Annotated[Literal["mmap", "copy"], Meta(description="Map the file, or copy it into RAM.")] = "mmap"
    repack: Annotated[bool, Meta(description="llama.cpp makes a second, interleaved copy of weights.")] = False
    ram_multiplier: Annotated[float, Meta(ge=1, le=10, description="RAM for weights ÷ file size.")] = 1.0
    fast: Annotated[
        tuple[GgmlType, ...], Meta(max_length=32, description="Types that a plan under a budget may choose from.")
    ] = ()
    efficiency: Annotated[dict[GgmlType, Ratio], Meta(description="Type → share of memory.decode_gbps reached.")] = {}
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class OnnxRuntime(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How onnxruntime runs here, and how to quantize for it."""

    bits: Annotated[tuple[Literal[2, 4, 8], ...], Meta(description="Widths with a kernel worth using.")] = (4, 8)
    block_size: Annotated[Literal[16, 32, 64, 128, 256], Meta(description="Group size: weights per scale.")] = 32
    symmetric: Annotated[bool, Meta(description="No zero points.")] = True
    accuracy_level: Annotated[int, Meta(ge=0, le=4, description="MatMulNBits; 4: int8 activations.")] = 4
    embedding_bits: Annotated[Literal[4, 8], Meta(description="Bits of the embedding and a tied head.")] = 8
    threads: Annotated[int, Meta(ge=0, le=1024, description="Intra-op threads; 0: all cores.")] = 0
    ram_multiplier: Annotated[
        float, Meta(ge=1, le=10, description="RAM for weights while loading ÷ their bytes, scales in float32.")
    ] = 2.0
    fast: Annotated[
        tuple[OnnxFormat, ...],
        Meta(
            max_length=32,
            description="Formats that a plan under a budget may choose from, as far as bits allows; those of 3 bits "
            "are edgekit's own.",
        ),
    ] = ()
    session: Annotated[dict[SessionKey, Text], Meta(description="Session configuration entries.")] = {}
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class Runtime(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the engines."""

    gguf: Annotated[GgufRuntime, Meta(description="llama.cpp.")]
    onnx: Annotated[OnnxRuntime, Meta(description="onnxruntime.")]
    python: Annotated[
        str, Meta(pattern=r"^3\.[0-9]{1,2}" + _END, description="Python of the board's system, which wheels are for.")
    ] = "3.11"


class Deploy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bundle gets onto the board. Hosts, users and keys do not belong here."""

    transports: Annotated[
        tuple[Literal["ssh", "adb", "local", "emulated"], ...], Meta(description="Ways to reach the board.")
    ]
    remote_dir: Annotated[
        str,
        Meta(
            pattern=r"^(?!.*\.\.)[A-Za-z0-9_./][A-Za-z0-9_./-]{0,199}" + _END,
            description="Folder on the board, from the user's home.",
        ),
    ] = "edgekit"
    min_free_mib: Annotated[int, Meta(ge=0, le=1 << 24, description="Free disk beyond the bundle.")] = 0


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of a machine before it is believed to be this board."""

    cpu_parts: Annotated[tuple[Part, ...], Meta(description="MIDR parts that must all be present.")] = ()
    require_features: Annotated[tuple[Feature, ...], Meta(description="/proc/cpuinfo features, every core.")] = ()
    model_match: Annotated[Text, Meta(description="Text that /proc/device-tree/model contains.")] = ""
    clock_min_mhz: Annotated[int, Meta(ge=0, le=20_000, description="Lowest honest maximum clock; 0: any.")] = 0
    os_id: Annotated[tuple[Text, ...], Meta(description="ID of /etc/os-release; empty: any.")] = ()
    os_min_version: Annotated[Text, Meta(description="VERSION_ID, at least; empty: any.")] = ""
    firmware: Annotated[
        Literal["none", "vcgencmd", "l4t"], Meta(description="Who tells the firmware version, recorded with results.")
    ] = "none"


class PowerMode(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mode of `nvpmodel`."""

    id: Annotated[int, Meta(ge=0, le=255, description="Number for `nvpmodel -m`.")]
    watts: Annotated[float, Meta(gt=0, le=10_000, description="Power budget.")] | None = None
    reboot: Annotated[bool, Meta(description="Changing to it needs a reboot.")] = False


class Power(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be measured of power. A board without a sensor says none: nothing is ever estimated as if measured."""

    provider: Annotated[
        Literal["none", "pmic_read_adc", "ina3221", "external"], Meta(description="Sensor that is read.")
    ] = "none"
    scope: Annotated[Literal["", "soc", "board", "wall"], Meta(description="What the sum of rails covers.")] = ""
    rails: Annotated[tuple[Text, ...], Meta(description="Rails to add up; empty: all with voltage and current.")] = ()
    sample_hz: Annotated[float, Meta(gt=0, le=10_000, description="Readings per second.")] | None = None
    wall_scale: Annotated[Ratio, Meta(description="Estimated wall W = wall_scale * rails + offset.")] | None = None
    wall_offset_w: Annotated[float, Meta(ge=0, le=1000, description="Offset of that estimate.")] | None = None
    default_mode: Annotated[Text, Meta(description="Key of power.modes that measurements use.")] = ""
    modes: Annotated[dict[Text, PowerMode], Meta(description="Power modes by name.")] = {}
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class Thermal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a measurement may start, and what spoils it."""

    provider: Annotated[Literal["none", "vcgencmd", "sysfs"], Meta(description="Sensor that is read.")] = "none"
    sticky_mask: Annotated[int, Meta(ge=0, le=0xFFFFFFFF, description="get_throttled bits to compare.")] = 0
    start_below_c: Annotated[float, Meta(gt=0, le=150, description="Warmest start.")] | None = None
    throttle_c: Annotated[float, Meta(gt=0, le=150, description="Where throttling begins.")] | None = None
    cooldown_max_s: Annotated[float, Meta(ge=0, le=86_400, description="Longest wait for start_below_c.")] = 600.0
    governor: Annotated[Text, Meta(description="cpufreq governor to expect; empty: recorded only.")] = ""
    source: Annotated[Text, Meta(description="Public source of this table.")] = ""


class CoherenceLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gates against the full-precision model; an absent key is not judged."""

    kl_mean_max: Annotated[float, Meta(ge=0, le=100, description="Mean KL divergence, nats.")] | None = None
    kl_p999_max: Annotated[float, Meta(ge=0, le=1000, description="99.9 % KL divergence, nats.")] | None = None
    same_top_min: Annotated[Share, Meta(description="Share of positions with the same top token.")] | None = None
    ppl_ratio_max: Annotated[Ratio, Meta(description="Perplexity ÷ full-precision perplexity.")] | None = None
    seq_rep_4_rise_max: Annotated[Share, Meta(description="Rise of seq-rep-4, absolute.")] | None = None
    loop_rate_rise_max: Annotated[Share, Meta(description="Rise of the loop rate, absolute.")] | None = None


class Coherence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gates by requested bit width."""

    bits8: Annotated[CoherenceLimits, Meta(description="Gates of 8-bit models.")] | None = None
    bits6: Annotated[CoherenceLimits, Meta(description="Gates of 6-bit models.")] | None = None
    bits5: Annotated[CoherenceLimits, Meta(description="Gates of 5-bit models.")] | None = None
    bits4: Annotated[CoherenceLimits, Meta(description="Gates of 4-bit models.")] | None = None
    bits3: Annotated[CoherenceLimits, Meta(description="Gates of 3-bit models.")] | None = None
    bits2: Annotated[CoherenceLimits, Meta(description="Gates of 2-bit models.")] | None = None


class LatencyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gates of a measurement on the board; an absent key is not judged."""

    ttft_ms_max: Annotated[Rate, Meta(description="Time to first token.")] | None = None
    tok_s_min: Annotated[Rate, Meta(description="Decoded tokens per second.")] | None = None
    rss_mib_max: Annotated[Rate, Meta(description="Peak resident memory.")] | None = None
    mj_per_token_max: Annotated[Rate, Meta(description="Energy per token, millijoules.")] | None = None
    cv_max: Annotated[Share, Meta(description="Coefficient of variation of repetitions.")] | None = None


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a result is judged against."""

    coherence: Annotated[Coherence, Meta(description="Gates by requested bits.")] = Coherence()
    latency: Annotated[LatencyLimits, Meta(description="Gates of the benchmark.")] = LatencyLimits()


class Anchor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published measurement on this board: a plausibility check, not a gate."""

    model: Annotated[Text, Meta(description="Model.")]
    type: Annotated[Text, Meta(description="Number format, as published.")]
    engine: Annotated[Text, Meta(description="Engine.")]
    source: Annotated[Text, Meta(min_length=1, description="Where it was published.")]
    trust: Annotated[
        Literal["A", "B", "C"], Meta(description="A: raw data; B: third party with a method; C: little method.")
    ]
    build: Annotated[Text, Meta(description="Version of the engine.")] = ""
    params: Annotated[int, Meta(ge=1, le=10**13, description="Parameters of the model.")] | None = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="Threads.")] | None = None
    pp_tok_s: Annotated[Rate, Meta(description="Prefill tokens per second.")] | None = None
    tg_tok_s: Annotated[Rate, Meta(description="Decode tokens per second.")] | None = None
    watts: Annotated[Rate, Meta(description="Power while decoding.")] | None = None
    mj_per_token: Annotated[Rate, Meta(description="Energy per token, millijoules.")] | None = None
    date: Annotated[Text, Meta(description="When, ISO 8601, as a string.")] = ""


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A board, after inheritance."""

    schema_version: Annotated[Literal[1], Meta(description="Version of this format.")]
    name: Annotated[Name, Meta(description="What `--target` takes; the file's name for a shipped target.")]
    title: Annotated[Text, Meta(description="Name for people.")]
    tier: Annotated[
        Literal[1, 2, 3], Meta(description="1: tested on hardware in CI; 2: built and emulated; 3: described only.")
    ]
    aliases: Annotated[tuple[Name, ...], Meta(description="Other names for `--target`.")] = ()
    inherits: Annotated[Text, Meta(description="Parent: a shipped name, or a .toml file beside or below.")] = ""
    vendor: Annotated[Text, Meta(description="Maker of the board.")] = ""
    url: Annotated[Text, Meta(description="The board's page.")] = ""
    soc: Annotated[Soc, Meta(description="Chip.")]
    memory: Annotated[Memory, Meta(description="RAM.")]
    accelerator: Annotated[Accelerator, Meta(description="GPU or NPU.")] = Accelerator()
    toolchain: Annotated[Toolchain, Meta(description="Cross-compiling; absent: nothing is built.")] | None = None
    runtime: Annotated[Runtime, Meta(description="Engines.")]
    deploy: Annotated[Deploy, Meta(description="Transport.")]
    probe: Annotated[Probe, Meta(description="Recognising the board.")] = Probe()
    power: Annotated[Power, Meta(description="Power sensor and modes.")] = Power()
    thermal: Annotated[Thermal, Meta(description="Temperature and throttling.")] = Thermal()
    limits: Annotated[Limits, Meta(description="Gates.")] = Limits()
    anchors: Annotated[tuple[Anchor, ...], Meta(description="Published measurements.")] = ()


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a target after inheritance."""
    schema = msgspec.json.schema(Target)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edgekit target", **schema}
