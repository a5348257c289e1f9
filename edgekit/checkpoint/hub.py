"""A model of the Hugging Face hub: downloaded by huggingface_hub into its own cache, safetensors only."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.checkpoint import CODES, TOKENIZER_FILES, Checkpoint, Open, open_checkpoint
from edgekit.errors import (
    DownloadError,
    EdgekitError,
    InputNotFoundError,
    MissingDependencyError,
    OptionError,
    OutputError,
    UnsafeCheckpointError,
)
from edgekit.progress import Advance, Progress, Quiet

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

WANTED = ("config.json", *TOKENIZER_FILES, "model.safetensors", "model-*-of-*.safetensors",
          "model.safetensors.index.json", CODES)  # fmt: skip
"""What is downloaded: never a pickle, never code, nothing in a folder of the repository but a training's codes."""
_UNWANTED = ("model-*/*",)
"""A star stands for slashes, too."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PATIENCE = 20.0
"""Seconds for the hub's first answer."""
_ID = re.compile(r"\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"\w(?:[\w./-]*\w)?", re.ASCII)
_QUIET = Quiet()


@dataclass(frozen=True)
class HubId:
    """Name and revision of a model on the hub."""

    repo: str
    """org/name."""
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def is_hub_id(model: str) -> bool:
    """Whether a name has the form org/name."""
    plain = ".." not in model and "--" not in model and not model.endswith(".git")
    return plain and _ID.fullmatch(model) is not None


def hub_checkpoint(
    model: HubId, *, offline: bool = False, progress: Progress = _QUIET, opened: Open = open_checkpoint
) -> Checkpoint:
    """Download a model, or take what was downloaded before, and open it.

    Login, cache folder and proxies are those of huggingface_hub and its environment variables (HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE, HF_ENDPOINT).

    Args:
        model: what to get.
        offline: ask nobody; only what is in huggingface_hub's cache.
        progress: shows name and size of the download, then how far it is.
        opened: opens the folder.

    Raises:
        InputNotFoundError: no such model or revision; or offline and not, or not wholly, in the cache.
        DownloadError: the hub cannot be reached, or wants a login.
        OptionError: the revision is no name of one.
        UnsafeCheckpointError: the model has its weights as pickles only.
        MissingDependencyError: huggingface_hub is not installed.
        EdgekitError: as open_checkpoint.
    """
    if model.revision is not None and (not _REVISION.fullmatch(model.revision) or ".." in model.revision):
        raise OptionError(f"--revision is {model.revision!a}", expected="a branch, tag or commit")
    hub = _library()
    if offline or hub.is_offline_mode():
        root = _cached(hub, model)
    else:
        with _told(model):
            root = _downloaded(hub, model, progress)
    return opened(root, name=model.repo.partition("/")[2], source=f"hub {model.repo}@{root.name}")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            "the package huggingface_hub is not installed",
            expected="it, to get a model from the hub",
            remedy="pip install 'edgekit[build]', or name a local folder",
        ) from error
    return huggingface_hub


def _cached(hub: Any, model: HubId) -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = hub.snapshot_download(
            model.repo, revision=model.revision, local_files_only=True, allow_patterns=list(WANTED),
            ignore_patterns=list(_UNWANTED),
        )  # fmt: skip
    except LocalEntryNotFoundError as error:
        lacking = re.search(r"(\d+) file\(s\) are missing \(([^)]*)\)", str(error))
        what = f"lacks {lacking[2]}" if lacking else "is not there"
        raise InputNotFoundError(
            f"{model} {what} in the download cache, and offline nothing is downloaded",
            expected="a model that was downloaded before",
            remedy=f"run once without --offline and HF_HUB_OFFLINE, or: hf download {model.repo}",
        ) from error
    root = Path(found)
    _refuse_incomplete(model, root)
    return root


def _refuse_incomplete(model: HubId, root: Path) -> None:
    """An interrupted download of an older huggingface_hub leaves no list of what there should be."""
    if not (root / "config.json").is_file() or not list(root.glob("model*.safetensors")):
        lacking = "config.json" if not (root / "config.json").is_file() else "its weights (model*.safetensors)"
        raise InputNotFoundError(
            f"{model} lacks {lacking} in the download cache, and offline nothing is downloaded",
            expected="a model that was downloaded before",
            remedy=f"run once without --offline and HF_HUB_OFFLINE, or: hf download {model.repo}",
        )


