"""The tokenizer of a bundle or of a Hugging Face folder: text and chats to ids, ids to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers.decoders import DecodeStream

from edgekit.bundle.paths import plain
from edgekit.bundle.template import MAX_TEMPLATE, Message, render
from edgekit.bundle.tokenizer_bounds import excess
from edgekit.errors import TokenizerError

MAX_TOKENIZER = 256 << 20
MAX_CONFIG = 16 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"}
)
"""Ends of a turn that models emit even where their configuration does not name them."""


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer with its chat template. Ids are plain ints."""

    backend: Any
    """The `tokenizers.Tokenizer`."""
    template: str | None
    special: Mapping[str, str]
    """Text of bos_token, eos_token, … as far as the model has them."""
    stop_ids: frozenset[int]
    """Ids that end a turn."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, if the model has one."""
        return self._id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-sequence token, if the model has one."""
        return self._id("eos_token")

    def _id(self, name: str) -> int | None:
        found = self.backend.token_to_id(self.special[name]) if name in self.special else None
        return None if found is None else int(found)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; the text of a special token becomes that token, as in transformers.

        Raises:
            TokenizerError: the text cannot be encoded (a lone surrogate, for example).
        """
        with _library_errors(_unencodable):
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`.

        Raises:
            TokenizerError: an id is negative or too large to be one.
        """
        with _library_errors(_bad_ids):
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` in pieces, each as soon as it is whole; a character cut off at the end is dropped.

        Raises:
            TokenizerError: an id is negative or too large to be one.
        """
        decoder = DecodeStream(skip_special_tokens=True)
        for token in ids:
            with _library_errors(_bad_ids):
                piece = decoder.step(self.backend, token)
            if piece:
                yield piece

    def chat_text(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, now: datetime | None = None
    ) -> str:
        """What the chat template makes of `messages`; `now` is the time that a template with a date shows.

        Raises:
            TokenizerError: there is no chat template, it is broken, or it refuses the messages.
        """
        if self.template is None:
            raise TokenizerError(
                "the model has no chat template", expected="chat_template.jinja", remedy="give it a plain prompt"
            )
        variables: dict[str, object] = {"tools": None, "documents": None, **self.special}
        return render(self.template, messages, now=now, add_generation_prompt=add_generation_prompt, **variables)

    def chat_ids(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, now: datetime | None = None
    ) -> list[int]:
        """Ids of :meth:`chat_text`. Nothing is added: the template writes the special tokens itself."""
        return self.encode(self.chat_text(messages, add_generation_prompt=add_generation_prompt, now=now))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json and, where they are, tokenizer_config.json, chat_template.jinja and generation_config.json.

    Raises:
        TokenizerError: tokenizer.json is missing, or one of the files is too large or not what its name says.
    """
    backend = _backend(folder)
    config = _config(folder, "tokenizer_config.json")
    special = {name: text for name in _SPECIAL if (text := _token_text(config.get(name))) is not None}
    return Tokenizer(
        backend=backend,
        template=_template(folder, config),
        special=special,
        stop_ids=_stop_ids(backend, special, _config(folder, "generation_config.json")),
    )


@contextmanager
def _library_errors(told: Callable[[BaseException], TokenizerError]) -> Iterator[None]:
    """The tokenizers library raises bare Exception, and where its Rust code panics a PanicException, which is none."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise told(error) from error


def _unencodable(error: BaseException) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer cannot encode the text ({plain(str(error))})",
        expected="Unicode text",
        remedy="mend the text, or get the model's tokenizer.json again",
    )


def _bad_ids(error: BaseException) -> TokenizerError:
    return TokenizerError(
        f"the ids cannot be decoded ({plain(str(error))})",
        expected="ids of this tokenizer's vocabulary",
        remedy="use the tokenizer that belongs to the model",
    )


def _bad(path: Path, fault: str) -> TokenizerError:
    return TokenizerError(
        f"{path} {plain(fault)}", expected="a tokenizer file of Hugging Face", remedy="get the model again"
    )


def _read(path: Path, limit: int) -> bytes | None:
    """The file's content, None when it is not there."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise _bad(path, f"is larger than {limit} bytes")
    return data


def _backend(folder: Path) -> Any:
    path = folder / "tokenizer.json"
    data = _read(path, MAX_TOKENIZER)
    if data is None:
        raise TokenizerError(
            f"{folder} has no tokenizer.json",
            expected="a fast tokenizer",
            remedy="save the tokenizer with transformers",
        )
    if fault := excess(data):
        raise _bad(path, fault)
    with _library_errors(lambda error: _bad(path, f"cannot be read ({error})")):
        backend = tokenizers.Tokenizer.from_str(data.decode())
    backend.no_truncation()  # settings of a past training run would cut or pad what is encoded here
    backend.no_padding()
    return backend


def _config(folder: Path, name: str) -> dict[str, Any]:
    data = _read(folder / name, MAX_CONFIG)
    if data is None:
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(folder / name, f"is not a JSON object ({error})") from error


def _token_text(value: object) -> str | None:
    """A special token is written as its text or as {"content": text, …}."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    data = _read(folder / "chat_template.jinja", MAX_TEMPLATE)
    if data is not None:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise _bad(folder / "chat_template.jinja", "is not UTF-8") from error
    value = config.get("chat_template")
    if isinstance(value, list):  # several named templates
        value = next(
            (item.get("template") for item in value if isinstance(item, dict) and item.get("name") == "default"), None
        )
    if value is not None and not isinstance(value, str):
        raise _bad(folder / "tokenizer_config.json", "has a chat_template that is not text")
    return value


def _stop_ids(backend: Any, special: Mapping[str, str], generation: Mapping[str, Any]) -> frozenset[int]:
    """eos_token, the eos_token_id of generation_config.json (a number or a list), and known ends of a turn."""
    listed = generation.get("eos_token_id")
    ids = {i for i in (listed if isinstance(listed, list) else [listed]) if type(i) is int and i >= 0}
    added = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    ids |= {added[text] for text in _END_OF_TURN & added.keys()}
    if "eos_token" in special and (eos := backend.token_to_id(special["eos_token"])) is not None:
        ids.add(eos)
    return frozenset(ids)
