"""Where training text comes from: text files, .jsonl, .parquet, folders, data sets of the hub; read in a stream."""

from __future__ import annotations

import codecs
import importlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from edgekit.checkpoint.hub import is_hub_id
from edgekit.errors import (
    DownloadError,
    EdgekitError,
    InputNotFoundError,
    MissingDependencyError,
    OptionError,
    TextError,
)
from edgekit.hashes import remembered_sha256

BLOCK = 1 << 20
"""Bytes that are read at once."""
MAX_LINE = 64 << 20
"""Bytes of a line of a .jsonl file."""
SUFFIXES = (".txt", ".md", ".jsonl")
"""What is read of a folder."""
_HUB = "hub:"
_HUB_NAME = re.compile(r"([^/:]+/[^/:]+)(?:/([\w.-]+))?(?::([\w.-]+))?", re.ASCII)
_LIBRARY = "datasets>=4"
"""Older versions run code of a data set's author when asked to; from 4.0 on there is no such thing."""
_CONTROLS, _MOST_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]"), 0.01
_OBJECT = 'an object with a string "text"'

Document = Iterable[str]
"""The text of one document in blocks of a bounded size."""


@dataclass(frozen=True)
class HubData:
    """A data set of the hub."""

    repo: str
    """owner/name."""
    config: str | None
    split: str


@dataclass(frozen=True)
class Source:
    """One text file, or one data set of the hub."""

    name: str
    """File name without folders; of the hub what the user wrote."""
    where: Path | HubData

    @property
    def nbytes(self) -> int | None:
        """Size of the file; None: not known."""
        return self.where.stat().st_size if isinstance(self.where, Path) else None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    text: str  # other keys are the affair of who made the file


def find(sources: Sequence[str]) -> list[Source]:
    """The files and data sets that `sources` name; a folder stands for its .txt, .md and .jsonl files, sorted by path.

    Empty files of a folder are left out, and so are links that lead out of it. The package datasets takes
    hub:OWNER/NAME from a folder of that name where the current one has it.

    Raises:
        OptionError: no source is given, or a name that begins with "hub:" is no hub:OWNER/NAME[/CONFIG][:SPLIT].
        InputNotFoundError: nothing is at a path, an empty file, or a folder without text.
    """
    if not sources:
        raise OptionError("no training text is given", expected="a file, a folder or hub:OWNER/NAME")
    return [source for name in sources for source in (_of_hub(name) if name.startswith(_HUB) else _of_disk(Path(name)))]


def checksum(source: Source) -> str:
    """SHA-256 of a source's file; of a data set of the hub, which tells none, the empty string.

    Raises:
        TextError: the file cannot be read.
    """
    if not isinstance(source.where, Path):
        return ""
    with _readable(source.where):
        return remembered_sha256(source.where)


def documents(source: Source, read: Callable[[int], object]) -> Iterator[Document]:
    """The documents of a source, each to be read to its end before the next one is asked for.

    A text file is one document; a line of a .jsonl file and a row of a data set is one each.

    Args:
        source: of :func:`find`.
        read: called with the number of bytes that were read just now.

    Raises:
        TextError: not UTF-8, binary, or a line or row without text; when it is met.
        MissingDependencyError: the package that reads this kind of source is not installed.
        InputNotFoundError, DownloadError: the hub has no such data set, or cannot be reached.
    """
    if isinstance(source.where, HubData):
        return _hub_rows(source.name, source.where)
    if source.where.suffix == ".jsonl":
        return _json_lines(source.where, read)
    if source.where.suffix == ".parquet":
        return _parquet_rows(source.where, read)
    return iter([_text(source.where, read)])


# --- finding ---------------------------------------------------------------------------------------------------------


def _of_hub(name: str) -> list[Source]:
    parts = _HUB_NAME.fullmatch(name.removeprefix(_HUB))
    if parts is None or not is_hub_id(parts[1]):
        raise OptionError(
            f"{name} names no data set", expected="hub:OWNER/NAME, hub:OWNER/NAME/CONFIG or hub:OWNER/NAME:SPLIT"
        )
    return [Source(name, HubData(parts[1], parts[2], parts[3] or "train"))]


def _of_disk(path: Path) -> list[Source]:
    with _readable(path):
        if path.is_dir():
            return _of_folder(path)
        if not path.is_file():
            what = "is no file and no folder" if path.exists() else "is not there"
            raise InputNotFoundError(
                f"training text {path} {what}",
                expected="a text file, a .jsonl or .parquet file, or a folder of them",
                remedy="check the path; a data set of the hub is written hub:OWNER/NAME",
            )
        if path.stat().st_size == 0:
            raise InputNotFoundError(f"training text {path} is empty", expected="a UTF-8 text")
    return [Source(path.name, path)]


