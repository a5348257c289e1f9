"""Importance matrices in llama.cpp's files: what its llama-imatrix gathers and its llama-quantize takes.

The GGUF form has `general.type` "imatrix" and for each matrix two float32 tensors: NAME.in_sum2, for each input the sum
of its squares over all tokens, and NAME.counts, the number of tokens; one row of both for each expert, so one row here.
The older .dat form is a sequence of records: the name, a number of calls, and values that are the mean squares times
that number. Facts: llama.cpp's common/imatrix-loader.cpp, tools/imatrix and tools/quantize. Names are those of GGUF
files. GGUF permutes the rows of some matrices, never their inputs, so both hold the inputs in the checkpoint's order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint.spec import Spec, TensorSpec
from edgekit.engines.base import F32, Ids
from edgekit.errors import BadWeightsError, FileFormatError, InputNotFoundError, OptionError
from edgekit.files import whole_file
from edgekit.gguf_header import GgufHeader, read_header
from edgekit.quantize.importance import Importance

F64 = NDArray[np.float64]
MAX_BYTES = 256 << 20
"""Of a file; that of a model of 70 billion weights has 25 MB."""
SUMS, COUNTS = ".in_sum2", ".counts"
_KIND = "imatrix"
_MAX_ENTRIES, _MAX_NAME = 1 << 17, 65_535
_AGAIN = "gather it again with llama-imatrix or edgekit imatrix"
_OWN = "gather one of this model with edgekit imatrix or llama-imatrix"


@dataclass(frozen=True)
class Imatrix:
    """What a file says."""

    path: Path
    means: Mapping[str, F32]
    """Name in GGUF → (experts, inputs), the mean square of every input; finite, not negative."""


def read(path: Path) -> Imatrix:
    """Read and check an importance matrix; it may come from a stranger.

    Raises:
        InputNotFoundError: nothing is there.
        FileFormatError: too large, neither of the two forms, cut short; a tensor without its other half, of another
            type or with a value that is NaN, infinite or negative; a count below 1. Names the tensor.
    """
    if not path.is_file():
        raise InputNotFoundError(
            f"there is no importance matrix at {path}", remedy="check the path given with --imatrix"
        )
    if path.stat().st_size > MAX_BYTES:
        raise FileFormatError(f"{path} is larger than {MAX_BYTES >> 20} MiB", expected="an importance matrix")
    data = path.read_bytes()
    entries = _gguf_entries(path, data) if data[:4] == b"GGUF" else _legacy_entries(path, data)
    means: dict[str, F32] = {}
    for name, sums, counts in entries:
        if name in means:
            raise FileFormatError(f"{path} has {name} twice", remedy=_AGAIN)
        means[name] = _means(path, name, sums, counts)
    if not means:
        raise FileFormatError(f"{path} is an importance matrix of no tensor", remedy=_AGAIN)
    return Imatrix(path, means)


def _means(path: Path, name: str, sums: F64, counts: F64) -> F32:
    """Mean squares (experts, inputs)."""
    if not counts.size or not sums.size or sums.size % counts.size:
        raise FileFormatError(f"{path} has {sums.size} sums and {counts.size} counts for {name}", remedy=_AGAIN)
    if (bad := ~(np.isfinite(sums) & (sums >= 0))).any():
        at = int(bad.argmax())
        raise FileFormatError(
            f"{path} says that input {at} of {name} has the sum of squares {sums[at]:g}",
            expected="finite numbers, none below 0",
            remedy=_AGAIN,
        )
    if not (np.isfinite(counts) & (counts >= 1)).all():
        raise FileFormatError(
            f"{path} counts {counts.min():g} tokens for {name}",
            expected="at least one",
            remedy="gather it again on more text",
        )
    found: F32 = (sums.reshape(counts.size, -1) / counts[:, None]).astype(np.float32)
    return found


Entry = tuple[str, F64, F64]
"""Name, sums of squares, counts."""


def _gguf_entries(path: Path, data: bytes) -> Iterator[Entry]:
    header = read_header(path)
    kind = header.fields.get("general.type")
    if kind is None or kind.value != _KIND:
        said = "nothing" if kind is None else repr(kind.value)
        raise FileFormatError(
            f"{path} is a GGUF file whose general.type is {said}", expected=f'"{_KIND}"', remedy=_AGAIN
        )
    values = _reader(path, data, header)
    for name in sorted({tensor.name.removesuffix(SUMS).removesuffix(COUNTS) for tensor in header.tensors}):
        yield name, values(name + SUMS), values(name + COUNTS)


def _reader(path: Path, data: bytes, header: GgufHeader) -> Callable[[str], F64]:
    """Tensor name → its values."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    dtype = np.dtype(np.float32).newbyteorder("<" if header.byte_order == "little" else ">")

    def values(name: str) -> F64:
        if (tensor := tensors.get(name)) is None:
            raise FileFormatError(f"{path} has no {name}", expected=f"NAME{SUMS} and NAME{COUNTS}", remedy=_AGAIN)
        if tensor.type != "F32":
            raise FileFormatError(f"{path} has {name} in {tensor.type}", expected="F32", remedy=_AGAIN)
        if tensor.at + tensor.nbytes > len(data):
            raise FileFormatError(f"{path} ends within {name}", remedy=_AGAIN)
        return _doubles(np.frombuffer(data, dtype, tensor.parameters, tensor.at))

    return values


