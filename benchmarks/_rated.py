"""Artefacts and how near they stay to their original: what the quality benchmark keeps, and its table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks._result import Machine
from edgekit.checkpoint.checkpoint import F32
from edgekit.coherence.distribution import kl_full
from edgekit.engines.base import Ids
from edgekit.engines.opening import open_engine
from edgekit.options import Container

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESAMPLES = 2000
_OURS = "edgekit"
_BEYOND = 1.2
"""Files larger than this times our largest stand in the table alone: they would squeeze the picture."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One artefact."""

    name: str
    container: Container
    megabytes: float
    """10⁶ bytes of the whole file."""
    kl: float
    """Mean, nats."""
    low: float
    high: float
    """95 % interval of `kl`, chunks resampled."""
    same_top: float
    """Share of the tokens with the same most likely next one."""
    seconds: float
    """Wall time of making it."""

    @property
    def ours(self) -> bool:
        """Whether edgekit made it."""
        return self.name.startswith(_OURS)


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is compared: only rows of the same belong in one table."""

    model: str
    model_sha256: str
    target: str
    tokens: int
    text_sha256: str
    calibration_sha256: str | None
    bos: bool = False
    """Whether each chunk begins with the beginning-of-text token."""


class Quality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that was measured."""

    subject: Subject
    machine: Machine
    entries: tuple[Entry, ...] = ()

    def has(self, name: str, container: Container) -> bool:
        """Whether that row is there."""
        return any((entry.name, entry.container) == (name, container) for entry in self.entries)


def nbytes(path: Path) -> int:
    """Of an artefact: the file and, for ONNX, its external data."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def rate(
    name: str, container: Container, path: Path, chunks: Sequence[Ids], originals: Sequence[F32], seconds: float
) -> Entry:
    """KL and same-top of an artefact in its engine.

    Args:
        name: of the row.
        container: which engine.
        path: the artefact.
        chunks: token ids (T,) each.
        originals: the original's logits (T, vocabulary) for each.
        seconds: what making it took.
    """
    kls: list[float] = []
    same: list[NDArray[np.bool_]] = []
    with closing(open_engine(container, path, context=max(map(len, chunks)))) as engine:
        for ids, original in zip(chunks, originals, strict=True):
            found = engine.logits(ids)
            kls.append(float(kl_full(original, found).mean()))
            same.append(original.argmax(axis=1) == found.argmax(axis=1))
    means = np.array(kls)
    drawn = np.random.default_rng(0).integers(len(means), size=(_RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [0.025, 0.975])
    return Entry(
        name=name, container=container, megabytes=nbytes(path) / 1e6, kl=float(means.mean()), low=float(low),
        high=float(high), same_top=float(np.concatenate(same).mean()), seconds=seconds,
    )  # fmt: skip


def begun(path: Path | None, subject: Subject, host: Machine) -> Quality:
    """What an earlier run of the same subject left in the file, or nothing yet.

    Raises:
        SystemExit: the file is of another model, text or target.
    """
    if path is None or not path.exists():
        return Quality(subject=subject, machine=host)
    found = msgspec.json.decode(path.read_bytes(), type=Quality)
    if found.subject != subject:
        raise SystemExit(f"{path} is of {found.subject}, and this run of {subject}: take another file")
    return found


def keep(found: Quality, path: Path) -> None:
    """Write the file whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    part.replace(path)


