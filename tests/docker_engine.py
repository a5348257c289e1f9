"""A Docker engine of the tests' own: Debian's, on a socket and folders of its own, without bridge or firewall rules.

Where no registry is asked, the base image is made by mmdebstrap and imported under the name that the Dockerfiles use.
It takes root, dockerd (Debian's docker.io) and mmdebstrap; :func:`missing` says what of that is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

ROOT = Path(__file__).parents[1]
BASE = "debian:bookworm-slim"
_TRUST = Path("/usr/local/share/ca-certificates")
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP = Path("/etc/pip.conf")


def missing() -> str:
    """What an engine of our own lacks here; empty when nothing."""
    if os.geteuid() != 0:
        return "root"
    absent = [tool for tool in ("dockerd", "containerd", "mmdebstrap") if shutil.which(tool) is None]
    return f"{' and '.join(absent)} (apt install docker.io mmdebstrap)" if absent else ""


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    host: str
    """Value of DOCKER_HOST."""
    client: str

    def environment(self) -> dict[str, str]:
        """For a process that shall find this engine and no other, and that client first."""
        path = os.pathsep.join([str(Path(self.client).parent), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", "PATH": path}

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker ARGUMENTS…`; what it said is in the error when it fails."""
        command = [self.client, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment())
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def build(self, name: str, tag: str, *options: str) -> dict[str, Any]:
        """`docker build` of docker/`name`/Dockerfile as docs/docker.md has it; what `docker image inspect` says."""
        self("build", "--network=host", *options, "-t", tag, "-f", f"{ROOT}/docker/{name}/Dockerfile", str(ROOT))
        inspected: list[dict[str, Any]] = json.loads(self("image", "inspect", tag).stdout)
        return inspected[0]

    def run(self, image: str, *command: str, check: bool = True) -> str:
        """Standard output of a command in a container that has no network."""
        return self("run", "--rm", "--network", "none", image, *command, check=check).stdout

    def inside(self, image: str, program: str, *arguments: str, check: bool = True) -> str:
        """As :meth:`run`, whatever the image's entry point is."""
        return self("run", "--rm", "--network=none", f"--entrypoint={program}", image, *arguments, check=check).stdout


@contextmanager
def private_engine(folder: Path) -> Iterator[Engine]:
    """Start an engine that keeps everything below `folder`; it and all that it started is stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    # A socket's path has about 100 bytes, less than a test's folder may take.
    socket = Path("/run") / f"edgekit-docker-{os.getpid()}.sock"
    command = [
        "dockerd", "--host", f"unix://{socket}", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
        "--pidfile", f"{folder}/dockerd.pid", "--iptables=false", "--bridge=none", "--oom-score-adjust=0",
    ]  # fmt: skip
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        found = Engine(f"unix://{socket}", _client())
        _await(found, daemon, folder / "dockerd.log")
        yield found
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(180)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        socket.unlink(missing_ok=True)
        _unmount(folder)


def _unmount(folder: Path) -> None:
    """Whatever an engine that was killed left mounted below its own folder, or nobody could remove that."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf8").splitlines()]
    for place in reversed(mounts):
        if Path(place).is_relative_to(folder.resolve()):
            subprocess.run(["umount", "--lazy", place], check=False)


def _client() -> str:
    """Debian's client, which has BuildKit without a plugin; any other where that is not installed."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker") or "docker"


def _await(engine: Engine, daemon: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while engine("version", check=False).returncode:
        said = log.read_text(errors="replace")[-2000:]
        assert daemon.poll() is None, f"dockerd ended\n{said}"
        assert time.monotonic() < end, f"dockerd does not answer\n{said}"
        time.sleep(0.2)


def import_base(engine: Engine, name: str = BASE) -> None:
    """Make a minimal Debian 12 like the official slim image and import it as `name`.

    It trusts what this machine trusts and has its pip.conf: behind a proxy with a certificate of its own, builds reach
    the package servers only with those. The Dockerfiles know nothing of it.
    """
    if engine("image", "inspect", name, check=False).returncode == 0:
        return
    command = [
        "mmdebstrap", "--variant=minbase", "--quiet",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        # As in the official image: packages are not kept after they are installed.
        """--customize-hook=echo 'APT::Keep-Downloaded-Packages "false";' > "$1/etc/apt/apt.conf.d/docker-clean\"""",
        *_trust(), "bookworm",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/base.tar"
        subprocess.run([*command, archive], check=True)
        engine("import", "--change", 'CMD ["bash"]', archive, name)


@contextmanager
def torch_index() -> Iterator[list[str]]:
    """Options of `docker build` that name an index with the CPU build of torch.

    Where PIP_FIND_LINKS, a folder, has that wheel, it is served on loopback, and what it needs comes from PyPI;
    elsewhere the Dockerfile's own index is asked.
    """
    folder = os.environ.get("PIP_FIND_LINKS", "")
    wheels = sorted(Path(folder).glob("torch-*+cpu-*.whl")) if folder.startswith("/") else []
    if not wheels:
        yield []
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, wheels)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield ["--build-arg", f"TORCH_INDEX=http://127.0.0.1:{server.server_port}"]
        finally:
            server.shutdown()


class _Index(BaseHTTPRequestHandler):
    """A package index of a few wheels; the rest is PyPI's."""

    def __init__(self, wheels: list[Path], *more: Any) -> None:
        self.wheels = {wheel.name: wheel for wheel in wheels}
        super().__init__(*more)

    def do_GET(self) -> None:
        name = unquote(self.path.strip("/"))
        if name == "torch":
            page = "".join(f'<a href="/{quote(wheel)}">{wheel}</a>' for wheel in self.wheels).encode()
            self._answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))})
            self.wfile.write(page)
        elif name in self.wheels:
            self._answer(200, {"Content-Length": str(self.wheels[name].stat().st_size)})
            with self.wheels[name].open("rb") as stream:
                shutil.copyfileobj(stream, self.wfile)
        else:
            self._answer(302, {"Location": f"https://pypi.org/simple/{name}/", "Content-Length": "0"})

    def _answer(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        return


def _trust() -> list[str]:
    """mmdebstrap's options that copy this machine's certificates and pip.conf."""
    own = sorted(_TRUST.glob("*.crt")) if _TRUST.is_dir() else []
    copies = [(path, _TRUST) for path in own] + [(_PIP, _PIP.parent)] * _PIP.is_file()
    if own and _BUNDLE.is_file():
        copies.append((_BUNDLE, _BUNDLE.parent))
    folders = sorted({str(place) for _, place in copies})
    made = [f'--customize-hook=mkdir -p "$1{folder}"' for folder in folders]
    return made + [f"--customize-hook=copy-in {path} {place}" for path, place in copies]
