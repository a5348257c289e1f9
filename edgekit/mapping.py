"""The stage that measures sensitivity, group by group so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.coherence.text import EvalText
from edgekit.errors import OptionError
from edgekit.options import Container
from edgekit.original import Texts
from edgekit.progress import counter
from edgekit.quantize.groups import Group, fast_formats, groups
from edgekit.quantize.sensitivity import Probe, covered, sample, sample_sha256
from edgekit.quantize.sensitivity_map import GroupDamage, SensitivityMap, chosen
from edgekit.stages import Made, Stage
from edgekit.steps import Work
from edgekit.targets import Target
from edgekit.weighing import load_importance

_CHUNK = 8
"""Groups that are kept together: what a killed run loses at most."""


def sensitivity(
    work: Work, made: Texts, weights: Made | None, container: Container, target: Target | None = None
) -> SensitivityMap:
    """The map of the options' files for this container, otherwise a measured one.

    Args:
        work: what the stages share.
        made: what :func:`edgekit.steps.texts` gave.
        weights: what :func:`edgekit.weighing.importance` gave.
        container: whose formats.
        target: its fast formats are covered beside the usual ones.

    Raises:
        OptionError: a file is of another model; there is no calibration text to measure on.
        EdgekitError: see :meth:`edgekit.quantize.sensitivity.Probe.damage`.
    """
    given = chosen(work.options.sensitivity, work.checkpoint, container)
    return given or _measured(work, made, weights, container, target)


def _measured(
    work: Work, made: Texts, weights: Made | None, container: Container, target: Target | None
) -> SensitivityMap:
    """Measure every group on the first sequences of the calibration text; finished chunks come from the cache."""
    text = _calibration(made)
    sequences = sample(text.sequences, work.options.probes, work.checkpoint.spec.vocab_size)
    formats = covered(container, fast_formats(target, container) if target is not None else ())
    probe = Probe(work.original.engine, work.checkpoint, container, sequences, load_importance(weights) or {})
    found = groups(work.checkpoint.spec, container)
    common = {"container": container, "formats": formats, "importance": weights and weights.digest,
              "text": [ids.tolist() for ids in sequences]}  # fmt: skip

    def whole() -> SensitivityMap:
        parts = [
            damage
            for first in range(0, len(found), _CHUNK)
            for damage in _chunk(work, probe, found, first, formats, common)
        ]
        return SensitivityMap(
            model=work.checkpoint.name, model_sha256=work.checkpoint.sha256, container=container,
            text_sha256=sample_sha256(sequences), tokens=sum(map(len, sequences)), groups=tuple(parts),
        )  # fmt: skip

    stage = Stage("sensitivity", f"{container.upper()}: sensitivity of {len(found)} groups", common)
    return work.stages.record(stage, SensitivityMap, whole)[0]


def _calibration(made: Texts) -> EvalText:
    if made.calibration is None:
        raise OptionError(
            "without calibration there is no text to measure sensitivity on",
            expected="calibration text, or a map that is there already",
            remedy="drop --no-calibration, or give --sensitivity FILE",
        )
    return made.calibration


def _chunk(
    work: Work, probe: Probe, found: Sequence[Group], first: int, formats: Sequence[str], common: Mapping[str, object]
) -> list[GroupDamage]:
    part = found[first : first + _CHUNK]
    title = f"{probe.container.upper()}: sensitivity, groups {first + 1} to {first + len(part)} of {len(found)}"

    def make() -> list[GroupDamage]:
        work.original.engine()  # has a step of its own
        with work.progress.step(title) as advance:
            tick, made = counter(advance, len(part)), []
            for group in part:
                made.append(probe.damage(group, formats))
                tick(group)
        return made

    stage = Stage("sensitivity-part", title, {**common, "groups": [group.names for group in part]})
    return work.stages.record(stage, list[GroupDamage], make)[0]
