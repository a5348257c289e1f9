"""A board's wheels come from pip and the cache, fit its Python, and lack nothing that they need."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import fake_wheels
import pytest

from edgekit import __version__, targets
from edgekit.crossbuild import closure
from edgekit.crossbuild import wheelhouse as module
from edgekit.crossbuild.model import Native
from edgekit.crossbuild.own_wheel import own_wheel
from edgekit.crossbuild.wheel_files import facts
from edgekit.crossbuild.wheel_platform import glibc_of, platform_of
from edgekit.crossbuild.wheelhouse import Wheelhouse, host_version, wheelhouse
from edgekit.errors import OptionError, WheelError
from edgekit.files import cache_dir
from edgekit.options import Container
from edgekit.progress import Quiet

RELEASE = host_version("llama-cpp-python")


@pytest.fixture
def index(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_wheels.index(tmp_path / "index", monkeypatch)


@pytest.fixture
def gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Wheelhouse]:
    """Make a wheelhouse in a fresh folder."""
    source = fake_wheels.source_tree(tmp_path / "source", RELEASE)
    monkeypatch.setattr(module, "sdist", lambda _progress, _offline: SimpleNamespace(folder=source))
    compiled = fake_wheels.native_folder(tmp_path / "native")
    number = 0

    def run(
        formats: Sequence[Container] = ("onnx",), target: str = "rpi5", *, offline: bool = False,
        native: bool = True, release: str = RELEASE,
    ) -> Wheelhouse:  # fmt: skip
        nonlocal number
        number += 1
        out = tmp_path / f"runtime{number}"
        out.mkdir()
        record = SimpleNamespace(llama_cpp_python=release)
        made = cast("Native", SimpleNamespace(folder=compiled, record=record)) if native else None
        return wheelhouse(targets.load(target), made, formats, out, offline=offline, progress=Quiet())

    return run


# -- bad input


def test_no_wheel_of_the_engine_for_that_python(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("onnxruntime*"):
        path.unlink()
    fake_wheels.offer(index, "onnxruntime", host_version("onnxruntime"), python="312")
    with pytest.raises(WheelError) as caught:
        gather()
    for words in (f"onnxruntime=={host_version('onnxruntime')}", "Python 3.11", "[runtime] python"):
        assert words in caught.value.sentence()


def test_another_version_of_the_engine_will_not_do(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("onnxruntime*"):
        path.unlink()
    fake_wheels.offer(index, "onnxruntime", "1.99.0")
    with pytest.raises(WheelError, match="host and board compute alike"):
        gather()


def test_no_version_of_a_package_at_all(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("rich*"):
        path.unlink()
    with pytest.raises(WheelError, match=r"no wheel of rich for Python 3\.11 on aarch64 with glibc 2\.36"):
        gather()


def test_a_wheel_for_a_newer_c_library_does_not_count(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("numpy*"):
        path.unlink()
    fake_wheels.wheel(index, "numpy", host_version("numpy"), tag="cp311-cp311-manylinux_2_39_aarch64")
    with pytest.raises(WheelError, match="no wheel of numpy for"):
        gather()


def test_offline_names_everything_that_is_missing(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    with pytest.raises(WheelError) as caught:
        gather(offline=True)
    for words in ("click==", "numpy==", "onnxruntime==", "pip==", "run once without --offline"):
        assert words in caught.value.sentence()
    assert "diskcache" not in caught.value.sentence(), "that is for GGUF alone"


def test_a_wheel_is_not_what_its_index_promises(
    index: Path, gather: Callable[..., Wheelhouse], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = index.parent / "page.html"
    links = [
        f'<a href="{p.as_uri()}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">{p.name}</a>'
        for p in index.iterdir()
    ]
    monkeypatch.setenv("PIP_FIND_LINKS", str(page))
    page.write_text("\n".join(links), encoding="utf8")
    fake_wheels.offer(index, "click", host_version("click"), files={"click/__init__.py": "evil = True\n"})
    with pytest.raises(WheelError, match=r"not the one that its package index promises \(click=="):
        gather()


def test_a_wheel_with_a_path_that_leads_out(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    fake_wheels.offer(index, "click", host_version("click"), extra=[("../../.bashrc", "evil")])
    with pytest.raises(WheelError, match=r"click-.*leads out of its folder, '\.\./\.\./\.bashrc'"):
        gather()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("/etc/cron.d/x", "unsafe name"), ("a\\b", "unsafe name"), ("C:x", "unsafe name"), ("a//b", "leads out"),
        ("a/./b", "leads out"), ("a\x1b[2J", "unsafe name"), ("click/__init__.py", "twice"),
        ("other-1.dist-info/METADATA", "several"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_no_wheel_has(tmp_path: Path, member: str, words: str) -> None:
    path = fake_wheels.wheel(tmp_path, "click", "8.0", extra=[(member, "x")])
    with pytest.raises(WheelError, match=words):
        facts(path)


def test_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "click-8.0-py3-none-any.whl"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(WheelError, match="is not a wheel"):
        facts(path)
    with pytest.raises(WheelError, match="is not a wheel"):
        facts(path.rename(tmp_path / "click.whl"))


def test_a_wheel_of_another_package(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="holds evil 8.0, which is not what its name says"):
        facts(fake_wheels.wheel(tmp_path, "click", "8.0", said_name="evil"))


def test_a_changed_wheel_in_the_cache(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    gather()
    kept = next((cache_dir() / "wheels").rglob("click-*.whl"))
    good = kept.read_bytes()
    kept.write_bytes(good + b"x")
    with pytest.raises(WheelError, match="was changed in the cache"):
        gather(offline=True)
    gather()
    assert kept.read_bytes() == good, "downloaded again"


def test_a_dependency_that_nobody_thought_of(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    fake_wheels.offer(index, "click", host_version("click"), requires=["surprise>=1"])
    with pytest.raises(WheelError, match=r"click .* needs surprise>=1, which edgekit neither ships"):
        gather()


def test_a_version_that_another_package_does_not_want(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    fake_wheels.offer(index, "gguf", host_version("gguf"), requires=["numpy<1.0", "pyyaml"])
    with pytest.raises(WheelError, match=r"gguf needs numpy<1\.0, and .* is the one for the board"):
        gather()


def test_the_index_cannot_be_reached(
    index: Path, gather: Callable[..., Wheelhouse], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("NO_INDEX", "0"), ("INDEX_URL", "http://127.0.0.1:9/simple"), ("RETRIES", "1")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(WheelError, match="cannot be reached"):
        gather()


def test_a_target_that_nothing_is_built_for(gather: Callable[..., Wheelhouse]) -> None:
    with pytest.raises(OptionError, match="--no-runtime"):
        gather(target="host")


def test_gguf_without_a_compiled_runtime(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    with pytest.raises(WheelError, match="was not compiled"):
        gather(("gguf",), native=False)


def test_a_python_that_edgekit_does_not_run_on(index: Path, gather: Callable[..., Wheelhouse], tmp_path: Path) -> None:
    own = tmp_path / "old.toml"
    own.write_text(
        'schema_version = 1\ninherits = "rpi5"\nname = "old"\ntitle = "Old"\ntier = 3\n[runtime]\npython = "3.10"\n',
        encoding="utf8",
    )
    for name in fake_wheels.NATIVE:
        fake_wheels.offer(index, name, host_version(name), python="310")
    with pytest.raises(WheelError, match=r"edgekit .* needs Python >=3\.11, and the board has 3\.10"):
        gather(("gguf",), str(own))


def test_another_llama_cpp_than_the_hosts(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    with pytest.raises(WheelError, match=rf"{RELEASE} runs on this machine and 0\.3\.1 was compiled"):
        gather(("gguf",), release="0.3.1")


# -- what is made


BASE = {
    "edgekit", "click", "gguf", "jinja2", "markupsafe", "msgspec", "numpy", "psutil", "pyyaml", "rich", "tokenizers",
    "pip",
}  # fmt: skip


@pytest.mark.parametrize(
    ("formats", "engines"),
    [
        (("onnx",), {"onnxruntime"}),
        (("gguf",), {"llama-cpp-python", "diskcache", "typing-extensions"}),
        (("gguf", "onnx"), {"onnxruntime", "llama-cpp-python", "diskcache", "typing-extensions"}),
    ],
)
def test_the_closure_is_small_and_named(
    index: Path, gather: Callable[..., Wheelhouse], formats: tuple[Container, ...], engines: set[str]
) -> None:
    made = gather(formats)
    assert {wheel.name for wheel in made.wheels} == BASE | engines
    assert all(wheel.why and wheel.licence and not wheel.mismatch for wheel in made.wheels)
    left_out = {each.name for each in made.excluded}
    assert "huggingface-hub" in left_out
    assert ("protobuf" in left_out) == ("onnx" in formats)
    versions = {wheel.name: wheel.version for wheel in made.wheels}
    assert versions["numpy"] == metadata.version("numpy"), "the host's own"
    assert made.glibc == ("2.30" if formats == ("gguf",) else "2.28") or formats == ("gguf", "onnx")


def test_requirements_pin_and_hash_all_that_is_installed(
    index: Path, gather: Callable[..., Wheelhouse], tmp_path: Path
) -> None:
    made = gather(("gguf", "onnx"))
    lines = (tmp_path / "runtime1" / "requirements.txt").read_text(encoding="utf8").splitlines()
    expected = [f"{w.name}=={w.version} --hash=sha256:{w.sha256}" for w in made.wheels if w.name != "pip"]
    assert lines == expected
    for wheel in made.wheels:
        data = (tmp_path / "runtime1" / "wheels" / wheel.file).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (wheel.sha256, wheel.size)
    assert len(list((tmp_path / "runtime1" / "wheels").iterdir())) == len(made.wheels)


def test_a_second_time_nothing_is_downloaded(index: Path, gather: Callable[..., Wheelhouse], tmp_path: Path) -> None:
    first = gather(("gguf", "onnx"))
    for path in index.iterdir():
        path.unlink()
    assert gather(("gguf", "onnx"), offline=True) == first == gather(("gguf", "onnx"))
    one, two = ((tmp_path / name / "requirements.txt").read_bytes() for name in ("runtime1", "runtime2"))
    assert one == two


def test_the_newest_that_exists_is_taken_and_said(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("rich*"):
        path.unlink()
    for version in ("13.8.0", "14.0.0"):
        fake_wheels.offer(index, "rich", version)
    rich = next(wheel for wheel in gather().wheels if wheel.name == "rich")
    assert (rich.version, rich.mismatch) == ("14.0.0", host_version("rich"))
    again = next(wheel for wheel in gather(offline=True).wheels if wheel.name == "rich")
    assert again == rich


def test_too_old_is_no_substitute(index: Path, gather: Callable[..., Wheelhouse]) -> None:
    for path in index.glob("rich*"):
        path.unlink()
    fake_wheels.offer(index, "rich", "12.0.0")
    with pytest.raises(WheelError, match="no wheel of rich for"):
        gather()


# -- platforms


def test_platforms_follow_from_the_c_library() -> None:
    platform = platform_of(targets.load("rpi5"))
    assert platform.names[0] == "manylinux_2_36_aarch64"
    assert platform.names[-2:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64")
    assert len(platform.names) == 21


@pytest.mark.parametrize(
    ("name", "python", "glibc"),
    [("rpi5", "3.11", "2.36"), ("jetson-orin-nano", "3.11", "2.35"), ("jetson-thor", "3.12", "2.39")],
)
def test_each_board_has_one_python(name: str, python: str, glibc: str) -> None:
    platform = platform_of(targets.load(name))
    assert (platform.python, platform.glibc) == (python, glibc)


def test_a_users_target_chooses_another_python(index: Path, gather: Callable[..., Wheelhouse], tmp_path: Path) -> None:
    own = tmp_path / "trixie.toml"
    own.write_text(
        'schema_version = 1\ninherits = "rpi5"\nname = "trixie"\ntitle = "Raspberry Pi 5, trixie"\ntier = 3\n'
        '[toolchain]\nglibc_max = "2.41"\n[runtime]\npython = "3.13"\n',
        encoding="utf8",
    )
    for name in fake_wheels.NATIVE:
        fake_wheels.offer(index, name, host_version(name), python="313")
    made = gather(target=str(own))
    assert made.platform.python == "3.13"
    assert "cp313" in made.file_of("onnxruntime")


def test_the_floor_of_a_wheel_is_its_oldest_tag(tmp_path: Path) -> None:
    for tag, floor in (
        ("cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64", (2, 17)),
        ("cp311-cp311-manylinux_2_28_aarch64", (2, 28)),
        ("py3-none-any", (0,)),
    ):
        assert glibc_of(facts(fake_wheels.wheel(tmp_path, "numpy", "2.0", tag=tag)).tags) == floor


# -- edgekit's own


def test_edgekits_own_wheel_runs(tmp_path: Path) -> None:
    wheel = own_wheel(tmp_path)
    (tmp_path / "again").mkdir()
    assert own_wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "others.pth").write_text(str(Path(pytest.__file__).parents[1]), encoding="utf8")

    def said(*arguments: str) -> str:
        child = subprocess.run(
            [home / "bin" / "edgekit", *arguments], check=True, capture_output=True, text=True, cwd="/"
        )
        return child.stdout

    assert said("--version").strip() == f"edgekit, version {__version__}"
    assert "jetson-thor" in said("targets")
    place = subprocess.run(
        [python, "-c", "import edgekit; print(edgekit.__file__)"], check=True, capture_output=True, text=True, cwd="/"
    )
    assert place.stdout.startswith(str(home)), "not the checkout"


def test_own_wheel_refuses_stale_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.__version__", "99.0")
    with pytest.raises(WheelError, match="install it again"):
        own_wheel(tmp_path)


def test_reasons_are_given_once() -> None:
    names = [part.name for part in closure.PARTS]
    assert len(set(names)) == len(names)
    assert all(each.asked_by in names and each.name not in names and each.why for each in closure.EXCLUSIONS)


def test_the_documentation_says_what_the_closure_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "runtime-contents.md").read_text(encoding="utf8")
    rows = [f"| {part.name} | {part.why} | {part.form or 'every'} |" for part in closure.PARTS]
    rows += [f"| {each.name} | {each.asked_by} | {each.why} |" for each in closure.EXCLUSIONS]
    assert [row for row in rows if row not in text] == []
    assert text.count("\n| ") == len(rows) + 2 + 4 + 3 + 2
