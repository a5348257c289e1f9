"""Valid files to start from, each made by the writer that makes it in earnest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny
import tiny_elf
import tiny_gguf
import tiny_tokenizers
from tiny import Tiny

from edgekit.bundle.bundle import write_manifest
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import Artefact, Figure, Manifest, Model, PlanEntry, TargetRef
from edgekit.coherence.container import save
from edgekit.report.model import to_json

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from test_coherence_engine import Bigram, sealed, table
from test_report_model import report

SMALL = Tiny(hidden=16, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=8, vocab=300, dtype="f16")
"""A checkpoint of 40 KB."""
TARGETS = Path(__file__).parents[2] / "targets"


def targets() -> tuple[bytes, ...]:
    """Boards that inherit, with and without an accelerator, and the host."""
    return tuple((TARGETS / name).read_bytes() for name in ("rpi5.toml", "jetson-orin-nano.toml", "host.toml"))


def bundle(folder: Path) -> Path:
    """A sealed bundle, its artefact a stand-in."""
    for path, data in {
        "gguf/model.gguf": b"GGUF" + bytes(100),
        "tokenizer/tokenizer.json": b"{}",
        "report.html": b"<p>measured</p>",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    entry = PlanEntry(
        tensor="blk.0.attn_q.weight", role="q_proj", shape=(64, 64), requested_bits=4, grid="Q4_0", bits=4.5,
        bytes=2304,
    )  # fmt: skip
    artefact = Artefact(
        format="gguf", path="gguf/model.gguf", engine="llama.cpp", requested_bits=4, effective_bits=4.7, plan=(entry,)
    )
    write_manifest(
        folder,
        Manifest(
            edgekit="0.1.0", name="tiny.rpi5", versions={"numpy": "2.4.6"}, seeds={"sampling": 0},
            artefacts=(artefact,),
            model=Model(name="tiny", architecture="llama", source="a test", sha256="ab" * 32, parameters=4096),
            target=TargetRef(id="rpi5", sha256="ab" * 32),
            predicted={"gguf.decode": Figure(value=31.5, unit="tokens/s", source="bandwidth / bytes per token")},
        ),
    )  # fmt: skip
    return folder


def references(folder: Path) -> tuple[bytes, ...]:
    """With a tail and draws from it, and with the whole vocabulary."""
    save(sealed(Bigram(table(24)), n=2, length=6, k=4, tokens=5), folder / "a.npz")
    save(sealed(Bigram(table(6)), n=2, length=5, k=6, tokens=3), folder / "b.npz")
    return (folder / "a.npz").read_bytes(), (folder / "b.npz").read_bytes()


def golden(folder: Path) -> bytes:
    """Ids are bytes; cut to the first texts and one chat, to be quick."""
    write_golden(folder, lambda text: list(text.encode()[:40]), lambda chat: [len(chat)])
    value = json.loads((folder / "golden.json").read_bytes())
    value["texts"], value["chats"] = value["texts"][:12], value["chats"][:2]
    return json.dumps(value).encode()


def report_json() -> bytes:
    """The report tests' example."""
    return to_json(report())


