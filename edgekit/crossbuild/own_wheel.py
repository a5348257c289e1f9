"""edgekit's own wheel, made of the files that are running: from a checkout as well as from an installed wheel."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import edgekit
from edgekit.crossbuild.wheel_files import Member, wheel_text, write
from edgekit.errors import WheelError

_TAG = "py3-none-any"
_SKIPPED = ("__pycache__", ".pyc", ".pyo")


def own_wheel(folder: Path) -> Path:
    """Write edgekit's wheel into `folder`; the same files give the same bytes.

    Raises:
        WheelError: the installed metadata are of another version than the code, as after an update of a checkout.
    """
    package = Path(edgekit.__file__).resolve().parent
    distribution = metadata.distribution("edgekit")
    if distribution.version != edgekit.__version__:
        raise WheelError(
            f"edgekit {edgekit.__version__} is installed with the metadata of {distribution.version}",
            expected="one version",
            remedy="install it again: pip install -e .",
        )
    info = f"edgekit-{edgekit.__version__}.dist-info"
    members = {name: Member(path.read_bytes()) for name, path in _files(package)}
    members |= {f"{info}/{name}": Member(text.encode()) for name, text in _described(distribution)}
    members[f"{info}/WHEEL"] = Member(wheel_text(_TAG, pure=True))
    return write(folder / f"edgekit-{edgekit.__version__}-{_TAG}.whl", members)


def _files(package: Path) -> Iterator[tuple[str, Path]]:
    """Path in the wheel and on disk of every file of the package, and of what a checkout keeps beside it."""
    for path in sorted(package.rglob("*")):
        if path.is_file() and not any(path.match(f"*{ending}") or ending in path.parts for ending in _SKIPPED):
            yield f"edgekit/{path.relative_to(package).as_posix()}", path
    if not (package / "_targets").is_dir():  # pyproject.toml puts these there when a wheel is built
        for path in sorted((package.parent / "targets").glob("*.toml")):
            yield f"edgekit/_targets/{path.name}", path
        yield "edgekit/constraints.txt", package.parent / "constraints.txt"


def _described(distribution: metadata.Distribution) -> Iterator[tuple[str, str]]:
    for name in ("METADATA", "entry_points.txt"):
        if (text := distribution.read_text(name)) is None:
            raise WheelError(f"edgekit is installed without its {name}", remedy="install it again with pip")
        yield name, text
    if (licence := distribution.read_text("licenses/LICENSE")) is not None:
        yield "licenses/LICENSE", licence
