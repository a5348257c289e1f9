"""Golden token ids: what the original tokenizer makes of texts that tokenizers are known to disagree about.

The ids are taken at build time and travel in the bundle as tokenizer/golden.json, so that every engine's tokenizer can
be compared with them, also on the board.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgekit.bundle.paths import plain, read_bounded
from edgekit.errors import BundleError, ParityError

GOLDEN = "golden.json"
_MAX_BYTES = 16 << 20

CORPUS: tuple[str, ...] = (
    # nothing, and next to nothing
    "",
    " ",
    "a",
    "\n",
    # plain words
    "The kettle sings before the water boils.",
    "the kettle sings",
    " the kettle sings",
    "THE KETTLE SINGS; the Kettle sInGs!",
    "I'm sure they'd've said we'll go, wouldn't you? It's O'Neill's.",
    "I\u2019m sure it\u2019s \u201cquoted\u201d \u2014 or not\u2026",
    "state-of-the-art re-entry co-operate",
    # digits
    "7 42 365 1984 31415 271828 1234567",
    "123 4567 89012345678901234567890",
    "3.14159 -0.5 1e-9 6.02e23 1,000,000.00",
    "v1.2.3-rc4 2024-02-29T23:59:60Z 192.168.0.1",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u0e51\u0e52\u0e53 \uff11\uff12\uff13 \u2460\u00bd\u00b2\u2083 \u216b",
    "room101 x86_64 4x4 B2B 1st 22nd",
    # white space
    "two  spaces,   three,    four",
    "   leading",
    "trailing   ",
    "trailing newline\n",
    "\t\ttabs\tbetween\twords\t",
    "line one\nline two\n\nline four\n\n\n\nline eight",
    "carriage\r\nreturns\r\nand\ralone",
    "mixed \t \n \t end \n\n  ",
    "no\u00a0break\u202fnarrow\u3000ideographic\u2003em\u200bzero",
    "\u2028line separator\u2029paragraph separator\u0085next line",
    # code and markup
    "def f(x):\n    if x > 0:\n        return f(x - 1) * 2\n    return 1\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]->c; }\t// sum",
    "#include <stdio.h>\nint main(void) { puts(\"hi\\n\"); return 0; }",
    "SELECT name, COUNT(*) FROM boards WHERE ram_mb >= 512 GROUP BY 1;",
    '{"id": 17, "tags": ["a", "b"], "ok": true, "none": null, "x": -1.5e-3}',
    "<p class=\"note\">5 &lt; 6 &amp;&amp; 7 &gt; 6</p><!-- end -->",
    "# Heading\n\n* item **bold** `code`\n\n```sh\nls -la | grep 'x' > out.txt\n```\n",
    "https://example.org/a/b.html?q=caf%C3%A9&n=2#top user@example.org",
    "C:\\Users\\me\\file.txt ../up/one /usr/lib/aarch64-linux-gnu",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$ \u2200x\u2208\u211d: x\u00b2\u22650",
    "!!! ??? ... --- ___ *** ### $$$ %%% ^^^ &&& ((( ))) [[[ ]]] {{{ }}} ~~~ ``` |||",
    # scripts
    "\u00c5ngstr\u00f6m na\u00efve fa\u00e7ade stra\u00dfe \u0141\u00f3d\u017a \u0130stanbul",
    "\u0391\u03c5\u03c4\u03cc \u03b5\u03af\u03bd\u03b1\u03b9 \u03bc\u03b9\u03b1 "
    "\u03c0\u03c1\u03cc\u03c4\u03b1\u03c3\u03b7.",
    "\u0427\u0430\u0439\u043d\u0438\u043a \u043f\u043e\u0451\u0442 \u043f\u0435\u0440\u0435\u0434 "
    "\u043a\u0438\u043f\u0435\u043d\u0438\u0435\u043c.",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643 \u0641\u064a \u0627\u0644\u0645\u0637\u0628\u062e\u060c "
    "\u0627\u0644\u0634\u0627\u064a \u062c\u0627\u0647\u0632",
    "\u092a\u093e\u0928\u0940 \u0909\u092c\u0932 \u0930\u0939\u093e \u0939\u0948\u0964 "
    "\u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f",
    "\u0e19\u0e49\u0e33\u0e01\u0e33\u0e25\u0e31\u0e07\u0e40\u0e14\u0e37\u0e2d\u0e14",
    "\u6c34\u5f00\u4e86\uff0c\u53ef\u4ee5\u6ce1\u8336\u3002\u8336\u58f6\u5728\u54ea\u91cc\uff1f",
    "\u304a\u6e6f\u304c\u6cb8\u304d\u307e\u3057\u305f\u3002\u30b1\u30c8\u30eb\uff76\uff9e",
    "\ubb3c\uc774 \ub053\uace0 \uc788\uc5b4\uc694. \u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u10e9\u10d0\u10d8 \u0570\u0561\u0575 \u1203\u1208 \u0f56\u0f7c\u0f51 \u13a0\u13b3",
    "\U00010330\U00010331 \U0001d400\U0001d4d0 \U00020000\U0002a6d6",
    "English \u05e2\u05d1\u05e8\u05d9\u05ea 123 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 (test) "
    "\u202eoverride\u202c \u200f.",
    # combining marks and emoji
    "e\u0301 \u00e9 n\u0303 \u00f1 A\u030a \u00c5 \u1e69 s\u0323\u0307 s\u0307\u0323",
    "Z\u0351\u036b\u0343a\u0363\u034ald\u0310\u0307o\u0342 \ufb01 \ufb03 \u01c6",
    "\U0001f600\U0001f602\U0001f525 ok\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 "
    "\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 1\ufe0f\u20e3 \u2764\ufe0f",
    # unusual characters
    "nul\x00 bell\x07 escape\x1b[0m delete\x7f backspace\x08",
    "\ufeffbyte order mark \ufffd replacement \ue000 private \ufffe\uffff",
    "soft\u00adhyphen word\u2060joiner zero\u200cwidth\u200dnon",
    # texts of special tokens, written by a user
    "<s> </s> <unk> <pad> [INST] hi [/INST] <<SYS>>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<start_of_turn>user hi<end_of_turn> <|user|>hi<|end|> <bos><eos> <|im_start",
    "<0x0A> <0xE2> \u2581under\u2581score \u0120G\u010a Ġword",
    # long runs
    "kettle" * 60,
    "a" * 300,
    "=" * 80 + "\n" + "-" * 79,
    " " * 100 + "x",
    "\n" * 40,
    "0" * 100,
    "\u6c34" * 50,
)  # fmt: skip
"""Texts of our own making, as escapes where an editor could change them."""

CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is 12 times 12?"},),
    ({"role": "user", "content": "  Two lines,\n\nand spaces  "},),
    (
        {"role": "user", "content": "Name a tea."},
        {"role": "assistant", "content": "Assam."},
        {"role": "user", "content": 'Another \U0001f375, please: {"n": 1}'},
    ),
)
"""Conversations that every chat template takes: user and assistant in turns, no system message."""

Ids = tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...]


class GoldenText(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One text and its ids, without the special tokens that a tokenizer would add around it."""

    text: str
    ids: Ids


