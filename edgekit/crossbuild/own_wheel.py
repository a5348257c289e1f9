"""edgekit's own wheel, made of the files that are running: from a checkout as well as from an installed wheel."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import edgekit
from edgekit.crossbuild.llama_wheel import platform_tag
from edgekit.crossbuild.operators import LICENCES
from edgekit.crossbuild.wheel_files import Member, wheel_text, write
from edgekit.errors import WheelError
from edgekit.threebit.library import LIBRARY, packaged

_TAG = "py3-none-any"
_SKIPPED = ("__pycache__", ".pyc", ".pyo")


def own_wheel(folder: Path, operators: Path | None = None) -> Path:
    """Write edgekit's wheel into `folder`; the same files give the same bytes.

    Args:
        folder: where the wheel goes.
        operators: folder with the library of edgekit's operators, compiled for the board, and with the licences of what
            is linked into it; None: without.

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
    tag = _TAG
    if operators is not None:
        library, licences = operators / LIBRARY, sorted((operators / LICENCES).glob("*"))
        tag = f"py3-none-{platform_tag([library])}"
        inside = f"edgekit/{packaged().relative_to(package).as_posix()}"
        members[inside] = Member(library.read_bytes(), executable=True)
        members |= {f"{info}/licenses/{path.name}": Member(path.read_bytes()) for path in licences}
    members[f"{info}/WHEEL"] = Member(wheel_text(tag, pure=operators is None))
    return write(folder / f"edgekit-{edgekit.__version__}-{tag}.whl", members)


def _files(package: Path) -> Iterator[tuple[str, Path]]:
    """Path in the wheel and on disk of every file of the package, and of what a checkout keeps beside it."""
    for path in sorted(package.rglob("*")):
        # A library that is there is for this machine.
        if (
            path.is_file()
            and path != packaged()
            and not any(path.match(f"*{ending}") or ending in path.parts for ending in _SKIPPED)
        ):
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