def _doubles(values: NDArray[np.float32]) -> F64:
    with np.errstate(invalid="ignore"):  # a signalling NaN; NaN is looked for later
        return values.astype(np.float64)


def _legacy_entries(path: Path, data: bytes) -> Iterator[Entry]:
    at = 0

    def take(size: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= size <= len(data) - at:
            raise FileFormatError(
                f"{path} is no importance matrix, or ends early: it has {len(data) - at} of {size} bytes of its {what}",
                expected="a file of llama-imatrix, GGUF or .dat",
                remedy=_AGAIN,
            )
        at += size
        return data[at - size : at]

    def number(what: str, most: int) -> int:
        (value,) = struct.unpack("<i", take(4, what))
        if not 1 <= value <= most:
            raise FileFormatError(
                f"{path} is no importance matrix, or a damaged one: its {what} is {value}",
                expected=f"1 to {most}",
                remedy=_AGAIN,
            )
        return int(value)

    for _ in range(number("number of tensors", _MAX_ENTRIES)):
        name = take(number("length of a name", _MAX_NAME), "name").decode("utf8", "backslashreplace")
        calls = number(f"number of calls for {name}", 1 << 30)
        count = number(f"number of values of {name}", MAX_BYTES // 4)
        values = np.frombuffer(take(4 * count, f"values of {name}"), "<f4")
        yield name, _doubles(values), np.array([calls], np.float64)


def for_model(found: Imatrix, spec: Spec) -> Importance:
    """The importance of the model's matrices, by the checkpoint's names.

    llama-imatrix leaves the output matrix out unless it is told `--process-output`, so that may be missing: see
    :func:`missing`. Where it is tied to the embedding, either name is taken.

    Raises:
        OptionError: it is of another model: it names a matrix that this one does not have, says nothing of a linear
            layer, or has another number of inputs. Names the tensor.
    """
    matrices = {tensor.gguf: tensor for tensor in spec.tensors if tensor.rule.kind in ("linear", "head", "embedding")}
    given = dict(found.means)
    if spec.tied:
        output = given.pop(next(rule.gguf for rule in spec.family.tensors if rule.kind == "head"), None)
        if output is not None:
            given.setdefault(_output(spec).gguf, output)
    _refuse("names {}, which this model does not have", found, [name for name in given if name not in matrices])
    linear = [name for name, tensor in matrices.items() if tensor.rule.kind == "linear"]
    _refuse("says nothing of {}", found, [name for name in linear if name not in given])
    for name, means in given.items():
        if means.shape != (1, matrices[name].shape[1]):
            several = f"{len(means)} times " if len(means) > 1 else ""
            raise OptionError(
                f"{found.path} has {several}{means.shape[1]} inputs for {name}",
                expected=f"{matrices[name].shape[1]}, as this model has",
                remedy=_OWN,
            )
    return {matrices[name].hf: means[0] for name, means in given.items()}


def _refuse(what: str, found: Imatrix, names: Sequence[str]) -> None:
    if names:
        first = min(names) + (f" and {len(names) - 1} others" if len(names) > 1 else "")
        raise OptionError(
            f"{found.path} {what.format(first)}", expected="an importance matrix of this model", remedy=_OWN
        )


def missing(importance: Importance, spec: Spec) -> str | None:
    """The checkpoint's name of the output matrix when there is no importance of it."""
    name = _output(spec).hf
    return None if name in importance else name


def _output(spec: Spec) -> TensorSpec:
    """The head, or the embedding that it is tied to."""
    kind = "embedding" if spec.tied else "head"
    return next(tensor for tensor in spec.tensors if tensor.rule.kind == kind)


def write(
    path: Path, importance: Importance, spec: Spec, sequences: Sequence[Ids], dataset: str, *, force: bool = False
) -> None:
    """Write an importance matrix in the GGUF form, which llama-quantize and :func:`read` take.

    Args:
        path: of the new file; it appears when it is whole.
        importance: the checkpoint's tensor names → mean squares; see :func:`edgekit.quantize.importance.gather`.
        spec: of the model.
        sequences: the calibration text, whose tokens are counted.
        dataset: what the text was, for people.
        force: replace an existing file.

    Raises:
        OutputExistsError, OutputError: the file is there, or cannot be written.
        BadWeightsError: a sum of squares is more than a float32 holds; names the tensor.
    """
    from gguf import GGUFWriter

    tokens = sum(map(len, sequences))
    names = {tensor.hf: tensor.gguf for tensor in spec.tensors}
    with whole_file(path, force=force) as fresh:
        writer = GGUFWriter(fresh, "")  # no architecture: it is not a model
        writer.add_type(_KIND)
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", len(sequences))
        writer.add_uint32("imatrix.chunk_size", max(map(len, sequences)))
        for name, hf in sorted((names[hf], hf) for hf in importance):
            writer.add_tensor(name + SUMS, _sums(hf, importance[hf], tokens))
            writer.add_tensor(name + COUNTS, np.full(1, tokens, np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _sums(name: str, means: F32, tokens: int) -> F32:
    """Sums of squares (inputs,)."""
    with np.errstate(over="ignore"):
        sums: F32 = (means.astype(np.float64) * tokens).astype(np.float32)
    if not np.isfinite(sums).all():
        raise BadWeightsError(
            f"the inputs of {name} are so large that the sum of their squares is no float32",
            remedy="calibrate with another text, or use an earlier checkpoint",
        )
    return sums
