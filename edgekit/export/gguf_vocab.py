"""The tokenizer as GGUF metadata: vocabulary, token types, merges, and llama.cpp's name for the pre-tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gguf import TokenType

from edgekit.errors import TokenizerError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_SHAPES: Mapping[tuple[bool, *tuple[str, ...]], str] = {
    (False, "ByteLevel+regex"): "gpt-2",
    (False, "Digits", "ByteLevel+regex"): "smollm",
    (True, f"Split:{_LLAMA3}", "ByteLevel"): "llama-bpe",
    (False, f"Split:{_LLAMA3}", "ByteLevel"): "smaug-bpe",
    (False, f"Split:{_QWEN2}", "ByteLevel"): "qwen2",
}
"""Whether a whole word that is a token needs no merges, and the steps of tokenizer.json's pre-tokenizer → llama.cpp's
`tokenizer.ggml.pre`, which stands for both (its src/llama-vocab.cpp)."""

NormalForm = Literal["NFC", "NFKC"]
_NORMAL_FORMS: tuple[NormalForm, ...] = ("NFC", "NFKC")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GgufVocab:
    """What goes into tokenizer.ggml.*."""

    model: str
    """"gpt2" (byte-level BPE) or "llama" (SentencePiece BPE)."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    """bos, eos, unk, pad → id."""
    add_bos: bool
    add_space_prefix: bool
    chat_template: str


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error})", remedy="download the tokenizer again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object", remedy="download the tokenizer again")
    return value


def _steps(pre: Mapping[str, Any] | None) -> tuple[str, ...]:
    if not pre:
        return ()
    kind = str(pre.get("type"))
    if kind == "Sequence":
        return tuple(step for part in pre["pretokenizers"] for step in _steps(part))
    if kind == "ByteLevel":
        regex, space = pre.get("use_regex", True), pre.get("add_prefix_space", True)
        return ("ByteLevel" + ("+regex" if regex else "") + ("+space" if space else ""),)
    if kind == "Digits":
        return ("Digits" if pre.get("individual_digits") else "Digits+groups",)
    if kind == "Split":
        pattern, way = pre.get("pattern", {}), str(pre.get("behavior"))
        way = "Split" if way == "Isolated" and not pre.get("invert") else f"Split {way}"
        return (f"{way}:{pattern.get('Regex', pattern.get('String'))}",)
    return (kind,)


def _pre_tokenizer(data: Mapping[str, Any]) -> str:
    if (normalizer := data.get("normalizer")) and normalizer.get("type") not in _NORMAL_FORMS:
        raise TokenizerError(
            f"tokenizer.json changes text before it splits it (normalizer {normalizer.get('type')}), "
            "which llama.cpp does not",
            expected="no normalizer but " + " or ".join(_NORMAL_FORMS),
            remedy="build with --format onnx only",
        )
    steps = _steps(data.get("pre_tokenizer"))
    if name := _SHAPES.get((bool(data["model"].get("ignore_merges")), *steps)):
        return name
    shown = " → ".join(step[:40] for step in steps) or "none"
    raise TokenizerError(
        f"tokenizer.json splits text in a way llama.cpp has no name for here ({shown})",
        expected="one of " + ", ".join(sorted(_SHAPES.values())),
        remedy="build with --format onnx only",
    )


def _token_table(data: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Tokens by id and their types; ids up to the embedding's `rows` that no token has become unused placeholders."""
    vocab: dict[str, int] = data["model"]["vocab"]
    added = {int(token["id"]): token for token in data.get("added_tokens", [])}
    ids = {int(index): token for token, index in vocab.items()} | {
        i: str(token["content"]) for i, token in added.items()
    }
    highest = max(ids, default=-1)
    if highest >= rows:
        raise TokenizerError(
            f"the tokenizer has token ids up to {highest} but the embedding has {rows} rows",
            expected="no id beyond the embedding",
            remedy="use the tokenizer that belongs to this checkpoint",
        )
    tokens, types = [], []
    for index in range(rows):
        token = ids.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        types.append(int(_kind(token, added.get(index), data)))
    return tokens, types


def _kind(token: str | None, added: Mapping[str, Any] | None, data: Mapping[str, Any]) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if added is not None:
        return TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    if data["model"].get("byte_fallback") and _BYTE.fullmatch(token):
        return TokenType.BYTE
    if data["model"].get("byte_fallback") and token == data["model"].get("unk_token"):
        return TokenType.UNKNOWN
    return TokenType.NORMAL


