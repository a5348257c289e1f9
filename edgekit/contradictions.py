"""Options that contradict each other or the model, found before anything is downloaded, loaded or measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import OptionError, TextError
from edgekit.files import sha256
from edgekit.options import Options

if TYPE_CHECKING:
    from edgekit.checkpoint.checkpoint import Checkpoint

_MOST_SHARED = 0.02
"""Share of the evaluation text's passages that a licence or a headline in both texts may make up."""


def refuse(options: Options) -> None:
    """Check what needs no model.

    Raises:
        OptionError: options contradict each other, or both texts share passages.
        TextError: a text file is missing.
        FileFormatError, InputNotFoundError, MissingDependencyError: the tree or environment of an exporter is not one.
    """
    for option, path in (("--text", options.text), ("--calibration-text", options.calibration_text)):
        if path is not None and not path.is_file():
            raise TextError(f"there is no text file at {path}", remedy=f"check the path given with {option}")
    if options.calibration_text and not options.calibrate:
        raise OptionError("--calibration-text and --no-calibration contradict each other", remedy="give one of them")
    if options.imatrix is not None and not options.calibrate:
        raise OptionError("--imatrix and --no-calibration contradict each other", remedy="give one of them")
    _refuse_planning(options)
    converting = [container for container in options.formats if options.converts(container)]
    if options.effort != "fast" and converting:
        raise OptionError(
            f"--effort {options.effort} is given, but another tool converts the model to {converting[0].upper()}",
            expected="a family that edgekit exports by itself, whose layers it knows",
            remedy="drop --effort",
        )
    if options.text is not None and options.calibration_text is not None:
        _refuse_same(options.text, options.calibration_text, options.sequences * options.length)
    if options.llama_cpp is not None:
        from edgekit.export.llama_tree import check_tree

        if "gguf" not in options.formats:
            raise OptionError("--llama-cpp is given, but no GGUF is to be built", remedy="add --format gguf")
        check_tree(options.llama_cpp)
    if options.exporter == "optimum":
        from edgekit.export.optimum_env import interpreter

        if "onnx" not in options.formats:
            raise OptionError("--exporter is given, but no ONNX is to be built", remedy="add --format onnx")
        interpreter()


def _refuse_same(evaluation: Path, calibration: Path, tokens: int) -> None:
    """A model that is judged on the text that it was calibrated on looks better than it is.

    Looked at are as many words of the evaluation text as it gives tokens, and all of the calibration text.
    """
    from edgekit.coherence.likeness import shared_passages
    from edgekit.coherence.text import MAX_TEXT_BYTES

    said = ""
    if sha256(evaluation) == sha256(calibration):
        said = "--text and --calibration-text are the same text"
    elif max(path.stat().st_size for path in (evaluation, calibration)) <= MAX_TEXT_BYTES:  # larger is refused later
        judged, other = (path.read_text("utf8", "replace") for path in (evaluation, calibration))
        share = shared_passages(judged, other, tokens)
        if share > _MOST_SHARED:
            said = f"{share:.0%} of the passages of --text stand in --calibration-text, too"
    if said:
        raise OptionError(
            said,
            expected="other text to judge on than to calibrate on",
            remedy="leave one of them out, and the model writes its own",
        )


def refuse_foreign_imatrix(checkpoint: Checkpoint, options: Options) -> None:
    """Read the importance matrix, so that one that does not suit the model is refused before anything is measured.

    Raises:
        InputNotFoundError, FileFormatError, OptionError: see :func:`edgekit.weighing.given`.
    """
    if options.imatrix is not None:
        from edgekit.weighing import given

        given(checkpoint, options.imatrix)


def _refuse_planning(options: Options) -> None:
    """What is quick to check of a budget and of plans."""
    if options.plan is not None and (options.budget is not None or options.bits != Options().bits):
        raise OptionError("--plan says which formats to use, and so do bits or a budget", expected="one of them")
    planned = options.plan is not None or options.budget is not None
    if planned and (options.llama_cpp is not None or options.exporter != "edgekit"):
        raise OptionError(
            "a plan's file or a budget is given, but somebody else's exporter converts the model",
            expected="a family that edgekit exports by itself",
            remedy="give --bits instead",
        )
