"""Instructions and the CPU features they need: each rule bites, and none bites what every 64-bit ARM core has."""

from __future__ import annotations

import capstone
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_elf import NOP, RET, SDOT, WORDS

from edgekit import targets
from edgekit.crossbuild import isa
from edgekit.errors import OptionError, TargetFileError

NO_INSTRUCTION = 0xFFFFFFFF


def feature_by_itself(word: int) -> str:
    """What the disassembler says of one word, without the choice of words that :func:`isa.find` makes first."""
    engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
    return "".join(isa.feature_of(text, rest) for _, _, text, rest in engine.disasm_lite(word.to_bytes(4, "little"), 0))


def found(*words: int) -> isa.Found:
    return isa.find(np.array(words, np.uint32))


# --- targets that cannot be judged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "march", ["", "armv8", "armv7-a", "armv8.2-a+warp", "native", "armv8.9-a", "armv8.2-a+", "x86-64"]
)
def test_unknown_march(march: str) -> None:
    with pytest.raises(TargetFileError, match="march"):
        isa.march_features(march)


def test_a_target_without_a_processor() -> None:
    with pytest.raises(OptionError, match="host"):
        isa.target_features(targets.load("host"))


# --- what targets have -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("march", "has", "lacks"),
    [
        ("armv8-a", "asimd fp", "crc32 atomics"),
        ("armv8-a+crc", "crc32", "aes atomics"),
        ("armv8.2-a+dotprod+fp16", "atomics crc32 asimdrdm dcpop asimddp fphp asimdhp", "lrcpc aes i8mm sve"),
        ("armv8.6-a", "i8mm bf16 lrcpc asimddp", "sve aes fphp"),
        ("armv9-a+sve2+i8mm+bf16", "sve sve2 i8mm bf16 frint atomics", "sme aes"),
    ],
)
def test_what_a_march_allows(march: str, has: str, lacks: str) -> None:
    features = isa.march_features(march)
    assert set(has.split()) <= features
    assert features.isdisjoint(lacks.split())


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("rpi5", "asimddp fphp asimdhp atomics aes pmull sha2 lrcpc crc32", "i8mm bf16 sve sha3 asimdfhm fcma"),
        ("rpi4", "asimd crc32", "aes pmull sha1 sha2 atomics asimddp fphp lrcpc"),
        ("arm64-generic", "asimd fp", "crc32 aes atomics asimddp"),
        ("rk3588", "asimddp atomics", "i8mm sve"),
        ("jetson-thor", "sve2 i8mm svei8mm bf16 svebf16 fcma lrcpc asimdrdm", "sme"),
    ],
)
def test_what_a_target_has(name: str, has: str, lacks: str) -> None:
    features = isa.target_features(targets.load(name))
    assert set(has.split()) <= features
    assert features.isdisjoint(lacks.split())


def test_every_target_that_is_compiled_for_can_be_judged() -> None:
    for name in targets.names():
        target = targets.load(name)
        if target.toolchain is not None:
            assert {"fp", "asimd"} <= isa.target_features(target), name


# --- single instructions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", WORDS)
def test_feature_of_an_instruction(text: str) -> None:
    word, feature = WORDS[text]
    hits = found(NOP, word, RET)
    assert hits.at.tolist() == ([1] if feature else [])
    if feature:
        (instruction,) = hits.instructions
        assert instruction.feature == feature
        assert f"{instruction.mnemonic} {instruction.operands}".strip() == text
        assert feature in isa.ALL


