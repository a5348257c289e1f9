"""--toolchain docker and --accel cuda against a docker command that only plays its part."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import msgspec
import pytest

from edgekit import targets
from edgekit.crossbuild import cuda, docker, zig
from edgekit.crossbuild.docker import Container, Docker
from edgekit.crossbuild.model import Cpu, cpu_of
from edgekit.crossbuild.toolchains import chosen
from edgekit.errors import EdgekitError, MissingDependencyError, OptionError, ToolchainError
from edgekit.targets import Target

ID = "0123456789ab" + "c" * 52
PINNED = "registry.example/cross@sha256:" + "d" * 64
WORKS = {
    "version": "echo 28.0.0",
    "image": f"echo sha256:{ID}",
    "info": "echo '[\"name=seccomp\"]'",
    "rm": "echo 'Error: No such container' >&2; exit 1",
    "zig version": f"echo {zig.VERSION}",
    "zig cc": "echo '#define __ARM_FEATURE_CRC32 1'",
    "zig env": """printf '.{\\n    .lib_dir = "/opt/zig/lib",\\n}\\n'""",
    "cat": 'echo "licence $last"',
    "nvcc --version": "exit 127",
    "gcc -dumpfullversion": "exit 127",
    "getconf GNU_LIBC_VERSION": "exit 127",
}
"""What a docker whose engine runs and has the image does, by verb or by the command in the container."""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker command that works; returns the folder where :func:`let` changes what it does and `log` is written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    cases = "\n".join(f'  *" {name} "*) . "{folder}/{name}" ;;' for name in sorted(WORKS, key=len, reverse=True))
    (folder / "docker").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{folder}/log"\nfor last; do :; done\ncase " $* " in\n{cases}\nesac\n'
    )
    (folder / "docker").chmod(0o755)
    for name, text in WORKS.items():
        let(folder, name, text)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return folder


def let(play: Path, name: str, text: str) -> None:
    (play / name).write_text(f"{text}\n")


@pytest.fixture
def rpi4() -> Cpu:
    return cpu_of(targets.load("rpi4"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache" / "compiles" / "a, b" / "toolchain"
    made.mkdir(parents=True)
    return made


def sentence(error: EdgekitError, *words: str) -> None:
    text = error.sentence()
    assert "\n" not in text
    for word in words:
        assert word in text, text


# --- what may be missing ---------------------------------------------------------------------------------------------


def test_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError) as refused:
        Docker().version()
    sentence(refused.value, "docker command", "not installed", "--toolchain zig")


def test_client_without_engine(play: Path) -> None:
    said = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    let(play, "version", f'echo "{said}" >&2; exit 1')
    with pytest.raises(ToolchainError) as refused:
        Docker().version()
    sentence(refused.value, "docker's client is there, but its engine is not running", said, "systemctl start docker")


def test_an_engine_that_this_user_may_not_use(play: Path) -> None:
    let(play, "version", "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1")
    with pytest.raises(ToolchainError) as refused:
        Docker().version()
    sentence(refused.value, "this user may not use it", "docker $USER")


def test_no_image(play: Path) -> None:
    let(play, "image", "echo 'Error: No such image' >&2; exit 1")
    with pytest.raises(ToolchainError) as refused:
        Docker().version()
    sentence(refused.value, f"no image {docker.local_image('cross-arm64')}", "docker buildx bake cross-arm64")
    with pytest.raises(ToolchainError) as refused:
        Docker(PINNED).version()
    sentence(refused.value, PINNED, f"docker pull {PINNED}")


def test_an_image_without_zig(play: Path) -> None:
    let(play, "zig version", 'echo "exec: zig: executable file not found" >&2; exit 127')
    with pytest.raises(ToolchainError) as refused:
        Docker().version()
    sentence(refused.value, "has no zig on its PATH", zig.VERSION)


def test_an_image_with_another_zig(play: Path) -> None:
    let(play, "zig version", "echo 0.13.0")
    with pytest.raises(ToolchainError) as refused:
        Docker().version()
    sentence(refused.value, "has zig 0.13.0", f"expected zig {zig.VERSION}")


def test_a_container_that_does_not_start(play: Path, rpi4: Cpu, folder: Path) -> None:
    """As with an engine on another machine, which sees none of our folders."""
    said = "docker: Error response from daemon: bind source path does not exist: /x.\nSee 'docker run --help'."
    let(play, "zig cc", f'echo "{said}" >&2; exit 125')
    with pytest.raises(ToolchainError) as refused:
        Docker().setup(rpi4, folder)
    sentence(refused.value, "cannot start a container", "bind source path does not exist", "on this very machine")
    assert "--help" not in refused.value.sentence()


def test_a_compiler_that_would_use_what_the_board_lacks(play: Path, rpi4: Cpu, folder: Path) -> None:
    let(play, "zig cc", "echo '#define __ARM_FEATURE_CRC32 1'; echo '#define __ARM_FEATURE_AES 1'")
    with pytest.raises(ToolchainError, match="zig would use aes for cortex-a72"):
        Docker().setup(rpi4, folder)


# --- what is run -----------------------------------------------------------------------------------------------------


def test_the_version_tells_the_image(play: Path) -> None:
    assert Docker().version() == f"zig {zig.VERSION} in {docker.local_image('cross-arm64')} {ID[:12]}"


def options(command: list[str]) -> dict[str, list[str]]:
    """Name → values of the options of `docker run`."""
    found: dict[str, list[str]] = {}
    for option in command[2:]:
        if not option.startswith("--"):
            break
        name, _, value = option.partition("=")
        found.setdefault(name, []).append(value)
    return found


def mounts(command: list[str]) -> dict[str, bool]:
    """Folder → whether it is read-only; all are mounted under their own names."""
    found = {}
    for line in options(command)["--mount"]:
        (fields,) = csv.reader([line])
        keys = dict(field.partition("=")[::2] for field in fields)
        assert keys["type"] == "bind"
        assert keys["source"] == keys["target"]
        found[keys["source"]] = "readonly" in keys
    return found


def test_cmake_is_wrapped(play: Path, rpi4: Cpu, folder: Path, tmp_path: Path) -> None:
    """The folder's name holds a comma and a space, which docker's own syntax would stumble over."""
    setup = Docker().setup(rpi4, folder)
    wrapped = setup.command(["cmake", "-S", "a b", "-B", str(folder.parent / "tree")])
    assert wrapped[:2] == ["docker", "run"]
    assert wrapped[-6:] == [Docker().image, "cmake", "-S", "a b", "-B", str(folder.parent / "tree")]
    given = options(wrapped)
    assert given["--network"] == ["none"]
    assert given["--pull"] == ["never"]
    assert given["--user"] == [f"{os.getuid()}:{os.getgid()}"]
    assert {"--rm", "--init"} <= given.keys()
    cache = tmp_path / "cache"
    assert mounts(wrapped) == {
        str(cache / "sources"): True, str(folder.parent): False, str(cache / "zig" / f"{zig.VERSION}-docker"): False,
    }  # fmt: skip
    assert all(Path(place).is_dir() for place in mounts(wrapped)), "a folder that docker would make is root's"
    assert set(setup.caches) == {cache / "zig" / f"{zig.VERSION}-docker"}


def test_a_rootless_engine(play: Path, rpi4: Cpu, folder: Path) -> None:
    """Its root is this user, and this user's number is somebody else there."""
    let(play, "info", 'echo \'["name=seccomp,profile=default","name=rootless"]\'')
    assert options(Docker().setup(rpi4, folder).command(["cmake"]))["--user"] == ["0:0"]


