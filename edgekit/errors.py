"""Every failure a user can cause, with its exit code.

One class is one exit code. A message is one sentence that says what was found, what was expected and what to do.
Anything that is not an :class:`EdgekitError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

_MOST = 2000
"""Characters that are shown of each part of a sentence; what is quoted may come from a stranger's file."""


def one_line(text: str) -> str:
    """`text` fit for one line of a terminal: unprintable characters and line ends escaped, the rest cut off."""
    if len(text) <= _MOST and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:_MOST])
    return shown + ("…" if len(text) > _MOST else "")


class EdgekitError(Exception):
    """A user's mistake or a fact of the machine, told in one sentence.

    Args:
        found: what is wrong, naming the file, tensor, key or value.
        expected: what would have been right (optional).
        remedy: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = (one_line(part).rstrip(".") for part in (found, expected, remedy))
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """The whole message as it is shown: one printable line of a bounded length, whatever was quoted in it."""
        text = self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.remedy:
            text += f" — {self.remedy}"
        return text + "."


class InputNotFoundError(EdgekitError):
    """A model folder, bundle or file is missing or empty.

    Remedy: check the path or the name; download what is missing.
    """

    exit_code = 10


class CorruptCheckpointError(EdgekitError):
    """A weight file is truncated or its header is not what its format says.

    Remedy: download the file named in the message again.
    """

    exit_code = 11


class UnsafeCheckpointError(EdgekitError):
    """Loading the checkpoint would run code from a stranger (pickle, remote code).

    Remedy: convert the model to safetensors where you trust it, or ask its author to.
    """

    exit_code = 12


class BadWeightsError(EdgekitError):
    """A tensor holds NaN or infinity, or has a shape its role does not allow.

    Remedy: the checkpoint is broken or does not belong to its config.json: use an earlier or another one.
    """

    exit_code = 13


class TokenizerError(EdgekitError):
    """The tokenizer is missing, unknown or does not fit the embedding.

    Remedy: use the tokenizer that belongs to the checkpoint, saved in its fast form (tokenizer.json).
    """

    exit_code = 14


class UnknownArchitectureError(EdgekitError):
    """The model family is not supported.

    Remedy: take a model of a supported family, or one of the [escape hatches](escape-hatches.md).
    """

    exit_code = 15


class UnknownTargetError(EdgekitError):
    """No target of that name or path exists.

    Remedy: choose one of `edgekit targets`, or give the path of a .toml file.
    """

    exit_code = 16


class TargetFileError(EdgekitError):
    """A target file has a wrong key, type or value.

    Remedy: correct the line that the message names; `edgekit targets validate FILE` checks it.
    """

    exit_code = 17


class OutputExistsError(EdgekitError):
    """The output is there already and --force was not given.

    Remedy: give `--force` to replace it, or another name with `-o`.
    """

    exit_code = 18


class DoesNotFitError(EdgekitError):
    """The model needs more memory than the target has.

    Remedy: choose fewer bits, a smaller model or a board with more memory.
    """

    exit_code = 19


class BundleError(EdgekitError):
    """A bundle is damaged, tampered with or not a bundle.

    Remedy: copy the bundle again, or build it again.
    """

    exit_code = 20


class ParityError(EdgekitError):
    """An artefact does not say what the original says; names the tensor or token.

    Remedy: nothing was shipped: report it with the model's config.json.
    """

    exit_code = 21


class StrictError(EdgekitError):
    """--strict: a tensor cannot take the requested format.

    Remedy: drop `--strict` to accept the formats that the message names, or ask for other bits.
    """

    exit_code = 22


class GateError(EdgekitError):
    """--gate: a measurement is outside the target's limits.

    Remedy: the bundle is kept: look at its report.html, choose more bits, or change the target's limits.
    """

    exit_code = 23


class MissingDependencyError(EdgekitError):
    """A package or tool that this verb needs is not installed.

    Remedy: install what the message names; `edgekit doctor` lists all of it.
    """

    exit_code = 24


class GridError(EdgekitError):
    """A matrix's shape does not suit the number format, or the format is unknown.

    Remedy: choose a format whose blocks divide the rows; docs/formats.md lists them.
    """

    exit_code = 25


class FileFormatError(EdgekitError):
    """A file is not of the format that its name or place promises.

    Remedy: give the file that is meant, or make it again.
    """

    exit_code = 26


class OutputError(EdgekitError):
    """The output cannot be written (disk full, read-only, no permission).

    Remedy: free some space, or choose a folder that can be written with `-o`.
    """

    exit_code = 27


class TextError(EdgekitError):
    """An evaluation or calibration text is missing, empty or too short.

    Remedy: give a UTF-8 text file of a few thousand words.
    """

    exit_code = 28


class OptionError(EdgekitError):
    """Two options contradict each other, or a value is outside its range.

    Remedy: `edgekit VERB --help` shows what goes together.
    """

    exit_code = 29


class ConverterError(EdgekitError):
    """Another project's converter, run on the user's behalf, failed or left something unusable.

    Remedy: read the converter's last words in the message; try it by hand.
    """

    exit_code = 30


class OutOfMemoryError(EdgekitError):
    """There is too little memory on this machine for what was asked.

    Remedy: close other programs, raise the limit (ulimit, container), or build on a larger machine.
    """

    exit_code = 31


class DownloadError(EdgekitError):
    """The hub cannot be reached, or does not let this user download the model.

    Remedy: check the network, the name and the login (`hf auth login`), or use `--offline` with a cached model.
    """

    exit_code = 32


class ToolchainError(EdgekitError):
    """A compiler is too old, does not know the target's CPU or C library, or failed.

    Remedy: choose another `--toolchain`, or read the last lines of the log that the message names.
    """

    exit_code = 33


class WheelError(EdgekitError):
    """A package that the board needs is not to be had for its Python, or is not the one that was asked for.

    Remedy: give the target another Python or drop a format; without `--offline` what is missing is downloaded.
    """

    exit_code = 34


class AuditError(EdgekitError):
    """Something that would be shipped does not run on the target: wrong instructions, C library or machine.

    Remedy: build the runtime again for this target; `edgekit runtime audit` lists every fault.
    """

    exit_code = 35


class EmulatorError(EdgekitError):
    """The emulated board lacks a part or does not come up.

    Remedy: `make emulator` installs what it needs; the message names what is missing.
    """

    exit_code = 36


class DeviceError(EdgekitError):
    """A device cannot be reached or used: unknown host key, refused login, no space, busy, cut off.

    Remedy: do what the message says; `edgekit devices probe URL` asks the device without changing anything on it.
    """

    exit_code = 37


class WrongBoardError(EdgekitError):
    """The device is not the board that the bundle was built for, or lacks what it needs.

    Remedy: build the bundle for this board: `edgekit devices probe URL` says which target it is.
    """

    exit_code = 38


class InvalidMeasurementError(EdgekitError):
    """--gate: the measurement was disturbed (throttled, hot, other load), so it neither passes nor fails.

    Remedy: remove the disturbance that the message names and measure again.
    """

    exit_code = 39


class BudgetError(EdgekitError):
    """No plan keeps to the budget: too small a size, too many tokens/s, too low a KL divergence.

    Remedy: take the nearest figure that can be met, which the message names, another model or another target.
    """

    exit_code = 40


class TrainingError(EdgekitError):
    """A training's loss became NaN or infinite, or climbs.

    Remedy: train with a lower rate, or with smaller weights of the part that the message names.
    """

    exit_code = 41


class InterruptError(EdgekitError):
    """Stopped by Ctrl-C, SIGTERM or a terminal that closed; nothing half-written is left.

    Remedy: run the same command again: finished stages come from the cache.
    """

    exit_code = 130


# --- out of memory ---------------------------------------------------------------------------------------------------

_SHORTAGE = re.compile(
    r"MemoryError|bad_alloc|[Cc]annot allocate memory|can't allocate memory|[Ff]ailed to allocate|unable to allocate"
    r"|[Nn]ot enough memory|ut of memory|ENOMEM|failed to map segment from shared object$"
)
_QUOTES_OTHERS = (ParityError, ConverterError, MissingDependencyError)
"""Sentences that quote an engine or another process; one that quotes a stranger's file may say what that likes."""
_LIBRARIES = ("onnxruntime", "onnxruntime_genai", "torch")


def memory_shortage(error: BaseException) -> OutOfMemoryError | None:
    """The error to show when `error` comes of too little memory, however a library told it; None when it does not.

    PyTorch tells it as a RuntimeError, ONNX Runtime as std::bad_alloc in an exception of its own, the dynamic loader as
    an ImportError, llama.cpp in its log.
    """
    if not any(_tells_shortage(part) for part in _chain(error)):
        return None
    return OutOfMemoryError(
        "there is too little memory on this machine for this model",
        expected="room for the model in float32, about 4 bytes a parameter, and as much again to build it",
        remedy="close other programs, raise the limit of memory (ulimit, container) or use a larger machine; "
        "nothing half-written was left",
    )


def _tells_shortage(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    engine = isinstance(error, FileFormatError) and error.found.startswith("llama.cpp cannot")
    quotes = engine or isinstance(error, _QUOTES_OTHERS) or type(error) in (RuntimeError, ImportError, OSError)
    library = type(error).__module__.partition(".")[0] in _LIBRARIES
    return (quotes or library) and _SHORTAGE.search(str(error)) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
