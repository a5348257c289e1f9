"""The zig toolchain in a container, for hosts that have Docker and shall have no compilers.

The image (docker/cross-arm64) holds the same versions of zig, cmake and ninja, folders have the same names inside and
outside, and the flags are the same: the files that come out are equal to those of `--toolchain zig`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__, cache
from edgekit.crossbuild import zig
from edgekit.crossbuild.model import Cpu, Setup
from edgekit.crossbuild.places import write
from edgekit.errors import MissingDependencyError, ToolchainError
from edgekit.files import cache_dir
from edgekit.targets import Target

CLIENT = "docker"
RECIPE = "cross-arm64"
_NOT_STARTED = 125
"""Exit code of `docker run` when the engine could not start the container."""
_TIMEOUT = 120.0
"""Seconds for an answer of the engine."""
_LAST_WORDS = 300


def local_image(recipe: str) -> str:
    """Name under which `docker buildx bake RECIPE` of this release puts an image."""
    return f"edgekit/{recipe}:{__version__}"


@dataclass(frozen=True)
class Docker:
    """See :class:`edgekit.crossbuild.model.Toolchain`."""

    image: str = local_image(RECIPE)
    """Has zig, cmake and ninja on its PATH."""
    name: str = "docker"

    def of(self, target: Target) -> Docker:
        """With the image that the target file pins, where it does."""
        pinned = target.toolchain.image if target.toolchain else None
        return Docker(pinned) if pinned else self

    def version(self) -> str:
        """See Toolchain.version; names the image, and its content by the first digits of its ID."""
        identity = present(self.image, how_to_make(RECIPE))
        said = ask(Container(self.image).command(["zig", "version"]), self.image)
        found = said.stdout.strip()
        if said.returncode or found != zig.VERSION:
            raise ToolchainError(
                f"the image {self.image} has {f'zig {found}' if found else 'no zig on its PATH'}",
                expected=f"zig {zig.VERSION}",
                remedy=how_to_make(RECIPE),
            )
        return f"zig {found} in {self.image} {identity[:12]}"

    def setup(self, cpu: Cpu, folder: Path) -> Setup:
        """See Toolchain.setup; the build tree is expected beside `folder`, sources where the cache keeps them."""
        folder, place = folder.absolute(), cache_place().absolute()
        place.mkdir(parents=True, exist_ok=True)
        container = compiling(self.image, folder, place, environment=zig.variables(place))
        zig.check(cpu, lambda arguments: ask(container.command(["zig", *arguments]), self.image))
        toolchain = zig.write_wrappers(cpu, folder, "zig")
        return Setup(
            definitions=(f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",),
            command=container.command,
            local=False,
            end=lambda: ended(container.name),
            flags=zig.flags(cpu),
            caches=(place,),
            licences=_licences(container, folder),
            first_use=zig.FIRST_USE,
        )


@dataclass(frozen=True)
class Container:
    """How a command is run in an image: without network, as this user, with a few folders of this machine."""

    image: str
    name: str = ""
    """So that one that outlived its client is found; empty: any."""
    user: str = ""
    """`UID:GID`; empty: the image's."""
    reads: tuple[Path, ...] = ()
    """Folders that it sees under their own names, read-only."""
    writes: tuple[Path, ...] = ()
    """Folders that it sees under their own names."""
    environment: Mapping[str, str] | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """`docker run … IMAGE COMMAND…`; ends with the command's exit code, or with 125 when docker failed itself."""
        environment = {"HOME": "/tmp", **(self.environment or {})}  # noqa: S108  # the container's own
        options = [
            # --init passes on signals: without it, the first process of a container takes no notice of SIGTERM.
            CLIENT, "run", "--rm", "--init", "--pull=never", "--network=none", "--security-opt=no-new-privileges",
            "--security-opt=label=disable",  # SELinux would forbid the folders
            *([f"--name={self.name}"] if self.name else []), *([f"--user={self.user}"] if self.user else []),
            *(f"--mount={_mount(folder, readonly=True)}" for folder in self.reads),
            *(f"--mount={_mount(folder, readonly=False)}" for folder in self.writes),
            *(f"--env={name}={value}" for name, value in environment.items()),
            "--env=NINJA_STATUS",  # the value is the client's
            *([f"--workdir={self.writes[0]}"] if self.writes else []),
        ]  # fmt: skip
        return [*options, self.image, *command]


