#!/usr/bin/env python3
"""Print the base images of docker-bake.hcl pinned by digest, for the environment of `docker buildx bake`.

    pins=$(docker/resolve-digests.py) && env $pins docker buildx bake cross-arm64

Asks the registries through `docker buildx imagetools` or skopeo. Writes no file: what is printed was pulled by nobody.
Exit code 1 and one sentence when a registry does not answer; nothing is printed then.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

BAKE = Path(__file__).resolve().parents[1] / "docker-bake.hcl"
_VARIABLE = re.compile(r'^variable "(\w+_IMAGE)" \{\s*default = "([^"@]+:[^"@]+)"\s*\}$', re.MULTILINE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMEOUT = 120.0
"""Seconds for one answer of a registry."""


class Refused(Exception):  # noqa: N818 it is shown, never caught as an error of ours
    """One sentence for the user."""


def base_images(bake: str) -> dict[str, str]:
    """Variable → `name:tag` of each base image in the text of a bake file."""
    return dict(_VARIABLE.findall(bake))


def digest(image: str) -> str:
    """`sha256:…` of the manifest (the list of platforms, where there is one) that a tag points to now.

    Raises:
        Refused: there is no tool to ask with, or the registry does not answer.
    """
    if shutil.which("docker") and _run(["docker", "buildx", "version"]).returncode == 0:
        asked = _run(["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image])
        found = asked.stdout.decode(errors="replace").strip()
    elif shutil.which("skopeo"):
        asked = _run(["skopeo", "inspect", "--raw", f"docker://{image}"])
        found = f"sha256:{hashlib.sha256(asked.stdout).hexdigest()}"
    else:
        raise Refused("neither docker buildx nor skopeo is installed; install one: apt install skopeo")
    if asked.returncode or not _DIGEST.fullmatch(found):
        said = asked.stderr.decode(errors="replace").strip().splitlines() or ["it gave no digest"]
        raise Refused(f"the registry of {image} does not answer ({said[-1]}); no digest was resolved")
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, b"", f"no answer within {_TIMEOUT:g} s".encode())


def main() -> int:
    """Print `VARIABLE=name:tag@sha256:…` for each base image; all of them or none."""
    try:
        lines = [f"{name}={image}@{digest(image)}" for name, image in base_images(BAKE.read_text("utf8")).items()]
    except Refused as refusal:
        sys.stderr.write(f"resolve-digests: {refusal}.\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
