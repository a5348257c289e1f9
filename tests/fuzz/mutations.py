"""Damage to valid files, drawn from a seeded generator: of their bytes, their JSON, their text, their frame."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]

NUMBERS = (
    0, 1, 2, 3, 7, 8, 9, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
ODD_TEXT = (
    "", " ", "\0", "\x1b[31mred\x1b[0m", "a\nb", "\u202etxt.exe", "\ud800", "\ufeff", "../../etc/passwd", "/etc/passwd",
    "C:\\x", "a" * 300, "\U0001f9ff" * 70, "__class__", "nan", "%n%s", "{0}", "$(id)", "-1", "1e999", "é", "e\u0301",
)  # fmt: skip
_QUANTIZED = ("MatMulNBits", "GatherBlockQuantized", "MatMul3Bits", "SparseMatMul3Bits", "Gather3Bits")
ODD_BYTES = (
    b"", b"\0", b"\xff", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\r", b"\n\n", b"{" * 40,
)  # fmt: skip


def any_bytes(data: bytes, random: Random) -> bytes:
    """One to six changes: bits, bytes, integers of 1 to 8 bytes, pieces cut, doubled, moved, the end lost."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(_BYTE_CHANGES)(made, random)
    return bytes(made)


def _flip(made: bytearray, random: Random) -> None:
    if made:
        made[random.randrange(len(made))] ^= 1 << random.randrange(8)


