"""The target that is sealed in a bundle: read strictly, never a path outside, the same target again."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit import targets
from edgekit.bundle.bundle import Bundle, open_bundle, write_manifest
from edgekit.bundle.manifest import Artefact, Manifest, Model, PlanEntry, TargetRef
from edgekit.bundle.target import NAME, bundle_target, seal_target, to_toml
from edgekit.cli import bench
from edgekit.errors import BundleError, OptionError, TargetFileError
from edgekit.progress import Quiet
from edgekit.targets import Target

RPI5 = targets.load("rpi5")
MINE = replace(RPI5, name="my-board", title="Mine, with 8 GB", tier=3)


def bundle(folder: Path, target: Target, sealed: str | None = None, *, seal: bool = True) -> Bundle:
    """A bundle for `target`; `sealed` replaces the text of its target.toml."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "model.gguf").write_bytes(b"x")
    if seal:
        seal_target(folder, target)
    if sealed is not None:
        (folder / NAME).write_text(sealed)
    plan = (PlanEntry(tensor="x", role="x", shape=(1,), requested_bits=4, grid="x", bits=4, bytes=1),)
    artefact = Artefact(
        format="gguf", path="model.gguf", engine="llama.cpp", requested_bits=4, effective_bits=4, plan=plan
    )
    model = Model(name="m", architecture="llama", source="here", sha256="0" * 64, parameters=1)
    ref = TargetRef(id=target.name, sha256=targets.digest(target))
    write_manifest(folder, Manifest(edgekit="0", name="b", model=model, target=ref, artefacts=(artefact,)))
    return open_bundle(folder)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is missing"),
        ("[", "not TOML"),
        (to_toml(MINE) + "\nevil = 1\n", "evil is an unknown key"),
        (to_toml(MINE).replace("tier = 3", "tier = 9"), "tier is 9"),
        ('inherits = "rpi5"\n' + to_toml(MINE), "inherits is in a bundle's target"),
        ('inherits = "../../etc/passwd.toml"\n' + to_toml(MINE), "inherits is in a bundle's target"),
        ("#" * (256 * 1024 + 1), "larger than"),
    ],
)
def test_a_damaged_target_is_refused(text: str, words: str, tmp_path: Path) -> None:
    opened = bundle(tmp_path / "b", MINE, text)
    with pytest.raises((TargetFileError, BundleError), match=words) as refused:
        bundle_target(opened)
    assert refused.value.sentence().isprintable()


def test_another_target_than_the_manifest_names(tmp_path: Path) -> None:
    opened = bundle(tmp_path / "b", MINE, to_toml(RPI5))
    with pytest.raises(BundleError, match=r"target.toml in the bundle is of 'rpi5'; expected 'my-board'"):
        bundle_target(opened)


def test_a_link_that_took_its_place_after_the_check(tmp_path: Path) -> None:
    opened = bundle(tmp_path / "b", MINE)
    (tmp_path / "elsewhere.toml").write_text(to_toml(MINE))
    (opened.root / NAME).unlink()
    (opened.root / NAME).symlink_to(tmp_path / "elsewhere.toml")
    with pytest.raises(BundleError, match="cannot open 'target.toml'"):
        bundle_target(opened)


def test_an_older_bundle_without_one(tmp_path: Path) -> None:
    older = replace(RPI5, title="as it was once")
    assert bundle_target(bundle(tmp_path / "a", older, seal=False)) == RPI5, "by its name"
    (tmp_path / "my-board.toml").write_text(to_toml(MINE))
    with pytest.raises(OptionError, match="there is no target 'my-board' here"):
        bundle_target(bundle(tmp_path / "b", MINE, seal=False))


def test_a_name_in_a_manifest_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "evil.toml").write_text(to_toml(MINE))
    opened = bundle(tmp_path / "b", replace(MINE, name=str(tmp_path / "evil.toml")), seal=False)
    with pytest.raises(OptionError, match="there is no target"):
        bundle_target(opened)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_the_users_own_target(tmp_path: Path) -> None:
    assert bundle_target(bundle(tmp_path / "b", MINE)) == replace(MINE, inherits="")


def test_the_shipped_target_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    assert bundle_target(bundle(tmp_path / "a", RPI5)) == RPI5
    changed = replace(RPI5, title="Raspberry Pi 5, changed by its owner")
    assert bundle_target(bundle(tmp_path / "b", changed)).title == changed.title


@pytest.mark.parametrize("name", targets.names())
def test_every_shipped_target_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    target = targets.load(name)
    found = targets.alone(to_toml(target).encode(), tmp_path / NAME)
    assert found == replace(target, inherits="")
    assert targets.digest(found) == targets.digest(target)
    assert to_toml(found) == to_toml(target)


PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cf", "Zl", "Zp", "Cs")), max_size=40)


@given(title=PRINTABLE, mode=PRINTABLE.filter(lambda name: not name.startswith("+")), source=PRINTABLE)
def test_any_text_comes_back_as_it_was(title: str, mode: str, source: str) -> None:
    modes = {mode: targets.PowerMode(id=1, watts=1e-7)}
    power = replace(RPI5.power, modes=modes, default_mode=mode, source=source)
    target = replace(MINE, title=title, power=power, inherits="")
    assert targets.alone(to_toml(target).encode(), Path(NAME)) == target


def test_the_audit_takes_the_bundles_own(tmp_path: Path, cli: Cli) -> None:
    """rpi5 in all but its name, so no shipped target; nothing native is in the bundle, which is what is said."""
    bundle(tmp_path / "mine", MINE)
    done = cli("runtime", "audit", tmp_path / "mine")
    assert (done.code, "holds no native code" in done.err) == (10, True), done.err


def test_bench_takes_the_bundles_own(tmp_path: Path) -> None:
    mine = replace(targets.load("host"), name="my-machine", title="Mine")
    assert bench._settings(bundle(tmp_path / "mine", mine), None, Quiet()) == replace(mine, inherits="")
    with pytest.raises(OptionError, match="there is no target 'my-machine' here"):
        bench._settings(bundle(tmp_path / "older", mine, seal=False), None, Quiet())
