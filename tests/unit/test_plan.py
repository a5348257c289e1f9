"""Plans: which tensor gets which format, what it costs by hand, and that no fallback is silent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny

from edgekit.checkpoint.spec import Spec, spec_from_config
from edgekit.errors import GridError, OptionError, StrictError
from edgekit.grids import get
from edgekit.options import Container
from edgekit.quantize.choose import choose
from edgekit.quantize.plan import Plan, full_precision_plan, make_plan, refuse_fallbacks
from edgekit.targets import load

SMOLLM2 = Tiny(hidden=576, ffn=1536, layers=30, heads=9, kv_heads=3, head_dim=64, vocab=49152)
ROUND = Tiny(hidden=256, ffn=512, heads=4, kv_heads=4, head_dim=64, vocab=1024, tied=False)
EMBEDDING, LINEAR, NORMS = 49152 * 576, 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536), 61 * 576
DOWN = 30 * 576 * 1536


def spec(like: Tiny) -> Spec:
    return spec_from_config(tiny.config_of(like))


def plan(like: Tiny, container: Container, bits: int, target: str = "rpi5") -> Plan:
    return choose(spec(like), load(target), container, bits)


def grids(made: Plan) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for entry in made.entries:
        found.setdefault(entry.tensor.role, set()).add(entry.grid)
    return found


# -- refusals


@pytest.mark.parametrize("bits", [2, 5, 6, 7, 16])
def test_bits_that_nothing_is_built_at(bits: int) -> None:
    with pytest.raises(OptionError, match=f"--bits is {bits}; expected 3 or 4 or 8"):
        plan(SMOLLM2, "gguf", bits)


def test_strict_refuses_three_bits_where_rows_do_not_allow_them() -> None:
    with pytest.raises(StrictError) as told:
        refuse_fallbacks(plan(SMOLLM2, "gguf", 3))
    text = str(told.value)
    assert "180 of 210 linear layers cannot take 3 bits in gguf" in text
    assert "model.layers.0.self_attn.q_proj.weight [576, 576]" in text
    assert "Q3_K: rows of 576 weights are not divisible by 256" in text
    assert "it would become IQ4_NL" in text


def test_strict_refuses_three_bit_codes_in_four_bits() -> None:
    with pytest.raises(StrictError, match="210 linear layers would keep 3-bit codes in 4 bits each.*no 3-bit kernel"):
        refuse_fallbacks(choose(spec(SMOLLM2), load("rpi5"), "onnx", 3, portable=True))


@pytest.mark.parametrize(("container", "bits"), list(itertools.product(["gguf", "onnx"], [4, 8])))
def test_strict_accepts_what_is_as_asked(container: Container, bits: int) -> None:
    refuse_fallbacks(plan(SMOLLM2, container, bits))


def test_strict_accepts_three_bits_where_rows_allow_them() -> None:
    refuse_fallbacks(plan(ROUND, "gguf", 3))


def test_strict_refuses_a_target_that_names_a_wider_type(tmp_path: Path) -> None:
    """No shape forces it, but what was asked for is still not what would be written."""
    board = tmp_path / "wide.toml"
    board.write_text(
        'schema_version = 1\ninherits = "rpi5"\nname = "wide"\ntitle = "Wide"\ntier = 3\n'
        '[runtime.gguf.prefer]\n4 = ["Q5_0"]\n'
    )
    made = plan(SMOLLM2, "gguf", 4, str(board))
    with pytest.raises(StrictError, match="the target asks for Q5_0"):
        refuse_fallbacks(made)
    assert "only 0% of the linear weights are in 4-bit codes: not a 4-bit model" in made.title()


def test_rows_that_no_format_takes() -> None:
    with pytest.raises(GridError, match=r"embed_tokens\.weight takes none of .*rows of 80 weights"):
        plan(Tiny(hidden=80, head_dim=16, heads=5, kv_heads=5), "gguf", 4)
    with pytest.raises(GridError, match=r"embed_tokens\.weight takes none of .*rows of 80 weights"):
        plan(Tiny(hidden=80, head_dim=16, heads=5, kv_heads=5), "onnx", 4)


# -- what is chosen, and its arithmetic by hand


def test_four_bits_of_smollm2_by_hand() -> None:
    made = plan(SMOLLM2, "gguf", 4)
    assert grids(made)["embedding"] == {"Q8_0"}, "Q6_K needs rows divisible by 256"
    assert {grids(made)[role].pop() for role in ("attn_q", "attn_k", "attn_v", "ffn_down")} == {"IQ4_NL"}
    expected = LINEAR * 18 // 32 + EMBEDDING * 34 // 32 + NORMS * 4
    assert made.nbytes == expected == 89_941_248
    assert made.effective_bits == pytest.approx(8 * expected / 134_515_008)
    assert made.bytes_per_token == expected, "a tied embedding is the head too: all of it is read"
    assert made.title() == "4 bits requested, 5.35 bits per weight in the file"


def test_three_bits_of_smollm2_by_hand() -> None:
    made = plan(SMOLLM2, "gguf", 3)
    assert grids(made)["ffn_down"] == {"Q3_K"}
    assert grids(made)["ffn_up"] == grids(made)["attn_output"] == {"IQ4_NL"}
    expected = DOWN * 110 // 256 + (LINEAR - DOWN) * 18 // 32 + EMBEDDING * 24 // 32 + NORMS * 4
    assert made.nbytes == expected
    assert made.honest_share == pytest.approx(DOWN / LINEAR)
    assert made.title().endswith("only 25% of the linear weights are in 3-bit codes: not a 3-bit model")
    fallen = [entry for entry in made.entries if entry.reason and entry.tensor.rule.kind == "linear"]
    assert len(fallen) == 6 * 30
    assert {entry.requested_bits for entry in fallen} == {3}


def test_three_bits_in_onnx_say_what_they_are() -> None:
    made = plan(SMOLLM2, "onnx", 3)
    assert grids(made)["attn_q"] == {"int3-sym-b32"}
    assert grids(made)["embedding"] == {"embed-int8-sym-b32"}
    blocks, table = LINEAR // 32, EMBEDDING // 32 * (32 + 2)
    assert made.nbytes == blocks * (12 + 2) + table + NORMS * 4
    assert made.title() == "3 bits requested, 4.56 bits per weight in the file"
    refuse_fallbacks(made)
    made = choose(spec(SMOLLM2), load("rpi5"), "onnx", 3, portable=True)
    assert grids(made)["attn_q"] == {"int3-sym-b32-portable"}
    assert made.nbytes == blocks * (16 + 2) + table + NORMS * 4
    assert made.loaded_nbytes == made.nbytes + 2 * (blocks + EMBEDDING // 32), "stock operators widen scales"
    assert "3-bit codes are stored in 4 bits each: 3-bit quality at 4-bit size" in made.title()


def test_untied_embedding_is_not_read_for_a_token() -> None:
    made = plan(ROUND, "gguf", 4)
    table = next(entry for entry in made.entries if entry.tensor.role == "embedding")
    assert made.bytes_per_token == made.nbytes - table.nbytes


def test_true_three_bits_are_called_so() -> None:
    made = plan(ROUND, "gguf", 3)
    assert made.honest_share == 1
    assert "not a" not in made.title()


def test_one_stray_layer_is_enough_to_lose_the_name() -> None:
    """Rounding must not turn 99.9 % into "100%"."""

    def candidates(tensor: Any) -> tuple[str, ...]:
        return ("Q8_0",) if (tensor.role, tensor.layer) == ("attn_k", 0) else ("IQ4_NL",)

    made = make_plan(spec(SMOLLM2), "gguf", 4, candidates, lambda _: 4)
    assert 0.998 < made.honest_share < 1
    assert "only 99% of the linear weights are in 4-bit codes: not a 4-bit model" in made.title()


def test_full_precision_by_hand() -> None:
    gguf, onnx = full_precision_plan(spec(SMOLLM2), "gguf"), full_precision_plan(spec(SMOLLM2), "onnx")
    assert gguf.nbytes == 2 * (LINEAR + EMBEDDING) + 4 * NORMS
    assert onnx.nbytes == 4 * (LINEAR + EMBEDDING + NORMS)


def test_fused_projections_share_the_widest_grid() -> None:
    widths = {"attn_q": "int4-sym-b32", "attn_k": "int8-sym-b32", "attn_v": "int4-sym-b64"}

    def candidates(tensor: Any) -> tuple[str, ...]:
        if tensor.rule.kind in ("embedding", "head"):
            return ("embed-int8-sym-b32",)
        return (widths.get(tensor.role, "int4-sym-b32"),) if tensor.layer == 1 else ("int4-sym-b32",)

    made = make_plan(spec(Tiny()), "onnx", 4, candidates, lambda tensor: 8 if tensor.rule.kind == "embedding" else 4)
    second = {entry.tensor.role: entry for entry in made.entries if entry.tensor.layer == 1}
    assert {second[role].grid for role in widths} == {"int8-sym-b32"}
    assert second["attn_q"].reason == second["attn_v"].reason == "fused with attn_k"
    assert second["attn_q"].nbytes == get("int8-sym-b32").nbytes((64, 64))
    assert second["attn_output"].grid == "int4-sym-b32", "not part of the fused node"
    first = {entry.tensor.role: entry.grid for entry in made.entries if entry.tensor.layer == 0}
    assert {first[role] for role in widths} == {"int4-sym-b32"}, "layers are apart"
    alone = make_plan(spec(Tiny()), "gguf", 4, lambda t: ("Q8_0",) if t.role == "attn_k" else ("Q4_0",), lambda _: 4)
    assert {entry.grid for entry in alone.entries if entry.tensor.role == "attn_q"} == {"Q4_0"}, "only ONNX fuses"


@settings(max_examples=60, deadline=None)
@given(
    hidden=st.sampled_from([64, 96, 256, 288]), ffn=st.integers(1, 20).map(lambda n: 32 * n),
    heads=st.sampled_from([2, 4, 6]), bits=st.sampled_from([3, 4, 8]), container=st.sampled_from(["gguf", "onnx"]),
    tied=st.booleans(), vocab=st.integers(300, 1000),
)  # fmt: skip
def test_any_plan_is_honest(
    hidden: int, ffn: int, heads: int, bits: int, container: Container, tied: bool, vocab: int
) -> None:
    """Sizes are those of the grids, every wider linear layer has its reason, and the title admits it."""
    like = Tiny(hidden=hidden, ffn=ffn, heads=heads, kv_heads=2, head_dim=32, vocab=vocab, tied=tied)
    made = plan(like, container, bits)
    assert [entry.tensor for entry in made.entries] == list(spec(like).tensors)
    assert made.nbytes == sum(entry.nbytes for entry in made.entries)
    assert made.nbytes == sum(made.shares().values())
    fallen = False
    for entry in made.entries:
        if len(entry.tensor.shape) == 1:
            assert (entry.grid, entry.nbytes) == ("F32", 4 * entry.tensor.shape[0])
            continue
        grid = get(entry.grid)
        rows, columns = entry.tensor.shape
        assert grid.container == container
        assert grid.refusal((rows, columns)) is None
        assert grid.nbytes((rows, columns)) == entry.nbytes
        if entry.tensor.rule.kind == "linear" and grid.nominal_bits != bits:
            assert entry.reason
            fallen = True
    assert ("not a" in made.title()) == fallen
    if fallen:
        with pytest.raises(StrictError):
            refuse_fallbacks(made)
