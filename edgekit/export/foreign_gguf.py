"""A GGUF file that a llama.cpp tree's own converter wrote, as the source of an artefact: its matrices become codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize
from numpy.typing import NDArray

from edgekit.checkpoint.architectures import Kind
from edgekit.checkpoint.checkpoint import F32
from edgekit.errors import BadWeightsError, ConverterError
from edgekit.export import gguf
from edgekit.export.digests import Digests, digest
from edgekit.export.foreign import Stored, Tick
from edgekit.grids import get
from edgekit.quantize.importance import Importance
from edgekit.quantize.plan import Entry, Plan

_OURS = ("general.architecture", "general.file_type", "general.quantization_version")
_MATRIX = "F16"
"""What the converter, asked for float16, stores as float16 may be quantized; the rest it keeps in float32 because
llama.cpp needs it so: norms, biases, routers, convolutions, positions."""

Blocks = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Part:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    blocks: Blocks
    """Makes its bytes when it is its turn."""


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file in float16 and float32."""

    path: Path
    container: Literal["gguf"] = "gguf"

    @cached_property
    def _reader(self) -> Any:
        try:
            return GGUFReader(self.path)
        except Exception as error:  # the reader checks little and raises whatever that leads to
            raise ConverterError(
                f"{self.path} cannot be read as GGUF ({type(error).__name__}: {error})",
                remedy="use another revision of the llama.cpp tree",
            ) from error

    @cached_property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        field = self._reader.fields.get("general.architecture")
        if field is None or not isinstance(name := field.contents(), str):
            raise ConverterError(f"{self.path} names no architecture", remedy="use another llama.cpp tree")
        return name

    @cached_property
    def _tensors(self) -> Mapping[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def tensors(self) -> Sequence[Stored]:
        """See Converted."""
        return [
            Stored(name, _shape(tensor), _kind(name, tensor), tensor.tensor_type.name, int(tensor.n_bytes))
            for name, tensor in self._tensors.items()
        ]

    def read(self, name: str) -> F32:
        """See Converted."""
        tensor = self._tensors[name]
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(_shape(tensor))
        if not np.isfinite(weights).all():
            raise BadWeightsError(
                f"tensor {name} of the converted model holds NaN or infinite values",
                expected="weights within float16's range, below 65504",
                remedy="the checkpoint is broken or needs a wider type: use another one",
            )
        return np.ascontiguousarray(weights)

    def write(self, plan: Plan, path: Path, importance: Importance, tick: Tick) -> Digests:
        """See Converted; all metadata but the label of the type goes along."""
        planned: Digests = {}

        def part(entry: Entry) -> _Part:
            name = entry.tensor.gguf
            if not entry.tensor.rule.matrix:
                return self._same(name, planned)
            return _Part(name, entry.tensor.shape, entry.grid, entry.nbytes, lambda: blocks(entry))

        def blocks(entry: Entry) -> NDArray[np.uint8]:
            grid, tensor = get(entry.grid), entry.tensor
            quantized = grid.quantize(self.read(tensor.gguf), importance.get(tensor.hf))
            planned[tensor.gguf] = digest(grid.dequantize(quantized))
            return np.asarray(grid.pack(quantized)["data"], np.uint8)

        labels = {"requested_bits": str(plan.bits), "effective_bits": f"{plan.effective_bits:.3f}"}
        self._write(path, [part(entry) for entry in plan.entries], gguf.file_type(plan), labels, tick)
        return planned

    def _same(self, name: str, planned: Digests) -> _Part:
        """The tensor as it is stored."""
        tensor = self._tensors[name]
        planned[name] = digest(dequantize(tensor.data, tensor.tensor_type))

        def raw() -> NDArray[np.uint8]:
            return np.ascontiguousarray(tensor.data).view(np.uint8)

        return _Part(name, _shape(tensor), tensor.tensor_type.name, int(tensor.n_bytes), raw)

    def _write(self, path: Path, parts: Sequence[_Part], file_type: int, labels: Mapping[str, str], tick: Tick) -> None:
        writer = GGUFWriter(path, self.architecture)
        try:
            for name, value, kind, inner in self._metadata():
                writer.add_key_value(name, value, kind, inner)
            writer.add_quantization_version(2)
            writer.add_file_type(file_type)
            for name, text in labels.items():
                writer.add_string(f"edgekit.{name}", text)
            for part in parts:
                shape = (*part.shape[:-1], part.nbytes // max(1, math.prod(part.shape[:-1])))
                kind = GGMLQuantizationType[part.dtype]
                writer.add_tensor_info(part.name, shape, np.dtype(np.uint8), part.nbytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for part in parts:
                writer.write_tensor_data(part.blocks().reshape(-1))
                tick(part.name)
        finally:
            writer.close()

    def _metadata(self) -> Iterator[tuple[str, Any, Any, Any]]:
        """Key, value, type and, of an array, its elements' type."""
        for name, field in self._reader.fields.items():
            if name in _OURS or name.startswith("GGUF."):
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            yield name, field.contents(), kind, inner

    def check_bytes(self, plan: Plan, path: Path, planned: Digests, tick: Tick) -> None:
        """See Converted."""
        gguf.check_bytes(path, plan, planned, tick=tick)

    def write_dequantized(self, plan: Plan, written: Path, path: Path) -> None:
        """See Converted; the weights are rounded to float16."""
        codes = GgufSource(written)

        def half(name: str) -> NDArray[np.uint8]:
            return codes.read(name).astype(np.float16).view(np.uint8)

        parts = [
            self._same(entry.tensor.gguf, {})
            if not entry.tensor.rule.matrix
            else _Part(
                entry.tensor.gguf, entry.tensor.shape, _MATRIX, 2 * entry.tensor.parameters,
                lambda name=entry.tensor.gguf: half(name),  # type: ignore[misc]
            )
            for entry in plan.entries
        ]  # fmt: skip
        self._write(path, parts, int(LlamaFileType.MOSTLY_F16), {}, lambda _: None)


def _shape(tensor: Any) -> tuple[int, ...]:
    """Rows first; GGUF counts the other way round."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _kind(name: str, tensor: Any) -> Kind:
    if len(tensor.shape) != 2 or tensor.tensor_type.name != _MATRIX or not name.endswith(".weight"):
        return "norm"
    kinds: dict[str, Kind] = {"token_embd.weight": "embedding", "output.weight": "head"}
    return kinds.get(name, "linear" if name.startswith("blk.") else "norm")
