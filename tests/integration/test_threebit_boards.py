"""The operators for boards: cross-compiled, in edgekit's wheel, audited; and 3-bit models from end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulated import unavailable
from original import Original

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx

import edgekit
from edgekit import api, targets
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.crossbuild import operators
from edgekit.crossbuild.audit import audit
from edgekit.crossbuild.audit_one import FileAudit
from edgekit.crossbuild.own_wheel import own_wheel
from edgekit.engines.ort import OrtEngine, needs_operators
from edgekit.errors import OptionError
from edgekit.options import Options
from edgekit.progress import Quiet
from edgekit.threebit.library import LIBRARY

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def _compiler() -> None:
    if shutil.which("aarch64-linux-gnu-g++") is None:
        unavailable("the cross-compiler for 64-bit ARM is not installed (apt install g++-aarch64-linux-gnu)")


def compiled(target: str) -> operators.Operators:
    return operators.build_operators(targets.load(target), toolchain="gcc", progress=Quiet())


def in_wheel(folder: Path, target: str, held_against: str) -> FileAudit:
    """The library in edgekit's wheel, held against a board."""
    wheel = own_wheel(folder, compiled(target).folder)
    assert "none-manylinux_2_" in wheel.name
    assert wheel.name.endswith("_aarch64.whl")
    found = audit(folder, targets.load(held_against), start=False)
    return next(file for file in found.files if file.path.endswith(LIBRARY))


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(("target", "dots"), [("rpi5", True), ("rpi4", False)])
def test_a_board_gets_code_that_it_runs(target: str, dots: bool, tmp_path: Path) -> None:
    found = in_wheel(tmp_path, target, target)
    assert found.faults == ()
    assert bool(found.features.get("asimddp")) == dots


@pytest.mark.usefixtures("_compiler")
def test_code_for_a_newer_core_is_refused(tmp_path: Path) -> None:
    """The audit bites: what has dot products is nothing for a board without."""
    assert any("asimddp" in fault for fault in in_wheel(tmp_path, "rpi5", "rpi4").faults)


@pytest.mark.usefixtures("_compiler")
def test_a_damaged_library_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    first = compiled("rpi4")
    whole = first.library.read_bytes()
    first.library.write_bytes(whole[:-1] + b"x")
    again = compiled("rpi4")
    assert again == first
    assert again.library.read_bytes() == whole


# -- the whole way


def test_three_bits_are_three_bits(sound: Path, tmp_path: Path) -> None:
    options = Options(bits=3, formats=("onnx",), sequences=2, length=24)
    own = api.build(sound, output=tmp_path / "own", options=options)
    stock = api.build(sound, output=tmp_path / "stock", options=Options(**{**vars(options), "portable": True}))
    kinds = [_operators(built.bundle) for built in (own, stock)]
    assert [("edgekit", "MatMul3Bits") in kind for kind in kinds] == [True, False]
    assert [("com.microsoft", "MatMulNBits") in kind for kind in kinds] == [True, True], "the tied head has 8 bits"
    assert [needs_operators(built.bundle / "onnx") for built in (own, stock)] == [True, False]
    files = [(built.bundle / "onnx" / "model.onnx.data").stat().st_size for built in (own, stock)]
    linear = sum(t.parameters for t in open_checkpoint(sound).spec.tensors if t.rule.kind == "linear")
    assert files[1] - files[0] == pytest.approx(linear * 1 / 8, rel=0.02)
    divergence = [built.report.artefacts[0].coherence.kl_mean for built in (own, stock)]
    assert divergence[0] == pytest.approx(divergence[1], rel=0.02), "the same weights"
    with edgekit.open_bundle(own.bundle) as opened:
        assert "".join(opened.answer("The kettle", form="onnx", max_tokens=4))


def _operators(bundle: Path) -> set[tuple[str, str]]:
    model = onnx.load(str(bundle / "onnx" / "model.onnx"), load_external_data=False)
    return {(node.domain, node.op_type) for node in model.graph.node}


def test_a_plan_file_contradicts_portable(sound: Path, tmp_path: Path) -> None:
    from edgekit.cli.plan_curve import write_plan
    from edgekit.quantize.choose import choose

    checkpoint = open_checkpoint(sound)
    plan = tmp_path / "plan.json"
    write_plan(checkpoint, [choose(checkpoint.spec, targets.load("rpi5"), "onnx", 3)], plan, force=False)
    options = Options(formats=("onnx",), plan=plan, portable=True)
    with pytest.raises(OptionError, match=r"--portable is given, and .* has model\..* in int3-sym-b32; expected"):
        api.build(sound, output=tmp_path / "out", options=options)


def test_what_a_bundle_names_is_never_loaded(sound: Path, tmp_path: Path) -> None:
    """A library beside the model is a stranger's: edgekit loads its own."""
    folder = Original(open_checkpoint(sound)).write("onnx", 3, tmp_path / "out").path.parent
    (folder / LIBRARY).write_bytes(b"no library at all")
    OrtEngine(folder).close()
