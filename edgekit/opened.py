"""A verified bundle, opened for programs: its engines are loaded when they are asked for. See docs/python.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgekit.options import Container

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.bundle.manifest import Manifest
    from edgekit.bundle.tokenizer import Tokenizer
    from edgekit.engines.base import Engine


@dataclass(frozen=True)
class OpenBundle:
    """A verified bundle. Use it in a `with` block, or close it: engines hold their model in memory."""

    bundle: Bundle
    threads: int
    context: int
    _engines: dict[Container, Engine] = field(default_factory=dict, repr=False)

    @property
    def root(self) -> Path:
        """Its folder."""
        return self.bundle.root

    @property
    def manifest(self) -> Manifest:
        """What it says of itself: model, target, plan, versions, checksums."""
        return self.bundle.manifest

    @property
    def formats(self) -> tuple[Container, ...]:
        """The artefacts it holds."""
        return tuple(artefact.format for artefact in self.manifest.artefacts)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, with its chat template."""
        from edgekit.bundle.tokenizer import load_tokenizer

        return load_tokenizer(self.bundle.tokenizer)

    def engine(self, form: Container | None = None) -> Engine:
        """The model of a format ("gguf" in llama.cpp, "onnx" in onnxruntime), by default the first; loaded once.

        Raises:
            BundleError: the bundle has none of that format.
            MissingDependencyError, FileFormatError: the engine is not installed, or refuses the file.
        """
        from edgekit.engines.opening import open_engine

        artefact = self.bundle.artefact(form)
        if artefact.format not in self._engines:
            path = self.root / artefact.path
            self._engines[artefact.format] = open_engine(
                artefact.format, path, threads=self.threads, context=self.context
            )
        return self._engines[artefact.format]

    def answer(
        self,
        prompt: str,
        *,
        form: Container | None = None,
        system: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Text that the model answers, in pieces; see :func:`edgekit.chat.generate_text` for the arguments."""
        from edgekit.chat import generate_text

        return generate_text(
            self.engine(form), self.tokenizer, prompt, system=system, max_tokens=max_tokens, temperature=temperature,
            top_p=top_p, seed=seed,
        )  # fmt: skip

    def close(self) -> None:
        """Free the engines."""
        while self._engines:
            self._engines.popitem()[1].close()

    def __enter__(self) -> OpenBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(path: str | Path, *, check: bool = True, threads: int = 0, context: int = 2048) -> OpenBundle:
    """Verify a bundle and open it; engines are loaded when they are asked for.

    Args:
        path: the folder that a build wrote.
        check: compare the checksums of all files (a second or two for a large bundle).
        threads: of the engines; 0 takes the physical cores.
        context: longest sequence in tokens.

    Raises:
        InputNotFoundError: nothing is there.
        BundleError: not a bundle, or any rule of docs/bundle.md is broken; names the file.
    """
    from edgekit.bundle import bundle

    return OpenBundle(bundle.open_bundle(Path(path), check=check), threads, context)