def test_what_outlived_its_client_is_ended(play: Path, rpi4: Cpu, folder: Path) -> None:
    (name,) = options(Docker().setup(rpi4, folder).command(["ninja"]))["--name"]
    assert f"rm --force {name}" in (play / "log").read_text().splitlines()
    other = folder.parent.parent / "other" / "toolchain"
    other.mkdir(parents=True)
    assert options(Docker().setup(rpi4, other).command(["ninja"]))["--name"] != [name]


def test_a_compile_that_is_stopped_ends_its_container(play: Path, rpi4: Cpu, folder: Path) -> None:
    setup = Docker().setup(rpi4, folder)
    (name,) = options(setup.command(["ninja"]))["--name"]
    (play / "log").unlink()
    setup.end()
    assert (play / "log").read_text().splitlines() == [f"rm --force {name}"]
    let(play, "rm", "exit 125")
    setup.end()  # an engine that is gone has no containers, and must not hide why the compile was stopped
    assert not setup.local, "cmake and ninja are the image's"


def test_flags_and_wrappers_are_those_of_zig(play: Path, rpi4: Cpu, folder: Path) -> None:
    setup = Docker().setup(rpi4, folder)
    assert setup.flags == zig.flags(rpi4)
    (definition,) = setup.definitions
    file = Path(definition.partition("=")[2])
    assert f'set(CMAKE_CXX_COMPILER "{folder}/c++")' in file.read_text()
    script = (folder / "c++").read_text()
    assert script.startswith("#!/bin/sh\nexec zig c++ -target aarch64-linux-gnu.2.31 -mcpu=cortex_a72")
    assert not setup.environment, "of the client; the container has its own"
    assert {name: path.read_text() for name, path in setup.licences.items()} == {
        name: f"licence /opt/zig/{path}\n" for name, path in zig.LICENCES.items()
    }