class GoldenChat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversation and the ids of its prompt, the template's special tokens included."""

    messages: tuple[dict[str, str], ...]
    ids: Ids


class Golden(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of golden.json; it carries its texts, so a later corpus can still read it."""

    schema_version: Literal[1] = 1
    texts: tuple[GoldenText, ...]
    chats: tuple[GoldenChat, ...] = ()


def golden_ids(encode: Callable[[str], list[int]], texts: Sequence[str] = CORPUS) -> list[list[int]]:
    """Ids of each text. `encode` adds no special tokens but does recognise them in the text, as transformers does."""
    return [list(encode(text)) for text in texts]


def first_difference(
    expected: Sequence[Sequence[int]], got: Sequence[Sequence[int]], name: str, texts: Sequence[str] = CORPUS
) -> None:
    """Return when two lists of ids, one entry for each text, are equal.

    Args:
        expected: ids of the original tokenizer.
        got: ids of the tokenizer under test.
        name: of the tokenizer under test, for the message.
        texts: what was encoded.

    Raises:
        ParityError: names the first text whose ids differ, and the first position.
    """
    if not len(expected) == len(got) == len(texts):
        raise ParityError(
            f"{name} gave ids for {len(got)} texts",
            expected=f"{len(expected)} of {len(texts)}",
            remedy="encode every text",
        )
    for text, right, wrong in zip(texts, expected, got, strict=True):
        if list(right) != list(wrong):
            raise _difference(text, list(right), list(wrong), name)


def _difference(text: str, right: list[int], wrong: list[int], name: str) -> ParityError:
    pairs = zip(right, wrong, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(right), len(wrong)))
    shown = ascii(text if len(text) <= 60 else text[:60])
    shown += "" if len(text) <= 60 else f"… ({len(text)} characters)"
    return ParityError(
        f"the tokenizer of {name} gives {_at(wrong, place)} at position {place} of {shown}",
        expected=_at(right, place),
        remedy="the export lost or changed a part of the tokenizer (pre-tokenizer, merges or added tokens)",
    )


def _at(ids: list[int], place: int) -> str:
    return f"id {ids[place]}" if place < len(ids) else f"the end after {len(ids)} ids"


def write_golden(
    folder: Path,
    encode: Callable[[str], list[int]],
    chat_ids: Callable[[Sequence[dict[str, str]]], list[int]] | None = None,
) -> Golden:
    """Take the ids of CORPUS, and of CHATS when `chat_ids` is given, and write `folder`/golden.json.

    A template that shows today's date needs a `chat_ids` with a fixed date, on both sides of the comparison.
    """
    texts = tuple(GoldenText(text=t, ids=tuple(ids)) for t, ids in zip(CORPUS, golden_ids(encode), strict=True))
    chats = tuple(GoldenChat(messages=chat, ids=tuple(chat_ids(chat))) for chat in CHATS) if chat_ids else ()
    golden = Golden(texts=texts, chats=chats)
    (folder / GOLDEN).write_bytes(msgspec.json.encode(golden) + b"\n")
    return golden


def read_golden(folder: Path) -> Golden:
    """Read `folder`/golden.json.

    Raises:
        BundleError: missing, too large, or not what :func:`write_golden` writes.
    """
    data = read_bounded(folder, GOLDEN, _MAX_BYTES)
    try:
        return msgspec.json.decode(data, type=Golden)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{folder / GOLDEN} is not a golden corpus ({plain(str(error))})",
            expected="the file that edgekit build writes",
            remedy="get the bundle again from who built it",
        ) from error


def check_golden(
    golden: Golden,
    name: str,
    encode: Callable[[str], list[int]],
    chat_ids: Callable[[Sequence[dict[str, str]]], list[int]] | None = None,
) -> None:
    """Compare a tokenizer with a golden file; chats only when `chat_ids` is given.

    Raises:
        ParityError: names the first text that differs.
    """
    texts = [entry.text for entry in golden.texts]
    first_difference([entry.ids for entry in golden.texts], golden_ids(encode, texts), name, texts)
    if chat_ids:
        shown = [" / ".join(message.get("content", "") for message in chat.messages) for chat in golden.chats]
        got = [chat_ids(chat.messages) for chat in golden.chats]
        first_difference([chat.ids for chat in golden.chats], got, f"{name} (chat template)", shown)