@pytest.mark.parametrize(
    ("mnemonic", "operands", "feature"),
    [
        ("ldaddal", "x0, x1, [x2]", "atomics"), ("stumaxlh", "w0, [x2]", "atomics"),
        ("swpab", "w0, w1, [x2]", "atomics"), ("caspal", "x0, x1, x2, x3, [x4]", "atomics"),
        ("ldset", "w0, w1, [x2]", "atomics"),
        ("ldaxp", "x0, x1, [x2]", ""), ("stlxr", "w0, x1, [x2]", ""), ("casting", "x0", ""),
        ("stp", "x0, x1, [x2]", ""),
        ("pmullb", "z0.h, z1.b, z2.b", "sve2"), ("pmullb", "z0.q, z1.d, z2.d", "svepmull"),
        ("fmmla", "z0.s, z1.s, z2.s", "svef32mm"), ("fmmla", "z0.d, z1.d, z2.d", "svef64mm"),
        ("ldr", "za[w12, 0], [x0]", "sme"), ("ldr", "z0, [x0]", "sve"), ("ldr", "x0, [x1, x2]", ""),
        ("prfm", "pldl1keep, [x0]", ""), ("movi", "v0.8h, #1", ""), ("fcsel", "h0, h1, h2, eq", "fphp"),
        ("ucvtf", "v0.4h, v1.4h", "asimdhp"), ("fcvtzs", "w0, h0", "fphp"), ("fcvtxn", "s0, d1", ""),
        ("umov", "w0, v0.h[1]", ""), ("sqdmulh", "v0.4h, v1.4h, v2.h[0]", ""), ("shl", "v0.8h, v1.8h, #3", ""),
        ("mrs", "x0, ctr_el0", ""), ("msr", "dit, #1", "dit"), ("dc", "civac, x0", ""),
    ],
)  # fmt: skip
def test_spellings(mnemonic: str, operands: str, feature: str) -> None:
    assert isa.feature_of(mnemonic, operands) == feature


# --- stretches of code -----------------------------------------------------------------------------------------------


def test_nothing() -> None:
    hits = found()
    assert (len(hits.at), hits.instructions, hits.skipped) == (0, (), 0)


def test_places_and_counts() -> None:
    fmla = WORDS["fmla v0.8h, v1.8h, v2.8h"][0]
    hits = found(SDOT, NOP, fmla, SDOT, RET)
    assert hits.at.tolist() == [0, 2, 3]
    assert [hits.instructions[index].feature for index in hits.which.tolist()] == ["asimddp", "asimdhp", "asimddp"]
    assert dict(hits.counts()) == {"asimddp": 2, "asimdhp": 1}


def test_a_word_among_data_is_no_instruction() -> None:
    hits = found(*[NOP] * 9, NO_INSTRUCTION, SDOT, NO_INSTRUCTION, *[NOP] * 9)
    assert (len(hits.at), hits.skipped) == (0, 1)


def test_code_goes_on_behind_data() -> None:
    hits = found(NO_INSTRUCTION, NO_INSTRUCTION, *[NOP] * 9, SDOT, RET)
    assert hits.at.tolist() == [11]


def test_zeros_between_functions_hide_nothing() -> None:
    hits = found(0, 0, SDOT, 0, 0)
    assert (hits.at.tolist(), hits.skipped) == ([2], 0)


def test_what_the_disassembler_does_not_know_is_not_taken_for_data() -> None:
    addsvl = 0x04305830
    hits = found(SDOT, addsvl, SDOT)
    assert dict(hits.counts()) == {"asimddp": 2, "sme": 1}


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([word for word, _ in WORDS.values()]), max_size=60))
def test_any_words(words: list[int]) -> None:
    hits = found(*words)
    assert sorted(hits.at.tolist()) == hits.at.tolist()
    special = [index for index, word in enumerate(words) if feature_by_itself(word)]
    assert set(hits.at.tolist()) <= {*special, *(i for i, word in enumerate(words) if word & 0xFF1FF800 == 0x04005800)}
    assert len(hits.at) + hits.skipped >= len(special)
    for at, which in zip(hits.at.tolist(), hits.which.tolist(), strict=True):
        instruction = hits.instructions[which]
        assert instruction.word == words[at]
        assert instruction.feature in isa.ALL


@settings(deadline=None)
@given(st.lists(st.sampled_from([word for word, _ in WORDS.values()]), max_size=40))
def test_each_instruction_by_itself_and_all_together(words: list[int]) -> None:
    expected = [feature for word in words for w, feature in WORDS.values() if w == word and feature]
    assert sorted(found(*words).counts().elements()) == sorted(expected)
