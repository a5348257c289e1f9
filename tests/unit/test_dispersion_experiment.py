"""The experiment on dispersion: its text, its training, what it measures, and how effects are told from records."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.dispersion import (
    arms,
    artefacts,
    bent,
    continued,
    continued_table,
    file_effects,
    pairs,
    run,
    text,
    twins,
)
from benchmarks.dispersion.analyse import effects, models, names, records
from benchmarks.dispersion.arms import ARMS
from benchmarks.dispersion.decide import JUDGED, decisions, seeds_needed, verdict
from benchmarks.dispersion.effects import BASE, CHANGES, Effect, effect
from benchmarks.dispersion.measure import Damage, Measured
from benchmarks.dispersion.run import Record

_CONFIG = {**arms.CONFIG, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment with tiny models, few tokens and few steps."""
    for module in (arms, twins):
        monkeypatch.setattr(module, "CONFIG", _CONFIG)
        monkeypatch.setattr(module, "UNIT", 10)
        monkeypatch.setattr(module, "BATCH", 2)
        monkeypatch.setattr(module, "EVERY", 0.1)
    monkeypatch.setattr(text, "VOCABULARY", 300)
    monkeypatch.setattr(text, "JUDGED", 3)
    monkeypatch.setattr(text, "CALIBRATION", 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(200)]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(generator.choice(words, 12)) for _ in range(6000)))
    return path


def test_the_held_out_end_is_in_no_batch(small: None, file: Path, tmp_path: Path) -> None:
    texts = text.load(file, tmp_path / "work")
    seen = {tuple(row) for step in range(40) for row in texts.batch(step, 0, 2)}
    assert not seen & {tuple(ids) for ids in texts.judged}
    assert len(seen) == 80, "no sequence comes twice before all were seen"
    assert np.array_equal(texts.batch(3, 1, 2), texts.batch(3, 1, 2))
    assert not np.array_equal(texts.batch(3, 1, 2), texts.batch(3, 2, 2))