def _of_folder(folder: Path) -> list[Source]:
    root = folder.resolve()
    files = [path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    inside = sorted(path for path in files if path.resolve().is_relative_to(root) and path.stat().st_size > 0)
    if not inside:
        raise InputNotFoundError(
            f"folder {folder} has no training text", expected=f"files with text in them ({', '.join(SUFFIXES)})"
        )
    return [Source(path.name, path) for path in inside]


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TextError(f"training text {path} cannot be read ({error.strerror})", remedy="check the file") from error


def _text(path: Path, read: Callable[[int], object]) -> Iterator[str]:
    """Blocks of a UTF-8 file, a byte order mark left out and every line end as a line feed."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    controls = characters = offset = 0
    with _readable(path), path.open("rb") as stream:
        while True:
            data = stream.read(BLOCK)
            try:
                block = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                _not_utf8(path, offset - len(utf8.getstate()[0]) + error.start, error)
            block = block if characters else block.removeprefix("\ufeff")
            controls, characters = controls + len(_CONTROLS.findall(block)), characters + len(block)
            if "\0" in block or controls > _MOST_CONTROLS * characters:
                raise TextError(f"{path} holds control characters, as binary files do", expected="a UTF-8 text")
            if block:
                yield block
            if not data:
                return
            offset += len(data)
            read(len(data))


def _not_utf8(path: Path, byte: int, error: UnicodeDecodeError) -> NoReturn:
    raise TextError(
        f"{path} is not UTF-8 (byte {byte})",
        expected="a UTF-8 text",
        remedy="convert it, for example with iconv",
    ) from error


def _json_lines(path: Path, read: Callable[[int], object]) -> Iterator[Document]:
    number = 0
    with _readable(path), path.open("rb") as stream:
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise TextError(f"{path} line {number} is too long", expected=f"at most {MAX_LINE} bytes")
            read(len(line))
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.isspace():
                yield (_line(path, number, line),)


def _line(path: Path, number: int, line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Line).text
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TextError(
            f"{path} line {number} is not {_OBJECT} ({error})",
            expected='lines like {"text": "…"}',
            remedy="mend or remove the line",
        ) from error


# --- packages --------------------------------------------------------------------------------------------------------


def _package(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(f"the package {name} is not installed, which reads {what}") from error


def _missing(found: str) -> MissingDependencyError:
    return MissingDependencyError(found, expected=_LIBRARY, remedy=f"pip install '{_LIBRARY}', or give a text file")


def _parquet_rows(path: Path, read: Callable[[int], object]) -> Iterator[Document]:
    arrow, parquet = _package("pyarrow", ".parquet files"), _package("pyarrow.parquet", ".parquet files")
    with _readable(path):
        try:
            with parquet.ParquetFile(path) as file:
                each = path.stat().st_size / max(1, file.metadata.num_rows)
                done = 0
                for rows in file.iter_batches(batch_size=256, columns=["text"]):
                    texts = rows.to_pydict().get("text", [None])
                    yield from ((_string(text, f"{path} row {done + n}"),) for n, text in enumerate(texts, 1))
                    done += len(texts)
                    read(int(each * len(texts)))
        except arrow.ArrowException as error:
            raise TextError(f"{path} is no .parquet file ({error})", remedy="make or download it again") from error


def _string(text: object, where: str) -> str:
    if isinstance(text, str):
        return text
    raise TextError(
        f'{where} has no string in its column "text"',
        expected='a column "text"',
        remedy='write its texts to a .jsonl file with the key "text"',
    )


def _hub_rows(name: str, data: HubData) -> Iterator[Document]:
    library = _package("datasets", "data sets of the hub")
    if int(str(library.__version__).partition(".")[0]) < 4:
        raise _missing(f"the package datasets is version {library.__version__}")
    try:
        rows = library.load_dataset(data.repo, data.config, split=data.split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield (_string(row.get("text"), f"{name} row {number}"),)
    except EdgekitError:
        raise
    except (FileNotFoundError, ValueError) as error:  # datasets raises these for a name, config or split it cannot find
        raise InputNotFoundError(
            f"{name} cannot be read ({error})", expected="a data set, config and split that the hub has",
            remedy="check the spelling; a private data set needs: hf auth login",
        ) from error  # fmt: skip
    except Exception as error:  # the HTTP libraries below have no common class
        raise DownloadError(
            f"{name} cannot be read from the hub ({type(error).__name__}: {error})",
            remedy="check the connection and run again, or give a text file",
        ) from error
