"""A stranger's tokenizer.json is a small program: its steps are looked at before the tokenizers library runs them.

Every step is harmless by itself, but many that lengthen a text each make it exponentially longer: a file of 20 KB takes
all memory at the first word. The library sets no bounds and ends the process where an allocation fails.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

MAX_STEPS = 64
"""Normalizers, pre-tokenizers, post-processors and decoders, nested ones included."""
MAX_GROWTH = 256
"""How many times longer than a text its normalized, split or decoded form may become."""
MAX_PART = 64
"""Items of a template, characters that are put in front of or behind every piece."""
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")


class _Model(msgspec.Struct):
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    merges: msgspec.Raw = msgspec.Raw(b"[]")


class _File(msgspec.Struct):
    """What is looked at; everything else is skipped without being built."""

    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None
    model: _Model = msgspec.field(default_factory=_Model)


def excess(data: bytes) -> str | None:
    """What is wrong with a tokenizer.json, or too much in it, as a clause; None when the library may read it."""
    try:
        file = msgspec.json.decode(data, type=_File)
        encoding = [*_steps(file.normalizer), *_steps(file.pre_tokenizer)]
        decoding, processing = list(_steps(file.decoder)), list(_steps(file.post_processor))
    except RecursionError:
        return "is nested too deeply"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"cannot be read ({error})"
    if len(encoding) + len(decoding) + len(processing) > MAX_STEPS:
        return f"has more than {MAX_STEPS} steps"
    if math.prod(map(_encoding_growth, encoding)) > MAX_GROWTH or math.prod(map(_growth, decoding)) > MAX_GROWTH:
        return f"may make a text more than {MAX_GROWTH} times as long"
    affixes = (file.model.continuing_subword_prefix, file.model.end_of_word_suffix)
    if any(len(affix or "") > MAX_PART for affix in affixes) or not all(map(_modest_template, processing)):
        return f"adds more than {MAX_PART} tokens or characters to every text or word"
    if affixes[0] and not _continues(file.model.merges, affixes[0]):
        return f"has merges whose second part does not begin with {affixes[0]!r}"
    return None


def _continues(merges: msgspec.Raw, prefix: str) -> bool:
    """Whether every merge continues a word; the library cuts the prefix off unseen, into characters and beyond ends."""
    try:
        pairs = msgspec.json.decode(merges, type=list[str | list[str]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    seconds = (pair.split(" ") if isinstance(pair, str) else pair for pair in pairs)
    return all(parts and parts[-1].startswith(prefix) for parts in seconds)


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """The step and those in it; more than MAX_STEPS are not looked at."""
    waiting, left = [step], 2 * MAX_STEPS
    while waiting and left:
        found = waiting.pop()
        left -= 1
        if isinstance(found, dict):
            yield found
            inner = [part for key in _PARTS if isinstance(found.get(key), list) for part in found[key]]
            waiting.extend(inner[: 2 * MAX_STEPS])


def _encoding_growth(step: Mapping[str, Any]) -> int:
    """ByteLevel makes of a byte a character of up to two; the library takes steps without a type for what fits."""
    return max(2 if step.get("type") in ("ByteLevel", None) else 1, _growth(step))


def _growth(step: Mapping[str, Any]) -> int:
    """Upper bound of the lengths' ratio behind and before a step."""
    if "content" in step:  # Replace
        pattern, content = step.get("pattern"), len(str(step["content"]))
        text = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1, -(-content // len(text))) if isinstance(text, str) and text else 1 + content
    if "prepend" in step:
        return 1 if len(str(step["prepend"])) <= MAX_PART else MAX_GROWTH + 1
    return _longest(step["precompiled_charsmap"]) if "precompiled_charsmap" in step else 1


def _longest(charsmap: Any) -> int:
    """Bytes of the longest text that a character becomes: a trie, after its length, and texts that end with zero."""
    try:
        raw = base64.b64decode(str(charsmap), validate=True)
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    texts = raw[4 + int.from_bytes(raw[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1) or 1


def _modest_template(step: Mapping[str, Any]) -> bool:
    """Whether a template adds a bounded number of ids."""
    pieces = [piece for side in ("single", "pair") if isinstance(step.get(side), list) for piece in step[side]]
    special = step.get("special_tokens")
    tokens = special.values() if isinstance(special, dict) else ()
    counts = [len(token["ids"]) for token in tokens if isinstance(token, dict) and isinstance(token.get("ids"), list)]
    return len(pieces) <= MAX_PART and max(counts, default=0) <= MAX_PART