def _set(made: bytearray, random: Random) -> None:
    if made:
        made[random.randrange(len(made))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _integer(made: bytearray, random: Random) -> None:
    """Where a length, count or offset may stand; near the start, where headers are, more often than elsewhere."""
    size = random.choice((1, 2, 4, 4, 8, 8, 8))
    end = len(made) if random.random() < 0.5 else min(len(made), 96)
    at = random.randrange(max(1, end - size + 1))
    value = random.choice(NUMBERS) % (1 << 8 * size)
    made[at : at + size] = value.to_bytes(size, random.choice(("little", "little", "big")))


def _nudge(made: bytearray, random: Random) -> None:
    if made:
        at = random.randrange(len(made))
        made[at] = (made[at] + random.choice((-1, 1, 16, -16))) % 256


def _cut(made: bytearray, random: Random) -> None:
    start = random.randrange(len(made) + 1)
    del made[start : start + random.choice((1, 4, 8, 64, 4096))]


def _double(made: bytearray, random: Random) -> None:
    start = random.randrange(len(made) + 1)
    piece = made[start : start + random.choice((1, 8, 64, 512))]
    made[start:start] = piece * random.choice((1, 1, 2, 16))


def _move(made: bytearray, random: Random) -> None:
    start, to = random.randrange(len(made) + 1), random.randrange(len(made) + 1)
    size = random.choice((1, 8, 64))
    made[to : to + size] = made[start : start + size]


def _insert(made: bytearray, random: Random) -> None:
    at = random.randrange(len(made) + 1)
    made[at:at] = random.choice((*ODD_BYTES, random.choice(ODD_TEXT).encode("utf8", "surrogatepass")))


def _truncate(made: bytearray, random: Random) -> None:
    del made[random.choice((0, random.randrange(len(made) + 1), max(0, len(made) - random.randrange(40)))) :]


_BYTE_CHANGES = (_flip, _flip, _set, _integer, _integer, _nudge, _cut, _double, _move, _insert, _truncate)


# --- JSON ------------------------------------------------------------------------------------------------------------


def any_json(data: bytes, random: Random) -> bytes:
    """One to four values, keys or items of a JSON document changed; now and then its bytes as well."""
    try:
        value = json.loads(data) if len(data) < _MAX_JSON else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return any_bytes(data, random)
    for _ in range(random.choice((1, 1, 2, 4))):
        value = _changed(value, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, indent=random.choice((None, 1)))
    text = _deepened(text, random)
    made = text.encode("utf8", random.choice(("surrogatepass", "replace")))
    return any_bytes(made, random) if random.random() < 0.15 else made


_MAX_JSON = 1 << 17
"""Bytes. Changing what was changed before must not make the attack itself large."""
_DEEP = "\u0001deep\u0001"


def _deepened(text: str, random: Random) -> str:
    """json.dumps cannot nest deeply, so deep values are put in as text."""
    mark = json.dumps(_DEEP)
    if mark not in text:
        return text
    depth = random.choice((20, 200, 900, 2000, 50_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    return text.replace(mark, opening * depth + "1" + closing * depth * (random.random() < 0.9))


def _odd_value(random: Random) -> Any:
    number = random.choice(NUMBERS)
    return random.choice((
        None, True, False, number, -number, float(number), 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**40,
        10**400, random.choice(ODD_TEXT), random.choice(ODD_TEXT), [], {}, [[]], [number], {"a": number}, [1] * 1000,
        _DEEP,
    ))  # fmt: skip


def _changed(value: Any, random: Random) -> Any:
    """`value` with one change somewhere below; walks down at random, so shallow places are as likely as deep ones."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        made = dict(value)
        what = random.random()
        if what < 0.1:
            del made[key]
        elif what < 0.2:
            made[random.choice((*ODD_TEXT, key + "x", key.upper()))] = made.pop(key)
        elif what < 0.3:
            made[random.choice(list(value))] = made[key]
        else:
            made[key] = _changed(made[key], random)
        return made
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        what = random.random()
        if what < 0.15:
            return [*value[:at], *value[at + 1 :]]
        if what < 0.3:
            return [*value[:at], *[value[at]] * random.choice((2, 3, 100)), *value[at + 1 :]]
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    return _near(value, random) if random.random() < 0.4 else _odd_value(random)


def _near(value: Any, random: Random) -> Any:
    """A value of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, value // 2, value / 2 if abs(value) < 1 << 64 else 2))
    if isinstance(value, float):
        return random.choice((-value, value * 2, value / 2, int(value) if abs(value) < 1e300 else 0))
    if isinstance(value, str):
        return any_text(value, random, ODD_TEXT)
    return _odd_value(random)


# --- text ------------------------------------------------------------------------------------------------------------


def any_text(text: str, random: Random, words: Sequence[str]) -> str:
    """One to five changes of a text: a word put in or in place of another, a line moved, doubled or lost."""
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        at = random.randrange(len(text) + 1)
        what = random.randrange(6)
        if what == 0:
            text = text[:at] + random.choice(words) + text[at:]
        elif what == 1:
            text = text[:at] + random.choice(words) + text[at + random.choice((1, 2, 8)) :]
        elif what == 2:
            text = text[:at] + text[at + random.choice((1, 1, 4, 30)) :]
        elif what == 3:
            text = text[:at] + text[at : at + random.choice((1, 6, 40))] * random.choice((2, 3, 20)) + text[at:]
        else:
            text = _lines(text, random)
    return text


def _lines(text: str, random: Random) -> str:
    lines = text.split("\n")
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    what = random.randrange(3)
    if what == 0:
        lines[first], lines[second] = lines[second], lines[first]
    elif what == 1:
        lines.insert(second, lines[first])
    else:
        del lines[first]
    return "\n".join(lines)


def worded(words: Sequence[str]) -> Mutate:
    """Changes of a text made of `words`; one in ten damages its bytes instead."""

    def mutate(data: bytes, random: Random) -> bytes:
        if random.random() < 0.1:
            return any_bytes(data, random)
        return any_text(data.decode("utf8", "replace"), random, words).encode("utf8", "surrogatepass")

    return mutate


# --- frames: the damage is inside, and the lengths and checksums around it are right ---------------------------------


def any_safetensors(data: bytes, random: Random) -> bytes:
    """The header's JSON changed and framed again, or any bytes."""
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.25 or size > len(data):
        return any_bytes(data, random)
    header = any_json(data[8 : 8 + size], random)
    header += b" " * (-len(header) % 8) * (random.random() < 0.8)
    body = data[8 + size :]
    return len(header).to_bytes(8, "little") + header + (body if random.random() < 0.9 else any_bytes(body, random))


def any_zip(data: bytes, random: Random) -> bytes:
    """An entry of a zip file changed, renamed, doubled or lost, with right checksums; or any bytes."""
    if random.random() < 0.25:
        return any_bytes(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OSError, RuntimeError):
        return any_bytes(data, random)
    if not entries:
        return any_bytes(data, random)
    at = random.randrange(len(entries)) if random.random() < 0.6 else 0
    name, content = entries[at]
    content = (any_json if name.endswith(".json") else any_bytes)(content, random)
    what = random.random()
    entries[at] = (random.choice(ODD_TEXT) or "x" if what < 0.05 else name, content)
    if what > 0.95:
        del entries[random.randrange(len(entries))]
    stream = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if random.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for key, value in entries:
            archive.writestr(zipfile.ZipInfo(key.encode("utf8", "replace").decode() or "x"), value, kind)
    return stream.getvalue()


def any_onnx(data: bytes, random: Random) -> bytes:
    """Fields of the message changed where it can still be parsed, else any bytes."""
    import onnx

    if random.random() < 0.4:
        return any_bytes(data, random)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's error has no typed name
        return any_bytes(data, random)
    for _ in range(random.choice((1, 2, 4))):
        _onnx_field(model, random)
    made: bytes = model.SerializeToString()
    return made


def _onnx_field(model: Any, random: Random) -> None:
    word = random.choice(ODD_TEXT).encode("utf8", "replace").decode()
    number = (random.choice(NUMBERS) + 2**63) % 2**64 - 2**63
    graph = model.graph
    tensors, nodes = list(graph.initializer), list(graph.node)
    what = random.randrange(7)
    if what == 0 and tensors and (tensor := random.choice(tensors)).external_data:
        random.choice(list(tensor.external_data)).value = random.choice((word, str(number)))
    elif what == 1 and tensors:
        random.choice(tensors).dims.append(number)
    elif what == 2 and tensors:
        random.choice(tensors).data_type = number % 2**31
    elif what == 3 and nodes and (node := random.choice(nodes)).attribute:
        random.choice(list(node.attribute)).i = number
    elif what == 4 and nodes:
        random.choice(nodes).input.append(random.choice((word, "codes")))
    elif what == 5 and nodes:
        random.choice(nodes).op_type = random.choice((word, *_QUANTIZED))
    else:
        model.producer_name = word
