"""A checkpoint and a plan become one GGUF file, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, ReaderTensor, dequantize
from numpy.typing import NDArray

from edgekit.checkpoint.architectures import RowOrder
from edgekit.checkpoint.checkpoint import F32, PIECE, Checkpoint
from edgekit.checkpoint.rope import Llama3
from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.errors import GridError, ParityError
from edgekit.export.digests import Digest, Digests
from edgekit.export.gguf_vocab import GgufVocab, read_vocab
from edgekit.grids import get
from edgekit.grids.base import Quantized
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry, Plan
from edgekit.quantize.rounded import Rounded, pieces

Tick = Callable[[str], None]
_NOTHING = Rounded()


def file_rows(weights: NDArray[Any], order: RowOrder, spec: Spec) -> NDArray[Any]:
    """Rows (or a bias) as GGUF stores them: a rotary pair adjacent instead of half a head apart. Shape is kept."""
    if order == "as_is":
        return weights
    heads = spec.heads if order == "rope_q" else spec.kv_heads
    half = weights.shape[0] // heads // 2
    return np.ascontiguousarray(weights.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weights.shape))


def checkpoint_rows(weights: F32, order: RowOrder, spec: Spec) -> F32:
    """The inverse of :func:`file_rows`."""
    if order == "as_is":
        return weights
    heads = spec.heads if order == "rope_q" else spec.kv_heads
    half = weights.shape[0] // heads // 2
    return np.ascontiguousarray(weights.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weights.shape))


def _add_metadata(writer: GGUFWriter, checkpoint: Checkpoint, plan: Plan) -> None:
    spec = checkpoint.spec
    writer.add_type("model")
    writer.add_name(checkpoint.name)
    adders = {"u32": writer.add_uint32, "f32": writer.add_float32, "str": writer.add_string}
    for key, (attribute, kind) in spec.family.gguf_metadata.items():
        if (value := getattr(spec, attribute)) is not None:
            adders[kind](f"{spec.family.gguf_arch}.{key}", value)
    writer.add_quantization_version(2)
    writer.add_file_type(file_type(plan))
    writer.add_string("edgekit.requested_bits", str(plan.bits))
    writer.add_string("edgekit.effective_bits", f"{plan.effective_bits:.3f}")


def file_type(plan: Plan) -> int:
    """llama.cpp's label of the type that most bytes have; only a label, its loader reads each tensor's own type."""
    name = plan.main_grid
    labels = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_S", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}
    return int(getattr(LlamaFileType, labels.get(name, f"MOSTLY_{name}"), LlamaFileType.GUESSED))


def _add_vocab(writer: GGUFWriter, vocab: GgufVocab) -> None:
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(list(vocab.tokens))
    writer.add_token_types(list(vocab.types))
    if vocab.merges:
        writer.add_token_merges(list(vocab.merges))
    if vocab.scores:
        writer.add_token_scores(list(vocab.scores))
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, index in vocab.special.items():
        adders[name](index)
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_space_prefix(vocab.add_space_prefix)
    if vocab.chat_template:
        writer.add_chat_template(vocab.chat_template)


def write_gguf(
    checkpoint: Checkpoint,
    plan: Plan,
    path: Path,
    *,
    importance: Importance | None = None,
    rounded: Rounded = _NOTHING,
    tick: Tick = lambda _: None,
) -> Digests:
    """Write the model as `plan` says. Holds one tensor at a time.

    Args:
        checkpoint: the full-precision model.
        plan: of container "gguf"; one grid for each tensor.
        path: of the new file (the caller renames it when whole).
        importance: weighs the inputs of a layer when its codes are chosen; None: all the same.
        rounded: codes that are written as they are.
        tick: called with the name of each written tensor.

    Returns:
        For each tensor, the digest of the weights that its stored codes stand for; see :func:`check_bytes`.

    Raises:
        TokenizerError: the tokenizer cannot be expressed in GGUF.
        BadWeightsError: a tensor holds NaN or infinity.
        GridError: the installed package gguf does not know a format.
    """
    spec = checkpoint.spec
    vocab = read_vocab(checkpoint.root, spec.vocab_size)
    planned: Digests = {}
    writer = GGUFWriter(path, spec.family.gguf_arch)
    try:
        _add_metadata(writer, checkpoint, plan)
        _add_vocab(writer, vocab)
        factors = _rope_factors(spec)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        for entry in plan.entries:
            kind = _type(entry.grid)
            size = get(entry.grid).nbytes(_matrix(entry.tensor))
            shape = _byte_shape(entry.tensor, size)
            writer.add_tensor_info(entry.tensor.gguf, shape, np.dtype(np.uint8), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for entry in plan.entries:
            blocks = _Blocks(checkpoint, entry, (importance or {}).get(entry.tensor.hf), rounded)
            writer.write_tensor_data(blocks)
            planned[entry.tensor.gguf] = blocks.found.text()
            tick(entry.tensor.gguf)
    finally:
        writer.close()
    return planned


def unwritable(grid: str) -> str | None:
    """Why the installed writer cannot write a format; None when it can."""
    known = grid in GGMLQuantizationType.__members__
    return None if known else f"the installed package gguf ({version('gguf')}) does not know it"


def _type(grid: str) -> GGMLQuantizationType:
    if reason := unwritable(grid):
        raise GridError(
            f"{grid} cannot be written: {reason}", expected="a format of that package",
            remedy="plan another format of as many bits",
        )  # fmt: skip
    return GGMLQuantizationType[grid]


def _rope_factors(spec: Spec) -> F32 | None:
    """Llama 3's scaling is a tensor in GGUF, the others are metadata."""
    if not isinstance(spec.rope.scaling, Llama3):
        return None
    return spec.rope.scaling.divisors(spec.head_dim, spec.rope.theta).astype(np.float32)