def table(found: Quality) -> str:
    """Markdown, each container's artefacts by size."""
    lines = ["| artefact | MB | KL, nats | 95 % interval | same top | made in |", "|---|---|---|---|---|---|"]
    for entry in sorted(found.entries, key=lambda entry: (entry.container, -entry.megabytes, entry.kl)):
        bold = "**" if entry.ours else ""
        cells = (
            f"{bold}{entry.container.upper()} {entry.name}{bold}", f"{entry.megabytes:.1f}",
            f"{bold}{entry.kl:.4f}{bold}", f"{entry.low:.4f}–{entry.high:.4f}", f"{entry.same_top:.3f}",
            f"{entry.seconds:.0f} s",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    host, subject = found.machine, found.subject
    return "\n".join([*lines, "", f"{subject.model}, {subject.tokens} tokens, formats of {subject.target}; measured on "
                      f"{host.cpu}, {host.physical_cores} cores."])  # fmt: skip


def summary(found: Quality) -> str:
    """Markdown: for each size that ours were built under, the KL of each effort and of the nearest peer not larger."""
    there = {entry.name.split()[1] for entry in found.entries if entry.ours}
    efforts = [effort for effort in ("fast", "good", "best") if effort in there]
    lines = ["| at most | " + " | ".join(f"edgekit, {effort}" for effort in efforts) + " | best of the others there |"]
    lines.append("|---" * (len(efforts) + 2) + "|")
    for container, size in sorted({(entry.container, _size(entry)) for entry in found.entries if entry.ours}):
        kls = {entry.name.split()[1]: entry.kl for entry in found.entries if entry.ours
               and (entry.container, _size(entry)) == (container, size)}  # fmt: skip
        others = [entry for entry in found.entries if not entry.ours and entry.container == container
                  and entry.megabytes <= size]  # fmt: skip
        best = min(others, key=lambda entry: entry.kl, default=None)
        said = "none so small" if best is None else f"{best.kl:.3f} ({best.name}, {best.megabytes:.1f} MB)"
        cells = [f"**{kls[effort]:.3f}**" if effort in kls else "–" for effort in efforts]
        lines.append(f"| {container.upper()} {size:g} MB | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


def _size(entry: Entry) -> float:
    return float(entry.name.split("--size ")[1].removesuffix("MB")) if entry.ours else 0.0


def draw(found: Quality, path: Path) -> None:
    """KL divergence against size, one panel a container, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "edgekit"  # the same figures give the same file
    from matplotlib import pyplot as plt

    containers = sorted({entry.container for entry in found.entries})
    figure, panels = plt.subplots(1, len(containers), figsize=(6.2 * len(containers), 4.6), squeeze=False)
    for panel, container in zip(panels[0], containers, strict=True):
        mine = [entry for entry in found.entries if entry.container == container]
        most = _BEYOND * max((entry.megabytes for entry in mine if entry.ours), default=float("inf"))
        _panel(panel, [entry for entry in mine if entry.megabytes <= most])
        panel.set_title(container.upper())
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


_STYLES = (("edgekit best", "#0b6e4f", "D"), ("edgekit good", "#2a9d6f", "o"), ("edgekit fast", "#8cc9a8", "s"))


def _panel(panel: Axes, entries: Sequence[Entry]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for label, colour, marker in (*_STYLES, ("others", "#c0392b", "x")):
        mine = [entry for entry in entries if _style(entry) == label]
        if not mine:
            continue
        mine.sort(key=lambda entry: entry.megabytes)
        sizes, kls = [entry.megabytes for entry in mine], [entry.kl for entry in mine]
        bars = [[entry.kl - entry.low for entry in mine], [entry.high - entry.kl for entry in mine]]
        line = "none" if label == "others" else "-"
        panel.errorbar(sizes, kls, bars, color=colour, marker=marker, linestyle=line, capsize=2, label=label)
        if label == "others":
            _named(panel, mine)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(NullLocator())
    panel.margins(x=0.15, y=0.15)
    panel.set_xlabel("whole file, MB (10⁶ bytes)")
    panel.set_ylabel("KL divergence from the original, nats")
    panel.grid(visible=True, which="both", alpha=0.25)
    panel.legend(loc="lower left")


def _hides(other: Entry, entry: Entry) -> bool:
    """Whether the names of both would lie on each other; the better one's stays."""
    return abs(other.megabytes - entry.megabytes) < 0.01 and other.kl < entry.kl < 1.1 * other.kl


def _named(panel: Axes, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if any(_hides(other, entry) for other in entries):
            continue
        panel.annotate(
            entry.name.removesuffix(" with importance"), (entry.megabytes, entry.kl), (3, 4),
            textcoords="offset points", fontsize=7, rotation=35, ha="left", va="bottom",
        )  # fmt: skip


def _style(entry: Entry) -> str:
    return next((label for label, _, _ in _STYLES if entry.name.startswith(label)), "others")
