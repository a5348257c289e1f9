"""What the full-precision model is asked during a build: text to calibrate and to judge on, and its sealed answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.bundle.tokenizer import Tokenizer
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.foreign import is_foreign
from edgekit.coherence import items, reference, text
from edgekit.coherence.engine_calls import refuse_long
from edgekit.engines.base import Ids
from edgekit.errors import MissingDependencyError
from edgekit.export.foreign import gather as gather_foreign
from edgekit.options import Options
from edgekit.progress import Progress
from edgekit.quantize.importance import Importance, finite, gather

if TYPE_CHECKING:  # a build whose stages are all in the cache does without it
    from edgekit.engines.torch import TorchEngine

_PACKAGES = (
    "torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "gguf", "llama-cpp-python", "numpy",
    "tokenizers", "safetensors",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of the packages that the bytes of a bundle depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Original:
    """The full-precision model, loaded when it is asked for the first time."""

    def __init__(self, root: Path, progress: Progress) -> None:
        self._root, self._progress = root, progress
        self._engine: TorchEngine | None = None

    def engine(self) -> TorchEngine:
        """The model in PyTorch.

        Raises:
            MissingDependencyError: PyTorch is not installed.
            BadWeightsError: a tensor holds NaN or infinity.
        """
        if self._engine is None:
            with self._progress.step("load the full-precision model"):
                try:
                    from edgekit.engines.torch import TorchEngine
                except ModuleNotFoundError as error:
                    raise MissingDependencyError(
                        f"the package {error.name} is not installed", remedy="pip install 'edgekit[build]'"
                    ) from error
                self._engine = TorchEngine(self._root)
        return self._engine

    def close(self) -> None:
        """Free its memory; asking again loads it again."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None


@dataclass(frozen=True)
class Texts:
    """Token sequences for the two purposes; they have no sequence in common unless the user gives one file for both."""

    evaluation: text.EvalText
    calibration: text.EvalText | None


def make_texts(engine: Callable[[], TorchEngine], tokenizer: Tokenizer, options: Options, progress: Progress) -> Texts:
    """Read or generate the evaluation and the calibration text; `engine` is called when one is to be generated.

    Raises:
        TextError: a text file is missing, empty, not UTF-8 or too short.
    """
    paths = (options.text, options.calibration_text) if options.calibrate else (options.text,)
    # Files first: one that is too short is told before minutes go into writing the other text.
    given = [None if path is None else _from_file(path, tokenizer, options) for path in paths]
    wanted = given.count(None)
    own = iter(_generate(engine(), tokenizer, options, wanted, progress) if wanted else [])
    evaluation, *calibration = (next(own) if found is None else found for found in given)
    return Texts(evaluation, calibration[0] if calibration else None)


def _from_file(path: Path, tokenizer: Tokenizer, options: Options) -> text.EvalText:
    return text.from_file(path, tokenizer.encode, options.sequences, options.length, bos=tokenizer.bos_id)


def _generate(
    engine: TorchEngine, tokenizer: Tokenizer, options: Options, texts: int, progress: Progress
) -> list[text.EvalText]:
    """`texts` different texts, sampled all at once: a batch costs little more than a single sequence."""
    starts = text.starts(options.sequences, tokenizer.bos_id, tokenizer.encode)
    first = [int(ids[0]) for ids in starts]
    title = f"text: the full-precision model writes {texts * options.sequences} × {options.length} tokens"
    with progress.step(title) as advance:
        rows: Sequence[Ids] = list(engine.sample_batch(first * texts, options.length, options.seed, advance))
    made = []
    for index in range(texts):
        part = rows[index * options.sequences : (index + 1) * options.sequences]
        beginnings = [ids[:1] for ids in starts]
        made.append(
            text.self_generated(
                lambda _starts, _length, _seed, part=part: part,  # type: ignore[misc]
                beginnings, options.length, options.seed, engine.vocab_size,
            )
        )  # fmt: skip
    return made


def calibrate(engine: TorchEngine, checkpoint: Checkpoint, texts: Texts, progress: Progress) -> Importance | None:
    """Importance of every linear input on the calibration text; None when there is none.

    Raises:
        BadWeightsError: the mean square of an input is NaN or infinite; names the layer.
    """
    if texts.calibration is None:
        return None
    with progress.step("calibration: importance of every layer's inputs") as advance:
        of = gather_foreign if is_foreign(checkpoint) else gather
        return finite(of(engine, checkpoint.spec, texts.calibration.sequences, advance))


def seal(
    engine: TorchEngine,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    evaluation: text.EvalText,
    seed: int,
    progress: Progress,
) -> reference.Reference:
    """Record what the full-precision model says on the evaluation text, the fixed prompts and items."""
    origin = reference.Origin(
        model=checkpoint.name, model_sha256=checkpoint.sha256, seed=seed, text=evaluation.kind,
        text_sha256=evaluation.sha256, versions=versions(),
    )  # fmt: skip
    prompts, limit = _prompts(tokenizer), reference.DEFAULT_CONTINUATION_TOKENS
    refuse_long(engine, (len(ids) + limit for ids in prompts))
    with progress.step(f"reference: the full-precision model continues {len(prompts)} prompts") as advance:
        continuations = engine.greedy_batch(prompts, limit, tokenizer.stop_ids, advance)
    with progress.step("reference: seal what the full-precision model says") as advance:
        return reference.seal(
            engine, evaluation.sequences, prompts, origin=origin, stop=tokenizer.stop_ids, progress=advance,
            continuations=continuations,
            questions=items.encode_items(items.fixed_items(), tokenizer, limit=engine.max_context),
        )  # fmt: skip


def _prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """The fixed prompts as token ids; chat prompts go through the chat template where there is one."""
    made = []
    for prompt in text.fixed_prompts():
        if prompt.kind == "chat" and tokenizer.template is not None:
            made.append(tokenizer.chat_ids([{"role": "user", "content": prompt.text}]))
        else:
            made.append(tokenizer.encode(prompt.text))
    return made
