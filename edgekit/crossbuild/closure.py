"""Everything that a board's Python needs, and what it does not although some metadata asks for it.

The lists are data. :func:`check` holds them against the metadata of the very wheels that are shipped, so that a new
version with a new dependency is noticed where the bundle is built and not on the board.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgekit.crossbuild.runtime_record import Excluded
from edgekit.errors import WheelError
from edgekit.options import Container

EDGEKIT, LLAMA, PIP = "edgekit", "llama-cpp-python", "pip"


@dataclass(frozen=True)
class Part:
    """One package of the board.

    Attributes:
        name: as package indexes spell it (PEP 503).
        why: what needs it there.
        form: the format of a model that needs it; None: every bundle does.
        made: it is made on this machine and not downloaded.
        same: nothing but the host's own version will do, since what the host measured hangs on it.
        installed: it goes into the board's environment.
    """

    name: str
    why: str
    form: Container | None = None
    made: bool = False
    same: bool = False
    installed: bool = True


PARTS = (
    Part(EDGEKIT, "runs, verifies and measures the bundle", made=True),
    Part("click", "command line"),
    Part("gguf", "GGUF's tables of types and names, for edgekit inspect"),
    Part("jinja2", "chat templates; llama-cpp-python imports it too"),
    Part("markupsafe", "jinja2 imports it"),
    Part("msgspec", "manifest, reference and reports"),
    Part("numpy", "logits and metrics; both engines import it"),
    Part("psutil", "physical cores and memory"),
    Part("pyyaml", "gguf imports it"),
    Part("rich", "tables and progress"),
    Part("tokenizers", "tokenizer.json"),
    Part(LLAMA, "engine of GGUF artefacts, compiled for this CPU", form="gguf", made=True, same=True),
    Part("diskcache", "llama-cpp-python imports it", form="gguf"),
    Part("typing-extensions", "llama-cpp-python imports it", form="gguf"),
    Part("onnxruntime", "engine of ONNX artefacts", form="onnx", same=True),
    Part(PIP, "installs the wheels: Debian's Python comes without it", installed=False),
)


@dataclass(frozen=True)
class Exclusion:
    """A package that `asked_by` lists among its dependencies, and why a board does without it."""

    name: str
    asked_by: str
    why: str


EXCLUSIONS = (
    Exclusion(
        "huggingface-hub", "tokenizers", "only Tokenizer.from_pretrained downloads; a bundle brings its tokenizer"
    ),
    Exclusion("requests", "gguf", "only its reader of remote files imports it"),
    Exclusion("tqdm", "gguf", "only its writer's progress bar and its scripts import it"),
    Exclusion("flatbuffers", "onnxruntime", "only onnxruntime.quantization and onnxruntime.tools import it"),
    Exclusion("packaging", "onnxruntime", "only onnxruntime.backend and onnxruntime.tools import it"),
    Exclusion("protobuf", "onnxruntime", "only what handles onnx models in Python needs it; the library has its own"),
    Exclusion("markdown-it-py", "rich", "only rich.markdown imports it"),
    Exclusion("pygments", "rich", "only rich.syntax and rich.traceback import it"),
)


def parts(formats: Sequence[Container]) -> tuple[Part, ...]:
    """What a bundle with artefacts of these formats needs, in the order of :data:`PARTS`."""
    return tuple(part for part in PARTS if part.form is None or part.form in formats)


def excluded(formats: Sequence[Container]) -> tuple[Excluded, ...]:
    """What is left out of such a bundle, with the reasons."""
    there = {part.name for part in parts(formats)}
    return tuple(Excluded(name=e.name, asked_by=e.asked_by, why=e.why) for e in EXCLUSIONS if e.asked_by in there)


def check(
    shipped: Mapping[str, tuple[str, Sequence[str]]], markers: Mapping[str, str], formats: Sequence[Container]
) -> None:
    """Hold what is shipped against what its own metadata asks for.

    Args:
        shipped: name → (version, lines of Requires-Dist).
        markers: the board's environment, as PEP 508 names its parts.
        formats: edgekit's extras that count.

    Raises:
        WheelError: a dependency is neither shipped nor excluded with a reason, or shipped in a version that does not
            do; names both packages.
    """
    excused = {(e.asked_by, e.name) for e in EXCLUSIONS}
    for asker, (_, lines) in shipped.items():
        for wanted in _wanted(asker, lines, markers, formats if asker == EDGEKIT else ()):
            name = canonicalize_name(wanted.name)
            if name in shipped:
                _check_version(asker, wanted, shipped[name][0])
            elif (asker, name) not in excused:
                raise WheelError(
                    f"{asker} {shipped[asker][0]} needs {wanted}, which edgekit neither ships to a board nor leaves "
                    "out for a reason",
                    expected="the dependencies of the versions in constraints.txt",
                    remedy="install those (pip install -c constraints.txt), or report this",
                )


def _check_version(asker: str, wanted: Requirement, version: str) -> None:
    if not wanted.specifier.contains(version, prereleases=True):
        raise WheelError(
            f"{asker} needs {wanted.name}{wanted.specifier}, and {version} is the one for the board",
            remedy="install the versions of constraints.txt, or give the target another [runtime] python",
        )


def _wanted(
    asker: str, lines: Iterable[str], markers: Mapping[str, str], extras: Sequence[str]
) -> Iterator[Requirement]:
    """The requirements that count in the board's environment."""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise WheelError(f"{asker} has a requirement that cannot be read ({line!r})") from error
        environments = [{**markers, "extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            yield requirement