def _merges(data: Mapping[str, Any]) -> tuple[str, ...]:
    merges = data["model"].get("merges", [])
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)


def _scores(data: Mapping[str, Any], tokens: list[str]) -> tuple[float, ...]:
    """SentencePiece's score of each token: the earlier its first merge, the higher; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    merges = _merges(data)
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return tuple(-float(ranks.get(token, len(merges))) for token in tokens)


def _space_prefix(data: Mapping[str, Any]) -> bool:
    """Whether every piece of text between special tokens gets a space in front, the only way llama.cpp knows.

    Raises:
        TokenizerError: only the first piece gets one, or it depends on the text.
    """
    normalizer, pre = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    if pre.get("type") != "Metaspace":
        return False
    scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
    if scheme == "never":
        return False
    raise TokenizerError(
        f"tokenizer.json puts a space in front of text in a way llama.cpp cannot (prepend_scheme {scheme!r})",
        expected="a normalizer that prepends one, or none",
        remedy="build with --format onnx only",
    )


def _special_ids(config: Mapping[str, Any], generation: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    places = {token: index for index, token in enumerate(tokens)}
    found = {}
    for short, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unk", "unk_token"), ("pad", "pad_token")):
        value = config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name in places:
            found[short] = places[name]
    for short in ("bos", "eos"):
        given = generation.get(f"{short}_token_id")
        if short not in found and isinstance(given, int):
            found[short] = given
    return found


def _adds_bos(data: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    if isinstance(told := config.get("add_bos_token"), bool):
        return told
    processor = data.get("post_processor") or {}
    parts = processor.get("processors", [processor])
    for part in parts:
        single = part.get("single") or []
        if single and "SpecialToken" in single[0]:
            return True
    return False


def normal_form(root: Path) -> NormalForm | None:
    """The Unicode normal form that a Hugging Face folder's tokenizer brings text to before it splits it, if any."""
    normalizer = _load(root / "tokenizer.json").get("normalizer")
    name = normalizer.get("type") if isinstance(normalizer, dict) else None
    return next((form for form in _NORMAL_FORMS if form == name), None)


def caveat(root: Path) -> str:
    """What a user of the GGUF file's own tokenizer must know; empty for nothing."""
    form = normal_form(root)
    if form is None:
        return ""
    return (
        f"The tokenizer brings text to Unicode {form} first; llama.cpp does not, so programs that leave tokenizing to "
        f"it must give it {form} text (edgekit does)."
    )


def read_vocab(root: Path, rows: int) -> GgufVocab:
    """Read the tokenizer of a Hugging Face folder for an embedding of `rows` tokens.

    Raises:
        TokenizerError: there is none, its kind is unknown, or it has ids beyond the embedding.
    """
    data = _load(root / "tokenizer.json")
    if not data:
        raise TokenizerError(
            f"{root} has no tokenizer.json", remedy="save the tokenizer in its fast form with transformers"
        )
    kind = (data.get("model") or {}).get("type")
    if kind not in ("BPE", None) or "vocab" not in (data.get("model") or {}):
        raise TokenizerError(
            f"tokenizer.json holds a {kind} model", expected="BPE", remedy="build with --format onnx only"
        )
    try:
        return _vocab(root, data, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"{root / 'tokenizer.json'} lacks or garbles a field ({type(error).__name__}: {error})",
            expected="what the tokenizers library writes",
            remedy="download the tokenizer again",
        ) from error


def _vocab(root: Path, data: Mapping[str, Any], rows: int) -> GgufVocab:
    config, generation = _load(root / "tokenizer_config.json"), _load(root / "generation_config.json")
    sentencepiece = bool(data["model"].get("byte_fallback"))
    tokens, types = _token_table(data, rows)
    template = root / "chat_template.jinja"
    chat = template.read_text(encoding="utf8") if template.is_file() else config.get("chat_template") or ""
    return GgufVocab(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _pre_tokenizer(data),
        tokens=tuple(tokens),
        types=tuple(types),
        merges=() if sentencepiece else _merges(data),
        scores=_scores(data, tokens) if sentencepiece else (),
        special=_special_ids(config, generation, tokens),
        add_bos=_adds_bos(data, config),
        add_space_prefix=sentencepiece and _space_prefix(data),
        chat_template=chat if isinstance(chat, str) else "",
    )
