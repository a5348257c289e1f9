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
    _refuse_training(options)
    _refuse_skipping(options)
    converting = [container for container in options.formats if options.converts(container)]
    if options.effort != "fast" and converting:
        raise OptionError(
            f"--effort {options.effort} is given, but another tool converts the model to {converting[0].upper()}",
            expected="a family that edgekit exports by itself, whose layers it knows",
            remedy="drop --effort",
        )
    if options.text is not None and options.calibration_text is not None:
        _refuse_same(options, options.text, options.calibration_text, "--calibration-text", "calibrate")
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


def _refuse_same(options: Options, judged: Path, other: Path, option: str, verb: str) -> None:
    """A model that is judged on the text that it was calibrated or trained on looks better than it is.

    Looked at are as many words of the evaluation text as it gives tokens, and all of the other text.
    """
    from edgekit.coherence.likeness import shared_passages
    from edgekit.coherence.text import MAX_TEXT_BYTES

    said, sizes = "", [path.stat().st_size for path in (judged, other)]
    if sizes[0] == sizes[1] and sha256(judged) == sha256(other):
        said = f"--text and {option} are the same text"
    elif max(sizes) <= MAX_TEXT_BYTES:  # larger is refused later, or too much to be compared
        own, others = (path.read_text("utf8", "replace") for path in (judged, other))
        share = shared_passages(own, others, options.sequences * options.length)
        if share > _MOST_SHARED:
            said = f"{share:.0%} of the passages of --text stand in {option}, too"
    if said:
        raise OptionError(
            said,
            expected=f"other text to judge on than to {verb} on",
            remedy=f"leave {'one of them' if verb == 'calibrate' else '--text'} out, and the model writes its own",
        )


def _refuse_training(options: Options) -> None:
    """What is quick to check of a training, its text found but not read."""
    if options.disperse is None:
        if options.train_text:
            raise OptionError("--train-text is given without --disperse", remedy="add --disperse RECIPE, or drop it")
        if options.restart:
            raise OptionError("--restart is given without --disperse", remedy="add --disperse RECIPE, or drop it")
        return
    from edgekit.training import recipe, sources

    recipe.load(options.disperse)
    if options.budget is not None:
        raise OptionError(
            "--disperse trains on the formats of a plan, and a budget chooses them by what it measures on the way",
            expected="formats that are known before the training",
            remedy="give --bits, or --plan with what `edgekit plan` chose under that budget",
        )
    if converting := [container for container in options.formats if options.converts(container)]:
        raise OptionError(
            f"--disperse is given, but another tool converts the model to {converting[0].upper()}",
            expected="a family that edgekit exports by itself, whose layers it knows",
            remedy="drop --disperse, or train with edgekit disperse and convert what comes out",
        )
    if not options.train_text and options.calibration_text is None:
        raise OptionError("--disperse is given, but no text to train on", remedy="give --train-text SOURCE")
    found = sources.find(options.train_text) if options.train_text else []
    for path in [source.where for source in found if isinstance(source.where, Path)]:
        if options.text is not None:
            _refuse_same(options, options.text, path, "--train-text", "train")


def _refuse_skipping(options: Options) -> None:
    """What does not go with inputs that are left out."""
    if options.active is None:
        return
    if not 0.05 <= options.active < 1:
        raise OptionError(f"{options.active:g} is no share that can fire", expected="0.05 to less than 1, such as 0.8")
    if "onnx" not in options.formats or options.converts("onnx") or options.portable:
        found = "--portable" if options.portable else "no ONNX of edgekit's own"
        raise OptionError(
            f"--active is given with {found}", expected="edgekit's 3-bit operator, which skips what does not fire",
            remedy="give --bits 3 --format onnx, without --portable and --exporter",
        )  # fmt: skip
    if not options.calibrate:
        raise OptionError(
            "--active and --no-calibration contradict each other",
            expected="calibration text, on which thresholds are found: what is judged must have no say in them",
            remedy="drop one of them",
        )  # fmt: skip
    if options.budget is not None or options.disperse is not None:
        found = "a budget, which measures formats with all inputs" if options.budget else "--disperse"
        raise OptionError(
            f"--active is given with {found}", expected="a model and a plan that are known before",
            remedy="give --bits 3 or --plan; train first with edgekit disperse, and build its folder with --active",
        )  # fmt: skip


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
