"""A tiny checkpoint beside PyTorch's model of it, and the comparisons that a build makes of its artefacts."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.spec import Spec
from edgekit.coherence.reference import Origin, Reference, seal
from edgekit.engines.base import greedy
from edgekit.engines.ort import OrtEngine, needs_operators
from edgekit.engines.torch import TorchEngine
from edgekit.export import artefacts
from edgekit.export.artefacts import Built, LogitParity
from edgekit.options import Container
from edgekit.progress import Quiet
from edgekit.quantize.choose import choose
from edgekit.targets import load
from edgekit.threebit import library

LENGTH = 96
"""Tokens of a sequence: several times the sliding windows of the tiny models."""
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Original:
    """A checkpoint with what takes seconds to make."""

    checkpoint: Checkpoint

    @cached_property
    def engine(self) -> TorchEngine:
        return TorchEngine(self.checkpoint.root)

    @cached_property
    def sequences(self) -> list[Ids]:
        rng = np.random.default_rng(5)
        return [rng.integers(self.checkpoint.spec.vocab_size, size=LENGTH) for _ in range(2)]

    @cached_property
    def reference(self) -> Reference:
        origin = Origin(model="tiny", model_sha256="ab" * 32, seed=0, text="file", text_sha256="ab" * 32, versions={})
        return seal(self.engine, self.sequences, [], origin=origin, k=64)

    def write(self, container: Container, bits: int, folder: Path, spec: Spec | None = None) -> Built:
        """The artefact below the new folder; `spec` pretends that the model is another one."""
        folder.mkdir(parents=True)
        checkpoint = dataclasses.replace(self.checkpoint, spec=spec or self.checkpoint.spec)
        plan = choose(checkpoint.spec, load("rpi5"), container, bits)
        return artefacts.write(checkpoint, plan, folder, folder, Quiet())

    def check(self, built: Built, spec: Spec | None = None) -> LogitParity:
        """All comparisons that a build makes of an artefact."""
        checkpoint = dataclasses.replace(self.checkpoint, spec=spec or self.checkpoint.spec)
        artefacts.check_bytes(checkpoint, built, Quiet())
        sealed = [self.reference.positions.rows(where) for where in self.reference.sequence_rows()]
        return artefacts.check_logits(checkpoint, built, self.engine, self.sequences, sealed, Quiet())


def genai_says_what_our_engine_says(folder: Path, prompt: Ids, count: int) -> None:
    """Assert that onnxruntime-genai generates the same greedy tokens from an ONNX folder; 2 ends a text."""
    import onnxruntime_genai as genai

    if needs_operators(folder):  # genai looks for the library beside the model
        shutil.copyfile(library.host_library(), folder / library.LIBRARY)
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt.astype(np.int32))
    theirs = []
    while not generator.is_done():
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    engine = OrtEngine(folder, context=64)
    ours = list(greedy(engine, prompt, count, frozenset({2})))
    engine.close()
    assert theirs == ours[: len(theirs)]
    assert len(theirs) >= min(count, 4) or ours[len(theirs) - 1] == 2
    assert len(theirs) == len(ours) or ours[-1] == 2
