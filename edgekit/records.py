"""What a build writes down about itself: the report (measurements) and the manifest (facts)."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit import __version__
from edgekit.bundle import manifest
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.coherence import gates, metrics, reference
from edgekit.crossbuild.runtime_record import RuntimeRecord
from edgekit.engines.base import Ids
from edgekit.export.artefacts import ENGINES, Built
from edgekit.options import Options
from edgekit.original import Texts, versions
from edgekit.quantize.predict import Prediction
from edgekit.report import model as reports
from edgekit.report.flips import flipped_items
from edgekit.targets import Target, digest


@dataclass(frozen=True)
class Result:
    """Everything known of one artefact at the end of a build."""

    built: Built
    prediction: Prediction
    parity: reports.Parity
    truncation_kl: float
    coherence: metrics.Coherence
    verdict: gates.Verdict
    dispersed: reports.Dispersed | None = None

    @property
    def effective_bits(self) -> float:
        """Bits per weight counted from the files: all their bytes over all parameters."""
        return 8 * self.built.nbytes / sum(entry.tensor.parameters for entry in self.built.plan.entries)


@dataclass(frozen=True)
class Record:
    """What report and manifest are made from."""

    checkpoint: Checkpoint
    target: Target
    options: Options
    name: str
    results: Sequence[Result]
    texts: Texts
    sealed: reference.Reference
    runtime: RuntimeRecord | None = None
    """The engines that the bundle carries for its board."""
    weighed: str = ""
    """Where the importance came from when it was not just measured; see :func:`edgekit.weighing.source`."""

    def report(self, samples: Sequence[reports.Sample], seconds: Mapping[str, float]) -> reports.Report:
        """The measurements; `seconds` are those of the build's stages."""
        checkpoint = self.checkpoint
        return reports.Report(
            edgekit=__version__, name=self.name, model=checkpoint.name, source=checkpoint.source,
            parameters=checkpoint.spec.parameters, caveats=(checkpoint.caveat,) if checkpoint.caveat else (),
            target=self.target.name, target_title=self.target.title, text=self._text_in_words(),
            calibration=self.calibration_in_words(),
            artefacts=tuple(_artefact_report(result) for result in self.results), samples=tuple(samples),
            seconds={stage: round(value, 2) for stage, value in seconds.items()},
            host=reports.Host(
                machine=platform.machine(), system=f"{platform.system()} {platform.release()}",
                python=platform.python_version(), cpus=os.cpu_count() or 1, versions=versions(),
            ),
            runtime=None if self.runtime is None else _runtime_report(self.runtime),
        )  # fmt: skip

    def _text_in_words(self) -> str:
        size = _size(self.sealed.sequences.lists())
        if self.sealed.meta.origin.text == "file":
            return f"{size} from a text file (sha256 {self.sealed.meta.origin.text_sha256[:12]})"
        return (
            f"{size} written by the full-precision model itself (seed {self.options.seed}, temperature 1): it is "
            "judged on its own distribution, which other text may leave; --text measures on yours"
        )

    def calibration_in_words(self) -> str:
        """What the choice of codes and scales was calibrated on."""
        text = self.texts.calibration
        if text is None:
            return f"{self._trained_in_words()}none: all inputs of a layer weigh the same"
        made = "written by the full-precision model itself" if text.kind == "self-generated" else "from a text file"
        trained = self._trained_in_words()
        said = self.weighed or f"importance of each input on {_size(text.sequences)} {made} (sha256 {text.sha256[:12]})"
        chosen = {way for result in self.results for way in result.built.codes}
        if self.options.effort == "fast" or ("trained" in chosen and not chosen & {"GPTQ", "learned"}):
            return trained + said
        learned = ", then learned rounding of each block" if self.options.effort == "best" else ""
        rounded = f"linear layers rounded by GPTQ with a weight for each token{learned}"
        return f"{trained}{said}; {rounded}, on more of the calibration text"

    def _trained_in_words(self) -> str:
        trainings = [result.dispersed.training for result in self.results if result.dispersed is not None]
        if not trainings:
            return ""
        found = trainings[0]
        size = f"{found.text_tokens} tokens (sha256 {found.text_sha256[:12]})"
        return f"trained by the recipe {found.recipe} on a text of {size}; the rest: "

    @property
    def model(self) -> manifest.Model:
        """What the bundle was made from."""
        checkpoint = self.checkpoint
        return manifest.Model(
            name=checkpoint.name, architecture=checkpoint.spec.architecture, source=checkpoint.source,
            sha256=checkpoint.sha256, parameters=checkpoint.spec.parameters,
        )  # fmt: skip

    def manifest(self) -> manifest.Manifest:
        """The facts, without the files' checksums."""
        return manifest.Manifest(
            edgekit=__version__, name=self.name, model=self.model,
            target=manifest.TargetRef(id=self.target.name, sha256=digest(self.target)),
            calibration=self.calibration_in_words(),
            artefacts=tuple(_manifest_artefact(result) for result in self.results),
            versions=versions(), seeds={"text": self.options.seed},
            predicted={name: figure for result in self.results for name, figure in _figures(result).items()},
        )  # fmt: skip


