"""The images, really built and run, and a runtime compiled in one of them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker_engine
import pytest
from docker_engine import Engine
from native_runtime import native

from edgekit import __version__
from edgekit.crossbuild.docker import Docker, local_image
from edgekit.crossbuild.zig import VERSION as ZIG
from edgekit.errors import ToolchainError

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3 * 3600)]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (docker_engine.ROOT / "constraints.txt").read_text("utf8"), re.MULTILINE))
CROSS, RUNNER, BUILDER = (local_image(name) for name in ("cross-arm64", "runner", "builder"))
PROGRAM = """
#include <iostream>
int main() { std::cout << "hello from " << sizeof(void *) * 8 << " bits" << std::endl; }
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if lacking := docker_engine.missing():
        pytest.skip(f"no Docker engine of our own can be started: {lacking}")
    folder = tmp_path_factory.mktemp("docker")
    try:
        with docker_engine.private_engine(folder) as started:
            docker_engine.import_base(started)
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cross(engine: Engine) -> dict[str, Any]:
    return engine.build("cross-arm64", CROSS)


@pytest.fixture(scope="module")
def runner(engine: Engine) -> dict[str, Any]:
    return engine.build("runner", RUNNER)


@pytest.fixture(scope="module")
def builder(engine: Engine) -> dict[str, Any]:
    """Hundreds of MB of packages, and llama-cpp-python is compiled."""
    with docker_engine.torch_index() as index:
        return engine.build("builder", BUILDER, *index)


@pytest.fixture
def own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """edgekit finds this engine and no other."""
    for name, value in engine.environment().items():
        monkeypatch.setenv(name, value)


def well_made(engine: Engine, image: dict[str, Any], tag: str) -> None:
    """What holds for every image."""
    config = image["Config"]
    assert config["User"] == "10001"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["Labels"]["org.opencontainers.image.base.name"] == docker_engine.BASE
    assert engine.inside(tag, "id", "--user").strip() == "10001"
    for emptied in ("/var/lib/apt/lists", "/tmp"):
        assert engine.inside(tag, "find", emptied, "-type", "f") == "", "left behind by the build"
    assert engine.inside(tag, "find", "/var/cache/apt/archives", "-name", "*.deb", check=False) == ""
    assert "/.cache" not in engine.inside(
        tag, "find", "/root", "/home", "-maxdepth", "3", "-name", ".cache", check=False
    )
    assert "/source" not in engine.inside(tag, "find", "/", "-maxdepth", "1")


# --- cross-arm64 -----------------------------------------------------------------------------------------------------


def test_cross_arm64_is_well_made(engine: Engine, cross: dict[str, Any]) -> None:
    well_made(engine, cross, CROSS)


def test_cross_arm64_holds_the_tested_versions(engine: Engine, cross: dict[str, Any]) -> None:
    assert engine.run(CROSS, "zig", "version").strip() == ZIG
    assert f"cmake version {PINS['cmake']}" in engine.run(CROSS, "cmake", "--version")
    assert engine.run(CROSS, "ninja", "--version").startswith(PINS["ninja"].rpartition(".")[0])
    assert "Debian 12" in engine.run(CROSS, "aarch64-linux-gnu-g++", "--version")


