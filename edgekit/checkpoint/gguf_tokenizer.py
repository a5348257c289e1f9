"""A tokenizer folder from GGUF metadata: ids are those that llama.cpp gives.

Two kinds: "gpt2", byte-level BPE, whose way of splitting text has a name in llama.cpp; and "llama", SentencePiece BPE,
whose merges follow from the scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import TokenizerError

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_SPACE = "▁"
_LONGEST = 1024
"""Characters of a token: above any vocabulary's; looking for its merges takes the square of them."""
_MOST_MERGES = 1 << 22
"""Eight times those of a vocabulary of 262,144 tokens; a file made to have more could take all memory."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Splitting:
    """How text is cut into words before merging."""

    pattern: str
    """Regular expression of a word; "gpt-2" for the byte-level step's own."""
    single_digits: bool = False
    whole_words: bool = False
    """Whether a word that is a token needs no merges."""
    adds_bos: bool = False
    """Whether text begins with the bos token unless the file says otherwise."""


_LLAMA3_SPLITTING = Splitting(_LLAMA3, whole_words=True, adds_bos=True)
SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": Splitting("gpt-2"),
    "smollm": Splitting("gpt-2", single_digits=True),
    "llama-bpe": _LLAMA3_SPLITTING,
    "llama3": _LLAMA3_SPLITTING,
    "llama-v3": _LLAMA3_SPLITTING,
    "smaug-bpe": Splitting(_LLAMA3),
    "qwen2": Splitting(_QWEN2),
    "deepseek-r1-qwen": Splitting(_QWEN2),
}
"""llama.cpp's `tokenizer.ggml.pre` (its src/llama-vocab.cpp) → what it stands for."""


@dataclass(frozen=True)
class _Vocabulary:
    tokens: Sequence[str]
    types: Sequence[int]
    special: Mapping[str, int]
    """bos, eos, unk, pad → id."""


def write_tokenizer(metadata: Mapping[str, Any], rows: int, folder: Path, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`.

    Args:
        metadata: of the GGUF file.
        rows: of the embedding; there may be fewer tokens but not more.
        folder: an existing folder.
        context: longest context in tokens.

    Raises:
        TokenizerError: there is none, its kind or its way of splitting text is unknown, or its tables contradict each
            other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(
            f"the GGUF file's tokenizer is of the kind {str(kind)[:40]!a}",
            expected="gpt2 (byte-level BPE) or llama (SentencePiece BPE)",
            remedy="use the Hugging Face checkpoint that it was made from",
        )
    vocabulary = _vocabulary(metadata, rows)
    try:
        made, adds_bos = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, vocabulary)
        _add_special(made, vocabulary, adds_bos)
        made.save(str(folder / "tokenizer.json"))
    except TokenizerError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise _broken(f"it makes no tokenizer: {ascii(str(error))[:120]}") from error
    _write_config(metadata, vocabulary, adds_bos, context, folder)


def _broken(clause: str) -> TokenizerError:
    return TokenizerError(
        f"the GGUF file's tokenizer is broken ({clause})",
        expected="what llama.cpp's own converter writes",
        remedy="download the file again, or use the Hugging Face checkpoint that it was made from",
    )


def _list(metadata: Mapping[str, Any], key: str, kind: type, length: int | None = None) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not value or any(type(item) is not kind for item in value):
        raise _broken(f"tokenizer.ggml.{key} is no list of {kind.__name__}")
    if length not in (None, len(value)):
        raise _broken(f"tokenizer.ggml.{key} has {len(value)} entries for {length} tokens")
    return value


def _vocabulary(metadata: Mapping[str, Any], rows: int) -> _Vocabulary:
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int, len(tokens))
    if len(tokens) > rows:
        raise _broken(f"it has {len(tokens)} tokens, the embedding has {rows} rows")
    if len(set(tokens)) != len(tokens):
        raise _broken("a token is there twice")
    if (longest := max(map(len, tokens))) > _LONGEST:
        raise _broken(f"a token has {longest} characters, more than {_LONGEST}")
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            special[name] = index
    used = max((i for i, kind in enumerate(types) if kind != _UNUSED), default=-1) + 1  # the rest pads the embedding
    return _Vocabulary(tokens[:used], types[:used], {name: i for name, i in special.items() if i < used})


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    return value if isinstance(value, bool) else default


# --- byte-level BPE --------------------------------------------------------------------------------------------------


def _byte_level(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models

    name = metadata.get("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(name) if isinstance(name, str) else None
    if splitting is None:
        raise TokenizerError(
            f"the GGUF file's tokenizer splits text in a way of no name known here (tokenizer.ggml.pre is "
            f"{str(name)[:40]!a})",
            expected="one of " + ", ".join(SPLITTINGS),
            remedy="use the Hugging Face checkpoint that it was made from",
        )
    merges = [tuple(merge.split(" ", 1)) for merge in _list(metadata, "merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise _broken("a merge is not two tokens")
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    options = {"ignore_merges": True} if splitting.whole_words else {}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    made.pre_tokenizer = _splitter(splitting)
    made.decoder = decoders.ByteLevel()
    return made, _flag(metadata, "add_bos_token", splitting.adds_bos)


def _splitter(splitting: Splitting) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if splitting.pattern != "gpt-2":
        split = pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not splitting.single_digits:
        return bytes_
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])


# --- SentencePiece BPE -----------------------------------------------------------------------------------------------


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tuple[Any, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _list(metadata, "scores", float)[: len(vocabulary.tokens)]
    if len(scores) != len(vocabulary.tokens) or not all(map(math.isfinite, scores)):
        raise _broken("tokenizer.ggml.scores is no finite score for each token")
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.special.get("unk", next((i for i, k in enumerate(vocabulary.types) if k == _UNKNOWN), None))
    word = None if unknown is None else vocabulary.tokens[unknown]
    made = Tokenizer(models.BPE(ids, _merges(ids, scores), unk_token=word, byte_fallback=True, fuse_unk=True))
    prefix = _flag(metadata, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made, _flag(metadata, "add_bos_token", True)


def _merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the best score first: llama.cpp joins the pair whose result scores
    highest, and the leftmost of equals.
    """
    found = []
    for token, index in ids.items():
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = sorted((ids[left], ids[right]) for left, right in cuts if left in ids and right in ids)
        found += [(-scores[index], index, left, right) for left, right in pairs]
        if len(found) > _MOST_MERGES:
            raise _broken(f"more than {_MOST_MERGES} pairs of tokens make a token")
    found.sort()
    names = list(ids)
    return [(names[left], names[right]) for _, _, left, right in found]


# --- both ------------------------------------------------------------------------------------------------------------


def _add_special(made: Any, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """Tokens that are found in the text before anything is split, and the bos token in front."""
    from tokenizers import AddedToken, processors

    pairs = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    control = [token for token, kind in pairs if kind in (_UNKNOWN, _CONTROL)]
    own = [token for token, kind in pairs if kind == _USER_DEFINED]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    if adds_bos and "bos" in vocabulary.special:
        index = vocabulary.special["bos"]
        bos = vocabulary.tokens[index]
        made.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, index)]
        )


def _write_config(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, adds_bos: bool, context: int, folder: Path
) -> None:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos", "unk", "pad"):
        if name in vocabulary.special:
            config[f"{name}_token"] = vocabulary.tokens[vocabulary.special[name]]
    config |= {"add_bos_token": adds_bos, "clean_up_tokenization_spaces": False, "model_max_length": context}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf8")