def _size(sequences: Sequence[Ids]) -> str:
    return f"{len(sequences)} sequences, {sum(len(ids) for ids in sequences)} tokens,"


def _artefact_report(result: Result) -> reports.Artefact:
    plan, total = result.built.plan, result.built.plan.nbytes
    reasons = sorted({f"{e.tensor.role}: {e.reason}, so {e.grid}" for e in plan.entries if e.reason})
    return reports.Artefact(
        format=plan.container, engine=ENGINES[plan.container], title=plan.title(result.effective_bits),
        requested_bits=plan.bits, effective_bits=result.effective_bits, bytes=result.built.nbytes,
        shares={grid: size / total for grid, size in plan.shares().most_common()}, fallbacks=tuple(reasons),
        predicted=reports.Predicted(
            ram_mib=result.prediction.ram_mib, usable_mib=result.prediction.usable_mib,
            bytes_per_token=result.prediction.bytes_per_token, tokens_per_second=result.prediction.tokens_per_second,
            basis=result.prediction.basis,
        ),
        parity=result.parity, coherence=result.coherence, truncation_kl=result.truncation_kl, verdict=result.verdict,
        flipped=flipped_items(result.coherence.items), planned=_planned(result),
        codes=dict(result.built.codes), dispersed=result.dispersed,
    )  # fmt: skip


def _planned(result: Result) -> reports.Planned | None:
    plan = result.built.plan
    if plan.predicted_kl is None:
        return None
    ratio = result.coherence.kl_mean / plan.predicted_kl if plan.predicted_kl > 0 else None
    return reports.Planned(
        budget=plan.budget, predicted_kl=plan.predicted_kl, measured_ratio=ratio, map_sha256=plan.map_sha256,
        gap=plan.gap,
    )  # fmt: skip


def _runtime_report(record: RuntimeRecord) -> reports.Runtime:
    made = record.compiled
    compiled = ""
    if made is not None:
        compiled = (
            f"llama.cpp (ggml {made.ggml}) for {made.mtune or made.march} by {made.toolchain} {made.toolchain_version}"
        )
    return reports.Runtime(
        compiled=compiled, python=record.python, glibc=record.glibc, wheels=len(record.wheels),
        bytes=record.wheel_bytes + record.tool_bytes, started=record.audit.started if record.audit else "",
    )  # fmt: skip


def _manifest_artefact(result: Result) -> manifest.Artefact:
    plan = result.built.plan
    return manifest.Artefact(
        format=plan.container, path=f"{result.built.path.parent.name}/{result.built.path.name}",
        engine="llama.cpp" if plan.container == "gguf" else "onnxruntime", requested_bits=plan.bits,
        effective_bits=result.effective_bits,
        plan=tuple(
            manifest.PlanEntry(
                tensor=e.tensor.hf, role=e.tensor.role, shape=e.tensor.shape, requested_bits=e.requested_bits,
                grid=e.grid, bits=e.bits, bytes=e.nbytes, reason=e.reason or None,
            )
            for e in plan.entries
        ),
    )  # fmt: skip


def _figures(result: Result) -> dict[str, manifest.Figure]:
    container, prediction = result.built.plan.container, result.prediction
    found = {
        "ram": manifest.Figure(value=prediction.ram_mib, unit="MiB", source="weights x multiplier + KV cache"),
        "bytes_per_token": manifest.Figure(value=float(prediction.bytes_per_token), unit="B", source="plan"),
    }
    if (speed := prediction.tokens_per_second) is not None:
        source = f"bandwidth / bytes per token, {prediction.basis}"
        found["decode"] = manifest.Figure(value=speed, unit="tokens/s", source=source)
    if (divergence := result.built.plan.predicted_kl) is not None:
        source = f"sum over the sensitivity map {result.built.plan.map_sha256[:12]}, {result.built.plan.budget}"
        found["kl"] = manifest.Figure(value=divergence, unit="nats", source=source)
    return {f"{container}.{name}": figure for name, figure in found.items()}