def test_gcc_of_cross_arm64_makes_programs_that_run(engine: Engine, cross: dict[str, Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "hello.cpp").write_text(PROGRAM, encoding="utf8")
    engine(
        "run", "--rm", "--network", "none", "-v", f"{tmp_path}:/workspace", CROSS,
        "aarch64-linux-gnu-g++", "-static", "-march=armv8.2-a+dotprod+fp16", "-o", "hello", "hello.cpp",
    )  # fmt: skip
    assert (tmp_path / "hello").read_bytes()[18:20] == b"\xb7\x00", "EM_AARCH64"
    assert (tmp_path / "hello").stat().st_uid == 10001
    if (qemu := shutil.which("qemu-aarch64-static")) is None:
        pytest.skip("the program was compiled and not started: apt install qemu-user-static")
    said = subprocess.run(
        [qemu, "-cpu", "cortex-a76", str(tmp_path / "hello")], capture_output=True, text=True, check=True
    )
    assert said.stdout == "hello from 64 bits\n"


@pytest.mark.usefixtures("own")
def test_the_toolchain_without_its_image(engine: Engine) -> None:
    with pytest.raises(ToolchainError, match="docker has no image nobody/made-this:1"):
        Docker("nobody/made-this:1").version()


@pytest.mark.usefixtures("own")
def test_the_toolchain_with_an_image_that_lacks_zig(engine: Engine) -> None:
    with pytest.raises(ToolchainError, match="cannot start a container of debian|no zig on its PATH"):
        Docker(docker_engine.BASE).version()


@pytest.mark.usefixtures("own")
def test_the_runtime_equals_the_one_made_without_docker(cross: dict[str, Any]) -> None:
    """Every library, tool and licence, byte for byte; compiles llama.cpp twice."""
    inside = native("rpi5", "docker")
    assert inside.record.toolchain_version == f"zig {ZIG} in {CROSS} {cross['Id'].removeprefix('sha256:')[:12]}"
    outside = native("rpi5")
    assert inside.record.seconds is None
    assert inside.record.flags == outside.record.flags
    assert inside.record.files == outside.record.files


@pytest.mark.usefixtures("own", "cross")
def test_a_compile_that_is_stopped_leaves_no_container(engine: Engine, tmp_path: Path) -> None:
    """SIGTERM to edgekit alone, as from a service manager."""
    kept = Path(os.environ.get("EDGEKIT_TEST_RUNTIME_CACHE", os.environ["EDGEKIT_CACHE"]))
    copied = ["cp", "-a", "--reflink=auto", str(kept / "sources"), str(tmp_path / "sources")]
    subprocess.run(copied, check=False)  # otherwise they are downloaded
    command = [sys.executable, "-m", "edgekit", "runtime", "build", "--target", "rpi5", "--toolchain", "docker"]
    environment = {**os.environ, "EDGEKIT_CACHE": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not re.search('"(cmake|ninja) ', engine("ps", "--format", "{{.Command}}").stdout):
            assert process.poll() is None
            time.sleep(0.5)
        process.terminate()
        said = process.communicate(timeout=300)[1]
    assert (process.returncode, "interrupted" in said) == (130, True), said
    assert "edgekit-" not in engine("ps", "--all", "--format", "{{.Names}}").stdout


# --- builder ---------------------------------------------------------------------------------------------------------


def test_builder_is_well_made(engine: Engine, builder: dict[str, Any]) -> None:
    well_made(engine, builder, BUILDER)
    assert builder["Config"]["Entrypoint"] == ["/usr/bin/tini", "--", "edgekit"]


def test_builder_plans_a_bundle_and_has_all_that_a_build_needs(engine: Engine, builder: dict[str, Any]) -> None:
    assert __version__ in engine.run(BUILDER, "--version")
    said = engine.run(BUILDER, "plan", "--target", "rpi5")
    assert "GGUF for rpi5" in said
    needed = "torch", "transformers", "onnx", "onnxruntime", "llama_cpp", "ziglang", "cmake", "ninja", "elftools"
    code = f"import importlib.util as u; print([n for n in {needed} if u.find_spec(n) is None])"
    assert engine.inside(BUILDER, "/opt/edgekit/bin/python", "-c", code).strip() == "[]"
    said = engine.inside(BUILDER, "/opt/edgekit/bin/python", "-c", "import torch; print(torch.version.cuda)")
    assert said.strip() == "None", "the CPU build"


def test_builder_builds_a_bundle(engine: Engine, builder: dict[str, Any], tmp_path: Path) -> None:
    """As docs/docker.md has it, from the demo model in the image, without a network."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist").chmod(0o777)
    engine(
        "run", "--rm", "--network", "none", "-v", "edgekit-cache:/cache", "-v", f"{tmp_path}/dist:/workspace/dist",
        BUILDER, "build", "--target", "rpi5", "--format", "gguf", "--no-runtime", "-o", "dist",
    )  # fmt: skip
    (bundle,) = (tmp_path / "dist").iterdir()
    assert {"manifest.json", "target.toml"} <= {path.name for path in bundle.iterdir()}
    said = engine(
        "run", "--rm", "--network", "none", "-v", f"{tmp_path}/dist:/workspace/dist:ro", BUILDER, "run",
        f"dist/{bundle.name}", "What is a Raspberry Pi?", "--max-tokens", "8",
    )  # fmt: skip
    assert said.stdout.strip()


# --- runner ----------------------------------------------------------------------------------------------------------


def test_runner_is_well_made(engine: Engine, runner: dict[str, Any]) -> None:
    well_made(engine, runner, RUNNER)
    assert not runner["Config"].get("Entrypoint"), "CI systems start a shell of their own"
    assert engine.run(RUNNER, "stat", "-c", "%a %U", "/home/runner/.ssh").split() == ["700", "runner"]
    assert engine.run(RUNNER, "find", "/home/runner/.ssh", "/etc/ssh", "-name", "*key*") == "", "no keys"


def test_runner_has_edgekit_ssh_and_git(engine: Engine, runner: dict[str, Any]) -> None:
    assert __version__ in engine.run(RUNNER, "edgekit", "--version")
    assert "Raspberry Pi 5" in engine.run(RUNNER, "edgekit", "targets", "show", "rpi5")
    assert engine("run", "--rm", RUNNER, "ssh", "-V").stderr.startswith("OpenSSH_")
    assert engine.run(RUNNER, "git", "--version").startswith("git version")


def test_runner_is_without_the_host_side(engine: Engine, runner: dict[str, Any]) -> None:
    heavy = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnx', 'pip') if u.find_spec(n)])"
    assert engine.run(RUNNER, "/opt/edgekit/bin/python", "-c", heavy).strip() == "[]"
    assert runner["Size"] < 500_000_000


@pytest.fixture
def board(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """An ssh server on loopback in place of a board: its port, and a .ssh folder as docs/docker.md has it made."""
    if (sshd := shutil.which("sshd", path="/usr/sbin:/usr/bin")) is None:
        pytest.skip("no board was reached: apt install openssh-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for key in (tmp_path / "host", folder / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = (tmp_path / "host.pub").read_text(encoding="utf8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}", encoding="utf8")
    (folder / "id_ed25519.pub").rename(tmp_path / "authorized")
    for path in (folder, *folder.iterdir()):
        os.chown(path, 10001, 10001)
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "authorized", "StrictModes": "no", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    command = [sshd, "-D", "-f", os.devnull, *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port, folder
    finally:
        server.terminate()
        server.wait()


def test_runner_reaches_a_board(engine: Engine, runner: dict[str, Any], board: tuple[int, Path]) -> None:
    port, folder = board
    said = engine(
        "run", "--rm", "--network", "host", "-v", f"{folder}:/home/runner/.ssh:ro", RUNNER,
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectionAttempts=20", "-p", str(port), "root@127.0.0.1", "uname", "-s",
    )  # fmt: skip
    assert said.stdout == "Linux\n"