def compiling(image: str, folder: Path, *caches: Path, environment: Mapping[str, str] | None = None) -> Container:
    """The container of a compile whose toolchain is in `folder`; one that outlived its client is ended first.

    It sees the sources, read-only, the folder around `folder`, and `caches`.
    """
    sources = cache_dir().absolute() / cache.SOURCES
    sources.mkdir(parents=True, exist_ok=True)
    name = f"edgekit-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    ended(name)
    return Container(image, name, _user(), (sources,), (folder.parent, *caches), environment)


def present(image: str, remedy: str) -> str:
    """ID of a local image, 64 hexadecimal digits; the network is not asked.

    Raises:
        MissingDependencyError: there is no docker command.
        ToolchainError: its engine does not answer, or has no such image; `remedy` says how to get it.
    """
    _require_engine()
    said = ask([CLIENT, "image", "inspect", "--format", "{{.Id}}", image], image)
    if said.returncode:
        pinned = "@sha256:" in image
        raise ToolchainError(
            f"docker has no image {image}", remedy=f"get it: docker pull {image}" if pinned else remedy
        )
    return said.stdout.strip().removeprefix("sha256:")


def how_to_make(recipe: str) -> str:
    """The remedy for an image that is not there."""
    return f"make it once, in a checkout of edgekit: docker buildx bake {recipe} (see docs/docker.md)"


def cache_place() -> Path:
    """Where the image's zig keeps its libc++; not that of this machine's zig, which may be in use at the same time."""
    return cache_dir() / cache.COMPILERS / f"{zig.VERSION}-docker"


def _require_engine() -> None:
    if shutil.which(CLIENT) is None:
        raise MissingDependencyError(
            "the docker command is needed, and not installed here",
            remedy="apt install docker.io, or take --toolchain zig without --accel",
        )
    said = ask([CLIENT, "version", "--format", "{{.Server.Version}}"], "")
    if said.returncode == 0:
        return
    words = _last_words(said.stderr)
    if "permission denied" in words:
        raise ToolchainError(
            f"docker's engine is there, but this user may not use it ({words})",
            remedy="join its group (sudo usermod -aG docker $USER, then log in again), or take --toolchain zig",
        )
    raise ToolchainError(
        f"docker's client is there, but its engine is not running ({words})",
        remedy="start it (sudo systemctl start docker), or take --toolchain zig",
    )


def _user() -> str:
    """What this user is called inside, so that files get the right owner; a rootless engine's root is this user."""
    said = ask([CLIENT, "info", "--format", "{{json .SecurityOptions}}"], "")
    try:
        options = json.loads(said.stdout) or []
    except json.JSONDecodeError:
        options = []
    rootless = any("rootless" in str(option) for option in options)
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def ask(command: Sequence[str], image: str) -> subprocess.CompletedProcess[str]:
    """Run a command of seconds.

    Raises:
        ToolchainError: the engine gives no answer, or cannot start the container at all.
    """
    try:
        said = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(
            f"{' '.join(command[:2])} gives no answer ({error})", remedy="see what the engine's log says"
        ) from error
    if said.returncode == _NOT_STARTED:
        raise ToolchainError(
            f"docker cannot start a container of {image} ({_last_words(said.stderr)})",
            expected="an engine on this very machine, which sees its folders",
            remedy="see what the engine's log says, or take --toolchain zig",
        )
    return said


def _last_words(text: str) -> str:
    # After an error of its own docker recommends its help.
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help" not in line]
    return (lines or ["it said nothing"])[-1].rstrip(".")[-_LAST_WORDS:]


def _mount(folder: Path, *, readonly: bool) -> str:
    """Value of --mount, which is a line of CSV: a path may hold commas. A folder that is missing is not made."""
    line = io.StringIO()
    fields = ["type=bind", f"source={folder}", f"target={folder}", *(["readonly"] if readonly else [])]
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def ended(name: str) -> None:
    """End a container whose client has gone; the caller holds the lock, so nobody waits for it."""
    with suppress(ToolchainError):  # an engine that does not answer: the next run tries again
        ask([CLIENT, "rm", "--force", name], "")


def _licences(container: Container, folder: Path) -> dict[str, Path]:
    """Copies of the licences of what zig links into the result, below `folder`."""
    said = ask(container.command(["zig", "env"]), container.image).stdout
    lib = next((line.split('"')[1] for line in said.splitlines() if ".lib_dir = " in line), "")
    place = folder / "licences"
    place.mkdir(exist_ok=True)
    found = {}
    for name, path in zig.LICENCES.items():
        text = ask(container.command(["cat", str(Path(lib).parent / path)]), container.image)
        if text.returncode == 0:
            found[name] = write(place / name, text.stdout)
    return found
