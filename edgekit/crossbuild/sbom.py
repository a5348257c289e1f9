"""sbom.cdx.json: everything that a bundle ships, as CycloneDX 1.6. The same content gives the same bytes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import Model
from edgekit.crossbuild.closure import EDGEKIT, LLAMA
from edgekit.crossbuild.runtime_record import RuntimeRecord, Wheel
from edgekit.errors import MissingDependencyError
from edgekit.files import sha256

NAME = "sbom.cdx.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/edgekit/edgekit/sbom")
_COMPILED_IN = {
    "llama.cpp": "MIT", "nlohmann-json": "MIT", "cpp-httplib": "MIT", "zig": "MIT",
    "libc++": "Apache-2.0 WITH LLVM-exception", "libc++abi": "Apache-2.0 WITH LLVM-exception",
    "libunwind": "Apache-2.0 WITH LLVM-exception", "libstdc++": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "glibc": "LGPL-2.1-or-later",
}  # fmt: skip
"""Licence of what is in the native files, by the names of the texts in runtime/licenses."""
_ARTEFACTS = ("gguf/*.gguf", "onnx/*.onnx", "onnx/*.onnx.data")


def write(folder: Path, record: RuntimeRecord, model: Model | None = None) -> Path:
    """Write the list into a bundle's folder, from the runtime's record and the artefacts that are there.

    Args:
        folder: the bundle's.
        record: what runtime.json says.
        model: what the artefacts were made from; None: they are listed by their file names alone.

    Raises:
        MissingDependencyError: cyclonedx-python-lib is not installed.
    """
    path = folder / NAME
    path.write_text(text(folder, record, model), encoding="utf8")
    return path


def text(folder: Path, record: RuntimeRecord, model: Model | None = None) -> str:
    """As :func:`write`, returned."""
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise MissingDependencyError(
            "cyclonedx-python-lib is not installed", remedy="pip install 'edgekit[cross]'"
        ) from error
    native = _compiled_in(folder / "runtime" / "licenses")
    shipped = [*_wheels(record, native), *_tools(record, native), *_models(folder, model)]
    bom = Bom(components=shipped)
    title = model.name if model else "bundle"
    whole = Component(name=f"{title} for {record.target}", type=ComponentType.APPLICATION, bom_ref="bundle")
    bom.metadata.component = whole
    bom.register_dependency(whole, shipped)
    found = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    # When the list was made is no property of the bundle; its number follows from what it lists.
    del found["metadata"]["timestamp"], found["serialNumber"]
    number = uuid.uuid5(_NAMESPACE, json.dumps(found, sort_keys=True))
    return json.dumps({**found, "serialNumber": number.urn}, indent=2, sort_keys=True) + "\n"


def _hash(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _compiled_in(texts: Path) -> str:
    """One SPDX expression for everything that is compiled into the native files."""
    found = {_COMPILED_IN[path.name] for path in texts.glob("*") if path.name in _COMPILED_IN}
    return " AND ".join(sorted(found | {"MIT"}))


def _licences(said: str) -> list[Any]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(said)]


def _wheels(record: RuntimeRecord, native: str) -> Iterator[Any]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    def component(wheel: Wheel) -> Component:
        kind = ComponentType.APPLICATION if wheel.name == EDGEKIT else ComponentType.LIBRARY
        purl = PackageURL(type="pypi", name=wheel.name, version=wheel.version, qualifiers={"file_name": wheel.file})
        licence = native if wheel.name == LLAMA else wheel.licence
        return Component(
            name=wheel.name, version=wheel.version, type=kind, bom_ref=f"runtime/wheels/{wheel.file}", purl=purl,
            description=wheel.why, hashes=[_hash(wheel.sha256)], licenses=_licences(licence),
        )  # fmt: skip

    yield from map(component, record.wheels)


def _tools(record: RuntimeRecord, native: str) -> Iterator[Any]:
    """llama.cpp's programs, by the release of llama-cpp-python whose archive holds their source, and ggml's version."""
    from cyclonedx.model.component import Component, ComponentType

    compiled = record.compiled
    for tool in record.tools:
        described = f"llama.cpp of llama-cpp-python {compiled.llama_cpp_python}" if compiled else "llama.cpp"
        version = f"ggml {compiled.ggml}" if compiled else None
        yield Component(
            name=Path(tool.path).name, version=version, type=ComponentType.APPLICATION, description=described,
            bom_ref=f"runtime/{tool.path}", hashes=[_hash(tool.sha256)], licenses=_licences(native),
        )  # fmt: skip


def _models(folder: Path, model: Model | None) -> Iterator[Any]:
    from cyclonedx.model.component import Component, ComponentType

    for path in sorted(path for pattern in _ARTEFACTS for path in folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        yield Component(
            name=f"{model.name} ({name})" if model else name, version=model.sha256[:12] if model else None,
            type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=name, hashes=[_hash(sha256(path))],
            description=model.source if model else None,
            licenses=_licences(model.license) if model and model.license else None,
        )  # fmt: skip