def gguf_files(folder: Path) -> tuple[bytes, ...]:
    """Every kind of value, nested and long arrays, three tensor types; little and big endian."""
    made = []
    for name, order in (("a.gguf", gguf.GGUFEndian.LITTLE), ("b.gguf", gguf.GGUFEndian.BIG)):
        writer = gguf.GGUFWriter(folder / name, "llama", endianess=order)
        writer.add_name("tiny")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_token_list([f"t{i}" for i in range(12)])
        writer.add_array("test.short", [1, 2, 3])
        writer.add_float32("test.float", 0.5)
        writer.add_bool("test.bool", True)
        writer.add_uint64("test.big", 2**40)
        ones = np.ones((4, 32), np.float32)
        if order is gguf.GGUFEndian.LITTLE:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor("a", gguf.quants.quantize(ones, kind), raw_dtype=kind)
            writer.add_tensor("b", ones.astype(np.float16))
        writer.add_tensor("c", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append((folder / name).read_bytes())
    return tuple(made)


IMATRIX_MODEL = Tiny(hidden=32, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16, tied=False, dtype="f32")


def imatrices() -> tuple[bytes, ...]:
    """What llama-imatrix wrote of IMATRIX_MODEL, in both its forms."""
    data = Path(__file__).parents[1] / "data"
    return tuple((data / f"tiny.imatrix.{end}").read_bytes() for end in ("gguf", "dat"))


def gguf_models(folder: Path) -> tuple[bytes, ...]:
    """Whole models: half precision, and quantized where rows allow it."""
    made = []
    for kind in ("F16", "Q8_0"):
        small = Tiny(hidden=32, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=16, vocab=300)
        tiny_gguf.write(folder / f"{kind}.gguf", small, kind=kind)
        made.append((folder / f"{kind}.gguf").read_bytes())
    return tuple(made)


def adapter(folder: Path) -> None:
    """A LoRA adapter of rank 2 for SMALL, as peft names things."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {}, "use_rslora": False}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    parts = {f"{module}.lora_A.weight": np.ones((2, 16), np.float32)}
    parts[f"{module}.lora_B.weight"] = np.ones((16, 2), np.float32)
    tiny.save(folder / "adapter_model.safetensors", parts, "f32")


def safetensors(folder: Path) -> tuple[bytes, ...]:
    """Three floating types."""
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.arange(8, dtype=np.float32)}
    arrays["c"] = np.ones((1, 1, 4), np.float32)
    made = []
    for dtype in ("f16", "bf16", "f32"):
        tiny.save(folder / f"{dtype}.safetensors", arrays, dtype)
        made.append((folder / f"{dtype}.safetensors").read_bytes())
    return tuple(made)


def tokenizers(folder: Path, kinds: Sequence[str] = ("smollm", "llama3", "sentencepiece")) -> tuple[bytes, ...]:
    """tokenizer.json of several kinds, and one with padding and truncation."""
    made = []
    for kind in kinds:
        tiny_tokenizers.write(folder, kind, 300)
        made.append((folder / "tokenizer.json").read_bytes())
    value = json.loads(made[0])
    value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    value["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    return (*made, json.dumps(value).encode())


def onnx_model() -> bytes:
    """A MatMulNBits with external data, a loop body, a table."""
    import onnx

    types, make = onnx.TensorProto, onnx.helper

    def outside(name: str, dims: tuple[int, ...], kind: int, offset: int, length: int) -> Any:
        made = types(name=name, data_type=kind, dims=dims, data_location=types.EXTERNAL)
        for word, value in {"location": "w.data", "offset": str(offset), "length": str(length)}.items():
            made.external_data.add(key=word, value=value)
        return made

    weights = [
        outside("codes", (8, 2, 16), types.UINT8, 0, 256), outside("scales", (8, 2), types.FLOAT, 256, 64),
        onnx.numpy_helper.from_array(np.ones(4, np.float32), "norm"),
    ]  # fmt: skip
    inner = make.make_graph([make.make_node("Identity", ["y"], ["q"])], "inner", [], [])
    settings = {"domain": "com.microsoft", "bits": 4, "block_size": 32}
    own = {"domain": "edgekit", "bits": 3, "block_size": 32}
    nodes = [
        make.make_node("GatherBlockQuantized", ["codes", "ids", "scales"], ["x"], gather_axis=0, **settings),
        make.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        make.make_node("MatMulNBits", ["y", "codes", "scales"], ["z"], K=64, N=8, **settings),
        make.make_node("Gather3Bits", ["ids", "codes", "scales"], ["u"], K=64, N=8, **own),
        make.make_node("MatMul3Bits", ["u", "codes", "scales"], ["v"], K=64, N=8, **own),
        make.make_node("SparseMatMul3Bits", ["v", "codes", "scales"], ["w"], K=64, N=8, threshold=0.5, **own),
    ]
    data: bytes = make.make_model(make.make_graph(nodes, "g", [], [], weights)).SerializeToString()
    return data


WHEEL = "thing-1.0-cp311-cp311-manylinux_2_17_aarch64.whl"


def elf_files(_folder: Path) -> tuple[bytes, ...]:
    """A program and a Python module for a Raspberry Pi 5, with everything that is read of such files."""
    made = tiny_elf.TinyElf(
        code=(*tiny_elf.OUTLINED, tiny_elf.SDOT, tiny_elf.NOP, tiny_elf.RET), soname="thing.so", runpath="$ORIGIN/lib",
        needed=("libc.so.6", "libstdc++.so.6"), exports=("PyInit_thing", "dot"), imports=("getauxval",),
        versions={"libc.so.6": ("GLIBC_2.17",), "libstdc++.so.6": ("GLIBCXX_3.4.21", "CXXABI_1.3.9")},
    )  # fmt: skip
    program = tiny_elf.TinyElf(program=True, interpreter=tiny_elf.LOADER, needed=("libc.so.6",), debug=64)
    return made.build(), program.build()


def wheel_file(folder: Path) -> bytes:
    """A wheel with a Python module."""
    module = "thing/_thing.cpython-311-aarch64-linux-gnu.so"
    return tiny_elf.wheel(folder, WHEEL, {module: elf_files(folder)[0], "thing/__init__.py": b""}).read_bytes()


TEMPLATES = tuple(
    text.encode()
    for text in (
        tiny_tokenizers.CHATML,
        tiny_tokenizers.LLAMA3_CHAT,
        """{%- macro turn(role, text) -%}
<|{{ role }}|>{{ text.strip() if text is string else text | tojson }}{%- endmacro %}
{%- set ns = namespace(count=0, seen=[]) %}
{%- for message in messages if message.role != 'tool' %}
{%- set ns.count = ns.count + loop.index0 * 2 %}{%- set ns.seen = ns.seen + [message.role] %}
{%- if loop.last %}{% generation %}{{ turn(message['role'], message['content']) }}{% endgeneration %}
{%- else %}{{ turn(message.role, message) }}{%- continue %}{%- endif %}{%- endfor %}
{{ ns.count }} {{ ns.seen | join(',') }} {{ messages | map(attribute='role') | list | tojson(indent=2) }}
{{- messages[1:] | selectattr('role', 'equalto', 'user') | list | length }}{{ 'x' * 3 }}
{{- strftime_now('%d %b %Y') }}""",
    )
)
TEMPLATE_WORDS = (
    "{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", "|", "(", ")", "[", "]", "[0]", "[1:]", "~", "+", "-", "*", "**",
    "//", "%", "==", "<", "in", "is", "not", "and", "or", "if", "else", "endif", "endfor", "endmacro", "endset",
    "for x in messages", "for i in range(99999)", "for i in range(9)", "endcall", "set a = a ~ a", "set ns.x = ns",
    "'a' * 10**9", "10**9", "9**9**9", "messages", ".content", ".__class__", ".__init__.__globals__", "['__mro__']",
    "|attr('__class__')", "|map(attribute='__class__')", "|join(messages)", "|replace('', 'aa')", "|tojson", "|list",
    "|sort", "|unique", "|safe", "|string", "|int", "|format(1)", ".format(messages)", ".split()",
    ".replace('a', 'aa')",
    "self", "loop", "caller()", "namespace(a=[])", "dict(a=1)", "range(100000)", "macro f(n)", "f(f)", "f(1)",
    "include 'x'", "import 'os' as os", "extends 'x'", "block b", "raw", "endraw", "call f(1)", "filter upper",
    "strftime_now('%Y' * 20)", "raise_exception('\x1b[31m')", "recursive", "loop(messages)", "cycler('a')", "lipsum()",
    "joiner()", "autoescape true", "'%s' % 1", "\0", "\ud800", "\u202e", "9" * 5000, "(" * 300, "-" * 300, "[" * 300,
)  # fmt: skip
TOML_WORDS = (
    '"""', "'''", '"', "'", "[", "]", "[[", "]]", "{", "}", "=", ".", ",", "#", "\n", "\r\n", "\\", "\\u0000",
    "\\uD800", "inherits", 'inherits = "../x.toml"', 'inherits = "/etc/passwd"', 'inherits = "rpi5"',
    'inherits = "_base"',
    "name = ", "[soc]", "[[soc.clusters]]", "[limits.coherence.bits4]", "a.b.c.d", "a." * 20, "[" * 20, "{a=" * 20,
    "nan", "+aliases", "inf", "-1",
    "0x", "1e999", "1979-05-27T07:32:00Z", "true", "9" * 30, "9" * 5000, "\0", "\x1b[31m", "\u202e", "🧯",
    "+prefer", "tier = 0", 'title = "\\u001b[31m"', 'march = "a;b"', "schema_version = 2",
)  # fmt: skip