def _downloaded(hub: Any, model: HubId, progress: Progress) -> Path:
    info = hub.HfApi().model_info(model.repo, revision=model.revision, files_metadata=True, timeout=_PATIENCE)
    names = _wanted(name.rfilename for name in info.siblings or ())
    _refuse_unsuited(model, info, names)
    sizes = {name.rfilename: int(name.size or 0) for name in info.siblings or ()}
    total = sum(sizes[name] for name in names)
    title = f"Download {model}, {_readable(total)} in {len(names)} files"
    with progress.step(title) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a full disk becomes an error soon enough
        found = hub.snapshot_download(
            model.repo, revision=model.revision, allow_patterns=list(WANTED), ignore_patterns=list(_UNWANTED),
            tqdm_class=_bars(advance, total),
        )  # fmt: skip
    return Path(found)


def _wanted(names: Iterable[str]) -> list[str]:
    plain = (name for name in names if "/" not in name or name == CODES)
    return [name for name in plain if any(fnmatchcase(name, pattern) for pattern in WANTED)]


def _refuse_unsuited(model: HubId, info: ModelInfo, names: list[str]) -> None:
    there = [sibling.rfilename for sibling in info.siblings or ()]
    if "config.json" not in names:
        raise InputNotFoundError(
            f"{model} has no config.json", expected="a Hugging Face model",
            remedy="download its GGUF file and name that" if any(n.endswith(".gguf") for n in there) else "",
        )  # fmt: skip
    if any(name.endswith(".safetensors") and name != CODES for name in names):
        return
    pickles = [name for name in there if name.endswith(_PICKLES)]
    if pickles:
        raise UnsafeCheckpointError(
            f"{model} has its weights as pickles only ({ascii(pickles[0])[1:80]}), which can run any code when loaded",
            expected="model.safetensors",
            remedy="look for another revision (huggingface.co/spaces/safetensors/convert makes one), "
            "or convert it where you trust it",
        )
    raise InputNotFoundError(f"{model} has no weights", expected="model.safetensors", remedy="name another model")


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bars(advance: Advance, total: int) -> type[Any]:
    """A progress bar for huggingface_hub that shows nothing itself and passes on how many bytes are there."""
    from tqdm import tqdm

    most = 0

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.counts, self.seen = options.get("unit") == "B", 0
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self.seen += int(n or 0)
            if self.counts and self.seen > most:
                most = self.seen
                advance(min(most, total), total)

    return Bytes


@contextmanager
def _told(model: HubId) -> Iterator[None]:
    """What huggingface_hub raises, as sentences."""
    from huggingface_hub import errors

    http_error: Any = errors.HfHubHTTPError.__bases__[0]  # of the HTTP library that this version uses
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{model} is gated: only who has accepted its owner's terms may download it",
            remedy=f"accept them at https://huggingface.co/{model.repo}, then run: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputNotFoundError(
            f"{model.repo} has no revision {model.revision!a}",
            expected="a branch, tag or commit",
            remedy="leave --revision out for the main branch",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputNotFoundError(
            f"there is no model {model.repo} on the hub, and no folder of that name here",
            remedy="check the spelling; a private model needs: hf auth login",
        ) from error
    except (http_error, OSError) as error:
        raise _failure(model, error) from error
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # a proxy's page in place of the hub's answer
        raise DownloadError(
            f"{model} is no folder here, and what answers in place of the hub does not speak its language",
            remedy="check the connection, its proxy and HF_ENDPOINT; --offline takes what was downloaded before",
        ) from error


def _failure(model: HubId, error: BaseException) -> EdgekitError:
    chain = list(_causes(error))
    full = next(
        (e for e in chain if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES)), None
    )
    if full is not None:
        return OutputError(
            f"cannot write the download of {model} ({full.strerror})",
            remedy="free some space, or set HF_HOME to another folder",
        )
    status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)  # type: ignore[attr-defined]
    if status in (401, 403):
        return DownloadError(
            f"the hub does not let you download {model} (HTTP {status})", remedy="log in again with: hf auth login"
        )
    why = f"answers HTTP {status}" if status else f"cannot be reached ({type(chain[-1]).__name__})"
    return DownloadError(
        f"{model} is no folder here, and the hub {why}",
        remedy="check the spelling or the connection and run again; --offline takes what was downloaded before",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__
