"""What a user may call a model: nothing (the demo), a folder, a GGUF file, or a model of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint.checkpoint import Checkpoint, Open, open_checkpoint
from edgekit.errors import InputNotFoundError, OptionError
from edgekit.options import SourceOptions
from edgekit.progress import Progress, Quiet

_QUIET = Quiet()
_PLAIN = SourceOptions()


def resolve(model: str | None, options: SourceOptions = _PLAIN, *, progress: Progress = _QUIET) -> Checkpoint:
    """The checkpoint that MODEL names; without one, or for "demo", the embedded default.

    A path that exists wins; then `org/name` is a model of the hub; everything else is a folder that is missing.

    Args:
        model: as the user wrote it.
        options: of hub models and adapters.
        progress: shows a download or a conversion.

    Raises:
        InputNotFoundError, UnsafeCheckpointError, CorruptCheckpointError, UnknownArchitectureError, BadWeightsError: as
            open_checkpoint.
        MissingDependencyError: the demo, or a package that the source needs, is not installed.
        OptionError: --revision with something that is not on the hub.
        DownloadError, FileFormatError, TokenizerError, OutputError: as hub_checkpoint, gguf_checkpoint, with_lora.
    """
    checkpoint = _base(model, options, progress)
    if options.lora is None:
        return checkpoint
    from edgekit.checkpoint.lora import with_lora

    return with_lora(checkpoint, options.lora, progress=progress, opened=_opener(options))


def on_hub(model: str) -> bool:
    """Whether `resolve` would look for `model` on the hub."""
    from edgekit.checkpoint.hub import is_hub_id

    return not _exists(Path(model)) and is_hub_id(model)


def _base(model: str | None, options: SourceOptions, progress: Progress) -> Checkpoint:
    if model is not None and on_hub(model):
        from edgekit.checkpoint.hub import HubId, hub_checkpoint

        hub = HubId(model, options.revision)
        return hub_checkpoint(hub, offline=options.offline, progress=progress, opened=_opener(options))
    if options.revision is not None:
        raise OptionError(
            f"--revision {options.revision!a} is given, but {model or 'the demo'} is not on the hub",
            expected="--revision with a model of the hub (org/name)",
        )
    if model is None or (model == "demo" and not _exists(Path(model))):
        from edgekit.checkpoint.demo import demo_checkpoint

        return demo_checkpoint(progress=progress)
    return _local(Path(model), progress, _opener(options))


def _opener(options: SourceOptions) -> Open:
    if not options.any_family:
        return open_checkpoint
    from edgekit.checkpoint.foreign import open_any

    return open_any


def _local(path: Path, progress: Progress, opened: Open) -> Checkpoint:
    from edgekit.checkpoint.gguf_source import gguf_checkpoint, is_gguf

    if not _exists(path):
        return open_checkpoint(path)  # which says what is missing
    if is_gguf(path):
        return gguf_checkpoint(path, progress=progress)
    if path.is_file():
        raise InputNotFoundError(
            f"{path} is not a folder and no GGUF file",
            expected="a model folder, a GGUF file or a model of the hub (org/name)",
            remedy="name the folder that holds it",
        )
    return opened(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):  # too long for the file system, or no path at all
        return False
