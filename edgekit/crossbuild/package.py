"""A board's engines: compiled, gathered with their wheels, audited, and put into a bundle's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit import __version__
from edgekit.crossbuild import cuda, runtime_record, sbom, scripts
from edgekit.crossbuild.closure import PIP
from edgekit.crossbuild.model import Native
from edgekit.crossbuild.native import build_native
from edgekit.crossbuild.operators import build_operators
from edgekit.crossbuild.runtime_record import Audited, Compiled, RuntimeRecord, Tool
from edgekit.crossbuild.wheelhouse import Wheelhouse, wheelhouse
from edgekit.errors import AuditError, OptionError
from edgekit.files import copy_tree, sha256
from edgekit.options import Container, RuntimeOptions
from edgekit.progress import Progress
from edgekit.targets import Target

RUNTIME = "runtime"
_TOOLS, _LICENCES = "bin", "licenses"


def prepare(target: Target, options: RuntimeOptions, progress: Progress, *, force: bool = False) -> Native:
    """llama.cpp compiled for the target's CPU, out of the cache or compiled now.

    Raises:
        ToolchainError, MissingDependencyError, WheelError, OptionError: see
            :func:`edgekit.crossbuild.native.build_native`. What was asked for with CUDA is never made without.
    """
    return build_native(
        target, toolchain=options.toolchain, accel=options.accel, offline=options.offline, progress=progress,
        force=force,
    )  # fmt: skip


def _accelerated(target: Target, formats: Sequence[Container], options: RuntimeOptions, progress: Progress) -> None:
    """A bundle that was asked to use an accelerator never has the CPU's engines alone."""
    if options.accel == "none":
        return
    cuda.architecture(target)
    if "gguf" not in formats:
        raise OptionError(
            f"--accel {options.accel} is for llama.cpp, and no GGUF artefact is built", expected="--format gguf",
            remedy="add that, or leave --accel out",
        )  # fmt: skip
    if "onnx" in formats:
        progress.note("CUDA is for the GGUF artefact; onnxruntime runs the ONNX one on the CPU")


def package(
    target: Target, formats: Sequence[Container], folder: Path, options: RuntimeOptions, progress: Progress, *,
    operators: bool = False,
) -> RuntimeRecord:  # fmt: skip
    """Put the engines for a board into a bundle's folder: runtime/, install.sh, chat.sh, bench.sh and sbom.cdx.json.

    llama.cpp and its native tools are for GGUF artefacts, onnxruntime is for ONNX ones. The list of parts knows the
    artefacts that are in `folder`; write it again (:func:`edgekit.crossbuild.sbom.write`) when more are.

    Args:
        target: the board.
        formats: of the bundle's artefacts.
        folder: the bundle's, which has no runtime yet.
        options: who compiles, and whether anything may be downloaded.
        progress: where it shows.
        operators: whether the ONNX artefact has edgekit's own operators, which are then compiled, too.

    Returns:
        What runtime/runtime.json says.

    Raises:
        AuditError: something would not run on the board; names it.
        WheelError, ToolchainError, OptionError, MissingDependencyError, OutputError: see :func:`prepare`,
            :func:`edgekit.crossbuild.operators.build_operators` and :func:`edgekit.crossbuild.wheelhouse.wheelhouse`.
    """
    _accelerated(target, formats, options, progress)
    native = prepare(target, options, progress) if "gguf" in formats else None
    runtime = folder / RUNTIME
    runtime.mkdir()
    own = _operators(target, options, progress) if operators else None
    house = wheelhouse(target, native, formats, runtime, offline=options.offline, progress=progress, operators=own)
    tools = _copy_tools(native, runtime) if native else ()
    made = msgspec.structs.replace(_record(target, formats, native, house, tools), accel=options.accel)
    record = _audited(made, folder, target, progress)
    (runtime / runtime_record.NAME).write_bytes(runtime_record.to_json(runtime_record.shipped(record)))
    scripts.write_scripts(
        folder, sums=scripts.write_sums(runtime), python=record.python, machine=record.machine, glibc=record.glibc,
        pip=house.file_of(PIP), formats=formats,
    )  # fmt: skip
    sbom.write(folder, record)
    progress.note(
        f"runtime: {(record.wheel_bytes + record.tool_bytes) / 1e6:.1f} MB (wheels {record.wheel_bytes / 1e6:.1f}, "
        f"native tools {record.tool_bytes / 1e6:.1f})"
    )
    return record


def _operators(target: Target, options: RuntimeOptions, progress: Progress) -> Path:
    found = build_operators(target, toolchain=options.toolchain, offline=options.offline, progress=progress)
    return found.folder


def _copy_tools(native: Native, runtime: Path) -> tuple[Tool, ...]:
    """The programs and the licences of what is in them.

    They are marked executable here; where a copy loses the mark, install.sh's own copy on the board has it again.
    """
    copy_tree(native.folder / "LICENSES", runtime / _LICENCES)
    copy_tree(native.folder / "bin", runtime / _TOOLS)
    found = sorted((runtime / _TOOLS).iterdir())
    for path in found:
        path.chmod(0o755)
    return tuple(Tool(path=f"{_TOOLS}/{p.name}", sha256=sha256(p), size=p.stat().st_size) for p in found)


def _record(
    target: Target, formats: Sequence[Container], native: Native | None, house: Wheelhouse, tools: tuple[Tool, ...]
) -> RuntimeRecord:
    platform = house.platform
    return RuntimeRecord(
        edgekit=__version__, target=target.name, formats=tuple(sorted(formats)), machine=platform.machine,
        python=platform.python, glibc=house.glibc, glibc_max=platform.glibc, wheels=house.wheels,
        excluded=house.excluded, tools=tools, compiled=_compiled(native) if native else None,
    )  # fmt: skip


def _compiled(native: Native) -> Compiled:
    made = native.record
    return Compiled(
        llama_cpp_python=made.llama_cpp_python, ggml=made.ggml, toolchain=made.toolchain,
        toolchain_version=made.toolchain_version, march=made.march, mtune=made.mtune, glibc=made.glibc,
        flags=made.flags,
    )  # fmt: skip


def _audited(record: RuntimeRecord, folder: Path, target: Target, progress: Progress) -> RuntimeRecord:
    """The record with the audit's result; a fault is an error, so that nothing with one is ever shipped."""
    from edgekit.crossbuild.audit import audit_bundle

    audit = audit_bundle(folder, target, progress=progress)
    if audit.faults:
        more = f" and {len(audit.faults) - 1} more" if len(audit.faults) > 1 else ""
        raise AuditError(
            f"the runtime would not work on {target.name}: {audit.faults[0]}{more}",
            remedy="choose another --toolchain, or correct the target's [toolchain]",
        )
    audited = Audited(files=len(audit.files), started=audit.started)
    return msgspec.structs.replace(record, audit=audited)