def _matrix(tensor: TensorSpec) -> tuple[int, int]:
    return (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) == 2 else (1, tensor.shape[0])


def _byte_shape(tensor: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape in bytes, which is what GGUFWriter takes for raw blocks of any type."""
    return (*tensor.shape[:-1], size // math.prod(tensor.shape[:-1]))


@dataclass
class _Blocks:
    """A tensor's bytes as GGUFWriter wants an array's, made while they are written: no more than a piece is held."""

    checkpoint: Checkpoint
    entry: Entry
    importance: F32 | None
    rounded: Rounded
    found: Digest = field(default_factory=Digest)
    """Of the weights that the bytes stand for; complete when they are written."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return get(self.entry.grid).nbytes(_matrix(self.entry.tensor))

    def tofile(self, stream: BinaryIO) -> None:
        """Quantize and write."""
        for quantized in self._quantized():
            grid = get(self.entry.grid)
            self.found.update(grid.dequantize(quantized))
            stream.write(grid.pack(quantized)["data"].data)

    def _quantized(self) -> Iterator[Quantized]:
        """Pieces of the matrix, rows in the file's order."""
        tensor, grid = self.entry.tensor, get(self.entry.grid)
        if (given := self.rounded.load(tensor.hf)) is not None:
            order, spec = tensor.rule.rows, self.checkpoint.spec
            fields = {name: file_rows(array, order, spec) for name, array in given.fields.items()}
            yield from pieces(Quantized(given.grid, given.shape, fields), PIECE)
            return
        whole = tensor.rule.rows != "as_is"  # rows change places
        for piece in [self.checkpoint.read(tensor)] if whole else self.checkpoint.pieces(tensor):
            weights = file_rows(piece, tensor.rule.rows, self.checkpoint.spec)
            if tensor.rule.shift:
                weights = weights + np.float32(tensor.rule.shift)
            yield grid.quantize(weights.reshape(-1, tensor.shape[-1]), self.importance)


def read_weights(path: Path, spec: Spec) -> Iterator[tuple[str, F32]]:
    """Hugging Face name and weights (in the checkpoint's row order) of every tensor, decoded by the official reader.

    Raises:
        ParityError: the file lacks a tensor.
    """
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for tensor in spec.tensors:
        if (found := stored.get(tensor.gguf)) is None:
            raise ParityError(f"{path} lacks the tensor {tensor.gguf}")
        weights = dequantize(found.data, found.tensor_type).astype(np.float32).reshape(tensor.shape)
        weights = weights - np.float32(tensor.rule.shift) if tensor.rule.shift else weights
        yield tensor.hf, checkpoint_rows(weights, tensor.rule.rows, spec)


def check_bytes(path: Path, plan: Plan, planned: Digests, *, tick: Tick = lambda _: None) -> None:
    """Compare every tensor of the file, decoded by gguf-py, with what was planned for it.

    Args:
        path: of the file.
        plan: what it was written from.
        planned: as :func:`write_gguf` returned it.
        tick: called with the name of each compared tensor.

    Raises:
        ParityError: names the first tensor whose type or values differ.
    """
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for entry in plan.entries:
        name = entry.tensor.gguf
        found = stored[name].tensor_type.name if name in stored else "nothing"
        if found != entry.grid:
            raise ParityError(f"tensor {name} is stored as {found}", expected=entry.grid, remedy="report this as a bug")
        if _decoded(stored[name]) != planned[name]:
            raise ParityError(f"tensor {name} does not decode to what was planned", remedy="report this as a bug")
        tick(name)


def _decoded(tensor: ReaderTensor) -> str:
    """The digest of a stored tensor's weights; its rows are decoded a piece at a time."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, PIECE // int(tensor.shape[0]))
    found = Digest()
    for begin in range(0, rows.shape[0], step):
        found.update(dequantize(rows[begin : begin + step], tensor.tensor_type))
    return found.text()
