"""Every failure a user can cause, with its exit code.

One class is one exit code. A message is one sentence that says what was found, what was expected and what to do.
Anything that is not an :class:`EdgekitError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """A user's mistake or a fact of the machine, told in one sentence.

    Args:
        found: what is wrong, naming the file, tensor, key or value.
        expected: what would have been right (optional).
        remedy: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found.rstrip("."), expected.rstrip("."), remedy.rstrip(".")
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """The whole message as it is shown."""
        text = self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.remedy:
            text += f" — {self.remedy}"
        return text + "."


class InputNotFoundError(EdgekitError):
    """A model folder, bundle or file is missing or empty."""

    exit_code = 10


class CorruptCheckpointError(EdgekitError):
    """A weight file is truncated or its header is not what its format says."""

    exit_code = 11


class UnsafeCheckpointError(EdgekitError):
    """Loading the checkpoint would run code from a stranger (pickle, remote code)."""

    exit_code = 12


class BadWeightsError(EdgekitError):
    """A tensor holds NaN or infinity, or has a shape its role does not allow."""

    exit_code = 13


class TokenizerError(EdgekitError):
    """The tokenizer is missing, unknown or does not fit the embedding."""

    exit_code = 14


class UnknownArchitectureError(EdgekitError):
    """The model family is not supported."""

    exit_code = 15


class UnknownTargetError(EdgekitError):
    """No target of that name or path exists."""

    exit_code = 16


class TargetFileError(EdgekitError):
    """A target file has a wrong key, type or value."""

    exit_code = 17


class OutputExistsError(EdgekitError):
    """The output is there already and --force was not given."""

    exit_code = 18


class DoesNotFitError(EdgekitError):
    """The model needs more memory than the target has."""

    exit_code = 19


class BundleError(EdgekitError):
    """A bundle is damaged, tampered with or not a bundle."""

    exit_code = 20


class ParityError(EdgekitError):
    """An artefact does not say what the original says; names the tensor or token."""

    exit_code = 21


class StrictError(EdgekitError):
    """--strict: a tensor cannot take the requested format."""

    exit_code = 22


class GateError(EdgekitError):
    """--gate: a measurement is outside the target's limits."""

    exit_code = 23


class MissingDependencyError(EdgekitError):
    """A package or tool that this verb needs is not installed."""

    exit_code = 24


class GridError(EdgekitError):
    """A matrix's shape does not suit the number format, or the format is unknown."""

    exit_code = 25


class FileFormatError(EdgekitError):
    """A file is not of the format that its name or place promises."""

    exit_code = 26


class OutputError(EdgekitError):
    """The output cannot be written (disk full, read-only, no permission)."""

    exit_code = 27


class TextError(EdgekitError):
    """An evaluation or calibration text is missing, empty or too short."""

    exit_code = 28


class OptionError(EdgekitError):
    """Two options contradict each other, or a value is outside its range."""

    exit_code = 29


class InterruptError(EdgekitError):
    """The user pressed Ctrl-C; nothing half-written is left."""

    exit_code = 130