def test_what_stays_the_same_is_not_written_again(play: Path, rpi4: Cpu, folder: Path) -> None:
    """A new time of modification would compile everything again."""
    Docker().setup(rpi4, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    Docker().setup(rpi4, folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_command_without_folders() -> None:
    assert Container("image:1").command(["zig", "version"])[-3:] == ["image:1", "zig", "version"]
    assert "--mount" not in options(Container("image:1").command(["zig"]))


def test_the_target_may_pin_an_image() -> None:
    rpi5 = targets.load("rpi5")
    assert chosen("docker", rpi5) == Docker(docker.local_image("cross-arm64"))
    assert rpi5.toolchain is not None
    pinned = msgspec.structs.replace(rpi5, toolchain=msgspec.structs.replace(rpi5.toolchain, image=PINNED))
    assert chosen("docker", pinned) == Docker(PINNED)
    assert chosen("zig", pinned).name == "zig"
    assert chosen("docker", targets.load("host")) == Docker(), "cpu_of tells what is wrong with it"
    with pytest.raises(OptionError, match="zig, gcc, docker"):
        chosen("clang", rpi5)


# --- CUDA ------------------------------------------------------------------------------------------------------------


def graphics(arch: str) -> Target:
    orin = targets.load("jetson-orin-nano")
    return msgspec.structs.replace(orin, accelerator=msgspec.structs.replace(orin.accelerator, arch=arch))


def test_cuda_for_a_board_without_it() -> None:
    with pytest.raises(OptionError, match="rpi5 has no CUDA accelerator"):
        cuda.definitions(targets.load("rpi5"))


@pytest.mark.parametrize("arch", ["", "87", "sm_", "sm_87;120", "sm_870", "sm_53"])
def test_cuda_for_an_unknown_gpu(arch: str) -> None:
    with pytest.raises(ToolchainError, match="sm_87 or sm_110"):
        cuda.definitions(graphics(arch))


def test_cuda_without_its_image(play: Path) -> None:
    let(play, "image", "exit 1")
    with pytest.raises(ToolchainError) as refused:
        chosen("zig", targets.load("jetson-orin-nano"), "cuda").version()
    sentence(
        refused.value,
        f"no image {docker.local_image('cross-jetson')}",
        "docker buildx bake cross-jetson",
        "uses the CPU",
    )


def test_cuda_with_its_image(play: Path) -> None:
    orin, thor = targets.load("jetson-orin-nano"), targets.load("jetson-thor")
    let(play, "nvcc --version", "echo 'Cuda compilation tools, release 12.6, V12.6.68'")
    let(play, "gcc -dumpfullversion", "echo 11.4.0")
    let(play, "getconf GNU_LIBC_VERSION", "echo glibc 2.35")
    name = docker.local_image("cross-jetson")
    said = chosen("zig", orin, "cuda").version()
    assert said == f"nvcc 12.6 and gcc 11.4.0 (glibc 2.35) in {name} {ID[:12]}"
    assert cuda.definitions(orin) == ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=87")
    assert cuda.definitions(thor) == ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=110")
    assert cuda.image(thor) == docker.local_image("cross-jetson-thor")
    words = (play / "log").read_text().split()
    assert "pull" not in words
    assert words.count("run") == words.count("--pull=never")


def test_every_jetson_has_an_image() -> None:
    jetsons = [name for name in targets.names() if name.startswith("jetson")]
    assert jetsons
    for name in jetsons:
        cuda.image(targets.load(name))