def test_a_text_that_is_too_short_is_refused(small: None, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a few words\n" * 50)
    with pytest.raises(SystemExit, match="too short"):
        text.load(path, tmp_path / "work")


def test_another_text_gets_a_tokenizer_of_its_own(small: None, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(file.read_text()[::-1])
    for one in (file, other, file):
        text.load(one, tmp_path / "work")
        text.load(one, tmp_path / one.stem)
        shared, own = (folder / "tokenizer.json" for folder in (tmp_path / "work", tmp_path / one.stem))
        assert shared.read_bytes() == own.read_bytes()
    first, second = (tmp_path / one.stem / "tokenizer.json" for one in (file, other))
    assert first.read_bytes() != second.read_bytes()


def test_a_missing_text_and_a_folder_without_twins_are_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--work", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["artefacts", "--text", str(tmp_path / "nowhere"), *words])
    with pytest.raises(SystemExit, match="nowhere cannot be read"):
        artefacts.main()
    monkeypatch.setattr("sys.argv", ["artefacts", "--text", str(file), *words])
    with pytest.raises(SystemExit, match="empty has no twins"):
        artefacts.main()


def _weights(found: list[twins.Twin]) -> list[tuple[float, str, dict[str, torch.Tensor]]]:
    return [(twin.length, twin.kind, dict(twin.module.named_parameters())) for twin in found]


def test_a_killed_run_gives_the_same_models(small: None, file: Path, tmp_path: Path) -> None:
    texts = text.load(file, tmp_path / "work")
    arm = dataclasses.replace(ARMS["spread-0.5"], branches=(0.4, 1.0), averaged=(1.0,))
    whole = _weights(list(twins.Run(arm, 0, texts, tmp_path / "whole").twins()))
    interrupted = twins.Run(arm, 0, texts, tmp_path / "killed").twins()
    first = [next(interrupted), next(interrupted)]  # what it had done when it was killed behind the first length
    rest = _weights(list(twins.Run(arm, 0, texts, tmp_path / "killed").twins()))
    assert [(length, kind) for length, kind, _ in whole] == [(0.4, "decayed"), (1.0, "decayed"), (1.0, "averaged")]
    assert len(rest) == 2
    for (_, _, ours), (_, _, theirs) in zip(whole, [*_weights(first[:1]), *rest], strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_a_run_measures_every_outcome_once(small: None, file: Path, tmp_path: Path) -> None:
    texts = text.load(file, tmp_path / "work")
    arm = dataclasses.replace(ARMS["ce"], branches=(0.4,), averaged=(0.4,))
    run.run(arm, 0, texts, tmp_path / "work", tmp_path / "out")
    path = run.path_of(tmp_path / "out", "ce", 0)
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    assert record.whole
    assert [model.kind for model in record.models] == ["decayed", "averaged"]
    for model in record.models:
        assert {damage.change for damage in model.damages} == set(CHANGES)
        assert np.mean(model.ce_sequences) == pytest.approx(model.ce, rel=1e-4)
        kl = {damage.change: damage.kl for damage in model.damages}
        assert 0 < kl["nearest-4"] < kl["nearest-3"] < kl["nearest-2"]
        assert kl["skipped-0.3"] < kl["skipped-0.7"]
    before = path.stat().st_mtime_ns
    run.run(arm, 0, texts, tmp_path / "work", tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    kept = sorted(place.name for place in run.twins_of(tmp_path / "work").iterdir())
    assert kept == ["ce-seed0-0.4-averaged", "ce-seed0-0.4-decayed"]

    weights = run.twins_of(tmp_path / "work") / "ce-seed0-0.4-decayed" / "model.safetensors"
    first = weights.read_bytes()
    shutil.rmtree(weights.parent)
    run.again(arm, 0, texts, tmp_path / "work", tmp_path / "out")
    assert weights.read_bytes() == first, "trained once more, to the same weights"
    assert path.stat().st_mtime_ns == before
    made = weights.stat().st_mtime_ns
    run.again(arm, 0, texts, tmp_path / "work", tmp_path / "out")
    run.again(arm, 1, texts, tmp_path / "work", tmp_path / "out")
    assert weights.stat().st_mtime_ns == made
    assert not list(run.twins_of(tmp_path / "work").glob("ce-seed1*")), "what was not measured is not trained"


def test_real_files_of_each_decayed_twin_are_measured_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash costs one twin, and is told at the end."""
    for name in ("ce-seed0-0.4-averaged", "ce-seed0-0.4-decayed", "ce-seed1-1-decayed", "spread-0.5-seed2-1-decayed"):
        place = run.twins_of(tmp_path) / name
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(name.encode())
    asked = []

    def measured(place: Path, held: Path, known: Path) -> tuple[float, tuple[artefacts.Made, ...]]:
        asked.append(place.name)
        assert known.read_text() + held.read_text() == file.read_text()
        if place.name.startswith("ce-seed1"):
            raise subprocess.CalledProcessError(-11, "edgekit")
        return 5.0, (artefacts.Made(format="Q4_0", engine="llama.cpp", kl=0.1, nbytes=1),)

    monkeypatch.setattr(artefacts, "measured", measured)
    out = tmp_path / "new" / "out"
    monkeypatch.setattr("sys.argv", ["artefacts", "--text", str(file), "--work", str(tmp_path), "--out", str(out)])
    for _ in range(2):
        with pytest.raises(SystemExit, match="ce-seed1-1-decayed: edgekit survive ended with -11"):
            artefacts.main()
    assert asked == ["ce-seed0-0.4-decayed", "ce-seed1-1-decayed", "spread-0.5-seed2-1-decayed", "ce-seed1-1-decayed"]
    found = msgspec.json.decode((out / f"artefacts-{asked[2]}.json").read_bytes(), type=artefacts.Twin)
    assert (found.arm, found.seed, found.length) == ("spread-0.5", 2, 1.0)
    assert found.text_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.model_sha256 == hashlib.sha256(asked[2].encode()).hexdigest()


def test_a_run_of_other_settings_begins_anew(small: None, file: Path, tmp_path: Path) -> None:
    """Nothing of what it left is taken up: neither weights, nor twins, nor measures of their files."""
    texts, work, out = text.load(file, tmp_path / "work"), tmp_path / "work", tmp_path / "out"
    arm = dataclasses.replace(ARMS["ce"], branches=(0.4,), averaged=())
    interrupted = twins.Run(arm, 0, texts, work / "ce-seed0").twins()
    run.kept(next(interrupted), work, "ce-seed0")
    for _ in interrupted:  # its state is kept behind the length
        pass
    assert (work / "ce-seed0" / "ce-seed0.safetensors").is_file()
    out.mkdir()
    (out / "artefacts-ce-seed0-0.4-decayed.json").write_text("{}")
    other = dataclasses.replace(arm, branches=(0.2, 0.4), averaged=())
    run.run(other, 0, texts, work, out)
    record = msgspec.json.decode(run.path_of(out, "ce", 0).read_bytes(), type=Record)
    assert [model.length for model in record.models] == [0.2, 0.4], "and not only what comes behind the old state"
    assert not list(out.glob("artefacts-*"))


_SEQUENCES = 24


def _record(arm: str, seed: int, losses: list[float], factor: float) -> Record:
    """Plain damages rise with quality; those of `arm` are `factor` times as large."""
    generator = np.random.default_rng((seed, len(arm)))
    made = []
    for place, loss in enumerate(losses):
        ce = loss + 0.1 * generator.standard_normal(_SEQUENCES)
        ce += loss - ce.mean()
        kl = factor * np.exp(-2 * loss) * np.exp(0.01 * generator.standard_normal(_SEQUENCES))
        damages = tuple(
            Damage(change=change, size=0.1, ce=0.0, kl=float(kl.mean()), kl_sequences=tuple(kl.tolist()), seq_rep_4=0.1)
            for change in CHANGES
        )
        made.append(
            Measured(
                length=float(place), kind="decayed", steps=1, ce=loss, ce_sequences=tuple(ce.tolist()),
                mean_cosine=(0.1, 0.2), spearman=1.0, activation_kurtosis=(0.0, 0.0), weight_kurtosis=0.0,
                weight_norm=0.1, seq_rep_4=0.1, damages=damages,
            )
        )  # fmt: skip
    return Record(arm={"name": arm}, seed=seed, text_sha256="", versions={}, machine="", whole=True, models=tuple(made))


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_an_effect_is_told_from_quality(factor: float) -> None:
    found = [_record(BASE, seed, [5.4, 5.0, 4.6], 1.0) for seed in range(3)]
    found += [_record("spread-2", seed, [5.2, 4.8, 4.4], factor) for seed in range(3)]
    one = effect(found, "spread-2", "gptq-3")
    assert one is not None
    assert one.ratio == pytest.approx(factor, rel=0.02)
    assert one.low <= one.ratio <= one.high
    assert one.low > 0.9 * factor
    assert one.high < 1.1 * factor
    assert (one.models, one.outside) == (6, 3), "4.4 is better than any plain model"
    assert len(one.seeds) == 3


def test_nothing_is_told_of_models_of_no_common_quality() -> None:
    found = [_record(BASE, 0, [5.4, 5.0], 1.0), _record("spread-2", 0, [4.2, 4.0], 1.0)]
    assert effect(found, "spread-2", "gptq-3") is None
    assert effect(found, "spread-2+lawa", "gptq-3") is None


def _effect(ratio: float, spread: float, change: str = "gptq-3") -> Effect:
    """With an interval from ratio / spread to ratio * spread."""
    return Effect(
        arm="spread-2", change=change, ratio=ratio, low=ratio / spread, high=ratio * spread, seeds=(ratio,) * 3,
        models=9, outside=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "spread", "expected"),
    [
        ([0.8, 0.8, 0.9, 0.7], 1.1, "holds"),
        ([0.8, 0.8, 0.95, 0.7], 1.01, "undecided"),
        ([0.8, 0.8, 0.9, 0.7], 1.3, "undecided"),
        ([1.2, 1.1, 1.0, 1.3], 1.05, "refuted"),
        ([1.2, 1.1, 1.0, 1.3], 1.2, "undecided"),
    ],
)
def test_the_decision_is_the_protocols(ratios: list[float], spread: float, expected: str) -> None:
    found = [_effect(ratio, spread, change) for ratio, change in zip(ratios, JUDGED, strict=True)]
    assert verdict(found) == expected
    text = decisions({("spread-2", one.change): one for one in found}, ["spread-2", "spread-0.5"])
    assert f"| `spread-2` | {expected} | " in text
    assert "spread-0.5" not in text, "an arm without its effects is not decided"


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_one_seed_decides_nothing(ratio: float) -> None:
    found = [dataclasses.replace(_effect(ratio, 1.01, change), seeds=(ratio,)) for change in JUDGED]
    assert verdict(found) == "undecided"


def test_four_times_the_seeds_halve_an_interval() -> None:
    def needed(deviation: float) -> int:
        seeds = tuple(float(np.exp(step * deviation)) for step in (-1, 0, 1))  # of this standard deviation
        return seeds_needed(dataclasses.replace(_effect(1.0, 1.1), seeds=seeds))

    deviation = -float(np.log(0.9)) / 1.96
    assert needed(2 * deviation) == 4
    assert needed(4 * deviation) == 16
    assert needed(0.0) == 2
    assert seeds_needed(dataclasses.replace(_effect(1.0, 1.1), seeds=(1.0,))) == 0, "one seed tells nothing"


def _lowered(record: Record, place: int, share: float) -> Record:
    """With the damages of one model changed."""
    model = record.models[place]
    damages = tuple(
        msgspec.structs.replace(d, kl=share * d.kl, kl_sequences=tuple(share * kl for kl in d.kl_sequences))
        for d in model.damages
    )
    models = list(record.models)
    models[place] = msgspec.structs.replace(model, damages=damages)
    return msgspec.structs.replace(record, models=tuple(models))


def test_a_bent_line_is_followed() -> None:
    """The plain models in the middle lose half of what lies on a straight line, and so does a dispersed model there."""
    found = [_lowered(_record(BASE, seed, [5.4, 5.0, 4.6], 1.0), 1, 0.5) for seed in range(2)]
    found += [_lowered(_record("spread-2", seed, [5.39, 5.0, 4.2], 1.4), 1, 0.5) for seed in range(2)]
    assert bent.ratio(found, "spread-2", "gptq-3") == pytest.approx(1.4, rel=0.03), "4.2 is beyond the plain models"
    straight = effect(found, "spread-2", "gptq-3")
    assert straight is not None
    assert straight.ratio < 1.3
    assert bent.ratio(found, "spread-2+lawa", "gptq-3") is None
    assert "| `spread-2` | 1.4" in bent.table(found, ["spread-2"], ["gptq-3"])


def test_pairs_have_seen_the_same_tokens() -> None:
    found = [_record(BASE, 0, [5.4, 5.0], 1.0), _record(BASE, 1, [5.3], 1.0)]
    found += [_record("spread-2", 0, [5.1, 4.9], 1.0), _record("spread-2", 2, [3.0], 1.0)]
    assert pairs.differences(found, "spread-2", "") == pytest.approx({0: -0.2}), "a mean over lengths"
    assert pairs.differences(found, "spread-2", "gptq-3") == pytest.approx({0: -0.2}), "the records' rise is 0"
    found.append(_record("spread-2", 1, [5.2], 1.0))
    assert "| `spread-2` | -0.150 (-0.200, -0.100) |" in pairs.table(found)


def _twin(arm: str, length: float, ce: float, made: tuple[artefacts.Made, ...]) -> artefacts.Twin:
    return artefacts.Twin(
        arm=arm, seed=1, length=length, text_sha256="", model_sha256="", versions={}, ce=ce, made=made
    )


def test_files_are_compared_at_equal_quality() -> None:
    """Twice the damage of plain twins at any cross-entropy; one twin is better than any of them."""
    found = []
    for arm, losses, factor in ((BASE, (5.4, 5.0, 4.6), 1.0), ("spread-2", (5.2, 4.8, 4.4), 2.0)):
        for length, loss in enumerate(losses):
            kinds = (("F16", "llama.cpp", 1e-7), ("Q4_0", "llama.cpp", factor * float(np.exp(-2 * loss))))
            made = tuple(artefacts.Made(format=name, engine=engine, kl=kl, nbytes=1) for name, engine, kl in kinds)
            found.append(_twin(arm, float(length), loss, made))
    assert file_effects.ratios(found, "spread-2", "llama.cpp: Q4_0") == pytest.approx([2.0])
    text = file_effects.table(found)
    assert "| `spread-2` | 2.00 (2.00) |" in text
    assert "6 twins; in F16 llama.cpp itself is at most 1e-07 nats off" in text
    plain = [twin for twin in found if twin.arm == BASE]
    for few in (found[3:], plain[:1] + found[3:], [msgspec.structs.replace(twin, seed=2) for twin in plain]):
        assert file_effects.ratios(few, "spread-2", "llama.cpp: Q4_0") == []
    assert file_effects.ratios(found, "spread-2", "llama.cpp: Q8_0") == []


def test_records_make_tables(tmp_path: Path) -> None:
    for seed in range(2):
        run.keep(_record(BASE, seed, [5.4, 5.0], 1.0), run.path_of(tmp_path, BASE, seed))
        run.keep(_record("spread-2", seed, [5.2, 5.1], 0.5), run.path_of(tmp_path, "spread-2", seed))
    run.keep(
        msgspec.structs.replace(_record("spread-0.5", 0, [5.1], 1.0), whole=False),
        run.path_of(tmp_path, "spread-0.5", 0),
    )
    artefacts.keep(tmp_path / "artefacts-ce-seed0-1-decayed.json", _twin(BASE, 1.0, 5.0, ()))
    found = records(tmp_path)
    assert len(found) == 4, "a run that is not whole is left out"
    assert names(found) == ["ce+lawa", "spread-2", "spread-2+lawa"]
    assert effects(found)["spread-2", "nearest-4"].ratio == pytest.approx(0.5, rel=0.05)
    assert "| `spread-2` | 1 | to zero | 2 | 5.100 |" in models(found)


def _arm(name: str, **changes: float) -> continued.Arm:
    rows = tuple(
        continued.Row(change=change, kl_parent=kl, kl_own=kl / 2, ce=3.5, seq_rep_4=0.25, sample="")
        for change, kl in changes.items()
    )
    return continued.Arm(
        name=name, model="m", model_sha256="", tokens=1, text_sha256="", evaluation_sha256="",
        mean_cosine=(0.1, 0.5, 0.4), minutes=1.0, rows=rows,
    )  # fmt: skip


def test_part_b_makes_tables(tmp_path: Path) -> None:
    rounded = {"nearest-4": 0.4, "gptq-4": 0.2, "nearest-3": 1.2, "gptq-3": 0.6}
    for arm in (_arm("ce", none=0.1, **rounded), _arm("distilled-3", none=0.5)):
        (tmp_path / f"continued-{arm.name}.json").write_bytes(msgspec.json.encode(arm))
    first, second = continued_table.table(continued_table.records(tmp_path)).split("\n\n")
    assert first.splitlines()[2:] == [
        "| `ce` | 3.500 | 0.100 | 0.2000 | 0.1000 | 0.6000 | 0.3000 | 0.25 | 0.25 | 0.50, 0.40 |"
    ]
    assert second.splitlines()[2:] == [
        "| 4 | `ce`, nearest | 0.400 | 3.500 | 0.25 |", "| 4 | `ce`, gptq | 0.200 | 3.500 | 0.25 |",
        "| 3 | `ce`, nearest | 1.200 | 3.500 | 0.25 |", "| 3 | `ce`, gptq | 0.600 | 3.500 | 0.25 |",
        "| 3 | `distilled-3` | 0.500 | 3.500 | 0.25 |",
    ]  # fmt: skip
