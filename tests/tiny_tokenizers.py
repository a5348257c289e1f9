"""Small tokenizers of the kinds that models really use, trained on a few sentences; the same each time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as post

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = {
    "smollm": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "gpt2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "qwen2-nfc": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
KINDS = (*SPECIAL, "sentencepiece", "sentencepiece-first")

SENTENCES = (
    "The kettle sings before the water boils, and the cat listens.",
    "Once upon a time there was a small board that dreamed of large models.",
    "If it rains today, we'll stay inside; if it doesn't, they're going to the sea.",
    "def area(width, height):\n    return width * height  # square metres\n",
    "for (int i = 0; i < count; ++i) { total += values[i]; }\n\n\n\t\treturn total;",
    "In 1984 there were 365 days, 12 months and 31415926 reasons to count 100 000 sheep.",
    '{"name": "kettle", "ok": true, "sizes": [1, 2, 3], "none": null}',
    "Le café est déjà prêt, n'est-ce pas? Die Straße führt nach Ångström.",
    "Чайник поёт перед кипением. Αυτό είναι μια πρόταση.",
    "水开了,可以泡茶。お湯が沸きました。물이 끓고 있어요. שלום עולם مرحبا بك",
    "Emoji 😀🔥👍 and quotes “like these” — or dashes… and     many     spaces.",
    "https://example.org/path?q=1#top user@example.org C:\\Users\\me",
    "!!! ??? ... --- ___ *** === ### $$$ %%% ^^^ &&& ((( ))) [[[ ]]] {{{ }}}",
)


def write(folder: Path, kind: str, size: int) -> None:
    """tokenizer.json and tokenizer_config.json of a tokenizer with at most `size` tokens."""
    (folder / "tokenizer.json").write_text(_json(kind, size), encoding="utf8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(kind), indent=1), encoding="utf8")


@cache
def _json(kind: str, size: int) -> str:
    made = _sentencepiece(kind, size) if kind.startswith("sentencepiece") else _byte_level(kind, size)
    return str(made.to_str())


def _config(kind: str) -> dict[str, Any]:
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if kind.startswith("sentencepiece"):
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": ZEPHYR}
        return {**common, **names, "add_bos_token": True}
    if kind == "llama3":
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA3_CHAT}
        return {**common, **names}
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML}
    return {**common, **names, "unk_token": "<|endoftext|>", "add_bos_token": False}


def _splitter(kind: str) -> Any:
    if kind == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    pattern = Regex(LLAMA3_REGEX if kind == "llama3" else QWEN2_REGEX)
    split = pre_tokenizers.Split(pattern, behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level(kind: str, size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al., 2019); Llama 3 has its special tokens behind the others, the rest before them."""
    special = [AddedToken(text, special=True, normalized=False) for text in SPECIAL[kind]]
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    made.pre_tokenizer = _splitter(kind)
    made.decoder = decoders.ByteLevel()
    last = kind == "llama3"
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special) if last else size,
        special_tokens=[] if last else special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES * 2, trainer)
    if last:
        made.add_special_tokens(special)
        begin = str(special[0].content)
        single = post.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, made.token_to_id(begin))]
        )
        made.post_processor = post.Sequence([post.ByteLevel(trim_offsets=False), single])
    if kind == "qwen2-nfc":
        made.normalizer = normalizers.NFC()
    return made


def _sentencepiece(kind: str, size: int) -> Tokenizer:
    """SentencePiece BPE as transformers converts it: bytes for the unknown, every pair that makes a piece merges."""
    special = ("<unk>", "<s>", "</s>")
    bytes_ = tuple(f"<0x{byte:02X}>" for byte in range(256))
    pieces, characters = _pieces(size - len(special) - len(bytes_))
    vocab = {token: index for index, token in enumerate((*special, *bytes_, *pieces, *characters))}
    merges = [
        pair
        for piece in pieces
        for pair in sorted(
            ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if {piece[:cut], piece[cut:]} <= vocab.keys()),
            key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
        )
    ]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "sentencepiece":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return made


def _pieces(room: int) -> tuple[list[str], list[str]]:
    """Merged pieces, best first, and the single characters, which SentencePiece numbers last."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    characters = sorted({c for c in "".join(SENTENCES).replace(" ", "▁") if c.isascii() or c == "▁"} - set("\n\t"))
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=characters, limit_alphabet=len(characters), show_progress=False
    )
    made.train_from_iterator(SENTENCES * 2, trainer)
    by_id = sorted(made.get_vocab().items(), key=lambda item: item[1])
    singles = [token for token, _ in by_id if len(token) == 1]
    return [token for token, _ in by_id if len(token) > 1], singles
