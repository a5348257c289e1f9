"""`edgekit.build` and `edgekit.open_bundle` on a tiny model, as docs/python.md shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import edgekit
import edgekit.targets
from edgekit.bundle.target import bundle_target
from edgekit.errors import BundleError, OutputExistsError
from edgekit.options import Options

pytestmark = pytest.mark.integration


def test_build_open_answer(sound: Path, tmp_path: Path) -> None:
    options = Options(formats=("gguf",), sequences=2, length=24)
    built = edgekit.build(sound, output=tmp_path, options=options)
    assert built.bundle == tmp_path / "model.rpi5"
    assert [artefact.format for artefact in built.report.artefacts] == ["gguf"]
    assert built.passed == built.report.artefacts[0].verdict.passed
    with pytest.raises(OutputExistsError):
        edgekit.build(sound, output=tmp_path, options=options)
    with edgekit.open_bundle(built.bundle, context=64) as bundle:
        assert bundle.formats == ("gguf",)
        assert bundle.manifest.model.name == "model"
        assert "target.toml" in bundle.manifest.files
        assert bundle_target(bundle.bundle) == edgekit.targets.load("rpi5")
        one = "".join(bundle.answer("The kettle", max_tokens=8))
        assert one == "".join(bundle.answer("The kettle", max_tokens=8))
        logits = bundle.engine().logits(np.array(bundle.tokenizer.encode("The kettle")))
        assert logits.shape[1] == bundle.engine("gguf").vocab_size
        with pytest.raises(BundleError, match="no onnx artefact"):
            bundle.engine("onnx")
