"""The stage that says how much each input of a layer matters: measured on calibration text, or read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.foreign import is_foreign
from edgekit.coherence.text import EvalText
from edgekit.errors import OptionError
from edgekit.files import sha256
from edgekit.original import Texts, calibrate
from edgekit.quantize import imatrix
from edgekit.quantize.importance import Importance
from edgekit.stages import Made, Stage

if TYPE_CHECKING:
    from edgekit.steps import Work

_FILE = "importance.safetensors"
_SOURCE = "source"


def importance(work: Work, made: Texts) -> Made | None:
    """Importance of every linear input; None without calibration. See :func:`load_importance`.

    An importance matrix (:attr:`edgekit.options.Options.imatrix`) gives it for every matrix that it names; what it
    leaves out, at most the output matrix, is measured on the calibration text as all of it is without such a file.

    Raises:
        InputNotFoundError, FileFormatError, OptionError: as :func:`given`.
        BadWeightsError: the mean square of an input is NaN or infinite; names the layer.
    """
    if (text := made.calibration) is None:
        return None
    return _measured(work, text) if (path := work.options.imatrix) is None else _read(work, text, path)


def given(checkpoint: Checkpoint, path: Path) -> Importance:
    """What an importance matrix says of the model, by the checkpoint's names.

    Raises:
        InputNotFoundError, FileFormatError: see :func:`edgekit.quantize.imatrix.read`.
        OptionError: it is of another model, or edgekit does not know the model's tensors by their GGUF names.
    """
    if is_foreign(checkpoint):
        raise OptionError(
            f"--imatrix is given, but edgekit has no table of the family {checkpoint.spec.architecture!a}",
            expected="a family whose tensors it knows by their names in GGUF",
            remedy="drop --imatrix: the importance is measured",
        )
    return imatrix.for_model(imatrix.read(path), checkpoint.spec)


def _measured(work: Work, text: EvalText) -> Made:
    inputs = {"text": [ids.tolist() for ids in text.sequences]}
    stage = Stage("importance", "calibration: importance of every layer's inputs", inputs)

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        found = calibrate(work.original.engine(), work.checkpoint, Texts(text, text), work.progress)
        save_file(dict(found or {}), folder / _FILE)

    return work.stages.run(stage, make)


def _read(work: Work, text: EvalText, path: Path) -> Made:
    found, digest = given(work.checkpoint, path), sha256(path)
    source = f"importance of each input from the importance matrix {path.name} (sha256 {digest[:12]})"
    rest = None
    if left := imatrix.missing(found, work.checkpoint.spec):
        rest = _measured(work, text)
        source += f", of {left} on the calibration text"
        work.progress.note(f"{path} says nothing of {left}: its importance is measured on the calibration text")
    if work.options.effort != "fast":
        work.progress.note(
            f"{path.name} decides the plan under a budget and the matrices that GPTQ leaves; blocks are rounded by "
            "GPTQ with the calibration text's whole second moments, of which it holds the diagonal alone"
        )
    inputs = {"imatrix": digest, "source": source, "measured": rest and rest.digest}
    stage = Stage("importance", f"calibration: importance from {path.name}", inputs)

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        measured = load_importance(rest) or {}
        both = {**{name: measured[name] for name in measured if name == left}, **found}
        save_file(both, folder / _FILE, metadata={_SOURCE: source})

    return work.stages.run(stage, make)


def load_importance(made: Made | None) -> Importance | None:
    """What :func:`importance` stored."""
    if made is None:
        return None
    from safetensors.numpy import load_file

    found: Importance = load_file(made.folder / _FILE)
    return found


def source(made: Made | None) -> str:
    """For people: where the importance came from when it was not just measured, otherwise nothing."""
    if made is None:
        return ""
    from safetensors import safe_open

    with safe_open(made.folder / _FILE, framework="numpy") as stored:
        return str((stored.metadata() or {}).get(_SOURCE, ""))
